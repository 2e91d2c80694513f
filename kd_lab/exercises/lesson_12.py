"""The checks of lesson 12, the bug clinic: mended functions, judged by what they do."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from kd_lab.distillation import soft_loss
from kd_lab.exercises.judging import close, exercise, expect_tensor, wrong_if, wrong_if_like


@exercise(
    "12.1",
    "A mean of two thresholds: of which share of *all* weights is that the threshold?",
    "Put the sizes of all weights into one row, `torch.cat([weight.abs().flatten() for weight in weights])`.",
    "Sort that row; its number `count - 1` is the threshold, `count = round(sparsity * len(row))`. Mind a count of 0.",
)
def one_threshold(answer: Any, draw: Generator) -> None:
    """`my_masks(weights, sparsity)` prunes the smallest weights of all layers together."""
    weights = [scale * torch.randn(shape, generator=draw) for scale, shape in ((1, (30, 10)), (2, (8, 4)), (4, (9,)))]
    before = copy.deepcopy(weights)
    for sparsity in (0.8, 0.3, 0.0):
        masks = answer(weights, sparsity)
        changed = any(not torch.equal(*pair) for pair in zip(before, weights, strict=True))
        wrong_if(changed, "the weights are others now", "Return masks, and leave the weights as they are.")
        _check_masks(masks, weights, sparsity)


def _check_masks(masks: Any, weights: list[Tensor], sparsity: float) -> None:
    """Raise Wrong unless the masks prune the smallest of all weights."""
    listed = isinstance(masks, (list, tuple)) and len(masks) == len(weights)
    wrong_if(not listed, "this is no list with a mask for each weight", "One mask for each weight, in a list.")
    for mask, weight in zip(masks, weights, strict=True):
        given = expect_tensor(mask, weight.shape, "Each mask has the shape of its weight.")
        values = ((given == 0) | (given == 1)).all()
        wrong_if(not values, "a mask has only zeros and ones", "True stays, False goes.")
    sizes = torch.cat([weight.abs().flatten() for weight in weights])
    kept = torch.cat([mask.flatten() for mask in masks]).bool()
    count, gone = round(sparsity * len(sizes)), int((~kept).sum())
    lowest = sizes[kept].min() if kept.any() else torch.inf
    if abs(gone - count) <= 1 and (not gone or sizes[~kept].max() < lowest):
        return
    said = f"{gone} of {len(sizes)} weights go at a sparsity of {sparsity}, and {count} are right"
    wrong_if(sparsity == 0, said, "Nothing goes at 0: `values[count - 1]` of a count of 0 is the *last* one.")
    inverted = abs(gone - (len(sizes) - count)) <= 1
    wrong_if(inverted, said, "Turned round: True stays, and the sparsity is the share that goes.")
    shares = [abs(int((mask == 0).sum()) - sparsity * mask.numel()) for mask in masks]
    same = "That is the same share of each layer. One threshold lets layers of large weights keep more."
    wrong_if(max(shares) <= 1, "each layer has a threshold of its own", same)
    each = torch.stack([weight.abs().flatten().quantile(sparsity) for weight in weights])
    likely = [int((sizes <= threshold).sum()) for threshold in (each.mean(), each.median())]
    mean = "The mean of the layers' thresholds (or their median) is not that of all: a tiny layer counts as much."
    wrong_if(min(abs(gone - other) for other in likely) <= 1, said, mean)
    wrong_if(abs(gone - count) > 1, said, "The threshold is the size below which that share of *all* weights lies.")
    wrong_if(True, "a larger weight goes and a smaller one stays", "By size: the sign doesn't count.")


@exercise(
    "12.2",
    "Which of the three terms still moves a pruned weight, when its gradient is masked?",
    "The velocity is from before the pruning: where the mask is 0, it isn't.",
    "Mask the weight after the step: `weight = (weight - rate * velocity) * mask`.",
)
def zeros_stay(answer: Any, draw: Generator) -> None:
    """`my_step(weight, gradient, velocity, mask)` is a step with momentum that keeps the zeros."""
    mask = (torch.rand(6, 5, generator=draw) > 0.4).float()
    mask[0, :2] = torch.tensor([0.0, 1.0])
    weight = mask * torch.randn(6, 5, generator=draw)
    weight[0, 1] = 0  # one that was kept may be zero, too, and moves
    gradient, velocity = (torch.randn(6, 5, generator=draw) for _ in range(2))
    kept, right_velocity, right = mask.bool(), velocity, weight
    for rate, momentum in ((0.1, 0.9), (0.1, 0.9), (0.2, 0.5)):
        given = answer(weight, gradient, velocity, mask, rate=rate, momentum=momentum)
        pair = isinstance(given, (tuple, list)) and len(given) == 2
        wrong_if(not pair, "these are not two tensors", "Return the weight and the velocity.")
        weight, velocity = (expect_tensor(each, mask.shape, "Of the weight's shape.") for each in given)
        right_velocity = momentum * right_velocity + gradient
        right = (right - rate * right_velocity) * mask
        back = int((weight[~kept] != 0).sum())
        turned = "1 keeps a weight, 0 has pruned it."
        wrong_if(back and not weight[kept].any(), "the mask is turned round", turned)
        hint = "The velocity moves them. Mask what it does, too, or the weight after the step."
        wrong_if(back, f"{back} of {int((~kept).sum())} zeros are no longer zero", hint)
        still = "The weights that were kept must move, as they did before."
        wrong_if(not weight[kept].any(), "all weights are zero", still)
        read = "A weight of 0 need not be pruned: `mask` says which are."
        wrong_if(weight[0, 1] == 0, "a weight of 0 that was kept doesn't move", read)
        lost = close(weight[kept], (right + rate * right_velocity - rate * gradient)[kept])
        wrong_if(lost and not close(weight[kept], right[kept]), "there is no momentum any more", "Keep the velocity.")
        said = f"at a rate of {rate} and a momentum of {momentum}, the kept weights move otherwise than before"
        was = "Where the mask is 1, nothing was wrong: every term stays, and so do `rate` and `momentum`."
        wrong_if(not close(weight[kept], right[kept]), said, was)
        moved = "Where the mask is 1, the velocity is that of the code in the question."
        wrong_if(not close(velocity[kept], right_velocity[kept]), "the velocity of kept weights is another", moved)
        gradient = torch.randn(6, 5, generator=draw)


@exercise(
    "12.3",
    "What does `parameter = …` do to a network? And `x = 3` to a list from which x was taken?",
    "It gives a new tensor an old name. Write *into* the parameter, of a copy of the network.",
    "`copy.deepcopy(model)`, then `with torch.no_grad():` and `parameter.copy_(…)` for each of its parameters.",
)
def rounding(answer: Any, draw: Generator) -> None:
    """`my_rounded(model, step)` is a new network with rounded parameters."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        for each in model.parameters():
            each.copy_(torch.randn(each.shape, generator=draw))
    before = copy.deepcopy(model)
    for step in (0.25, 0.1):
        _check_rounded(answer(model, step), model, before, step)


