"""The checks of lesson 02, soft and hard pruning."""

from typing import Any

import torch
from torch import Generator, Tensor, nn

from kd_lab.checkpoints import load_trained
from kd_lab.cost import count_macs
from kd_lab.errors import described
from kd_lab.evaluation import accuracy, paired_difference
from kd_lab.exercises.judging import close, exercise, expect_tensor, mnist, wrong_if, wrong_if_like
from kd_lab.networks.copies import copied
from kd_lab.networks.layers import state_tensors
from kd_lab.pruning import hard_prune, prune_channels

SHARE = 0.1  # of the dense network's MACs, in exercise 5
MAX_LOST = 0.03  # of its accuracy: the recipe loses about 0.022


@exercise(
    "02.1",
    "A unit is a row of `first`, an entry of `bias`, and … of `second`?",
    "`second` reads each unit by a column of its own.",
    "`first[keep], bias[keep]`, and of `second` the columns: `second[:, keep]`.",
)
def units_removed(answer: Any, draw: Generator) -> None:
    """`my_removal(first, bias, second, keep)` returns two layers without the units that go."""
    for _ in range(3):
        first, bias, second = (torch.randn(shape, generator=draw) for shape in ((6, 5), (6,), (3, 6)))
        keep = torch.randperm(6, generator=draw) < 4
        given = answer(first, bias, second, keep)
        three = isinstance(given, (tuple, list)) and [isinstance(each, Tensor) for each in given] == [True] * 3
        wrong_if(not three, "three tensors are asked for", "Return the new `first, bias, second`.")
        _fits(given, draw, first, bias, second, keep)


def _fits(given: Any, draw: Generator, first: Tensor, bias: Tensor, second: Tensor, keep: Tensor) -> None:
    """Check two layers of which two units of six are gone."""
    sizes = [tuple(each.shape) for each in given]
    said = f"of 6 units 4 stay, and the shapes are now {sizes[0]}, {sizes[1]} and {sizes[2]}"
    soft = "That is soft pruning: zeros stay in the tensors. Take the rows out: `first[keep]`."
    wrong_if(sizes == [(6, 5), (6,), (3, 6)], said, soft)
    wrong_if(sizes[0] == (2, 5), said, "`keep` is True for the units that *stay*.")
    wrong_if(sizes[0] != (4, 5), said, "The units of `first` are its rows.")
    wrong_if(sizes[1] == (6,), said, "Each unit has a bias, and the bias of a removed unit goes, too.")
    wrong_if(sizes[2] == (3, 6), said, "The next layer still reads the units that are gone: it loses columns.")
    wrong_if(sizes[1:] != [(4,), (3, 4)], said, "The bias loses entries, and `second` loses columns.")
    x = torch.randn(5, 8, generator=draw)
    masked = second @ (torch.relu(first @ x + bias[:, None]) * keep[:, None])
    removed = given[2].float() @ torch.relu(given[0].float() @ x + given[1].float()[:, None])
    same = "Take the units of `keep`, in the same order, from all three."
    wrong_if(not close(removed, masked), "the shapes fit, but the answers are not those of the masked layers", same)


