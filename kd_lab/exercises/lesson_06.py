"""The checks of lesson 06, distilling more than answers."""

from functools import cache
from typing import Any

import torch
from torch import Generator, Tensor, nn

from kd_lab.checkpoints import load_trained, student_recipe
from kd_lab.data import load_optical_digits
from kd_lab.distillation import DistillationLoss, fit_trees, similarity_map, soft_targets, with_answers
from kd_lab.evaluation import accuracy
from kd_lab.exercises.judging import (
    close,
    exercise,
    expect_keys,
    expect_network,
    expect_numbers,
    expect_tensor,
    mnist,
    wrong_if,
    wrong_if_like,
)
from kd_lab.networks import predict, small_student, weights
from kd_lab.pruning import prune
from kd_lab.training import train


@exercise(
    "06.1",
    "First one row of numbers for each image, whatever the layer. Then all products of two images at once.",
    "`flat = features.flatten(1)`, and `flat @ flat.T` is (images, images).",
    "`products / products.norm(dim=1, keepdim=True)`",
)
def map_of_features(answer: Any, draw: Generator) -> None:
    """`my_map(features)` is the similarity map, (images, images), every row of length one."""
    for shape in ((5, 7), (4, 3, 2, 2)):
        features = torch.randn(shape, generator=draw).relu() + 0.1
        images = f"The map is (images, images), here ({shape[0]}, {shape[0]}); features.flatten(1) has a row for each."
        given = expect_tensor(answer(features), (shape[0], shape[0]), images)
        flat = features.flatten(1)
        products = flat @ flat.T
        if close(given, similarity_map(features)):
            continue
        length = "Divide each row by its length: `.norm(dim=1, keepdim=True)`."
        mistakes = {
            "the rows are not divided by their lengths": (products, length),
            "the columns have length one": (
                products / products.norm(dim=0, keepdim=True),
                "Row i is image i's: the length is taken along `dim=1`, and kept as a column.",
            ),
            "the whole map has length one": (products / products.norm(), "A length for each row, not one for all."),
            "these are cosines": (
                products / flat.norm(dim=1, keepdim=True) / flat.norm(dim=1),
                "Here the features are divided by their lengths. Divide the rows of products instead.",
            ),
            "each row adds up to 1": (
                products / products.sum(dim=1, keepdim=True),
                "Its *length* is to be 1: the root of the sum of squares, `.norm`.",
            ),
            "this is a softmax": (products.softmax(dim=1), "No exponentials: divide each row by its length."),
            "these are distances": (torch.cdist(flat, flat), "Products of the features: `flat @ flat.T`."),
        }
        wrong_if_like(given, mistakes)
        wrong_if((given.norm(dim=1) - 1).abs().max() > 1e-3, "the rows don't have length one", f"{length[:-1]}, last.")
        wrong_if(True, "the rows have length one, but not these numbers", "Row i is flat[i] · flat[j] for each j.")


@exercise(
    "06.2",
    "If a share s reaches a node, how much of it goes right, and how much left?",
    "Level k has 2**k nodes, from number 2**k - 1 on. Of each node, the left child's share stands before the right's.",
    "`torch.stack([shares * (1 - turns), shares * turns], dim=2).flatten(1)`, for each level.",
)
def reach_of_leaves(answer: Any, draw: Generator) -> None:
    """`my_reach(right)` is the probability of each leaf, (images, leaves), for a tree of any depth."""
    for depth in (2, 1, 3, 4):
        right = torch.rand(6, 2**depth - 1, generator=draw)
        depths = f"A row for each image; {2**depth - 1} nodes have {2**depth} leaves. For other depths use a loop."
        given = expect_tensor(answer(right), (6, 2**depth), depths)
        expected = _reach(right)
        if close(given, expected):
            continue
        mistakes = {
            "left and right are swapped": (_reach(1 - right), "`right` is the probability of going *right*."),
            "these are logarithms": (expected.log(), "The shares themselves: no logarithm."),
            "one leaf has all": (
                _reach((right > 0.5).float()),
                "A soft tree divides each image: multiply the probabilities, don't choose.",
            ),
            "the leaves are in another order": (
                _reach(right, beside=False),
                "Siblings stand side by side: `torch.stack(..., dim=2).flatten(1)`; `torch.cat` puts all left first.",
            ),
        }
        wrong_if_like(given, mistakes)
        divided = "What goes right is shares · right, what goes left shares · (1 - right): together, all of it."
        said = f"with {depth} levels a row adds up to {given.sum(1)[0]:.3f}"
        wrong_if((given.sum(1) - 1).abs().max() > 1e-3, said, divided)
        order = torch.equal(given.sort(1).values.round(decimals=3), expected.sort(1).values.round(decimals=3))
        wrong_if(order, "the shares are right, the order isn't", "From left to right, as the branches go down.")
        numbers = "The children of node i are 2i + 1 and 2i + 2: level by level, 0, then 1 and 2, then 3 to 6."
        wrong_if(True, f"with {depth} levels the shares are not the leaves'", numbers)


