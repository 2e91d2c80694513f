"""What was predicted first counts, is compared with what was measured, and says how sure one may be."""

import json
import math
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest

from kd_lab.errors import ParameterError, StorageError
from kd_lab.exercises import Question, calibration, ledger, measured, save_page
from kd_lab.exercises.journal import entries, journal, keep
from kd_lab.exercises.judging import WIDTH
from kd_lab.exercises.questions import keep_prediction, predictions
from kd_lab.plots import plot_calibration, plot_ratios

POINTS = Question("01.half", "How many points are lost?", "points", within=0.5)
TIMES = Question("00.work", "How many times more work?", "times", within_factor=2)
LAYER = Question("01.layer", "Which layer <first>?", choices=("conv1", "fc1"))


def said(capsys, question, value):
    measured(question, value)
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= WIDTH or " " not in line for line in lines)
    return " ".join(lines)


@pytest.mark.parametrize(
    ("question", "predicted", "value", "expected"),
    [
        (POINTS, 3, 1.4, "You predicted 3 points, sure to 80 %. Measured: 1.4 points. "
                         "Off by 1.6 points: not within 0.5 points."),
        (POINTS, 1.9, 1.4, "You predicted 1.9 points, sure to 80 %. Measured: 1.4 points. "
                           "Off by 0.5 points: right within 0.5 points."),
        (POINTS, -1.0, np.float32(0), "You predicted -1 points, sure to 80 %. Measured: 0 points. "
                                      "Off by 1 points: not within 0.5 points."),
        (TIMES, 2000, 4000, "You predicted 2,000 times, sure to 80 %. Measured: 4,000 times. "
                            "Off by a factor of 2.00: right within a factor of 2."),
        (TIMES, 12.0, 4, "You predicted 12 times, sure to 80 %. Measured: 4 times. "
                         "Off by a factor of 3.00: not within a factor of 2."),
        (LAYER, "fc1", "fc1", "You predicted fc1, sure to 80 %. Measured: fc1. Right."),
        (LAYER, "fc1", "conv1", "You predicted fc1, sure to 80 %. Measured: conv1. Not right."),
    ],
)  # fmt: skip
def test_what_was_predicted_stands_beside_what_was_measured(capsys, question, predicted, value, expected):
    keep_prediction(question, predicted, 0.8)
    assert said(capsys, question, value) == expected


def test_without_a_prediction_the_value_alone_is_said_and_kept(capsys):
    assert said(capsys, POINTS, 1.4) == "Measured: 1.4 points."
    assert [entry["value"] for entry in entries("measured", POINTS.name)] == [1.4] and not ledger().settled


def test_the_last_prediction_before_the_measurement_counts_and_later_ones_are_late(capsys):
    assert not keep_prediction(POINTS, 5, 0.5).late
    keep_prediction(POINTS, 2, 0.6)
    measured(POINTS, 1.4)
    late = keep_prediction(POINTS, 1.4, 0.95)
    assert late.late and str(late) == "1.4 points, sure to 95 %, after it had been measured"
    assert predictions()[POINTS.name].value == 2 and "predicted 2 points" in said(capsys, POINTS, 1.4)
    assert len(entries("prediction")) == 3


def test_where_all_are_late_the_last_is_shown_and_does_not_count():
    measured(POINTS, 1.4)
    keep_prediction(POINTS, 2, 0.6)
    keep_prediction(POINTS, 1, 0.6)
    (settled,) = ledger().settled
    assert settled.prediction.value == 1 and not settled.counts and settled.row()[-1] == "late"


def test_what_another_version_or_a_hand_has_written_is_passed_over(capsys):
    keep_prediction(POINTS, 2, 0.6)
    good = entries("prediction")[0]["value"]
    for bad in ({}, [], None, "x", good | {"value": "many"}, good | {"sure": 80}, good | {"question": {"name": "a"}}):
        keep("prediction", POINTS.name, bad)
    keep("measured", POINTS.name, "fc1")
    with open(journal(), "ab") as file:
        file.write(b'{"kind": "prediction", "of"')
    assert predictions() == {POINTS.name: (POINTS, 2, 0.6, False)} and ledger().settled[0].measured is None
    other = Question("01.half", "Another question of the same name", choices=("a", "b"))
    assert said(capsys, other, "a") == "Measured: a."