def _check_rounded(given: Any, model: nn.Module, before: nn.Module, step: float) -> None:
    """Raise Wrong unless a network is a rounded one, and the model as it was before."""
    network = "Return the network itself, not its parameters."
    wrong_if(not isinstance(given, nn.Module), "this is not a network", network)
    old, left, new = ([*each.parameters()] for each in (before, model, given))
    changed = any(not torch.equal(*pair) for pair in zip(old, left, strict=True))
    wrong_if(changed, "the network that was given has changed", "Work on `copy.deepcopy(model)`.")
    layers = [(name, each.shape) for name, each in before.named_parameters()]
    other = layers != [(name, each.shape) for name, each in given.named_parameters()]
    wrong_if(other or str(given) != str(before), "the result has other layers", "Only the numbers change.")
    same = all(torch.equal(*pair) for pair in zip(old, new, strict=True))
    wrong_if(same, "no number has changed", "A new name for a rounded tensor changes no network.")
    one, other = (torch.cat([each.detach().flatten() for each in part]) for part in (old, new))
    right = (one / step).round() * step
    unscaled = "After rounding, multiply by the step again: the network must stay near what it was."
    down = "`floor` and `.int()` round down or to 0. `torch.round` takes the nearest."
    whole = "These are whole numbers: divide by the step, round, then multiply by it."
    mistakes = {
        "the numbers are counts of steps": (right / step, unscaled),
        "they are rounded down": ((one / step).floor() * step, down),
        "they are rounded to 0": ((one / step).trunc() * step, down),
        "they are rounded to 1": (one.round(), whole),
    }
    if not close(other, right):
        wrong_if_like(other, mistakes)
        part = any(close(a, b) for a, b in zip(old, new, strict=True))
        wrong_if(part, "some parameters are as before", "All of them: weights and biases, of every layer.")
        wrong_if(True, "the parameters are no multiples of the step", "`torch.round(parameter / step) * step`")
    trains = all(each.requires_grad for each in given.parameters())
    wrong_if(not trains, "the parameters of the result can't be trained any more", "Leave `requires_grad` as it is.")


@exercise(
    "12.4",
    "What does `F.kl_div(input, target)` want of either, and which of the two is the student?",
    "`input` is the student's `log_softmax`, `target` the teacher's `softmax`. What is `reduction` for batches?",
    '`temperature**2 * F.kl_div(student, target, reduction="batchmean")`',
)
def mended_loss(answer: Any, draw: Generator) -> None:
    """`my_soft_loss(student_logits, teacher_logits, temperature)` is T² · KL(teacher ‖ student)."""
    student, teacher = (3 * torch.randn(6, 5, generator=draw) for _ in range(2))
    for temperature in (2.0, 5.0):
        given = answer(student, teacher, temperature)
        if isinstance(given, Tensor) and given.shape == (1,):
            given = given[0]
        given = expect_tensor(given, (), "One number, the mean over the images.")
        right = soft_loss(student, teacher, temperature)
        if not close(given, right):
            _wrong_soft_loss(given, right, student, teacher, temperature)
    sure = 400 * torch.eye(5)
    said = "for logits of 0 and 400 the loss is not finite"
    underflow = "`softmax(…).log()` is log 0 there. Use `log_softmax`."
    far = torch.as_tensor(answer(sure, sure.roll(1, 0), 1.0))
    wrong_if(not far.isfinite(), said, underflow)
    clipped = "`log_softmax` needs no small number inside, and no `clamp` or `nan_to_num`: they change the loss."
    wrong_if(not close(far, torch.tensor(400.0)), f"for logits of 0 and 400 it is {far.item():.1f}, not 400", clipped)
    pulled = student.clone().requires_grad_()
    flows = answer(pulled * 1, teacher, 2.0).requires_grad
    wrong_if(not flows, "no gradient reaches the student", "No `.item()`, no `.detach()` of the student.")


