"""The checks of bring_your_own."""

from functools import cache
from itertools import permutations
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Generator, Tensor, nn

from kd_lab.cost import count_parameters
from kd_lab.data import Split, split_data
from kd_lab.evaluation import accuracy
from kd_lab.exercises.judging import close, exercise, expect_number, expect_tensor, hides_numbers, wrong_if

NAMES = "owl", "ant", "fox"
SIDES = 9, 7
CONV, NORM, LINEAR = nn.Conv2d, nn.BatchNorm2d, nn.Linear
MY_NET = {"conv1": CONV, "norm1": NORM, "conv2": CONV, "norm2": NORM, "fc1": LINEAR, "fc2": LINEAR}


@exercise(
    "bring_your_own.1",
    "Three things: a channel, values from 0 to 1, and numbers for the names.",
    "`pictures[:, None]` has a channel; `np.unique(names, return_inverse=True)[1]` numbers the names.",
    "`split_data(pictures[:, None] / 255, np.unique(names, return_inverse=True)[1], validation=20, test=20)`",
)
def split(answer: Any, draw: Generator) -> None:
    """`my_split(pictures, names)` gives three parts of images from 0 to 1 and of numbered labels."""
    kinds = torch.arange(3).repeat_interleave(torch.tensor([40, 26, 24]))  # one after the other, as folders have them
    pictures = torch.randint(256, (90, *SIDES), generator=draw).byte()
    pictures[:, 0, 0] = torch.randperm(90, generator=draw).byte()  # so that a picture says which one it is
    pictures[:, 0, 1] = 255
    given = answer(pictures.numpy(), [NAMES[kind] for kind in kinds])
    parts = [tuple(part) for part in given] if isinstance(given, (tuple, list)) else []
    wrong_if([len(part) for part in parts] != [2] * 3, "these are not three parts", "Return what `split_data` returns.")
    sizes = [len(labels) for _images, labels in parts]
    wrong_if(sizes != [50, 20, 20], f"the parts have {sizes} images", "`validation=20, test=20`, the rest trains.")
    images, labels = (torch.cat([part[place] for part in parts]) for place in (0, 1))
    last = "(N, 1, height, width): the channel comes second, `pictures[:, None]`."
    wrong_if(images.dim() == 4 and images.shape[-1] == 1, "the channel is the last dimension", last)
    images = expect_tensor(images, (90, 1, *SIDES), "One channel: `pictures[:, None]` is (N, 1, height, width).")
    largest, smallest = images.max().item(), images.min().item()
    wrong_if(largest > 2, f"the largest value is {largest:g}", "The bytes reach up to 255: divide by that.")
    wrong_if(largest < 0.1, f"the largest value is {largest:g}", "Divided twice? 255 must become 1.")
    wrong_if(smallest < 0, f"the smallest value is {smallest:g}", "Values from 0 to 1: subtract nothing.")
    exact = abs(largest - 1) < 1e-6
    wrong_if(not exact, f"the largest value is {largest:.4f}", "255, and not 256 or 16, must become 1.")
    coarse = "`/ 255`, which keeps fractions: no `//`, no rounding."
    wrong_if(len(images.unique()) == 2, "only 0 and 1 are left", coarse)
    order, first = images[:, 0, 0, 0].argsort(), pictures[:, 0, 0].argsort()
    others = "Each picture in one part, each pixel divided by 255, and nothing else."
    wrong_if(not close(images[order, 0], pictures[first] / 255), "the pictures are others", others)
    pairs = {*zip(kinds[first].tolist(), labels[order].tolist(), strict=True)}
    apart = "The labels don't belong to their images any more. Sort neither, and give both in their order."
    wrong_if(len(pairs) != 3 or {label for _kind, label in pairs} != {0, 1, 2}, "the labels are mixed up", apart)
    lacks = "All owls may come first, then all foxes: `split_data` takes some of each."
    wrong_if(any(len(labels.unique()) < 3 for _images, labels in parts), "a part lacks one of the names", lacks)