@exercise(
    "02.2",
    "`flatten` puts the places of channel 0 first, then all those of channel 1. Write it down for two channels.",
    "Each entry of `keep` is needed `places` times, one right after the other.",
    "`repeat` lays the whole row down again and again; `repeat_interleave` repeats each entry.",
)
def columns(answer: Any, draw: Generator) -> None:
    """`my_columns(keep, places)` marks the columns that read channels that stay, behind a flatten."""
    for channels, places in ((4, 3), (6, 4), (5, 9)):
        keep = torch.randperm(channels, generator=draw) < channels // 2
        hint = "One entry for each column: channels × places of them."
        given = expect_tensor(answer(keep, places), (channels * places,), hint)
        expected = keep[:, None].expand(channels, places).flatten()
        zeros_and_ones = "True where the column stays, False where it goes: a mask, no numbers of columns."
        wrong_if(not ((given == 0) | (given == 1)).all(), "a mask has only zeros and ones", zeros_and_ones)
        if close(given, expected):
            continue
        mistakes = {
            f"with {places} places, channel 0 is columns 0 to {places - 1}, and here they differ": (
                keep.repeat(places),
                "The channels do not take turns: all places of one come together.",
            ),
            "the columns that should go are kept": (~expected, "True keeps, as in `keep`."),
        }
        wrong_if_like(given, mistakes)
        wrong_if(
            given.sum() != expected.sum(),
            f"{int(given.sum())} columns are kept, not {int(expected.sum())}",
            "Each channel that stays keeps all of its places.",
        )
        wrong_if(True, "the wrong columns are kept", "Column c · places + p reads place p of channel c.")


@exercise(
    "02.3",
    "A step without a mask: `weight - learning_rate * gradient`. What fills the zeros again?",
    "The gradient of a pruned weight is not zero. Multiply by the mask.",
    "`(weight - learning_rate * gradient) * mask`",
)
def masked_step(answer: Any, draw: Generator) -> None:
    """`my_step(weight, gradient, mask, learning_rate)` is a step of training that keeps the zeros."""
    weight, gradient = (torch.randn(4, 6, generator=draw) for _ in range(2))
    mask = (torch.randperm(24, generator=draw) < 12).float().view(4, 6)
    weight *= mask
    weight.flatten()[mask.flatten().argmax()] = 0  # one that stays, and is zero by chance
    for rate in (0.1, 0.5):
        given = expect_tensor(answer(weight, gradient, mask, rate), weight.shape, "The new weights, in their shape.")
        expected = weight - rate * gradient * mask
        if close(given, expected):
            continue
        by_value = "A weight that stays may be zero for a moment. Which ones go, the mask says, not the value."
        mistakes = {
            "pruned weights are no longer zero": (weight - rate * gradient, "Mask what the step gives, or the step."),
            "the weights do not change": (weight, "Subtract learning_rate · gradient where the mask is 1."),
            "the loss goes up": (weight + rate * gradient * mask, "A step goes *against* the gradient: subtract."),
            "the step is too long": (weight - gradient * mask, "Times the learning rate."),
            "the pruned weights move, the others stay": (weight - rate * gradient * (1 - mask), "1 keeps, 0 prunes."),
            "a weight that stays does not move": (weight - rate * gradient * (weight != 0), by_value),
            "the weights themselves are gone": (-rate * gradient * mask, "Step from the old weight."),
        }
        wrong_if_like(given, mistakes)
        filled = (given[mask == 0] != 0).any()
        wrong_if(filled, "pruned weights are no longer zero, and the step is another", "Mask the whole result.")
        wrong_if(True, "the zeros stay, but the other weights are wrong", "weight - learning_rate · gradient.")


