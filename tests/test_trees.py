"""Trees answer as networks do: learned from a teacher, and a teacher in turn."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from kd_lab.checkpoints import load_trained
from kd_lab.distillation import Trees, distil, fit_trees, soft_targets, with_answers
from kd_lab.errors import ParameterError
from kd_lab.evaluation import accuracy, predict_classes
from kd_lab.networks.layers import predict
from kd_lab.networks.zoo import build_model


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
