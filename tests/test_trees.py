"""Trees answer as networks do, and a soft tree is what its paper says, node by node: both learn and teach."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from torch import nn

from kd_lab.checkpoints import load_trained
from kd_lab.distillation import (
    DistillationLoss,
    SingleLeaf,
    SoftTree,
    Trees,
    balance_penalty,
    distil,
    fit_trees,
    soft_targets,
    with_answers,
)
from kd_lab.errors import ParameterError
from kd_lab.evaluation import accuracy, predict_classes
from kd_lab.networks.predictions import predict
from kd_lab.networks.zoo import build_model
from kd_lab.training import train


@pytest.fixture(scope="module")
def lesson(few):
    """Images and what the teacher answers to them."""
    images, _labels, logits = with_answers(load_trained("mlp128"), few)
    return images, soft_targets(logits, 4)


@pytest.fixture(scope="module")
def forest(lesson):
    return fit_trees(*lesson, max_leaf_nodes=300, trees=10)


def test_a_tree_is_scikit_learns(lesson, validation):
    images, answers = lesson
    peer = DecisionTreeRegressor(max_leaf_nodes=20, random_state=3).fit(images.flatten(1).numpy(), answers.numpy())
    tree = fit_trees(*lesson, max_leaf_nodes=20, seed=3)
    theirs = torch.tensor(peer.predict(validation.images.flatten(1).numpy()), dtype=torch.float32)
    ours = predict(tree, validation.images)
    torch.testing.assert_close(ours.exp(), theirs)
    assert len(ours.unique(dim=0)) <= 20


def test_a_forest_answers_with_the_mean_of_its_trees(forest, validation):
    pixels = validation.images.flatten(1).numpy()
    mean = np.mean([tree.predict(pixels) for tree in forest.estimators], axis=0)
    torch.testing.assert_close(predict(forest, validation.images).exp(), torch.tensor(mean).float())
    assert len(forest.estimators) == 10
    assert len({tree.tree_.threshold[0] for tree in forest.estimators}) > 1
    assert {tree.max_features for tree in forest.estimators} == {"sqrt"}  # of the pixels, at each node


def test_on_labels_it_is_a_classification_tree(few, validation):
    answers = F.one_hot(few.labels, 10).float()
    tree = fit_trees(few.images, answers, max_leaf_nodes=30)
    peer = DecisionTreeClassifier(max_leaf_nodes=30, random_state=0).fit(few.images.flatten(1).numpy(), few.labels)
    theirs = torch.tensor(peer.predict(validation.images.flatten(1).numpy()))
    assert (predict_classes(tree, validation.images) == theirs).float().mean() > 0.97  # Gini; ties may fall otherwise


def test_answers_are_finite_log_probabilities(few, validation):
    pure = fit_trees(few.images, F.one_hot(few.labels, 10).float(), max_leaf_nodes=1000)  # most leaves hold one digit
    answers = predict(pure, validation.images)
    assert answers.shape == (1000, 10) and answers.dtype == torch.float32 and answers.isfinite().all()
    torch.testing.assert_close(answers.exp().sum(dim=1), torch.ones(1000), atol=2e-5, rtol=0)
    assert answers.min().item() == pytest.approx(math.log(1e-6))  # where a leaf has seen nothing of a digit
    assert predict(pure, validation.images[:0]).shape == (0, 10)


def test_the_same_seed_gives_the_same_forest_and_a_copy_is_one(lesson, validation):
    first, again, other = (fit_trees(*lesson, max_leaf_nodes=10, trees=3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(predict(first, validation.images), predict(again, validation.images))
    assert torch.equal(predict(first, validation.images), predict(copy.deepcopy(first), validation.images))
    assert not torch.equal(predict(first, validation.images), predict(other, validation.images))


def test_a_forest_reads_digits_and_teaches_a_network(forest, few, validation):
    assert accuracy(forest, validation).value > 0.8
    student, _ = distil(
        build_model("mlp128"), forest, few, validation=validation, temperature=1, alpha=0.0, epochs=4, progress=False
    )
    assert accuracy(student, validation).value > 0.8
    same = (predict_classes(student, few.images) == predict_classes(forest, few.images)).float().mean()
    assert same > 0.85


@pytest.mark.parametrize(
    ("argument", "value"), [("max_leaf_nodes", 1), ("max_leaf_nodes", 2.5), ("trees", 0), ("trees", "10"), ("seed", -1)]
)
def test_settings_are_whole_numbers(lesson, argument, value):
    with pytest.raises(ParameterError, match=rf"fit_trees\(\): '{argument}' must be a whole number in \["):
        fit_trees(*lesson, **{"max_leaf_nodes": 10, argument: value})


def test_bad_examples_get_one_clear_error(lesson):
    images, answers = lesson
    broken = images.clone()
    broken[7, 0, 3, 3] = math.nan
    for given, match in {
        "'images' and 'answers' must be equally many. Got 2000 and 1999": (images, answers[:-1]),
        "'images' must be a tensor of 4 dimensions": (images.flatten(1), answers),
        "'images' must be a tensor of": (broken, answers),
        "'answers' must be a tensor of 2 dimensions": (images, answers.argmax(1)),
        "'answers' must be probabilities": (images, answers.log()),
        "'answers' must be probabilities .*, as soft_targets": (images, 2 * answers),
        "'answers' must be probabilities .*, as": (images, answers + torch.tensor([2.0, -2.0] + 8 * [0.0])),
    }.items():
        with pytest.raises(ParameterError, match=rf"fit_trees\(\): {given}"):
            fit_trees(*match, max_leaf_nodes=10)
    with pytest.raises(ParameterError, match=r"soft_targets\(\): 'temperature' must be a number in \(0, 1000\]"):
        fit_trees(images, soft_targets(answers, 0), max_leaf_nodes=10)


def test_answers_that_remember_their_gradients_are_as_good(lesson):
    images, answers = lesson
    tree, other = (fit_trees(images, each, max_leaf_nodes=5) for each in (answers, answers.clone().requires_grad_()))
    assert torch.equal(predict(tree, images), predict(other, images))


def test_images_of_another_shape_are_named(forest, few):
    assert isinstance(forest, Trees)
    with pytest.raises(ParameterError, match=r"accuracy\(\): the model can't read images of shape \(1, 14, 14\)"):
        accuracy(forest, (few.images[:, :, :14, :14], few.labels))


def digits(count=6, seed=0):
    return torch.randn(count, 1, 28, 28, generator=torch.Generator().manual_seed(seed))


def sigmoid(number):
    return 1 / (1 + math.exp(-number))


def going_right(tree, image):
    """The probability at each inner node, by hand."""
    pixels = image.flatten().double()
    with torch.no_grad():
        return [
            sigmoid(float(beta) * (float(weight.double() @ pixels) + float(bias)))
            for weight, bias, beta in zip(tree.filters.weight, tree.filters.bias, tree.beta, strict=True)
        ]


@pytest.fixture
def small():
    tree = SoftTree(2, seed=1)
    with torch.no_grad():
        tree.beta.copy_(torch.tensor([0.5, 3.0, -1.0]))
    return tree


@pytest.fixture(scope="module")
def trained(few, validation):
    return train(
        SoftTree(4),
        few,
        F.cross_entropy,
        validation=validation,
        epochs=6,
        learning_rate=3e-2,
        batch_size=128,
        progress=False,
    )[0]


def test_a_tree_of_depth_two_by_hand(small):
    leaf = [[math.exp(value) / sum(map(math.exp, row)) for value in row] for row in small.leaves.tolist()]
    for image, answer in zip(digits(), predict(small, digits()).exp().tolist(), strict=True):
        top, left, right = going_right(small, image)
        reach = [(1 - top) * (1 - left), (1 - top) * left, top * (1 - right), top * right]
        assert answer == pytest.approx(
            [sum(p * row[digit] for p, row in zip(reach, leaf, strict=True)) for digit in range(10)], rel=1e-4
        )


@pytest.mark.parametrize("depth", [1, 3, 8, 12])
def test_the_mixture_is_a_logsumexp_over_the_leaves_and_sums_to_one(depth):
    tree = SoftTree(depth).double()
    x = digits(3).double()
    reach = tree.log_levels(tree.log_turns(x))[-1]
    assert reach.shape == (3, 2**depth)
    torch.testing.assert_close(reach.exp().sum(dim=1), torch.ones(3).double())
    torch.testing.assert_close(tree(x), torch.logsumexp(reach.unsqueeze(2) + tree.log_answers(), dim=1))
    torch.testing.assert_close(tree(x).exp().sum(dim=1), torch.ones(3).double())


def test_gradients_agree_with_differences(small):
    tree, x = small.double(), digits(2).double() / 10
    names = ["filters.weight", "filters.bias", "leaves", "beta"]

    def mixture(*parameters):
        return torch.func.functional_call(tree, dict(zip(names, parameters, strict=True)), x)

    parameters = [tree.get_parameter(name).detach().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(mixture, parameters, fast_mode=True)


@pytest.mark.parametrize("parts", [["filters.weight"], ["beta"], ["leaves"], ["beta", "leaves"]])
def test_extremes_stay_finite_and_so_do_their_gradients(parts):
    tree = SoftTree(6)
    with torch.no_grad():
        for part in parts:
            tree.get_parameter(part).mul_(1e4)
    answers = tree(digits(20))
    F.cross_entropy(answers, torch.arange(20) % 10).backward()
    assert answers.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in tree.parameters())
    assert balance_penalty(tree, digits(20)).isfinite()


def test_steep_turns_leave_one_leaf():
    tree = SoftTree(4)
    with torch.no_grad():
        tree.beta.fill_(1e5)
    torch.testing.assert_close(predict(tree, digits()), predict(SingleLeaf(tree), digits()))


def test_paths_are_the_most_probable_of_all_by_brute_force():
    tree, images = SoftTree(5, seed=2), digits(12)
    found = tree.paths(images)
    assert [tuple(part.shape) for part in found] == [(12, 5), (12, 5), (12, 5), (12,)]
    for image, nodes, turns, probabilities, leaf in zip(images, *found, strict=True):
        p, best = going_right(tree, image), (0.0,)
        for path in itertools.product([False, True], repeat=5):
            node, visited, chances = 0, [], []
            for right in path:
                visited.append(node)
                chances.append(p[node] if right else 1 - p[node])
                node = 2 * node + 1 + right
            best = max(best, (math.prod(chances), visited, list(path), chances, node - 31))
        assert (nodes.tolist(), turns.tolist(), int(leaf)) == (best[1], best[2], best[4])
        assert probabilities.tolist() == pytest.approx(best[3], rel=1e-4)


def test_a_single_leaf_answers_with_its_own_distribution(trained, validation):
    leaf = trained.paths(validation.images).leaf
    answers = predict(SingleLeaf(trained), validation.images)
    torch.testing.assert_close(answers.exp(), F.softmax(trained.leaves.detach(), dim=1)[leaf])
    torch.testing.assert_close(answers.exp().sum(dim=1), torch.ones(1000))


def test_the_balance_penalty_by_hand(small):
    images, expected = digits(), 0.0
    p = torch.tensor([going_right(small, image) for image in images])
    reached = torch.stack([torch.ones(6), 1 - p[:, 0], p[:, 0]], dim=1)
    for node, strength in enumerate([1, 0.5, 0.5]):
        share = float((reached[:, node] * p[:, node]).sum() / reached[:, node].sum())
        expected -= strength * (math.log(share) + math.log(1 - share)) / 2
    assert balance_penalty(small, images).item() == pytest.approx(expected, rel=1e-4)
    with torch.no_grad():
        small.beta.zero_()
    assert balance_penalty(small, images).item() == pytest.approx(2 * math.log(2))  # the least that it can be


def test_a_tree_learns_to_read_digits(trained, validation):
    assert accuracy(trained, validation).value > 0.7
    assert accuracy(SingleLeaf(trained), validation).value > 0.7


@pytest.mark.parametrize("temperature", [0.1, 1, 20])
def test_it_is_a_student_like_any_other(few, validation, temperature):
    teacher = load_trained("mlp128")
    student, history = distil(
        SoftTree(3),
        teacher,
        few,
        validation=validation,
        temperature=temperature,
        epochs=2,
        penalty=lambda tree: 0.1 * balance_penalty(tree, few.images[:50]),
        progress=False,
    )
    assert isinstance(student, SoftTree) and len(history.epochs) == 2
    *_, logits = with_answers(teacher, few)
    loss = DistillationLoss(temperature, 0.5)
    assert loss(student(few.images), few.labels, logits) < loss(SoftTree(3)(few.images), few.labels, logits)


def test_the_balance_penalty_keeps_more_leaves_in_use(few, validation):
    used = []
    for strength in (0.0, 1.0):
        tree, _ = train(
            SoftTree(4),
            few,
            F.cross_entropy,
            validation=validation,
            epochs=6,
            learning_rate=2e-2,
            penalty=lambda tree, strength=strength: strength * balance_penalty(tree, few.images[:200]),
            progress=False,
        )
        share = tree.log_levels(tree.log_turns(validation.images))[-1].exp().mean(dim=0)
        used.append(-(share * share.log()).sum().item())
    assert used[1] > used[0]


def test_a_seed_gives_its_weights_and_leaves_the_callers_random_numbers():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = SoftTree(3, seed=1), SoftTree(3, seed=1), SoftTree(3, seed=2)
    assert torch.equal(torch.rand(3), expected)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.get_parameter(name))
    assert not torch.equal(first.leaves, other.leaves)
    assert torch.equal(predict(copy.deepcopy(first), digits()), predict(first, digits()))


@pytest.mark.parametrize("depth", [0, 13, 2.5, "4", True, None, math.nan])
def test_depths_are_whole_numbers(depth):
    with pytest.raises(ParameterError, match=r"SoftTree\(\): 'depth' must be a whole number in \[1, 12\]\. Got"):
        SoftTree(depth)


def test_images_that_are_none_are_named():
    tree = SoftTree(3)
    for images in (torch.zeros(2, 1, 14, 14), torch.zeros(2, 784).long()):
        with pytest.raises(ParameterError, match=r"SoftTree\.paths\(\): the model can't read images of shape"):
            tree.paths(images)
        with pytest.raises(ParameterError, match=r"balance_penalty\(\): the model can't read images of shape"):
            balance_penalty(tree, images)
    for images in (None, [1, 2], digits(0), torch.full((2, 1, 28, 28), math.nan)):
        with pytest.raises(ParameterError, match=r"balance_penalty\(\): 'images' must be a tensor of finite numbers"):
            balance_penalty(tree, images)
    with pytest.raises(ParameterError, match=r"SoftTree\.paths\(\): 'images' must be a tensor"):
        tree.paths([1, 2])


def test_what_is_no_soft_tree_is_named():
    network = nn.Linear(784, 10)
    for function, call in {
        "SingleLeaf": lambda: SingleLeaf(network),
        "balance_penalty": lambda: balance_penalty(network, digits()),
    }.items():
        with pytest.raises(ParameterError, match=rf"{function}\(\): 'tree' must be a SoftTree\. Got Linear"):
            call()


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_another_default_dtype_changes_no_fitted_tree(lesson, double):
    images, answers = lesson
    found = fit_trees(images[:200], answers[:200], max_leaf_nodes=5)
    torch.set_default_dtype(torch.float32)
    expected = predict(fit_trees(images[:200], answers[:200], max_leaf_nodes=5), images)
    torch.testing.assert_close(predict(found, images), expected)
    assert torch.equal(predict(found, images.double()), expected)


GROWN = SoftTree(3, seed=1)


def test_a_soft_tree_learns_the_same_whatever_surrounds_it(few, validation, surroundings):
    tree = SoftTree(3, seed=1)
    for parameter, expected in zip(tree.parameters(), GROWN.parameters(), strict=True):
        assert torch.equal(parameter, expected) and parameter.dtype == torch.float32 and not parameter.is_inference()

    def balance(tree):
        return balance_penalty(tree, few.images[:50])

    arguments = dict(validation=validation[:100], epochs=1, penalty=balance, progress=False)
    found, expected = (train(each, few[:500], F.nll_loss, **arguments)[0] for each in (tree, GROWN))
    assert torch.equal(predict(found, validation.images), predict(expected, validation.images))
    assert balance(tree).dtype == torch.float32


def test_images_that_remember_their_gradients_are_as_good(lesson):
    images, answers = lesson[0][:200], lesson[1][:200]
    tracked = images.clone().requires_grad_()
    found, expected = (fit_trees(each, answers, max_leaf_nodes=5) for each in (tracked, images))
    assert torch.equal(found(tracked), expected(images))
    with pytest.raises(ParameterError, match=r"'images' must be a tensor of 4 dimensions"):
        fit_trees(images.numpy(), answers, max_leaf_nodes=5)


def test_numbers_of_numpy_make_the_same_trees(lesson):
    images, answers = lesson[0][:200], lesson[1][:200]
    tree, ordinary = SoftTree(np.int8(2), np.int64(3)), SoftTree(2, 3)
    assert type(tree.depth) is int and all(map(torch.equal, tree.parameters(), ordinary.parameters()))
    found = fit_trees(images, answers, max_leaf_nodes=np.int64(5), trees=np.int64(2), seed=np.int64(3))
    expected = fit_trees(images, answers, max_leaf_nodes=5, trees=2, seed=3)
    assert torch.equal(predict(found, images), predict(expected, images))