@exercise(
    "02.4",
    "Which numbers does BatchNorm keep from training? They change only in training mode, when images pass.",
    "For each `nn.BatchNorm2d`: `reset_running_stats()` and `momentum = None`, so that they become plain means.",
    "`copy.deepcopy`, the two lines above, `train()`, one pass under `torch.no_grad()`, `eval()`, return the copy.",
)
def recalibrated(answer: Any, draw: Generator) -> None:
    """`my_recalibrated(model, images)` returns a copy whose BatchNorm layers measured these images."""
    pruned = hard_prune(prune_channels(load_trained("resnet"), 0.3)).eval()
    start, data = int(torch.randint(50000, (), generator=draw)), mnist()
    images, kept = data.train.images[start : start + 500] / 2, copied(pruned)  # darker than those of the question
    given = answer(pruned, images)
    network = "Return the copy, a network."
    wrong_if(not isinstance(given, nn.Module), f"a network is asked for, and {described(given)} came", network)
    before, after, now = (state_tensors(each) for each in (kept, pruned, given))
    changed = "Work on a copy: `copy.deepcopy(model)`."
    intact = all(torch.equal(before[name], after[name]) for name in before)
    wrong_if(given is pruned or not intact, "the network that your function gets is changed itself", changed)
    mode = "A network in training mode normalizes by the batch at hand: end with `.eval()`."
    still = any(module.training for module in given.modules())
    wrong_if(still, "the copy is still in training mode", mode)
    weights = {name: value for name, value in kept.named_parameters()}
    trained = now.keys() != before.keys() or any(not torch.equal(now[name], weights[name]) for name in weights)
    wrong_if(
        trained, "weights have changed", "No training: only the means and variances of BatchNorm are measured again."
    )
    names = [name for name in before if "running" in name]
    same = all(torch.equal(now[name], before[name]) for name in names)
    passed = "They change when images pass in training mode: `.train()`, then call the copy."
    wrong_if(same, "the means and variances are as they were", passed)
    darker = (data.validation.images[:1000] / 2, data.validation.labels[:1000])
    reached, goal = (accuracy(each, darker).value for each in (given, _recalibrated(kept, images)))
    said = f"given darker images, your copy reads {reached:.1%} of 1,000 such images; {goal:.1%} can be had"
    empty = all(torch.equal(now[name], torch.full_like(now[name], float("var" in name))) for name in names)
    wrong_if(empty, said, "The means are 0 and the variances 1: they were reset, and no image has passed since.")
    other = accuracy(given, data.validation[:1000]).value > reached + 0.1
    wrong_if(other, said, "It has measured brighter ones: pass the `images` that your function is given.")
    tenth = "One pass with the usual momentum moves them by a tenth. `momentum = None` takes the plain mean."
    wrong_if(reached < goal - 0.03, said, tenth)


def _recalibrated(model: nn.Module, images: Tensor) -> nn.Module:
    """Return the copy that exercise 4 asks for."""
    model = copied(model).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        model(images)
    return model.eval()


@exercise(
    "02.5",
    "`count_macs(network) / count_macs(cnn)` must be below 0.1. Try one ratio for all three layers first.",
    "`hard_prune(prune_channels(cnn, ratio))`, and then `train` with the settings of the question.",
    'A ratio of 0.72 for all will do, and so will {"conv1": 0.69, "conv2": 0.78, "fc1": 0.62}.',
)
def tenth(answer: Any, draw: Generator) -> None:
    """`my_network` is `cnn` with less than a tenth of its MACs, fine-tuned."""
    network = "The trained network itself: the first of the two that `train` returns."
    wrong_if(not isinstance(answer, nn.Module), f"a network is asked for, and {described(answer)} came", network)
    cnn, names = load_trained("cnn"), {name for name, _ in answer.named_modules()}
    other = 'Start from `load_trained("cnn")`, and prune its channels.'
    wrong_if(not {"conv1", "conv2", "fc1", "fc2"} <= names, "this is not `cnn`", other)
    share = count_macs(answer) / count_macs(cnn)
    said = f"it has {share:.3f} of the MACs"
    masked = share >= SHARE > count_macs(hard_prune(answer)) / count_macs(cnn)
    wrong_if(masked, said, "The channels are masked, and masked ones are multiplied, too: `hard_prune`.")
    wrong_if(share > 0.95, said, "Nothing is removed yet.")
    wrong_if(share >= SHARE, said, "Less than a tenth is asked for: raise the ratios.")
    difference = paired_difference(answer, cnn, mnist().validation)
    said = f"{said}, and against `cnn`: {difference}"
    wrong_if(difference.value < -0.1, said, "This network is not fine-tuned. Give what `train` returns.")
    more = "Fine-tuning should bring more back: one epoch on 10,000 images with the settings of the question."
    wrong_if(difference.value < -MAX_LOST, said, more)
