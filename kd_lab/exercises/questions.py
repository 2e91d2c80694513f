"""Keep what a learner predicts, and say by how much it was off once it is measured."""

from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from kd_lab.errors import ParameterError, StorageError, check_choice, check_kind, check_number, check_that
from kd_lab.exercises.journal import Entry, entries, keep
from kd_lab.exercises.judging import show

SURE = "[0.5, 1]"  # how sure one can be; surer of another answer than of one's own nobody is


@dataclass(frozen=True)
class Question:
    """A question whose answer is measured afterwards: a number, or one of some choices.

    `name` begins with the lesson, as "01.cliff". What is predicted is right `within` so many units, or `within_factor`
    (of numbers above 0), or if it is the one of the `choices` that was measured. Raises a ParameterError unless one of
    the three is given.
    """

    name: str
    text: str
    unit: str = ""
    within: float | None = None
    within_factor: float | None = None
    choices: tuple[str, ...] = ()

    def __post_init__(self):
        for argument in ("name", "text"):
            value = getattr(self, argument)
            check_that(argument, value, isinstance(value, str) and value.strip(), "text that is not empty")
        check_kind("unit", self.unit, str, "text")
        if (self.within, self.within_factor, self.choices or None).count(None) != 2:
            raise ParameterError("one of 'within', 'within_factor' and 'choices' must be given: it says what is right.")
        for argument, allowed in {"within": "[0, inf)", "within_factor": "(1, inf)"}.items():
            if getattr(self, argument) is not None:
                check_number(argument, getattr(self, argument), allowed)
        fits = isinstance(self.choices, (tuple, list)) and all(isinstance(each, str) and each for each in self.choices)
        fits = fits and len(set(self.choices)) == len(self.choices) != 1
        check_that("choices", self.choices, fits, "two or more different texts")
        object.__setattr__(self, "choices", tuple(self.choices))

    @property
    def tolerance(self) -> str:
        """Return in words how near a number must come to be right, and of choices nothing."""
        by_factor = f"within a factor of {self.within_factor}" if self.within_factor else ""
        return by_factor if self.within is None else f"within {self.in_words(self.within)}"

    def checked(self, argument: str, value: Any) -> Any:
        """Return what may be predicted or measured; raise a ParameterError for anything else."""
        if self.choices:
            check_choice(argument, value, list(self.choices))
            return value
        return check_number(argument, value, "(0, inf)" if self.within_factor else "(-inf, inf)")

    def in_words(self, value: Any) -> str:
        """Return a number with its unit, in four digits or more, and a choice as it is."""
        if self.choices:
            return value
        number = f"{value + 0.0:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
        return f"{number} {self.unit}".strip()

    def distance(self, predicted: float, measured: float) -> float:
        """Return by how many units, or by what factor, a number was off."""
        return max(predicted / measured, measured / predicted) if self.within_factor else abs(predicted - measured)

    def off(self, predicted: Any, measured: Any) -> str:
        """Return in words by how much a number was off, and of a choice nothing."""
        if self.choices:
            return ""
        distance = self.distance(predicted, measured)
        return f"a factor of {distance:.2f}" if self.within_factor else self.in_words(distance)

    def is_right(self, predicted: Any, measured: Any) -> bool:
        """Return whether what was predicted is right."""
        if self.choices:
            return predicted == measured
        allowed = self.within_factor or self.within or 0.0
        return self.distance(predicted, measured) <= allowed + 1e-9 * abs(measured)  # 1.9 - 1.4 is a little above 0.5


class Prediction(NamedTuple):
    """What a learner predicted, how sure of it, 0.5 to 1, and whether it had been measured by then."""

    question: Question
    value: Any
    sure: float
    late: bool

    def __str__(self) -> str:
        late = ", after it had been measured" if self.late else ""
        return f"{self.question.in_words(self.value)}, sure to {100 * self.sure:.0f} %{late}"

    def compared(self, measured: Any) -> str:
        """Return in words what was predicted beside what was measured."""
        question, values = self.question, (self.value, measured)
        right, off = question.is_right(*values), question.off(*values)
        verdict = "Right" if right else "Not right"
        if off:
            verdict = f"Off by {off}: {'right' if right else 'not'} {question.tolerance}"
        return f"You predicted {self}. Measured: {question.in_words(measured)}. {verdict}."


def keep_prediction(question: Question, value: Any, sure: float) -> Prediction:
    """Keep a prediction in the journal, of which one is `sure`, 0.5 to 1; until it is measured the last one counts.

    Raises a ParameterError for what can't be an answer, and a StorageError where the journal can't be written.
    """
    value, sure = question.checked("value", value), check_number("sure", sure, SURE)
    prediction = Prediction(question, value, sure, late=bool(entries("measured", question.name)))
    keep("prediction", question.name, prediction._asdict() | {"question": asdict(question)})
    return prediction


def predictions(name: str | None = None) -> dict[str, Prediction]:
    """Return the prediction that counts of each question by its name: the last in time, else the last."""
    counting: dict[str, Prediction] = {}
    for prediction in filter(None, map(_prediction, entries("prediction", name))):
        earlier = counting.get(prediction.question.name)
        if earlier is None or earlier.late or not prediction.late:
            counting[prediction.question.name] = prediction
    return counting


def _prediction(entry: Entry) -> Prediction | None:
    """Return the prediction of an entry, None for one that another version of a lesson, or a hand, has written."""
    with suppress(ParameterError, TypeError, KeyError):
        question = Question(**entry["value"]["question"])
        value, sure = question.checked("value", entry["value"]["value"]), entry["value"]["sure"]
        return Prediction(question, value, check_number("sure", sure, SURE), bool(entry["value"]["late"]))
    return None


def measured(question: Question, value: Any) -> None:
    """Print what was measured beside what was predicted, if anything was, and keep it in the journal.

    Raises a ParameterError for a value that can't be an answer; where the journal fails, it says so and goes on.
    """
    check_kind("question", question, Question, "a Question")
    value = question.checked("value", value)
    said = f"Measured: {question.in_words(value)}."
    try:
        prediction = predictions(question.name).get(question.name)
        if prediction and prediction.question == question:  # not one of an older lesson
            said = prediction.compared(value)
        keep("measured", question.name, value)
    except StorageError as error:
        said += f" (Not kept: {error})"
    show(said)
