"""The rules of a record, each against files made by hand, and the paired difference against the textbook's formula."""

from statistics import mean

import pytest
import torch
from digits import MNIST

from kd_lab.checkpoints import load_trained
from kd_lab.compression.rules import (
    LIMITS,
    MARGIN,
    OPEN,
    Scores,
    board_rules,
    boards_of,
    check_told,
    error_difference,
    general_rules,
    nearest_limit,
    score_files,
)
from kd_lab.data import Mnist
from kd_lab.errors import DamagedFileError, ParameterError, StorageError
from kd_lab.evaluation import accuracy
from kd_lab.formats.kdz import pack, unpack
from kd_lab.pruning import remove_channels
from kd_lab.results import RESULTS

SMALL = Mnist(MNIST.train[:10], MNIST.validation[:10], MNIST.test[:500])
FILES = {seed: (RESULTS / "deep_compression" / f"lenet300_taught_6_{seed}.kdz").read_bytes() for seed in range(2)}
T_11 = 2.200985160082949  # t at 97.5 % and 11 degrees of freedom


def alike(size, wrong, seeds=5, images=10_000):
    """Return files of so many bytes each that read the first images wrongly."""
    return Scores("lenet5", [size] * seeds, [range(wrong)] * seeds, images)


def test_the_difference_is_that_of_the_textbook():
    one = Scores("lenet5", [900, 901], [[0, 1], [0]], 10)  # image 0 by both seeds, 1 by one
    other = Scores("lenet5", [800], [[2]], 10)
    found = error_difference(one, other)
    points = [100, 50, -100, 0, 0, 0, 0, 0, 0, 0, 100, -100]  # and one image more of either kind
    center = sum(points) / 12
    deviation = (sum((point - center) ** 2 for point in points) / 11) ** 0.5
    half = T_11 * deviation / 12**0.5
    assert found.value == pytest.approx(5)  # 15 % minus 10 %
    assert (found.low, found.high) == pytest.approx((center - half, center + half))
    back = error_difference(other, one)
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))


def test_the_order_of_the_seeds_changes_nothing():
    one = Scores("lenet5", [1, 2, 3], [[0, 4], [1], []], 10)
    turned = Scores("lenet5", [3, 1, 2], [[], [0, 4], [1]], 10)
    other = Scores("lenet5", [1], [[5]], 10)
    assert error_difference(one, other) == error_difference(turned, other)


def test_the_same_answers_differ_by_nothing_and_all_by_everything():
    found = error_difference(alike(1, 84), alike(2, 84))
    assert found.value == 0 and found.low == -found.high and 0 < found.high < 0.03
    assert error_difference(alike(1, 10_000), alike(2, 0)).value == 100
    with pytest.raises(ParameterError, match=r"must have read the same images. Got 10,000 and 500"):
        error_difference(alike(1, 1), alike(1, 1, images=500))


def test_four_images_settle_nothing():
    assert error_difference(alike(1, 84), alike(1, 80)).low < 0 < error_difference(alike(1, 95), alike(1, 80)).low


@pytest.mark.parametrize(("images", "wrong"), [(100, [[1, 2], [3]]), (3, [[1, 2], []]), (2, [[1], []]), (1, [[], []])])
def test_on_the_first_images_the_others_do_not_count(images, wrong):
    assert Scores("lenet5", [900, 905], [[1, 2], [3]], 100).on_first(images) == Scores(
        "lenet5", [900, 905], wrong, images
    )


def test_bytes_and_errors_are_means_of_the_seeds():
    scores = Scores("lenet5", [900, 905], [[1, 2], [3]], 100)
    assert (scores.bytes, scores.error, scores.errors.values) == (902.5, 1.5, [2.0, 1.0])


def met(rules):
    return [rule.met for rule in rules]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ((5, "make it", "validation", 1), [True, True, True, True]),
        ((6, "make it", "validation", 1), [True, True, True, True]),
        ((4, "make it", "validation", 1), [True, False, True, True]),
        ((5, None, "validation", 1), [True, True, True, None]),
        ((5, "make it", None, 1), [None, True, True, True]),
        ((5, "make it", "test", 1), [False, True, True, True]),
        ((5, "make it", "training", 1), [False, True, True, True]),
        ((5, "make it", "validation", 2), [True, True, False, True]),
        ((1, None, None, 9), [None, False, False, None]),
    ],
)
def test_what_holds_on_every_board(told, expected):
    seeds, command, chosen_on, readings = told
    assert met(general_rules(alike(900, 90, seeds), command, chosen_on, readings)) == expected


