"""Run a whole recipe live, prune, fine-tune with the teacher, share, pack; beside it the same without the teacher."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import ipywidgets as widgets
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lab.compression import FineTune, Prune, Share, pack
from kd_lab.compression.recipe import FLOAT32, check_recipe, with_masks
from kd_lab.compression.stages import Stage
from kd_lab.cost import count_nonzeros, count_parameters
from kd_lab.data import Mnist, Split
from kd_lab.distillation import DistillationLoss, with_answers
from kd_lab.evaluation import Accuracy, accuracy, predict_classes
from kd_lab.panels.measurement import Comparison, dense_network, percent, points, table
from kd_lab.panels.panel import Panel, Shown
from kd_lab.panels.recipe_picture import PRUNINGS, SIZE, RecipeAnswer, RecipePicture, RecipeSetting, Step
from kd_lab.panels.slider import BitSlider, FractionSlider, Slider
from kd_lab.parametrizations import make_permanent
from kd_lab.pruning import cubic_sparsities
from kd_lab.training import train_live

IMAGES = 10_000  # the recipe is to take seconds
TRAINING = {"batch_size": 128, "learning_rate": 2e-3}
KEPT = 60  # networks after a stage; one of lenet300 takes a megabyte
TABLES_HEIGHT = 230


class RecipePanel(Panel):
    """Put a network of the kit, of this name, live through a recipe, taught and on labels alone.

    It is pruned in four steps, fine-tuned after each and once more, and then its weights share 2^bits values. Both see
    the same 10,000 training images in the same batches. `data` is what load_mnist() gives; accuracy is measured on the
    validation part; only the button "Reveal test" reads the test part. What was made at a setting is kept: other bits
    share the weights of the same pruned network.
    """

    def __init__(self, model: nn.Module, name: str, teacher: nn.Module, data: Mnist):
        check_recipe("RecipePanel", model, name, teacher, data)
        self._dense, self._name = dense_network("RecipePanel", model, data), name
        self._teacher, self._data = teacher, data
        self._taught = [with_answers(teacher, part)
                        for part in (Split(*(part[:IMAGES] for part in data.train)), data.validation)]
        self._start = self._step(self._dense)
        self._made: dict[tuple, nn.Module] = {}  # the one used last stands last
        self._tests: dict[RecipeSetting, tuple[Accuracy, ...]] = {}
        answers = self._taught[1][2].argmax(1)
        self._drawing = RecipePicture(data.validation.labels, self._start,
                                      Accuracy.of(answers == data.validation.labels))
        small = {"layout": widgets.Layout(width="250px")}
        controls = {"ratio": FractionSlider(label="ratio", min=0.5, max=0.99, step=0.01, value=0.9),
                    "temperature": Slider(label="temperature", min=1, max=20, step=0.5, value=4, **small),
                    "alpha": Slider(label="alpha", step=0.05, value=0.1, **small),
                    "bits": BitSlider(label="bits", value=3, **small)}
        button = widgets.Button(description="Reveal test")
        button.on_click(lambda _button: self.refresh(reveal=True))
        super().__init__(controls, [button], SIZE, TABLES_HEIGHT)

    def measure(self, ratio: float, temperature: float, alpha: float, bits: int,
                reveal: bool = False) -> Iterator[RecipeAnswer]:
        """Yield what is known after each stage of one network and then of the other."""
        setting = RecipeSetting(ratio, temperature, alpha, bits)
        losses = DistillationLoss(temperature, alpha), F.cross_entropy
        networks, stages = [self._dense, self._dense], recipe(ratio, bits)
        answer = RecipeAnswer(setting, (self._start,), (self._start,), self._tests.get(setting))
        yield answer
        for place in range(len(stages)):
            networks[0] = self._after(losses[0], stages[:place + 1], networks[0])
            answer = replace(answer, taught=(*answer.taught, self._step(networks[0])))
            yield answer
            networks[1] = self._after(losses[1], stages[:place + 1], networks[1])
            answer = replace(answer, plain=(*answer.plain, self._step(networks[1])))
            yield answer
        if reveal and setting not in self._tests:
            self._tests[setting] = tuple(accuracy(each, self._data.test) for each in (self._dense, *networks))
            yield replace(answer, test=self._tests[setting])

    def _after(self, loss: Callable[..., Tensor], stages: tuple[Stage, ...], network: nn.Module) -> nn.Module:
        """Return the network after the last of these stages; `network` is the one before it."""
        def fine_tune(model: nn.Module, epochs: int) -> nn.Module:
            parts = slice(None) if isinstance(loss, DistillationLoss) else slice(2)  # labels alone: no answers
            training, validation = (part[parts] for part in self._taught)
            steps = len(training[0]) // TRAINING["batch_size"]
            *_, (tuned, _history) = train_live(model, training, loss, validation=validation, epochs=epochs,
                                               steps_per_epoch=steps, **TRAINING)
            return tuned

        key = loss, stages
        made = self._made.pop(key, None) or make_permanent(stages[-1](with_masks(network), fine_tune)).eval()
        self._made[key] = made
        if len(self._made) > KEPT:
            del self._made[next(iter(self._made))]
        return made

    def _step(self, network: nn.Module) -> Step:
        return Step(predict_classes(network, self._data.validation.images), len(pack(network, self._name)),
                    count_nonzeros(network))

    def draw(self, answer: RecipeAnswer) -> Shown:
        """Draw the picture and write the table."""
        return Shown(self._drawing.title(answer), self._drawing.png(answer), self._table(answer))

    def _table(self, answer: RecipeAnswer) -> str:
        """Return what the dense network and both others are by now."""
        labels = self._data.validation.labels
        dense, taught, plain = steps = self._start, answer.taught[-1], answer.plain[-1]
        to_dense = [Comparison(step.answers, dense.answers, labels) for step in steps]
        to_plain = Comparison(taught.answers, plain.answers, labels).difference
        whole = FLOAT32 * count_parameters(self._dense)
        rows = [["accuracy", *(percent(each.accuracy) for each in to_dense)],
                ["against dense, points", "", *(points(each.difference) for each in to_dense[1:])],
                ["taught less labels, points", "", points(to_plain), ""],
                ["numbers that are not 0", *(f"{step.nonzeros:,}" for step in steps)],
                ["bytes of the .kdz file", *(f"{step.bytes:,}" for step in steps)],
                ["compression ratio", *(f"{whole / step.bytes:.1f} ×" for step in steps)],
                ["test part", *(map(percent, answer.test) if answer.test else ["", "not read for this setting", ""])],
                ["settings tested so far", "", len(self._tests), ""]]
        headers = [f"{len(labels):,} validation images", "dense", "taught", "on labels alone"]
        return f"<div style='line-height: 1.4'>{table(rows, headers)}</div>"


def recipe(ratio: float, bits: int) -> tuple[Stage, ...]:
    """Return the stages of the panel; each trains for one epoch."""
    return (*(Prune(sparsity, 1, 1) for sparsity in cubic_sparsities(ratio, PRUNINGS)), FineTune(1), Share(bits, 1))
