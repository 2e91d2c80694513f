"""Teach a student with what goes on inside a teacher: hints, attention maps, similarity maps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lab.distillation.answers import ALPHA_RANGE, TEMPERATURE_RANGE, check_teacher, distillation_loss
from kd_lab.errors import ParameterError, check_choice, check_fields, check_whole_number
from kd_lab.evaluation import Checked, check_data, check_scorable
from kd_lab.networks.checks import check_model, check_not_compiled, check_shapes
from kd_lab.networks.copies import copied
from kd_lab.networks.modes import evaluation_mode
from kd_lab.networks.predictions import predict, record
from kd_lab.networks.zoo import initial_weights
from kd_lab.penalties import Penalty
from kd_lab.training import Data, History, Loss, train


def hint_loss(output: Tensor, hint: Tensor) -> Tensor:
    """Return the mean squared difference of a layer's output and the hint, both (N, …).

    It is the loss of FitNets (Romero et al. 2015, arXiv 1412.6550, equation 3) but for a factor.
    """
    check_shapes("outputs must be of one shape", lambda a, b: a == b, output, hint)
    return F.mse_loss(output, hint)


def attention_map(output: Tensor) -> Tensor:
    """Return where a convolution's output (N, channels, height, width) is large: (N, height·width), of length one.

    The squares are summed over the channels (Zagoruyko & Komodakis 2017, arXiv 1612.03928, section 3.1).
    """
    check_shapes("outputs must be (N, channels, height, width)", lambda shape: len(shape) == 4, output)
    return F.normalize(output.square().sum(dim=1).flatten(1), dim=1)


def attention_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Return the squared distance of two attention maps (N, height·width), 0 to 2, the mean over the images."""
    check_shapes("outputs must be maps of one shape", lambda a, b: a == b, student_map, teacher_map)
    return (student_map - teacher_map).square().sum(dim=1).mean()


def similarity_map(output: Tensor) -> Tensor:
    """Return how alike a layer's output (N, …) finds the images of a batch: (N, N), every row of length one.

    Row i holds the products of image i with all (Tung & Mori 2019, arXiv 1907.09682, equations 1 to 3).
    """
    check_shapes("outputs must be (N, …)", lambda shape: len(shape) > 1, output)
    return F.normalize(output.flatten(1) @ output.flatten(1).T, dim=1)


def similarity_loss(student_output: Tensor, teacher_output: Tensor) -> Tensor:
    """Return the mean squared difference of the similarity maps of two outputs (N, …), of any widths: equation 4."""
    check_shapes(
        "outputs must be (N, …) for the same N images", lambda a, b: a[:1] == b[:1], student_output, teacher_output
    )
    return F.mse_loss(similarity_map(student_output), similarity_map(teacher_output))


LOSSES = {"hint": hint_loss, "attention": attention_loss, "similarity": similarity_loss}


@dataclass(frozen=True)
class FeatureLoss:
    """The loss of `train` on (images, labels, teacher's logits, hint) for a `Hinted` student.

    It is the `distillation_loss` plus weight · the loss of this kind: "hint", "attention" or "similarity".
    """

    kind: str
    weight: float
    temperature: float
    alpha: float

    def __post_init__(self):
        check_choice("kind", self.kind, list(LOSSES))
        check_fields(self, temperature=TEMPERATURE_RANGE, alpha=ALPHA_RANGE, weight="[0, 1e6]")

    def __call__(self, outputs: Tensor, labels: Tensor, teacher_logits: Tensor, hint: Tensor) -> Tensor:
        """Return the loss of a batch; `outputs` are (N, classes + features)."""
        logits, inside = outputs.tensor_split([teacher_logits.shape[1]], dim=1)
        answers = distillation_loss(logits, teacher_logits, labels, self.temperature, self.alpha)
        return answers + self.weight * LOSSES[self.kind](inside, hint)