def _wrong_soft_loss(given: Tensor, right: Tensor, student: Tensor, teacher: Tensor, temperature: float) -> None:
    """Raise Wrong, with the mistake that gives this loss."""
    turned = soft_loss(teacher, student, temperature)
    classes, square = student.shape[1], temperature**2
    raw = square * F.kl_div(student / temperature, (teacher / temperature).softmax(1), reduction="batchmean")
    back = "`F.kl_div(input, target)` is KL(target ‖ input): the *teacher* must be the target, the student in logs."
    batch = '`.mean()` divides by images and classes. `reduction="batchmean"` divides by the images.'
    both = f"{back} And `reduction` is wrong, too."
    scale = "Softer answers pull less, by 1/T². `temperature**2 *` makes up for it."
    mistakes = {
        "it is the other way round, KL(student ‖ teacher)": (turned, back),
        "it is the other way round, and has no T²": (turned / square, f"{back} T² is missing, too."),
        "it is the other way round, and divides by the classes": (turned / classes, both),
        "all three mistakes are there": (
            turned / square / classes,
            "Begin with what `F.kl_div` wants of its arguments.",
        ),
        "T² is missing": (right / square, scale),
        "this is the mean over classes as well": (right / classes, batch),
        "two mistakes are left: T² and the mean": (right / square / classes, f"{scale} And {batch}"),
        "this is the sum over all images": (right * len(student), "Divide by the images: `batchmean`."),
        "there is T, not T²": (right / temperature, "The temperature comes in twice: temperature**2."),
        "it takes raw logits": (raw, "`input` must be log-probabilities: `log_softmax`."),
    }
    wrong_if_like(given, mistakes)
    wrong_if(True, f"the loss is {given:.4f}, and {right:.4f} is right", "T² · KL(teacher ‖ student), by `batchmean`.")


@exercise(
    "12.5",
    "Three things: dropout must be off, no graph, and afterwards all is as before.",
    "`teacher.eval()` and `with torch.no_grad():`. Which layers were in training mode before?",
    "`modes = {module: module.training for module in teacher.modules()}`, and after the answers set each back.",
)
def frozen(answer: Any, draw: Generator) -> None:
    """`my_answers(teacher, images)` gives those of evaluation mode, without a graph, and leaves the modes alone."""
    teacher = nn.Sequential(nn.Linear(6, 40), nn.BatchNorm1d(40), nn.Dropout(0.5), nn.Linear(40, 3)).train()
    teacher[1].eval()  # one layer alone, as somebody who fine-tunes may have it
    images = torch.randn(8, 6, generator=draw)
    modes, layers = [module.training for module in teacher.modules()], str(teacher)
    state, right = copy.deepcopy(teacher.state_dict()), copy.deepcopy(teacher).eval()(images).detach()
    answers, off = answer(teacher, images), not torch.is_grad_enabled()
    given = expect_tensor(answers, (8, 3), "The teacher's logits, as it gives them.")
    wrong_if(off, "gradients are switched off for all that follows", "`with torch.no_grad():` ends by itself.")
    found = [module.training for module in teacher.modules()]
    same = all(torch.equal(each, state[name]) for name, each in teacher.state_dict().items())
    noise = "Dropout throws a half away by chance: `teacher.eval()` first. And give the logits as they are."
    wrong_if(not close(given, right), "the answers are not those of evaluation mode", noise)
    graph = "`with torch.no_grad():` around the call, or `.detach()`."
    wrong_if(given.requires_grad, "the answers are inside the graph", graph)
    once = "Ask it in evaluation mode only: BatchNorm learns otherwise."
    wrong_if(not same, "the teacher's numbers have changed", once)
    wrong_if(str(teacher) != layers, "the teacher's layers have changed", "Its mode is enough: dropout stays in it.")
    all_eval = "`teacher.eval()` stays. Set each layer back to the mode in which it came."
    wrong_if(not any(found), "the teacher is in evaluation mode now", all_eval)
    all_train = "One layer was in evaluation mode, and `teacher.train()` has changed it: keep each layer's mode apart."
    wrong_if(all(found), "all layers are in training mode now", all_train)
    wrong_if(found != modes, "the layers' modes are others now", "Each layer must have its own mode again.")
    gradients = all(each.requires_grad for each in teacher.parameters())
    wrong_if(not gradients, "the teacher can't be trained any more", "`requires_grad` must stay as it was.")
