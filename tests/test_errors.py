"""Bad arguments get one sentence that names the function, the argument, what is allowed and what came."""

import math

import numpy as np
import pytest

from kd_lab.errors import ParameterError, check_choice, check_number, check_whole_number


@pytest.mark.parametrize("value", [0, 0.5, np.float32(0.25), np.int64(0)])
def test_numbers_in_the_interval_pass(value):
    check_number("prune", "sparsity", value, "[0, 1)")


@pytest.mark.parametrize("value", [1, -0.1, math.nan, math.inf, True, "0.5", None, [0.5], 50])
def test_everything_else_is_refused(value):
    with pytest.raises(ParameterError, match=r"^prune\(\): 'sparsity' must be a number in \[0, 1\)\. Got "):
        check_number("prune", "sparsity", value, "[0, 1)")


@pytest.mark.parametrize(
    ("allowed", "low_passes", "high_passes"), [("[0, 1]", True, True), ("(0, 1]", False, True), ("[0, 1)", True, False)]
)
def test_brackets_say_whether_an_end_belongs(allowed, low_passes, high_passes):
    for value, passes in ((0, low_passes), (1, high_passes)):
        if passes:
            check_number("f", "x", value, allowed)
        else:
            with pytest.raises(ParameterError):
                check_number("f", "x", value, allowed)


def test_the_message_guesses_a_percentage_and_a_quoted_number():
    with pytest.raises(ParameterError) as caught:
        check_number("prune", "sparsity", 50, "[0, 1)")
    assert str(caught.value) == "prune(): 'sparsity' must be a number in [0, 1). Got 50. Did you mean 0.5?"
    with pytest.raises(ParameterError, match=r"Got '0\.5'\. Did you mean 0\.5\?$"):
        check_number("prune", "sparsity", "0.5", "[0, 1)")


@pytest.mark.parametrize("value", [-1, math.nan, True, None, "many"])
def test_there_is_no_guess_where_nothing_fits(value):
    with pytest.raises(ParameterError) as caught:
        check_number("prune", "sparsity", value, "[0, 1)")
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("value", [0, -3, 4.5, True, "3", None, math.nan, 10**9])
def test_whole_numbers(value):
    check_whole_number("train", "epochs", np.int32(3), "[1, 1000]")
    with pytest.raises(ParameterError, match=r"train\(\): 'epochs' must be a whole number in \[1, 1000\]"):
        check_whole_number("train", "epochs", value, "[1, 1000]")


def test_an_unknown_name_gets_the_closest_one():
    check_choice("build_model", "name", "cnn", ["cnn", "lenet300"])
    with pytest.raises(ParameterError, match=r"one of cnn, lenet300\. Got 'lenet30'\. Did you mean 'lenet300'\?"):
        check_choice("build_model", "name", "lenet30", ["cnn", "lenet300"])
    with pytest.raises(ParameterError, match=r"Got 7\.$"):
        check_choice("build_model", "name", 7, ["cnn", "lenet300"])