class Hinted(nn.Module):
    """Answer with the translated output of a model's layer (N, features) or, with `answers`, put its logits before it.

    Without, the model runs up to the layer alone, so that weights and batch statistics behind it stay as they are.
    """

    def __init__(self, model: nn.Module, layer: str, translate: Callable[[Tensor], Tensor], answers: bool = True):
        super().__init__()
        _check_layer("layer", model, layer)
        self.model, self.layer, self.translate, self.answers = model, layer, translate, answers

    def forward(self, images: Tensor) -> Tensor:
        with _listening(self.model, self.layer, enough=not self.answers) as outputs:
            logits = self.model(images)
        inside = self.translate(*outputs).flatten(1)
        return torch.cat([logits, inside], dim=1) if self.answers else inside


@torch.inference_mode(False)  # whose tensors could never be trained
def regressor(shape: tuple[int, ...], hint_shape: tuple[int, ...], seed: int = 0) -> nn.Module:
    """Return an untrained layer from a student's output to a hint, of these shapes without N.

    For maps of one height and width it is a 1×1 convolution, else a Linear layer on the flattened output; where the
    shapes are the same, nothing stands between the two.
    """
    seed = check_whole_number("seed", seed, "[0, 1000000]")
    if tuple(shape) == tuple(hint_shape):
        return nn.Identity()
    with initial_weights(seed):
        if len(shape) == len(hint_shape) == 3 and shape[1:] == hint_shape[1:]:
            return nn.Conv2d(shape[0], hint_shape[0], 1, dtype=torch.float32)
        sizes = torch.Size(shape).numel(), torch.Size(hint_shape).numel()
        return nn.Sequential(nn.Flatten(), nn.Linear(*sizes, dtype=torch.float32))


def layer_outputs(model: nn.Module, layer: str, images: Tensor, argument: str = "layer") -> Tensor:
    """Return what a layer, by its name in the model, gives for the images: (N, …), as `predict` runs the model.

    Raises a ParameterError for a layer that does not give one tensor (N, …).
    """
    _check_layer(argument, model, layer)
    outputs = record(model, [layer], images, lambda _inputs, output: output)[layer]
    tensors = [output for output in outputs if isinstance(output, Tensor) and output.dim() > 1]
    if sum(map(len, tensors)) != len(images):
        raise ParameterError(
            f"{argument!r} must be a layer that gives one tensor (N, …) for N images. Layer {layer!r} does not."
        )
    return torch.cat(tensors)


def distil_features(
    student: nn.Module,
    teacher: nn.Module,
    data: Data,
    *,
    validation: Data,
    epochs: int,
    student_layer: str,
    teacher_layer: str,
    kind: str = "hint",
    weight: float = 1.0,
    temperature: float = 4.0,
    alpha: float = 0.1,
    seed: int = 0,
    **settings,
) -> tuple[nn.Module, History]:
    """Return a new student, trained by the teacher's answers, its layer and the labels, and the history of its losses.

    The loss is `FeatureLoss`; `kind` is "hint" (through a `regressor`, which is trained along and then left out),
    "attention" or "similarity"; `settings` are those of `train`. The teacher's layer is read once and kept: a first
    convolution of 16×14×14 numbers takes 690 MB for 55,000 images; of attention maps only a channel's worth is kept.
    """
    loss = FeatureLoss(kind, weight, temperature, alpha)
    data, validation = (check_scorable(student, part) for part in (data, validation))
    check_teacher(student, teacher, validation)
    learner, source = _hinted(kind, student, teacher, (student_layer, teacher_layer), validation[0][:2], seed)
    classes = predict(teacher, validation[0][:2]).shape[1]

    def with_hints(part: Data) -> Data:
        images, labels, *_ = part
        return Checked((images, labels, *predict(source, images).tensor_split([classes], dim=1)))

    settings |= {"validation": with_hints(validation), "epochs": epochs, "seed": seed}
    return _train_hinted(learner, with_hints(data), loss, **settings)


