"""Bad arguments get one sentence that names the function, the argument, what is allowed and what came."""

import importlib
import inspect
import math
import pickle
import pkgutil
import subprocess
import sys
import threading
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kd_lab
from kd_lab.data import Split
from kd_lab.distillation import DistillationLoss
from kd_lab.errors import ParameterError, check_choice, check_number, check_that, check_whole_number, reason
from kd_lab.evaluation import Accuracy, PairedDifference, accuracy
from kd_lab.networks.zoo import build_model
from kd_lab.panels import PruningPanel
from kd_lab.penalties import match_parameters
from kd_lab.pruning import prune, prune_gradually, rank
from kd_lab.quantization import FakeQuantizer, quantize_model
from kd_lab.training import train


@pytest.mark.parametrize("value", [0, 0.5, np.float32(0.25), np.int64(0)])
def test_numbers_in_the_interval_pass(value):
    check_number("sparsity", value, "[0, 1)")


@pytest.mark.parametrize("value", [1, -0.1, math.nan, math.inf, True, "0.5", None, [0.5], 50])
def test_everything_else_is_refused(value):
    with pytest.raises(ParameterError, match=r"'sparsity' must be a number in \[0, 1\)\. Got "):
        check_number("sparsity", value, "[0, 1)")


@pytest.mark.parametrize(
    ("allowed", "low_passes", "high_passes"), [("[0, 1]", True, True), ("(0, 1]", False, True), ("[0, 1)", True, False)]
)
def test_brackets_say_whether_an_end_belongs(allowed, low_passes, high_passes):
    for value, passes in ((0, low_passes), (1, high_passes)):
        if passes:
            check_number("x", value, allowed)
        else:
            with pytest.raises(ParameterError):
                check_number("x", value, allowed)


def test_the_message_guesses_a_percentage_and_a_quoted_number():
    with pytest.raises(ParameterError) as caught:
        check_number("sparsity", 50, "[0, 1)")
    assert reason(caught.value) == "'sparsity' must be a number in [0, 1). Got 50. Did you mean 0.5?"
    with pytest.raises(ParameterError, match=r"Got '0\.5'\. Did you mean 0\.5\?$"):
        check_number("sparsity", "0.5", "[0, 1)")


@pytest.mark.parametrize("value", [-1, math.nan, True, None, "many"])
def test_there_is_no_guess_where_nothing_fits(value):
    with pytest.raises(ParameterError) as caught:
        check_number("sparsity", value, "[0, 1)")
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("value", [0, -3, 4.5, True, "3", None, math.nan, 10**9])
def test_whole_numbers(value):
    check_whole_number("epochs", np.int32(3), "[1, 1000]")
    with pytest.raises(ParameterError, match=r"'epochs' must be a whole number in \[1, 1000\]"):
        check_whole_number("epochs", value, "[1, 1000]")


def test_an_unknown_name_gets_the_closest_one():
    check_choice("name", "cnn", ["cnn", "lenet300"])
    with pytest.raises(ParameterError, match=r"one of cnn, lenet300\. Got 'lenet30'\. Did you mean 'lenet300'\?"):
        check_choice("name", "lenet30", ["cnn", "lenet300"])
    with pytest.raises(ParameterError, match=r"Got 7\.$"):
        check_choice("name", 7, ["cnn", "lenet300"])


class Tilted(DistillationLoss):
    """A learner's own loss."""


class OwnPanel(PruningPanel):
    """A learner's own panel."""


def fails_at_zero(model):
    return train(model, IMAGES, F.cross_entropy, validation=IMAGES, epochs=0)


IMAGES = torch.zeros(4, 1, 28, 28), torch.zeros(4, dtype=torch.int64)
UNFIT = FakeQuantizer(torch.ones(3), torch.zeros(3), 8)
CALLED = {  # by the function, or the class, that the learner called
    "prune": lambda model: prune(model, 50),
    "quantize_model": lambda model: quantize_model(model, IMAGES[0], 8, 99),  # which calls others
    "train": lambda model: prune_gradually(model, 0.5, 2, fails_at_zero),  # called back
    "DistillationLoss": lambda _model: DistillationLoss(-1, 0.5),  # a dataclass
    "Tilted": lambda _model: Tilted(-1, 0.5),
    "Accuracy.of": lambda _model: Accuracy.of(torch.zeros(0)),
    "PairedDifference.of": lambda _model: PairedDifference.of(torch.zeros(3), torch.zeros(2)),
    "Ranking.masks": lambda _model: rank({"a": torch.ones(3)}).masks(50),
    "OwnPanel": lambda _model: OwnPanel("cnn", IMAGES),
    "accuracy": lambda model: accuracy(nn.Sequential(model, UNFIT), IMAGES),  # torch is between
}


@pytest.mark.parametrize("name", CALLED)
def test_an_error_names_what_the_learner_called(name):
    with pytest.raises(ParameterError) as caught:
        CALLED[name](build_model("lenet300"))
    assert str(caught.value).startswith(f"{name}(): ")
    assert str(caught.value).count("():") == 1