def test_a_journal_that_fails_stops_no_lesson(capsys, empty_cache):
    empty_cache.parent.mkdir(exist_ok=True)
    empty_cache.write_text("a file where the folder should be")
    assert re.match(r"Measured: 1\.4 points\. \(Not kept: .* was not saved: .*\)$", said(capsys, POINTS, 1.4))
    with pytest.raises(StorageError):
        keep_prediction(POINTS, 1, 0.5)


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda: Question(" ", "?", within=1), "Question(): 'name' must be text that is not empty"),
        (lambda: Question("a", "", within=1), "'text' must be"),
        (lambda: Question("a", "?", 3, within=1), "'unit' must be text"),
        (lambda: Question("a", "?"), "one of 'within', 'within_factor' and 'choices' must be given"),
        (lambda: Question("a", "?", within=1, within_factor=2), "one of 'within'"),
        (lambda: Question("a", "?", within=-1), "'within' must be a number in [0, inf)"),
        (lambda: Question("a", "?", within_factor=0.5), "'within_factor' must be a number in (1, inf)"),
        (lambda: Question("a", "?", choices=("x",)), "'choices' must be two or more different texts"),
        (lambda: Question("a", "?", choices=("x", "x")), "'choices' must be"),
        (lambda: Question("a", "?", choices="xy"), "'choices' must be"),
        (lambda: keep_prediction(POINTS, math.nan, 0.5), "keep_prediction(): 'value' must be a number in (-inf, inf)"),
        (lambda: keep_prediction(POINTS, "3", 0.5), "'value' must be a number"),
        (lambda: keep_prediction(POINTS, True, 0.5), "'value' must be a number"),
        (lambda: keep_prediction(TIMES, 0, 0.5), "'value' must be a number in (0, inf)"),
        (lambda: keep_prediction(LAYER, "fc2", 0.5), "must be one of conv1, fc1. Got 'fc2'. Did you mean 'fc1'?"),
        (lambda: keep_prediction(POINTS, 3, 80), "'sure' must be a number in [0.5, 1]. Got 80. Did you mean 0.8?"),
        (lambda: keep_prediction(POINTS, 3, 0.4), "'sure' must be"),
        (lambda: measured("01.half", 3), "measured(): 'question' must be a Question"),
        (lambda: measured(POINTS, math.inf), "measured(): 'value' must be a number"),
        (lambda: measured(LAYER, "fc"), "'value' must be one of conv1, fc1"),
        (lambda: calibration([]), "calibration(): 'pairs' must be pairs (sure, right), one or more"),
        (lambda: calibration([(0.5, 1)]), "'pairs' must be pairs (sure, right), one or more: 'right' must be True"),
        (lambda: calibration([(50, True)]), "Did you mean 0.5?"),
        (lambda: calibration(3), "'pairs' must be pairs"),
        (lambda: save_page("page.html", 3), "save_page(): 'student' must be text"),
        (lambda: save_page(3), "save_page(): 'path' must be the path of a file"),
    ],
)
def test_what_is_wrong_is_one_clear_error_and_keeps_nothing(call, problem):
    with pytest.raises(ParameterError, match=re.escape(problem)):
        call()
    assert not journal().exists()


def test_calibration_by_hand():
    found = calibration([(0.5, True), (0.55, False), (0.9, True), (0.95, True), (1.0, False), (0.7, True)])
    assert found.stated == pytest.approx((0.525, 0.7, 0.95))
    assert [(each.correct, each.count) for each in found.right] == [(1, 2), (1, 1), (2, 3)]
    assert found.brier == pytest.approx((0.25 + 0.3025 + 0.01 + 0.0025 + 1 + 0.09) / 6)
    assert found.overconfidence == pytest.approx(4.6 / 6 - 4 / 6)
    z2, n, p = 1.959964**2, 3, 2 / 3  # Wilson 1927
    half = 1.959964 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    assert found.right[-1].interval == pytest.approx((middle - half, middle + half), abs=1e-6)
    assert str(found).startswith(
        "4 of 6 predictions were right (67 %), and you were sure to 77 % on average: 10 points"
    )
    assert "too sure" in str(found) and "Brier score 0.28" in str(found)
    assert "20 points less sure than you could be" in str(calibration([(0.8, True)]))