def train_on_hints(
    student: nn.Module,
    teacher: nn.Module,
    data: Data,
    *,
    validation: Data,
    epochs: int,
    student_layer: str,
    teacher_layer: str,
    kind: str = "hint",
    seed: int = 0,
    **settings,
) -> tuple[nn.Module, History]:
    """Return a new student that was trained up to a layer by the teacher's alone, and the history of its losses.

    It is the first stage of FitNets; the weights behind the layer stay as they were, and `distil` is the second stage.
    Neither labels nor the teacher's answers count. The arguments are those of `distil_features`.
    """
    check_choice("kind", kind, list(LOSSES))
    data, validation = check_data(data), check_data(validation)
    check_teacher(student, teacher, validation)
    learner, source = _hinted(kind, student, teacher, (student_layer, teacher_layer), validation[0][:2], seed)
    learner.answers = source.answers = False
    parts = [Checked((images, predict(source, images))) for images, *_ in (data, validation)]
    settings |= {"validation": parts[1], "epochs": epochs, "seed": seed}
    trained, history = _train_hinted(learner, parts[0], LOSSES[kind], **settings)
    return _readable(trained, student, validation[0][:2]), history


def _readable(trained: nn.Module, student: nn.Module, images: Tensor) -> nn.Module:
    """Return the trained student, in its own memory layout where what lies behind the layer can't read the fast one."""
    with suppress(ParameterError):
        predict(trained, images)
        return trained
    own = copied(student)
    own.load_state_dict(trained.state_dict())
    return own.eval()


def _hinted(
    kind: str, student: nn.Module, teacher: nn.Module, layers: tuple[str, str], images: Tensor, seed: int
) -> tuple[Hinted, Hinted]:
    """Return student and teacher, each so that it gives its layer's output in the form that is compared."""
    output = layer_outputs(student, layers[0], images, "student_layer")
    hint = layer_outputs(teacher, layers[1], images, "teacher_layer")
    _check_reach(student, layers[0], images)
    shapes = tuple(output.shape[1:]), tuple(hint.shape[1:])
    if kind == "attention" and (len(shapes[0]) != 3 or shapes[0][1:] != shapes[1][1:]):
        raise ParameterError(
            "attention maps need layers (channels, height, width) of one height and width. The student's layer "
            f"{layers[0]!r} gives {shapes[0]}, the teacher's {layers[1]!r} {shapes[1]}."
        )
    keep = attention_map if kind == "attention" else nn.Identity()
    translate = regressor(*shapes, seed).to(output.dtype) if kind == "hint" else keep
    return Hinted(student, layers[0], translate), Hinted(teacher, layers[1], keep)


def _check_layer(argument: str, model: nn.Module, layer: str) -> None:
    check_model(model)
    check_not_compiled(model)
    check_choice(argument, layer, [name for name, _ in model.named_modules() if name])


@torch.inference_mode(False)
@torch.enable_grad()
def _check_reach(student: nn.Module, layer: str, images: Tensor) -> None:
    """Raise a ParameterError where a loss on the layer's output would reach no weight of the student."""
    with evaluation_mode(student), _listening(student, layer) as outputs:
        student(images.clone())
    if not outputs[0].requires_grad:
        raise ParameterError(
            f"'student_layer' must be a layer whose output depends on weights that can "
            f"be trained. That of {layer!r} does not."
        )


def _train_hinted(
    learner: Hinted, data: Data, loss: Loss, *, penalty: Penalty | None = None, **settings
) -> tuple[nn.Module, History]:
    """Return the trained student alone, and the history; what judges a model judges the student, too."""
    judge = penalty and (lambda hinted: penalty(hinted.model))
    trained, history = train(learner, data, loss, penalty=judge, **settings)
    return trained.model, history


class _Enough(Exception):
    """End the run of a model when its layer has spoken."""


@contextmanager
def _listening(model: nn.Module, layer: str, enough: bool = False) -> Iterator[list[Tensor]]:
    """Yield a list that collects the layer's output at each call; with `enough` the model stops there."""
    outputs = []

    def keep(_layer: nn.Module, _inputs: tuple, output: Tensor) -> None:
        outputs.append(output.clone() if isinstance(output, Tensor) else output)  # the next may change it in place
        if enough:
            raise _Enough

    with model.get_submodule(layer).register_forward_hook(keep), suppress(_Enough):
        yield outputs