def _reach(right: Tensor, beside: bool = True) -> Tensor:
    """Return the share of each leaf; its siblings stand beside each other, or all left ones before all right ones."""
    shares = torch.ones(len(right), 1)
    while shares.shape[1] <= right.shape[1]:
        turns = right[:, shares.shape[1] - 1 : 2 * shares.shape[1] - 1]
        parts = [shares * (1 - turns), shares * turns]
        shares = torch.stack(parts, dim=2).flatten(1) if beside else torch.cat(parts, dim=1)
    return shares


@exercise(
    "06.3",
    "A unit of `fc1` is a row of fc1.weight, a number of fc1.bias, and a column of the *next* layer's weight.",
    "Begin with `fc1` and `fc2` as the lesson does with `mlp128`, and look whether the logits stay. Then the second.",
    "`my_twin.fc2.weight.data = teacher.fc2.weight.data[second][:, first]`",
)
def twin(answer: Any, draw: Generator) -> None:
    """`my_twin` is lenet300 with the units of both hidden layers in another order, and the same logits."""
    answer = expect_network(answer, "lenet300", "Begin with `copy.deepcopy(teacher)`.")
    teacher = load_trained("lenet300")
    place = int(torch.randint(4000, (), generator=draw))
    images = mnist().validation.images[place : place + 500]
    apart = (predict(answer, images) - predict(teacher, images)).abs().max().item()
    if apart > 1e-3:
        _misplaced(answer, teacher, f"the logits differ by up to {apart:.2f}")
    for name in ("fc1", "fc2"):
        there, here = (model.get_submodule(name).bias.detach() for model in (teacher, answer))
        stay = int((there == here).sum())
        moved = "Another order for this layer, too: `torch.randperm`."
        wrong_if(stay > 0.1 * len(here), f"{stay} of {len(here)} units of {name} are where they were", moved)
        same = "The logits are right, but units were changed. Move them as they are: no factors."
        wrong_if(not close(here.sort().values, there.sort().values), f"{name} has other units than the teacher", same)


def _misplaced(model: nn.Module, teacher: nn.Module, said: str) -> None:
    """Raise Wrong: say which part of which unit is not where its others are."""
    order = torch.arange(784)
    for name in ("fc1", "fc2"):
        old, new = (each.get_submodule(name) for each in (teacher, model))
        found = torch.cdist(new.weight.detach(), old.weight.detach()[:, order]).argmin(dim=1)
        rows = torch.equal(old.weight[found][:, order], new.weight)
        pixels = "The rows of fc1.weight move, as they are; its columns are pixels, and stay."
        columns = "The columns of fc2.weight belong to the units of fc1: `[:, order]`, with the order of those."
        wrong_if(
            not rows, f"{said}: the rows of {name}.weight are not the teacher's", pixels if name == "fc1" else columns
        )
        bias = torch.equal(old.bias[found], new.bias)
        wrong_if(
            not bias, f"{said}: the bias of {name} is in another order than its rows", "A unit's bias goes with it."
        )
        order = found
    last = "The columns of fc3.weight belong to the units of fc2: `[:, second]`."
    wrong_if(True, f"{said}: fc3 reads the units of fc2 in another order", last)