@pytest.mark.parametrize("sure", [0.5, 0.6, 0.7, 0.8, 0.9])
def test_the_ends_of_the_groups_belong_to_the_upper_one(sure):
    assert len(calibration([(sure, True), (sure + 0.05, False)]).stated) == 1


def test_the_pictures_hold_what_they_are_given():
    axes = plot_calibration([0.55, 0.9], [0.5, 1.0], [(0.2, 0.8), (0.5, 1.0)], [4, 7])
    assert [text.get_text() for text in axes.texts] == ["4", "7"]
    assert np.allclose(axes.containers[0].lines[0].get_xydata(), [(0.55, 0.5), (0.9, 1)])
    bars = axes.collections[0].get_segments()
    assert np.allclose([bar[:, 1] for bar in bars], [(0.2, 0.8), (0.5, 1)])
    axes = plot_ratios(["a", "b"], [0.01, 3.0])
    assert axes.get_ylim()[0] > axes.get_ylim()[1] and axes.get_xlim()[0] < 0.01 < 3 < axes.get_xlim()[1]
    assert np.allclose(axes.lines[1].get_xydata(), [(0.01, 0), (3, 1)])
    with pytest.raises(ParameterError, match=r"^plot_ratios\(\): names, ratios must be equally long"):
        plot_ratios(["a"], [])
    plt.close("all")


def test_the_ledger_has_a_row_for_each_question_in_the_lessons_order():
    keep_prediction(LAYER, "fc1", 0.9)
    keep_prediction(TIMES, 12, 0.7)
    keep_prediction(POINTS, 3, 0.8)
    measured(POINTS, 1.4)
    measured(LAYER, "fc1")
    sure = lambda percent: f"{percent}\N{NBSP}%"
    assert [each.row() for each in ledger().settled] == [
        ["00  How many times more work?", "12 times", sure(70), "not yet", "", ""],
        ["01  How many points are lost?", "3 points", sure(80), "1.4 points", "1.6 points", "no"],
        ["01  Which layer <first>?", "fc1", sure(90), "fc1", "", "yes"],
    ]
    assert "12 times    70 %" in repr(ledger()) and "&lt;first&gt;" in ledger()._repr_html_()


def test_nothing_predicted_is_said_and_saves_nothing(capsys, tmp_path):
    assert save_page(tmp_path / "page.html") is None and not (tmp_path / "page.html").exists()
    assert repr(ledger()) == ledger()._repr_html_() == capsys.readouterr().out.strip()
    assert repr(ledger()).startswith("Nothing has been predicted yet.")


def test_the_page_stands_alone_and_escapes_what_people_write(tmp_path):
    for number in range(40):
        each = Question(f"{number % 12:02}.q{number}", "How many <i>points</i>? " * 4, "points", within=1)
        keep_prediction(each, number - 3, 0.5 + number % 10 / 20)
        measured(each, number % 5)
    keep_prediction(LAYER, "conv1", 0.6)
    measured(LAYER, "fc1")
    path = save_page(tmp_path / "page.html", student="Eve <script>alert(1)</script>")
    page = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 300_000 and page.count("data:image/png;base64,") == 2
    assert not re.search(r"<script|<i>|https?:|<link|src=\"(?!data:)", page)
    assert "Eve &lt;script&gt;" in page and "&lt;first&gt;" in page and "of 41 predictions were right" in page
    assert page.count("<tr>") == 42 and not plt.get_fignums()


def test_a_page_of_late_predictions_says_so(tmp_path):
    measured(POINTS, 1.4)
    keep_prediction(POINTS, 1, 0.6)
    page = save_page(str(tmp_path / "page.html")).read_text(encoding="utf-8")
    assert "None of the predictions below was kept before it was measured." in page and "<img" not in page


def test_a_page_that_cannot_be_written_is_one_clear_error(tmp_path):
    keep_prediction(POINTS, 1, 0.6)
    with pytest.raises(StorageError, match="was not saved"):
        save_page(tmp_path)


def test_the_journal_has_plain_json():
    keep_prediction(TIMES, np.int64(12), np.float64(0.7))
    lines = [json.loads(line) for line in journal().read_text().splitlines() if line]
    assert lines[0]["value"]["value"] == 12 and lines[0]["value"]["question"]["within_factor"] == 2