@exercise(
    "bring_your_own.2",
    "Two things differ from `MyNet`: the line with the addition, and the inputs of `fc1`.",
    "`torch.cat([x, F.relu(self.norm2(self.conv2(x)))], dim=1)` has 32 channels; pooled, 32 · 4 · 4 numbers.",
    "A class that inherits from `MyNet` needs its own `fc1 = nn.Linear(2 * width * 4 * 4, 64)` and its own `forward`.",
)
def concatenated(answer: Any, draw: Generator) -> None:
    """`my_net` is a MyNet whose convolutions' channels lie side by side."""
    built = "An instance, such as `my_net = MyNet()`, not the class."
    wrong_if(not isinstance(answer, nn.Module), "this is not a network", built)
    images = torch.rand(6, 1, 8, 8, generator=draw)
    layers: list[Any] = [dict(answer.named_modules()).get(name) for name in MY_NET]
    missing = not all(map(isinstance, layers, MY_NET.values()))
    wrong_if(missing, "not all layers of MyNet are there", f"Keep the names {', '.join(MY_NET)}.")
    inputs, channels = layers[4].in_features, layers[0].out_channels
    added = "Side by side, 32 channels of 4 · 4 are left after pooling: `fc1` reads 512."
    wrong_if(inputs == 256, "fc1 reads 256 numbers", added)
    wrong_if(channels != 16, f"conv1 has {channels} channels", "16 in either convolution, so side by side 32.")
    reads = f"conv2 reads {layers[2].in_channels} channels"
    wrong_if(layers[2].in_channels != 16, reads, "As in MyNet, it reads the 16 that conv1 gives.")
    said = f"fc1 reads {inputs} numbers"
    wrong_if(inputs != 512, said, "Pool first, as MyNet does: 32 channels of 4 · 4 are 512 numbers.")
    for norm in (layers[1], layers[3]):  # an untrained one leaves its input as it is
        norm.running_var.uniform_(0.2, 2, generator=draw)
    try:
        logits = answer.float().eval()(images)
    except Exception as error:  # noqa: BLE001 whatever a learner's network raises is what is wrong with it
        wrong_if(True, f"it stops: {error}", "`dim=1` puts channels side by side; `fc1` must read them all.")
    dims = "`dim=0` puts *images* below each other. `dim=1` are the channels."
    wrong_if(len(logits) == 12, "six images get twelve answers", dims)
    logits = expect_tensor(logits, (6, 10), "One row of ten logits for each image.")
    end = "No softmax at the end: `F.cross_entropy` has its own."
    wrong_if(torch.allclose(logits.exp().sum(1).log(), torch.zeros(6), atol=1e-4), "these are log-probabilities", end)
    wrong_if(torch.allclose(logits.sum(1), torch.ones(6), atol=1e-4), "these are probabilities", end)
    _joined(logits, images, *layers)


def _joined(logits: Tensor, images: Tensor, conv1: Any, norm1: Any, conv2: Any, norm2: Any, fc1: Any, fc2: Any) -> None:
    """Raise Wrong unless the logits are those of a MyNet that puts the channels of both convolutions side by side."""
    first = norm1(conv1(images)).relu()
    second = norm2(conv2(first)).relu()

    def gives(*halves: Tensor, dim: int = 1) -> bool:
        return close(logits, fc2(fc1(F.max_pool2d(torch.cat(halves, dim), 2).flatten(1)).relu()))

    if gives(first, second) or gives(second, first):
        return
    twice = "Both halves come from one convolution. Put what conv1 gives beside what conv2 makes of it."
    wrong_if(gives(first, first) or gives(second, second), "one convolution plays no part", twice)
    both = "In place of the addition, not besides it: what conv1 gives, and what conv2 makes of it."
    wrong_if(
        any(gives(*pair) for pair in permutations([first, second, first + second], 2)), "they are added, too", both
    )
    sides = "Those are rows or columns of the pictures: `dim=1` are the channels."
    wrong_if(gives(first, second, dim=2) or gives(first, second, dim=3), "pictures lie side by side", sides)
    otherwise = "But for `torch.cat` all is as in MyNet: norm and ReLU after either convolution, then pooling."
    wrong_if(True, "its layers, in MyNet's order, give other answers", otherwise)