@pytest.mark.parametrize(
    ("scores", "before", "limit", "expected", "why"),
    [
        (alike(900, 99), None, 1.0, [True, True], "there is none"),
        (alike(900, 101), None, 1.0, [False, True], "there is none"),
        (alike(900, 60), alike(900, 100), 1.0, [True, True], "-0.40 points of error (-0.5"),  # reads better
        (alike(901, 60), alike(900, 100), 1.0, [True, False], "it is larger"),
        (alike(900, 100), alike(900, 100), 1.0, [True, False], "must end below 0"),  # the same bytes, and as good
        (alike(899, 100), alike(900, 100), 1.0, [True, True], "smaller, and as good within 0.05"),
        (alike(899, 98), alike(900, 100), 1.0, [True, True], "smaller, and as good within 0.05"),
        (alike(400, 106), alike(900, 100), 1.0, [False, False], "or below 0.05 in fewer bytes"),
        (alike(899, 103), alike(900, 100), 2.0, [True, True], "smaller, and as good within 1.05"),
        (alike(899, 197), alike(900, 100), 2.0, [True, False], "+0.97 points of error"),  # that may be 1.2
        (alike(899, 60, seeds=4), alike(900, 100), 1.0, [True, False], "to compare errors takes five files"),
        (alike(899, 3, images=500), alike(900, 100), 1.0, [True, False], "all 10,000 test images"),
    ],
)
def test_a_record_is_within_the_limit_and_beats_the_one_before(scores, before, limit, expected, why):
    rules = board_rules(scores, "lenet5", limit, before)
    assert met(rules) == expected and {rule.board for rule in rules} == {"lenet5"}
    assert why in rules[1].why


def test_the_margin_is_what_is_left_below_the_limit_and_a_twentieth_of_a_point():
    scores, before = alike(899, 150), alike(900, 100)
    high = error_difference(scores, before).high
    just = before.error + high - MARGIN
    assert (
        met(board_rules(scores, OPEN, just + 1e-9, before))[1]
        and not met(board_rules(scores, OPEN, just - 1e-9, before))[1]
    )


@pytest.mark.parametrize(("error", "limit"), [(0, 0.69), (0.69, 0.69), (0.7, 0.8), (1.0, 1.0), (1.1, 1.0), (90, 1.0)])
def test_a_file_is_judged_at_the_lowest_limit_that_it_is_within(error, limit):
    assert nearest_limit("lenet5", error) == limit


def test_a_network_stands_on_its_own_board_and_on_the_open_one():
    assert boards_of("lenet5") == ["lenet5", OPEN] and boards_of("cnn") == boards_of("sequence") == [OPEN]
    assert all(list(limits) == sorted(limits) for limits in LIMITS.values())


@pytest.mark.parametrize("command", ["", "  ", 5, ["make"]])
def test_a_command_is_a_text(command):
    with pytest.raises(ParameterError, match=r"'command' must be the command that makes the files again"):
        check_told(command, "validation")


def test_a_part_is_one_of_the_three():
    check_told(None, None)
    with pytest.raises(ParameterError, match=r"'chosen_on' must be one of .* Did you mean 'validation'\?"):
        check_told("make", "valid")


def test_each_file_reads_the_test_part():
    scores = score_files([("a.kdz", FILES[0]), ("b.kdz", FILES[1])], SMALL)
    assert (scores.network, scores.sizes, scores.images) == ("lenet300", [len(FILES[0]), len(FILES[1])], 500)
    answers = torch.nn.Sequential(*unpack(FILES[1]).children())(SMALL.test.images).argmax(1)  # by plain torch
    wrong = (answers != SMALL.test.labels).nonzero().flatten().tolist()
    assert scores.wrong[1] == wrong and wrong
    assert scores.error == pytest.approx(
        100 - 100 * mean(accuracy(unpack(each), SMALL.test).value for each in FILES.values())
    )


def test_files_of_two_networks_and_twins_are_named():
    other = (RESULTS / "deep_compression" / "lenet5_taught_1_0.kdz").read_bytes()
    with pytest.raises(ParameterError, match=r"must hold one network. Got lenet300 in a.kdz, lenet5 in b.kdz"):
        score_files([("a.kdz", FILES[0]), ("b.kdz", other)], SMALL)
    with pytest.raises(ParameterError, match=r"a file of its own. a.kdz and c.kdz are the same"):
        score_files([("a.kdz", FILES[0]), ("b.kdz", FILES[1]), ("c.kdz", FILES[0])], SMALL)
    with pytest.raises(DamagedFileError, match=r"^b\.kdz is damaged"):
        score_files([("a.kdz", FILES[0]), ("b.kdz", FILES[1][:-1])], SMALL)


def test_a_network_that_answers_no_numbers_is_named():
    model = remove_channels(load_trained("mlp128"), {"fc1": torch.arange(127)})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1e30)
    with pytest.raises(StorageError, match=r"^a\.kdz can't be scored: the model answers NaN or infinite logits"):
        score_files([("a.kdz", pack(model))], SMALL)