def test_an_error_in_another_names_one_function():
    penalty = match_parameters(build_model("mlp128"), 1.0)
    with pytest.raises(ParameterError, match=r"^train\(\): 'penalty' can't judge the model: student and teacher must"):
        train(build_model("lenet300"), IMAGES, F.cross_entropy, validation=IMAGES, epochs=1, penalty=penalty)


def test_an_error_in_a_thread_names_the_function():
    found = []

    def fail():
        try:
            prune(build_model("mlp128"), 50)
        except ParameterError as error:
            found.append(str(error))

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    assert found[0].startswith("prune(): 'sparsity'")


SOURCE = "from kd_lab.pruning import magnitude_mask\nimport torch\nmagnitude_mask(torch.ones(3), 50)"


@pytest.mark.parametrize("names", [{}, {"__name__": None}, {"__name__": "__main__"}, {"__name__": "kd_lab_of_mine"}])
def test_an_error_in_a_cell_without_a_file_names_the_function(names):
    with pytest.raises(ParameterError, match=r"^magnitude_mask\(\): 'sparsity' must be"):
        exec(compile(SOURCE, "<frozen cell>", "exec"), names)


WITHOUT_TORCH = f"""
import sys, types
for name in ("kd_lab", "kd_lab.formats"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [{kd_lab.__path__[0]!r} + name[6:].replace(".", "/")]
from kd_lab.formats.coding import canonical_codes
canonical_codes([0.5])
"""  # for which python -O compiles torch, which takes seconds


@pytest.mark.parametrize(
    "source, said",
    [
        (WITHOUT_TORCH, "canonical_codes(): 'lengths' must be"),
        pytest.param(SOURCE, "magnitude_mask(): 'sparsity' must be", marks=pytest.mark.slow),
    ],
    ids=["without torch", "with torch"],
)
def test_an_error_names_the_function_under_python_O(source, said):
    result = subprocess.run([sys.executable, "-O", "-c", source], capture_output=True, text=True)
    assert f"ParameterError: {said}" in result.stderr


def test_an_error_that_comes_from_another_process_keeps_its_name():
    error = ParameterError("'sparsity' must be smaller.", "prune")
    copied = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(copied), str(copied)) == (ParameterError, "prune(): 'sparsity' must be smaller.")


def test_an_error_outside_all_functions_of_the_kit_names_none():
    error = ParameterError("'sparsity' must be smaller.")
    assert str(error) == str(pickle.loads(pickle.dumps(error))) == "'sparsity' must be smaller."  # noqa: S301


def test_no_public_function_takes_the_name_of_another():
    for module in pkgutil.walk_packages(kd_lab.__path__, "kd_lab."):
        for name, function in inspect.getmembers(importlib.import_module(module.name), inspect.isfunction):
            taken = inspect.signature(function).parameters.get("function")
            assert not taken or "Callable" in str(taken.annotation), (module.name, name)


@pytest.mark.parametrize("value", [np.uint8(8), np.int64(8), np.int16(8), 8])
def test_a_whole_number_of_numpy_becomes_an_ordinary_one(value):
    for check in (check_number, check_whole_number):
        assert type(check("bits", value, "[1, 8]")) is int


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), Fraction(1, 2), 0.5])
def test_a_number_of_numpy_becomes_an_ordinary_one(value):
    assert type(found := check_number("sparsity", value, "[0, 1)")) is float and found == 0.5


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.zeros(4, 2), "Tensor of shape (4, 2) and torch.float32"),
        (np.zeros((4, 2)), "ndarray of shape (4, 2) and float64"),
        ((np.zeros(4), [1, 2]), "tuple of 2: ndarray of shape (4,) and float64, [1, 2]"),
        (
            Split(*IMAGES[:1], torch.ones(2)),
            "Split of 2: Tensor of shape (4, 1, 28, 28) and torch.float32, Tensor of shape (2,) and torch.float32",
        ),
        ((torch.zeros(3, 2).tolist(), [7] * 99), "tuple of 2: list of 3, list of 99"),
        ([object(), {}], "list of 2: object, {}"),
        (["fc1", 2.0, None], "['fc1', 2.0, None]"),
        ([(1, torch.ones(2))] * 99, "list of 99: tuple of 2, tuple of 2, tuple of 2"),
        ({"a": torch.zeros(99)}, "dict"),
        (nn.Sequential(nn.Flatten()), "Sequential"),
        (object(), "object"),
        ("text", "'text'"),
        (np.float32(0.5), repr(np.float32(0.5))),
        (None, "None"),
    ],
)
def test_what_came_is_said_in_words(value, said):
    with pytest.raises(ParameterError) as caught:
        check_that("value", value, False, "another")
    assert f"'value' must be another. Got {said}." in str(caught.value)
