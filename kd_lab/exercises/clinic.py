"""Find the mistakes that people make when they compress networks: a test for each, which looks at what code does.

Every test takes what a learner has (a function, networks, data), leaves it as it is and returns a Finding. A learner's
function that raises is found out, too; an argument of a wrong kind raises a ParameterError.
"""

import functools
import html
import textwrap
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ParamSpec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lab.cost import count_nonzeros, count_parameters
from kd_lab.data import Split
from kd_lab.errors import ParameterError, check_that, check_whole_number, described, reason
from kd_lab.evaluation import check_data
from kd_lab.networks.checks import check_tensors
from kd_lab.networks.copies import copied
from kd_lab.networks.layers import weights
from kd_lab.networks.predictions import predict

Function = Callable[..., Any]
P = ParamSpec("P")
NOTHING = 1e-4  # two results that differ by less than this share differ by rounding alone
ROUNDING = 1e-6  # the same, of two runs of the same code on the same numbers
LOST = 0.9  # the share of its size that a layer may lose when it is rounded
MAX_SAID = 120  # letters of a learner's own error


@dataclass(frozen=True, repr=False)
class Finding:
    """What a test has seen, in one sentence, and the habit that prevents the mistake; true where the test passed."""

    passed: bool
    seen: str
    habit: str

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return f"{'✔ green' if self.passed else '✘ red'}: {self.seen} Habit: {self.habit}"

    def _repr_html_(self) -> str:
        colour, word = ("#1a7f37", "✔ green") if self.passed else ("#cf222e", "✘ red")
        return (
            f'<div style="border-left: 4px solid {colour}; padding-left: 8px"><b style="color: {colour}">{word}</b> '
            f"{html.escape(self.seen)}<br><i>Habit:</i> {html.escape(self.habit)}</div>"
        )


class _Wrong(Exception):
    """What a test has seen that is wrong."""


def _finds(habit: str) -> Callable[[Callable[P, str]], Callable[P, Finding]]:
    """Let a test, which returns what it has seen or raises what is wrong, return a Finding."""

    def decorate(test: Callable[P, str]) -> Callable[P, Finding]:
        @functools.wraps(test)
        def finding(*args: P.args, **kwargs: P.kwargs) -> Finding:
            with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
                try:
                    return Finding(True, test(*args, **kwargs), habit)
                except _Wrong as wrong:
                    return Finding(False, str(wrong), habit)

        finding.__annotations__["return"] = Finding
        return finding

    return decorate


# data


@_finds("Before you believe an accuracy, count the images that both parts have in common.")
def is_the_evaluation_unseen(training: Any, evaluation: Any) -> str:
    """Tell whether a network is judged by images that it was not trained on; both are (images, labels), or images."""
    seen, asked = (each if isinstance(each, Tensor) else check_data(each)[0] for each in (training, evaluation))
    check_tensors(training=seen, evaluation=asked)
    check_that("evaluation", asked, asked.shape[1:] == seen.shape[1:], "images in the shape of those of 'training'")
    known = {image.numpy().tobytes() for image in seen.detach().float()}
    common = sum(image.numpy().tobytes() in known for image in asked.detach().float())
    counted = f"{common:,} of the {len(asked):,} images that judge the network were trained on."
    return _judged(common <= 0.01 * len(asked), counted)  # a data set may hold an image twice


# pruning


@_finds("Count the zeros after every pruning, and compare them with the sparsity that you asked for.")
def does_it_make_zeros(prune: Function) -> str:
    """Tell whether prune(weight, sparsity), which gives a weight or its mask, makes this fraction zero."""
    _check_function(prune=prune)
    weight, counted = _numbers(40, 50), ""
    for sparsity in (0.2, 0.5, 0.9):
        own = weight.clone()
        zeros = (_tensor(_call(prune, own, sparsity), own, weight.shape) == 0).float().mean().item()
        counted = f"At a sparsity of {_percent(sparsity)}, {_percent(zeros)} of 2,000 weights are zero."
        _judged(abs(zeros - sparsity) < 0.05, counted)
    return counted