@exercise(
    "06.4",
    "Three lines: prune, make the penalty of the *unpruned* teacher, train the pruned network.",
    "`train(prune(teacher, 0.8), new_hand.train, F.cross_entropy, penalty=match_parameters(teacher, 0.001), ...)`",
    "`train` returns two things: `my_network, _ = train(...)`. Leave the masks in: no `make_permanent` before.",
)
def pruned_and_held(answer: Any, draw: Generator) -> None:
    """`my_network` is lenet300, 80 % of its weights zero, and reads the new hand and still MNIST."""
    returned = "`train` returns a network and its history: `my_network, _ = train(prune(teacher, 0.8), …)`."
    answer = expect_network(answer, "lenet300", returned)
    gone, pruned = (
        torch.cat([(each.value == 0).flatten() for each in weights(model).values()])
        for model in (answer, prune(load_trained("lenet300"), 0.8))
    )
    zeros = gone.float().mean().item()
    lost = "Pruned, then trained, with the masks in: `prune` puts them on, `make_permanent` takes them off."
    wrong_if(zeros < 0.5, f"only {zeros:.1%} of the weights are zero", lost)
    wrong_if(abs(zeros - 0.8) > 0.005, f"{zeros:.1%} of the weights are zero, not 80 %", "`prune(teacher, 0.8)`")
    new, old = (accuracy(answer, part).value for part in (load_optical_digits().test, mnist().validation))
    said = f"it reads {new:.1%} of the new hand and {old:.1%} of MNIST"
    after = "Other weights are zero than after `prune(teacher, 0.8)`: prune first, then train."
    wrong_if(new < 0.95 and not torch.equal(gone, pruned), said, after)
    learned = "It hasn't learned the new hand. Is it what `train` returned, and is λ = 0.001?"
    wrong_if(new < 0.95, said, learned)
    wrong_if(old < 0.959, said, "It has forgotten. Was it held: `penalty=match_parameters(teacher, 0.001)`?")


GAINS = {500: 2.3, 2000: 1.2, 10000: -1.6}  # points on average over three seeds, by the number of images


@exercise(
    "06.5",
    "Two loops: over the numbers of images, and over the seeds. The forest is planted once.",
    "`percent_read(answered, unseen, 0, seed) - percent_read(answered, unseen, 1, seed)` is one gain.",
    "With 500 images the gains lie between 1 and 6 points; with 10,000 all are below zero.",
)
def weak_teacher(answer: Any, draw: Generator) -> None:
    """`my_gains` is a dict: for each number of images, what three students gain by the forest, in points."""
    shape = "Return {500: [three], 2000: [three], 10000: [three]}."
    expect_keys(answer, {*GAINS}, shape)
    gains = {count: expect_numbers(answer[count], 3, "[-100, 100]", shape) for count in GAINS}
    sums = {count: sum(points) for count, points in gains.items()}
    wrong_if(max(map(abs, sums.values())) < 0.5, "these are fractions", "Times 100 they are points.")
    own = "These are accuracies. A gain is the taught student's minus that of its twin on labels."
    wrong_if(min(sums.values()) > 150, "all gains are very large", own)
    swapped = "The sign: taught minus on labels. `alpha` 0 is the forest alone, 1 the labels alone."
    wrong_if(sums[500] < 0 < sums[10000], "few images lose, and many gain", swapped)
    same = any(len({*points}) == 1 for points in gains.values())
    wrong_if(same, "three seeds gave the same", "Does `seed` reach `percent_read`?")
    seed = int(torch.randint(3, (), generator=draw))
    here = _read_by_forest(2000, 0, seed) - _read_by_forest(2000, 1, seed)  # the quickest of the three
    said = f"2000 images, seed {seed}: {gains[2000][seed]:+.2f} points, and here {here:+.2f}"
    images = "Are they the first images of `data.train`, and is `unseen` the first 1,000 of validation?"
    wrong_if(abs(gains[2000][seed] - here) > 0.9, said, images)
    for count, mean in GAINS.items():
        said = f"{count} images: {sums[count] / 3:+.2f} points on average, where about {mean:+} are gained"
        wrong_if(abs(sums[count] / 3 - mean) > 1, said, f"From the first image on: `data.train[:{count}]`.")


@cache
def _forest() -> nn.Module:
    """Return the forest of the lesson."""
    some = mnist().train[:5000]
    soft = soft_targets(predict(load_trained("cnn"), some.images), temperature=2)
    return fit_trees(some.images, soft, trees=20, max_leaf_nodes=500)


@cache
def _read_by_forest(count: int, alpha: float, seed: int) -> float:
    """Return how many percent of the validation images a student reads that the forest (or labels, alpha 1) taught."""
    data = mnist()
    settings: dict[str, Any] = student_recipe(count) | {"epochs": 10, "progress": False}
    answered, unseen = (with_answers(_forest(), part) for part in (data.train[:count], data.validation[:1000]))
    loss, student = DistillationLoss(1, alpha), small_student(30, seed)
    student, _ = train(student, answered, loss, validation=unseen, **settings)
    return 100 * accuracy(student, data.validation).value
