"""The form of a question keeps what is predicted at one press, says what is wrong, and stops nobody."""

import json
import re

import pytest

from benchmarks.faults import count_widgets, ipython, run_cell
from kd_lab.errors import ParameterError
from kd_lab.exercises import Question, measured
from kd_lab.exercises.questions import predictions
from kd_lab.panels import PredictionPanel
from kd_lab.panels.panel import VIEW
from kd_lab.panels.prediction import PredictionForm

POINTS = Question("01.half", "How many <points> are lost?", "points", within=0.5)
LAYER = Question("01.layer", "Which layer?", choices=("conv1", "fc1"))
CELL = "from kd_lab.panels import PredictionPanel\npanel = PredictionPanel(question)\npanel"


def press(panel, answer, sure):
    """Send what the browser sends: all at once, whatever the order in which it stands there."""
    panel.form.set_state({"presses": panel.form.presses + 1, "answer": answer, "sure": sure})
    return panel.form.message


@pytest.fixture
def panel():
    panel = PredictionPanel(POINTS)
    yield panel
    panel.close()


def test_one_press_of_the_widget_keeps_answer_and_sureness(panel):
    assert press(panel, " 3 ", 0.8) == "Kept: 3 points, sure to 80 %."
    assert press(panel, "2.5", 0.55) == "Kept: 2.5 points, sure to 55 %."
    assert predictions()[POINTS.name] == (POINTS, 2.5, 0.55, False)
    measured(POINTS, 1.4)
    assert press(panel, "1.4", 0.95) == "Kept: 1.4 points, sure to 95 %, after it had been measured."


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("", "Not kept. Nothing is predicted yet."),
        ("many", "Not kept. Write a number, such as 0.5 or 1200. Got 'many'."),
        ("1,5", "Not kept. Write a number, such as 0.5 or 1200. Got '1,5'."),
        ("nan", "Not kept. 'value' must be a number in (-inf, inf). Got nan."),
        ("1e999", "Not kept. 'value' must be a number in (-inf, inf). Got inf."),
    ],
)
def test_the_widget_says_what_is_wrong_and_keeps_nothing(panel, answer, message):
    assert press(panel, answer, 0.8) == message and predictions() == {}


def test_a_choice_is_kept_by_the_widget():
    panel = PredictionPanel(LAYER)
    assert panel.form.choices == ["conv1", "fc1"] and panel.form.answer == ""
    assert press(panel, "", 0.5) == "Not kept. Nothing is predicted yet."
    assert press(panel, "fc1", 0.9) == "Kept: fc1, sure to 90 %."
    panel.close()


def test_the_widget_shows_again_what_was_kept(panel):
    press(panel, "3.0", 0.8)
    again, other = PredictionPanel(POINTS), PredictionPanel(Question("01.half", "New text", within=1))
    assert (again.form.answer, again.form.sure, again.form.message) == ("3", 0.8, "Kept: 3 points, sure to 80 %.")
    assert other.form.answer == other.form.message == ""
    for each in (again, other):
        each.close()


def test_a_journal_that_cannot_be_written_is_said_in_the_widget(panel, empty_cache):
    empty_cache.parent.mkdir(exist_ok=True)
    empty_cache.write_text("a file where the folder should be")
    assert re.match(r"Not kept\. .*journal.jsonl was not saved: ", press(panel, "3", 0.8))


def test_a_journal_that_cannot_be_read_is_said_in_the_widget(monkeypatch, tmp_path):
    monkeypatch.setenv("KD_LAB_JOURNAL", str(tmp_path))  # a folder
    panel = PredictionPanel(POINTS)
    assert "can't be read" in panel.form.message
    panel.close()


def test_where_no_widgets_are_a_sentence_is(panel):
    bundle = panel._repr_mimebundle_()
    sentence = "How many <points> are lost? Run the lesson to predict it here."
    assert bundle["text/plain"] == repr(panel) == sentence and "&lt;points&gt;" in bundle["text/html"]
    assert bundle[VIEW]["model_id"] == panel.form.model_id and json.dumps(bundle)


def test_only_a_question_can_be_asked():
    with pytest.raises(ParameterError, match=r"^PredictionPanel\(\): 'question' must be a Question"):
        PredictionPanel("01.half")


def test_the_widget_is_replaced_when_its_cell_is_run_again():
    before = count_widgets()
    with ipython(question=POINTS) as shell:
        made = []
        for _ in range(2):
            run_cell(shell, CELL)
            made.append(count_widgets() - before)
        assert made[0] == made[1]
        shell.user_ns["panel"].close()
    assert count_widgets() == before


def test_the_widget_needs_no_network_connection():
    assert not re.search(r"https?://|import[ (]|fetch\(", PredictionForm._esm.__str__())