@_finds("Rank all weights in one flat vector, with sort or kthvalue, and look at what each layer keeps.")
def is_it_one_threshold(masks: Function, count: int = 2_000) -> str:
    """Tell whether masks(weights, sparsity), of a list, gives masks that cut all layers at one |w|.

    `count` weights are tried, 1,000 or more: some versions of torch.quantile refuse more than 2**24.
    """
    _check_function(masks=masks)
    count = check_whole_number("count", count, "[1000, 1e9]")
    layers = [_numbers(count // 10 - 30, 10), 3 * _numbers(20, 10), 9 * _numbers(100)]
    given = _call(masks, [layer.clone() for layer in layers], 0.5)
    given = list(given.values()) if isinstance(given, dict) else given
    _judged(isinstance(given, (list, tuple)) and len(given) == 3, f"It gave {described(given)} for 3 layers.")
    pairs = zip(given, layers, strict=True)
    gone = torch.cat([_tensor(mask, None, layer.shape).flatten() == 0 for mask, layer in pairs])
    sizes, share = torch.cat([layer.abs().flatten() for layer in layers]), gone.float().mean().item()
    _judged(abs(share - 0.5) < 0.01, f"At a sparsity of 50 %, {_percent(share)} of all weights are pruned.")
    largest, smallest = sizes[gone].max(), sizes[~gone].min()
    seen = f"The largest |w| that is pruned is {largest:.2f}, the smallest that stays {smallest:.2f}."
    return _judged(largest <= smallest, seen)


@_finds("Work on a copy, and count what is left: a weight is pruned when it is zero or gone, not when it is small.")
def is_anything_pruned(prune: Function, network: nn.Module) -> str:
    """Tell whether prune(network), run on a copy, leaves fewer numbers that are not zero; it may return a new one."""
    _check_function(prune=prune)
    before, after = count_nonzeros(network), count_nonzeros(_changed(prune, network))
    return _judged(after < (1 - NOTHING) * before, f"Of {before:,} numbers that were not zero, {after:,} are left.")


@_finds("Keep the mask on the weight while you train (prune does), and count the zeros again afterwards.")
def do_zeros_stay(pruned: nn.Module, tuned: nn.Module) -> str:
    """Tell whether the zeros of a pruned network are still zero in what training has made of it."""
    pairs = _pairs(pruned=pruned, tuned=tuned).values()
    zeros = sum(int((before == 0).sum()) for before, _after in pairs)
    back = sum(int(((before == 0) & (after != 0)).sum()) for before, after in pairs)
    _judged(zeros, "The pruned network has no zeros.")
    return _judged(not back, f"Of {zeros:,} zeros, {back:,} are no longer zero.")


@_finds("Print parameters and bytes of both: soft pruning keeps the shapes, hard pruning must make tensors smaller.")
def is_hard_smaller(soft: nn.Module, hard: nn.Module, images: Tensor) -> str:
    """Tell whether a network after hard pruning is smaller than after soft pruning, and gives the same answers."""
    answers = [predict(each, images) for each in (soft, hard)]
    large, small = count_parameters(soft), count_parameters(hard)
    _judged(small < large, f"Soft leaves {large:,} parameters, hard {small:,}.")
    _judged(answers[0].shape == answers[1].shape, "The two answer in different shapes.")
    apart = _difference(*answers)
    said = f"Soft leaves {large:,} parameters, hard {small:,}; their answers differ by {_percent(apart)}."
    return _judged(apart < NOTHING, said)


@_finds("An importance has no sign: turn the gradient round, and look whether the ranking stays.")
def is_importance_unsigned(importance: Function) -> str:
    """Tell whether importance(weight, gradient) stays the same when the sign of either is turned round."""
    _check_function(importance=importance)
    weight, gradient, scores = _numbers(30, 20), _numbers(30, 20, seed=1), []
    for pair in ((weight, gradient), (-weight, gradient), (weight, -gradient)):
        torch.manual_seed(0)  # chance is no sign
        scores.append(_tensor(_call(importance, *(each.clone() for each in pair)), None, weight.shape))
    apart = max(_difference(scores[0], other) for other in scores[1:])
    return _judged(apart < NOTHING, f"With the sign turned round, the importances differ by {_percent(apart)}.")


# quantization


@_finds("Compare the weights before and after: they must have changed, to few values, and stay near what they were.")
def are_weights_rounded(before: nn.Module, after: nn.Module, num_bits: int) -> str:
    """Tell whether every row of a weight has at most 2^num_bits values (1 to 16 bits), near those of before."""
    num_bits = check_whole_number("num_bits", num_bits, "[1, 16]")
    pairs = _pairs(before=before, after=after)
    most, layer = max((_values_in_a_row(after, name), name) for name in pairs)
    same = all(torch.equal(*pair) for pair in pairs.values())
    counted = f"A row of {layer} has {most:,} different values, where {num_bits} bits give {2**num_bits:,}"
    few = most <= 2**num_bits and not (same and all(len(new.unique()) == new.numel() for _old, new in pairs.values()))
    _judged(few, counted + (", and no weight has changed." if same else "."))
    lost, layer = max((_difference(new, old), name) for name, (old, new) in pairs.items())
    zeros = (pairs[layer][1] == 0).float().mean().item()
    _judged(lost < LOST, f"{_percent(zeros)} of {layer} are zero: it has lost {_percent(lost)} of its size.")
    return f"{counted}; {layer} has changed most, by {_percent(lost)}."


def _values_in_a_row(model: nn.Module, name: str) -> int:
    """Return the largest number of different values among the weights of one output."""
    weight = weights(model)[name]
    rows = weight.value.detach().movedim(weight.output_axis, 0).flatten(1).sort(dim=1).values
    return 1 + int((rows.diff(dim=1) != 0).sum(dim=1).max())


# distillation


@_finds("Change the labels, and look whether the gradient changes.")
def does_it_use_the_labels(loss: Function) -> str:
    """Tell whether loss(logits, labels) depends on the labels."""
    _check_function(loss=loss)
    (logits,), labels = _logits(1), _labels()
    apart = _difference(*(_gradient(loss, logits, each) for each in (labels, labels.roll(1))))
    return _judged(apart > NOTHING, f"With other labels, the gradient differs by {_percent(apart)}.")


@_finds("Change the teacher's answers, and look whether the student's gradient changes.")
def does_it_use_the_teacher(loss: Function) -> str:
    """Tell whether loss(student_logits, labels, teacher_logits), as `train` calls it, depends on the teacher."""
    _check_function(loss=loss)
    student, *teachers = _logits(3)
    apart = _difference(*(_gradient(loss, student, _labels(), each) for each in teachers))
    return _judged(apart > NOTHING, f"With another teacher, the student's gradient differs by {_percent(apart)}.")


@_finds("Print the size of both networks before you train: a student exists to be smaller.")
def is_the_student_smaller(student: nn.Module, teacher: nn.Module) -> str:
    """Tell whether a student has fewer parameters than its teacher."""
    own, others = count_parameters(student), count_parameters(teacher)
    return _judged(own < others, f"The student has {own:,} parameters, its teacher {others:,}.")


@_finds("Before you train with a loss, try it on equal answers: there it must not pull.")
def is_it_the_divergence(soft_loss: Function) -> str:
    """Tell whether soft_loss(student_logits, teacher_logits, temperature) pulls as KL(teacher ‖ student) does.

    Only the direction of its gradient counts: a factor, such as temperature², plays no part.
    """
    _check_function(soft_loss=soft_loss)
    student, teacher = _logits(2)
    pull, still = (_gradient(soft_loss, student, each, 4.0) for each in (teacher, student))
    q, p = ((logits / 4).softmax(dim=1) for logits in (student, teacher))
    turned = q * ((q / p).log() - (q * (q / p).log()).sum(dim=1, keepdim=True))
    right, wrong = (F.cosine_similarity(pull.flatten(), each.flatten(), dim=0).item() for each in (q - p, turned))
    _judged(wrong < 1 - NOTHING, "It pulls as KL(student ‖ teacher) does: the other way round.")
    share = (still.norm() / pull.norm().clamp(min=1e-9)).item()
    none = f"Where both give equal answers, it pulls with {_percent(share)} of its force, not with none."
    _judged(share < NOTHING, none)
    _judged(right > 1 - NOTHING, "It pulls in another direction than KL(teacher ‖ student) does.")
    return "It pulls as KL(teacher ‖ student) does, and not at all where both give equal answers."


@_finds("Multiply the soft loss by T², and compare its gradient at two temperatures.")
def does_the_balance_hold(soft_loss: Function) -> str:
    """Tell whether soft_loss(student_logits, teacher_logits, temperature) pulls as strongly when it is hot."""
    _check_function(soft_loss=soft_loss)
    cool, hot = (_gradient(soft_loss, *_logits(2), temperature).norm().item() for temperature in (20.0, 100.0))
    said = f"From T = 20 to T = 100, the gradient goes from {cool:.2g} to {hot:.2g}."
    return _judged(cool / 2 < hot < 2 * cool, said)


@_finds("Use log_softmax, never softmax(…).log(), and try every loss on logits that lie far apart.")
def is_it_finite(soft_loss: Function) -> str:
    """Tell whether soft_loss(student_logits, teacher_logits, temperature) is a number for networks that are sure."""
    _check_function(soft_loss=soft_loss)
    sure = 400 * torch.eye(10, dtype=torch.float32)
    gradient = _gradient(soft_loss, sure, sure.roll(1, dims=0), 1.0)
    broken = int((~gradient.isfinite()).sum())
    said = f"For logits of 0 and 400, {broken} of {gradient.numel()} numbers of the gradient are not finite."
    return _judged(not broken, said)


@_finds("Ask a teacher once, in evaluation mode and without gradients (predict does), and keep its answers.")
def is_the_teacher_frozen(ask: Function, teacher: nn.Module, images: Tensor) -> str:
    """Tell whether ask(teacher, images) gives the answers of evaluation mode, and no graph with them."""
    _check_function(ask=ask)
    predict(teacher, images)  # names images that it can't read
    found, expected = (_call(ask, each, images.clone()) for each in (copied(teacher), copied(teacher).eval()))
    expected = _tensor(expected)
    _judged(expected.shape[:1] == images.shape[:1], f"It gave {described(expected)} for {len(images)} images.")
    apart = _difference(_tensor(found, None, expected.shape), expected)
    graph = "are inside the graph" if found.requires_grad else "carry no graph"
    said = f"Its answers differ by {_percent(apart)} from those of evaluation mode and {graph}."
    return _judged(apart < NOTHING and not found.requires_grad, said)


@_finds("Print the shapes of both features; where they differ, a regressor, trained along, must translate.")
def do_features_fit(loss: Function, student_features: Tensor, teacher_features: Tensor) -> str:
    """Tell whether loss(student_features, teacher_features), both (N, features, …), depends on each feature of both."""
    _check_function(loss=loss)
    check_tensors(student_features=student_features, teacher_features=teacher_features)
    student, teacher = student_features.detach(), teacher_features.detach()
    _gradient(loss, student, teacher)
    value = _call(loss, student.clone(), teacher.clone()).sum()
    own = sum(bool(value == _call(loss, other, teacher.clone()).sum()) for other in _nudged(student))
    others = sum(bool(value == _call(loss, student.clone(), other).sum()) for other in _nudged(teacher))
    counts = f"{own} of the student's {student.shape[1]}, {others} of the teacher's {teacher.shape[1]}"
    return _judged(not own and not others, f"Features that play no part: {counts}.")


def _nudged(features: Tensor) -> Iterator[Tensor]:
    """Yield the features with each of them raised in turn."""
    for place in range(features.shape[1]):
        other = features.clone()
        other[:, place] += 1
        yield other


@_finds("Hand over other labels: what is learned from images alone stays the same, to the last digit.")
def does_it_need_no_labels(pretrain: Function, network: nn.Module, data: Any) -> str:
    """Tell whether pretrain(network, (images, labels)) learns something, and the same whatever the labels are."""
    _check_function(pretrain=pretrain)
    images, labels, *_ = check_data(data)
    kind, found = Split if isinstance(data, Split) else lambda *parts: parts, []
    for each in (labels, labels.max() - labels):
        torch.manual_seed(0)
        found.append(_changed(pretrain, network, kind(images.clone(), each.clone())))
    apart = _difference(*(torch.cat([part.detach().flatten() for part in each.parameters()]) for each in found))
    _judged(apart < ROUNDING, f"With other labels, other weights are learned: they differ by {_percent(apart)}.")
    before, after = _encoder(network), _encoder(found[0])
    moved = _difference(before, after) if before.shape == after.shape else 1.0
    return _judged(moved > NOTHING, f"With other labels, nothing changes; the weights have moved by {_percent(moved)}.")


def _encoder(model: nn.Module) -> Tensor:
    """Return the weights of all layers but the last, which most often is a new one, in one vector."""
    matrices = [weight.value.detach().flatten() for weight in weights(model).values()]
    return torch.cat(matrices[:-1] or matrices)


# what the tests share


def _judged(passed: Any, seen: str) -> str:
    if not passed:
        raise _Wrong(seen)
    return seen


def _percent(share: float) -> str:
    return f"{round(100 * share, 1):g} %"


def _numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def _logits(count: int) -> Iterator[Tensor]:
    """Return the answers of so many networks to 64 images, (64, 10)."""
    return (3 * _numbers(64, 10, seed=seed) for seed in range(count))


def _labels() -> Tensor:
    return torch.arange(64) % 10


def _difference(one: Tensor, other: Tensor) -> float:
    """Return the size of the difference as a share of the larger one's, 0 where both are zero."""
    apart, *sizes = (each.detach().norm().item() for each in (one - other, one, other))
    return apart / max(sizes) if any(sizes) else 0.0


def _check_function(**argument: Function) -> None:
    ((name, given),) = argument.items()
    check_that(name, given, callable(given), "a function")


def _pairs(**networks: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the weights of two networks by layer; raise a ParameterError unless they have the same layers."""
    before, after = (
        {name: each.value.detach() for name, each in weights(model).items()} for model in networks.values()
    )
    shapes = [{name: tuple(each.shape) for name, each in found.items()} for found in (before, after)]
    if shapes[0] != shapes[1]:
        raise ParameterError(f"{' and '.join(map(repr, networks))} must have the same layers. Got {shapes}.")
    return {name: (weight, after[name]) for name, weight in before.items()}


def _call(learners: Function, *arguments: Any) -> Any:
    """Return what a learner's function gives; what it raises is what is wrong, and so is a loss that broadcasts."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Using a target size")
            return learners(*arguments)
    except Exception as error:
        said = textwrap.shorten(reason(error), MAX_SAID, placeholder=" …")
        raise _Wrong(f"It raised {type(error).__name__}: {said}") from error


def _tensor(given: Any, in_place: Tensor | None = None, shape: tuple[int, ...] | None = None) -> Tensor:
    """Return the tensor that a learner's function gave or, where it gave nothing, has changed in place."""
    given = in_place if given is None else given
    fits = isinstance(given, Tensor) and shape in (None, given.shape)
    _judged(fits, f"It gave {described(given)}, no tensor{f' of shape {tuple(shape)}' if shape else ''}.")
    return given


def _changed(learners: Function, network: nn.Module, *others: Any) -> nn.Module:
    """Return the network that a learner's function makes of a copy, or has changed in place, first of what it gives."""
    own = copied(network)
    given = _call(learners, own, *others)
    given = own if given is None else given[0] if isinstance(given, tuple) and given else given
    _judged(isinstance(given, nn.Module), f"It gave {described(given)}, no network.")
    return given


def _gradient(loss: Function, logits: Tensor, *others: Any) -> Tensor:
    """Return the gradient of a learner's loss for the student's answers, of whatever reduction."""
    own = logits.clone().requires_grad_()
    value = _call(loss, own, *(each.clone() if isinstance(each, Tensor) else each for each in others))
    flows = isinstance(value, Tensor) and value.requires_grad
    _judged(flows, f"It gave {described(value)}, which no gradient flows through.")
    return _call(lambda: torch.autograd.grad(value.sum(), own, materialize_grads=True, allow_unused=True)[0])