@exercise(
    "bring_your_own.3",
    "Make the pruned network as the question says, and print it. Compare with `print(Fixed())`.",
    "Which channels end up in the 256 of the view? If some of them went, the view would no longer fit.",
    "Only the units of `fc1` can go. A layer that reads them must become smaller with them.",
)
def narrower(answer: Any, draw: Generator) -> None:
    """`my_narrower` lists the layers whose weights are smaller after hard pruning."""
    names = {"conv1", "conv2", "fc1", "fc2"}
    listed = isinstance(answer, (list, tuple, set)) and all(isinstance(each, str) for each in answer)
    wrong_if(not listed, "this is no list of names", 'A list such as ["conv1", "fc2"].')
    found, said = {*answer}, f"{', '.join(answer) or 'none'}"
    wrong_if(found - names, f"{said}: not all are layers", f"Layers with weights are {', '.join(sorted(names))}.")
    behind = "`fc1` has fewer units, so another layer has fewer inputs. Compare the shapes of all weights."
    wrong_if(found == {"fc1"}, said, behind)
    wrong_if(found == {"fc2"}, said, "Why does fc2 read fewer numbers? Because another layer has fewer outputs.")
    view = "The convolutions are whole: their channels end in the 256 of the view. Did you use `Fixed`, or `MyNet`?"
    wrong_if(found & {"conv1", "conv2"}, said, view)
    wrong_if(not found, said, "`prune_channels` only sets to zero; `hard_prune` removes. Compare after both.")


MOST, LEAST = 5500, 285  # parameters of exercise 4, and images that it reads


@exercise(
    "bring_your_own.4",
    "Section 4 of the lesson has the three steps. Which of them makes the tensors smaller?",
    "`prune_channels(mine, 0.5, data=data.train)`, then `train` for five epochs, then `hard_prune`.",
    "`train(masked, data.train, F.cross_entropy, epochs=5, learning_rate=1e-3, **settings)` between the two.",
)
def small(answer: Any, draw: Generator) -> None:
    """`my_small` is a network of at most 5,500 parameters that reads at least 285 of 300 validation images."""
    returned = "`train` returns a network and its history: `tuned, _ = train(…)`."
    wrong_if(not isinstance(answer, nn.Module), "this is not a network", returned)
    count = count_parameters(answer)
    zeros = sum(int((each == 0).sum()) for each in answer.parameters())
    masked = any("parametrizations" in name for name, _ in answer.named_parameters()) or zeros > count / 3
    hint = "Masked weights are still there: `hard_prune` takes them out."
    wrong_if(count > MOST and masked, f"it has {count:,} parameters, with zeros among them", hint)
    smaller = "Take more channels and units out, by `prune_channels` and `hard_prune`."
    wrong_if(count > MOST, f"it has {count:,} parameters", smaller)
    read = accuracy(answer.float(), _digits()).correct
    said = f"it has {count:,} parameters and reads {read} of 300 images"
    untrained = "That is hardly more than chance. Is it a new network, or one whose training was lost?"
    wrong_if(read < 90, said, untrained)
    wrong_if(read < 240, said, "Pruning alone costs a lot. Train for five epochs between pruning and removing.")
    hidden = "They must all be parameters of layers: of ordinary ones, as `hard_prune` gives them."
    wrong_if(hides_numbers(answer, _digits().images), "it reads by numbers that are not counted", hidden)
    wrong_if(read < LEAST, said, "Near. Prune less, as 5,500 parameters are allowed, or train longer.")


@cache
def _digits() -> Split:
    """Return the lesson's validation images."""
    pixels, digits = load_digits(return_X_y=True)
    return split_data(pixels.reshape(-1, 1, 8, 8) / 16, digits, validation=300, test=400).validation


MOST_HARM, LEAST_HARM = -17.0, -7.0  # points; -10 to -15 with another `mine`, or arithmetic of another processor


@exercise(
    "bring_your_own.5",
    "Take the cell of section 6 and change one number.",
    '`schedule = settings | {"batch_size": 25, "learning_rate": 5e-3, "epochs": 5}`. The mean is the first that '
    "`mean_interval` returns.",
    "Accuracies are fractions; times 100 they are points. The gain is clearly below zero.",
)
def harm(answer: Any, draw: Generator) -> None:
    """`my_gain` is the mean gain in points by the teacher after five epochs."""
    gain = expect_number(answer, "[-100, 100]", "One number: the mean of the five differences, in points.")
    said = f"the mean gain is {gain:.2f} points"
    wrong_if(-0.3 < gain < 0, said, "That looks like a fraction. Times 100 it is points.")
    wrong_if(4.5 < gain < 9.5, f"{said}. That is the gain of section 6", "Five epochs, not 20. Or the sign?")
    wrong_if(gain > 0, said, "Taught minus alone, not the other way round; then it is below zero.")
    less = "Is it 100 images, batches of 25, 5 epochs, and the learning rate of section 6? With more, it harms less."
    wrong_if(gain > LEAST_HARM, said, less)
    more = "Too much. Is the teacher `mine`, trained? Do both students start from the same weights?"
    wrong_if(gain < MOST_HARM, said, more)
