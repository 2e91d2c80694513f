"""Run a whole recipe live, prune, fine-tune with the teacher, share, pack; beside it the same without the teacher."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

import ipywidgets as widgets
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lab.compression import FineTune, Prune, Share
from kd_lab.compression.recipe import check_recipe
from kd_lab.compression.stages import FineTuning, Stage, with_masks
from kd_lab.cost import count_nonzeros, count_parameters
from kd_lab.data import Mnist
from kd_lab.distillation import DistillationLoss, with_answers
from kd_lab.evaluation import Accuracy, accuracy, predict_classes
from kd_lab.formats.kdz import FLOAT32_BYTES, pack
from kd_lab.networks.layers import make_permanent
from kd_lab.panels.measurement import Comparison, dense_network, percent, points, table
from kd_lab.panels.panel import Panel, Shown
from kd_lab.panels.recipe_picture import PRUNINGS, SIZE, RecipeAnswer, RecipePicture, RecipeSetting, Step
from kd_lab.panels.slider import BitSlider, FractionSlider, Slider
from kd_lab.pruning import cubic_sparsities
from kd_lab.training import train_live

IMAGES = 10_000  # the recipe is to take seconds
TRAINING = {"batch_size": 128, "learning_rate": 2e-3}
PARTS = 4  # of a time through the images: after each the training may be stopped, or be kept
KEPT = 60  # networks after a stage; one of lenet300 takes a megabyte
TABLES_HEIGHT = 230


class Stopped(Exception):
    """Tell that a training was given up for a newer setting."""


class RecipePanel(Panel):
    """Put a network of the kit live through a recipe, taught and on labels alone.

    It is pruned in four steps, fine-tuned after each and once more, and then its weights share 2^bits values. Both see
    the same 10,000 training images in the same batches. `data` is what load_mnist() gives; accuracy is measured on the
    validation part; only the button "Reveal test" reads the test part. What was made at a setting is kept: other bits
    share the weights of the same pruned network.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module, data: Mnist):
        check_recipe(model, teacher, data, {})
        self._dense = dense_network(model, data)
        self._data = data
        self._taught = [with_answers(teacher, part) for part in (data.train[:IMAGES], data.validation)]
        self._start = self._step(self._dense)
        self._made: dict[tuple, tuple[nn.Module, Step]] = {}  # the one used last stands last
        self._tests: dict[RecipeSetting, tuple[Accuracy, ...]] = {}
        answers = self._taught[1][2].argmax(1)
        self._drawing = RecipePicture(
            data.validation.labels, self._start, Accuracy.of(answers == data.validation.labels)
        )
        small = {"layout": widgets.Layout(width="250px")}
        controls = {
            "ratio": FractionSlider(label="ratio", min=0.5, max=0.99, step=0.01, value=0.9),
            "temperature": Slider(label="temperature", min=1, max=20, step=0.5, value=4, **small),
            "alpha": Slider(label="alpha", step=0.05, value=0.1, **small),
            "bits": BitSlider(label="bits", value=3, **small),
        }
        super().__init__(controls, SIZE, TABLES_HEIGHT, reveals=True)

    def measure(
        self, ratio: float, temperature: float, alpha: float, bits: int, reveal: bool = False
    ) -> Iterator[RecipeAnswer]:
        """Yield what is known after each stage of one network and then of the other."""
        setting = RecipeSetting(ratio, temperature, alpha, bits)
        losses = DistillationLoss(temperature, alpha), F.cross_entropy
        networks, stages = [self._dense, self._dense], recipe(ratio, bits)
        answer = RecipeAnswer(setting, (self._start,), (self._start,), self._tests.get(setting))
        yield answer
        with suppress(Stopped):
            for place in range(len(stages)):
                networks[0], step = self._after(losses[0], stages[: place + 1], networks[0])
                answer = replace(answer, taught=(*answer.taught, step))
                yield answer
                networks[1], step = self._after(losses[1], stages[: place + 1], networks[1])
                answer = replace(answer, plain=(*answer.plain, step))
                yield answer
            if reveal and setting not in self._tests:
                self._tests[setting] = tuple(accuracy(each, self._data.test) for each in (self._dense, *networks))
                yield replace(answer, test=self._tests[setting])

    def _after(
        self, loss: Callable[..., Tensor], stages: tuple[Stage, ...], network: nn.Module
    ) -> tuple[nn.Module, Step]:
        """Return the network after the last of these stages, and its step; `network` is the one before it."""
        key = loss, stages
        if key not in self._made:
            made = make_permanent(stages[-1](with_masks(network), self._teaching(loss))).eval()
            self._made[key] = made, self._step(made)
        self._made[key] = self._made.pop(key)
        if len(self._made) > KEPT:
            del self._made[next(iter(self._made))]
        return self._made[key]

    def _teaching(self, loss: Callable[..., Tensor]) -> FineTuning:
        """Return the function that fine-tunes, and raises Stopped once a newer setting waits."""
        parts = slice(None) if isinstance(loss, DistillationLoss) else slice(2)  # labels alone: no answers
        training, validation = (part[parts] for part in self._taught)
        steps = max(1, len(training[0]) // TRAINING["batch_size"] // PARTS)

        def fine_tune(model: nn.Module, epochs: int) -> nn.Module:
            run = train_live(
                model, training, loss, validation=validation, epochs=epochs, steps_per_epoch=steps, **TRAINING
            )
            for tuned, _history in run:  # noqa: B007 the last one is what it is all for
                if self._engine.stale:
                    raise Stopped
            return tuned

        return fine_tune

    def _step(self, network: nn.Module) -> Step:
        return Step(predict_classes(network, self._data.validation.images), len(pack(network)), count_nonzeros(network))

    def draw(self, answer: RecipeAnswer) -> Shown:
        """Draw the picture and write the table."""
        return Shown(self._drawing.title(answer), self._drawing.png(answer), self._table(answer))

    def _table(self, answer: RecipeAnswer) -> str:
        """Return what the dense network and both others are by now."""
        labels = self._data.validation.labels
        last = len(answer.plain) - 1  # the stage that both have behind them, since the taught one goes first
        dense, taught, plain = steps = self._start, answer.taught[last], answer.plain[last]
        to_dense = [Comparison(step.answers, dense.answers, labels) for step in steps]
        to_plain = Comparison(taught.answers, plain.answers, labels).difference
        whole = FLOAT32_BYTES * count_parameters(self._dense)
        rows = [
            ["accuracy", *(percent(each.accuracy) for each in to_dense)],
            ["against dense, points", "", *(points(each.difference) for each in to_dense[1:])],
            ["taught less labels, points", "", points(to_plain), ""],
            ["numbers that are not 0", *(f"{step.nonzeros:,}" for step in steps)],
            ["bytes of the .kdz file", *(f"{step.bytes:,}" for step in steps)],
            ["compression ratio", *(f"{whole / step.bytes:.1f} ×" for step in steps)],
            ["test part", *(map(percent, answer.test) if answer.test else ["", "not read for this setting", ""])],
            ["settings tested so far", "", len(self._tests), ""],
        ]
        headers = [f"{len(labels):,} validation images", "dense", "taught", "on labels alone"]
        return f"<div style='line-height: 1.4'>{table(rows, headers)}</div>"


def recipe(ratio: float, bits: int) -> tuple[Stage, ...]:
    """Return the stages of the panel; each goes through the images once."""
    return (
        *(Prune(sparsity, 1, PARTS) for sparsity in cubic_sparsities(ratio, PRUNINGS)),
        FineTune(PARTS),
        Share(bits, PARTS),
    )
