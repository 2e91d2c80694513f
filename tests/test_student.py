"""A small student starts as torch would start it, and its recipe trains it on any number of images."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kd_lab.checkpoints import student_recipe
from kd_lab.errors import ParameterError
from kd_lab.evaluation import accuracy
from kd_lab.networks.zoo import small_student
from kd_lab.training import train


@pytest.mark.parametrize("width, seed", [(1, 0), (30, 7), (300, 1)])
def test_it_starts_as_torch_would_start_it_and_leaves_the_random_numbers_alone(width, seed):
    before = torch.get_rng_state()
    student = small_student(width, seed)
    assert torch.equal(before, torch.get_rng_state())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        expected = nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))
    assert str(student) == str(expected)
    assert all(torch.equal(*pair) for pair in zip(student.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize(
    "arguments, part",
    [
        ((0, 0), "'width' must be a whole number in [1, 10000]. Got 0."),
        ((30.0, 0), "'width'"),
        ((True, 0), "'width'"),
        ((30, -1), "'seed'"),
    ],
)
def test_no_network_without_units(arguments, part):
    with pytest.raises(ParameterError) as error:
        small_student(*arguments)
    assert part in str(error.value) and str(error.value).startswith("small_student()")


@pytest.mark.parametrize("images", [0, 2.5, None])
def test_no_recipe_for_no_images(images):
    with pytest.raises(ParameterError, match=r"student_recipe\(\): 'images' must be a whole number"):
        student_recipe(images)


def test_a_student_learns_by_its_recipe(few, validation):
    student, history = train(
        small_student(), few, F.cross_entropy, validation=validation, progress=False, **student_recipe(len(few.images))
    )
    assert len(history.epochs) == 20 and accuracy(student, validation).value > 0.85


@pytest.mark.parametrize("images", [1, 500, 1001, 55_000, 1_000_000])
def test_every_number_of_images_has_a_recipe(images):
    assert student_recipe(images)["steps_per_epoch"] >= 1


@pytest.mark.parametrize("most", [1000, 5000, 20_000])
def test_a_recipe_reaches_up_to_the_next(most):
    assert student_recipe(most - 1) == student_recipe(most) != student_recipe(most + 1)
