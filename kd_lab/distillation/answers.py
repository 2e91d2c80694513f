"""Teach a student with a teacher's answers: Hinton, Vinyals & Dean 2015, arXiv 1503.02531."""

import warnings
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from kd_lab.errors import ParameterError, called_function, check_fields, check_number
from kd_lab.evaluation import Checked, accuracy, check_data, check_labels, check_scorable
from kd_lab.networks.checks import check_shapes, check_tensors
from kd_lab.networks.predictions import predict
from kd_lab.training import Data, History, train

TEMPERATURE_RANGE, ALPHA_RANGE = "(0, 1000]", "[0, 1]"


def soft_targets(logits: Tensor, temperature: float) -> Tensor:
    """Return softmax(logits / T), the softened answers (N, classes): the hotter, the more alike the classes."""
    temperature = check_number("temperature", temperature, TEMPERATURE_RANGE)
    check_tensors(logits=logits)
    return F.softmax(logits / temperature, dim=-1)


def soft_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return T²·KL(teacher ‖ student) of the softened answers, the mean over the images; both logits (N, classes).

    T² makes up for the gradients, which shrink as 1/T² (section 2 of the paper). As T grows, the gradient comes to
    (z - v) / classes for each image, z and v being the logits of student and teacher minus their means (section 2.1).
    """
    temperature = check_number("temperature", temperature, TEMPERATURE_RANGE)
    _check_logits(student_logits, teacher_logits)
    student, teacher = (F.log_softmax(logits / temperature, dim=1) for logits in (student_logits, teacher_logits))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def logit_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return the mean squared difference of the logits (N, classes): Ba & Caruana 2014, arXiv 1312.6184."""
    _check_logits(student_logits, teacher_logits)
    return F.mse_loss(student_logits, teacher_logits)


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float, alpha: float
) -> Tensor:
    """Return alpha·(cross-entropy with the labels) + (1 - alpha)·`soft_loss`; alpha is 0 to 1, labels are (N,)."""
    alpha = check_number("alpha", alpha, ALPHA_RANGE)
    soft = soft_loss(student_logits, teacher_logits, temperature)
    check_shapes("'labels' must be (N,) for logits (N, classes)", lambda a, b: a == b[:1], labels, student_logits)
    labels = check_labels(student_logits, labels)
    return alpha * F.cross_entropy(student_logits, labels) + (1 - alpha) * soft


@dataclass(frozen=True)
class DistillationLoss:
    """The loss of `train` on (images, labels, teacher's logits), as `with_answers` gives them."""

    temperature: float
    alpha: float

    def __post_init__(self):
        check_fields(self, temperature=TEMPERATURE_RANGE, alpha=ALPHA_RANGE)

    def __call__(self, student_logits: Tensor, labels: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return the `distillation_loss` of a batch."""
        return distillation_loss(student_logits, teacher_logits, labels, self.temperature, self.alpha)


def with_answers(teacher: nn.Module, data: Data) -> tuple[Tensor, Tensor, Tensor]:
    """Return (images, labels, logits): the teacher, frozen and in evaluation mode, has answered each image once."""
    return tuple(_answered(teacher, check_data(data)))


def distil(
    student: nn.Module,
    teacher: nn.Module,
    data: Data,
    *,
    validation: Data,
    epochs: int | None = None,
    temperature: float = 4.0,
    alpha: float = 0.1,
    **settings,
) -> tuple[nn.Module, History]:
    """Return a new student, trained by the teacher's answers and the labels, and the history of its losses.

    `settings` are those of `train`; `student_recipe` of kd_lab.checkpoints gives epochs that suit a number of images.
    Warns where the student knows more than the teacher before it begins, or where one of them answers with
    probabilities; raises a ParameterError where they have not the same classes.
    """
    if epochs is None:
        raise ParameterError(
            "'epochs' must be given. For a small student **student_recipe(images) of kd_lab.checkpoints gives them, "
            "with settings that suit the number of images."
        )
    loss = DistillationLoss(temperature, alpha)
    data, validation = (check_scorable(student, part) for part in (data, validation))
    check_teacher(student, teacher, validation)
    parts = [_answered(teacher, part) for part in (data, validation)]
    return train(student, parts[0], loss, validation=parts[1], epochs=epochs, **settings)


def _answered(teacher: nn.Module, data: Checked) -> Checked:
    images, labels, *_ = data
    return Checked((images, labels, predict(teacher, images)))


def check_teacher(student: nn.Module, teacher: nn.Module, validation: Data) -> None:
    """Raise a ParameterError unless both answer in the same classes; warn of a student that is better, of a softmax."""
    validation = check_data(validation)
    answers = {name: predict(each, validation[0][:2]) for name, each in (("student", student), ("teacher", teacher))}
    _check_logits(*answers.values())
    for name, logits in answers.items():
        _warn_of_softmax(name, logits)
    student_knows, teacher_knows = (accuracy(model, validation) for model in (student, teacher))
    if student_knows.correct > teacher_knows.correct:
        warnings.warn(
            f"{called_function()}(): the student reads {100 * student_knows.value:.2f} % of the validation images, "
            f"its teacher {100 * teacher_knows.value:.2f} %. Did you swap them?",
            stacklevel=3,
        )


def _warn_of_softmax(name: str, logits: Tensor) -> None:
    if logits.min() >= 0 and (logits.sum(dim=1) - 1).abs().max() < 1e-3:
        warnings.warn(
            f"{called_function()}(): the {name} answers with probabilities. Distillation needs logits: leave out its "
            "softmax.",
            stacklevel=4,
        )


def _check_logits(student_logits: Tensor, teacher_logits: Tensor) -> None:
    rule = "'student_logits' and 'teacher_logits' must have one shape (N, classes)"
    check_shapes(rule, lambda a, b: a == b and len(a) == 2, student_logits, teacher_logits)
