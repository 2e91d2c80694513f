"""Take what a learner predicts, and how sure of it, before it is measured."""

import html
from contextlib import suppress
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from kd_lab.errors import KdLabError, ParameterError, check_kind, reason
from kd_lab.exercises.questions import Prediction, Question, keep_prediction, predictions
from kd_lab.panels.panel import VIEW, for_colab, replace_earlier

LEAST, MOST = 0.5, 0.95  # how sure one can say one is; nobody is sure to 100 %


class PredictionForm(anywidget.AnyWidget):
    """A question, fields for an answer and for how sure one is of it, and a button that sends both at once."""

    _esm = Path(__file__).with_name("prediction.js").read_text(encoding="utf-8")
    _css = "\n".join(Path(__file__).with_name(f"{each}.css").read_text("utf-8") for each in ("slider", "prediction"))
    question, tolerance, label, unit, answer, message = (traitlets.Unicode().tag(sync=True) for _ in range(6))
    choices: Any = traitlets.List().tag(sync=True)
    least, most, sure = (traitlets.Float(share).tag(sync=True) for share in (LEAST, MOST, LEAST))
    presses = traitlets.Int().tag(sync=True)


class PredictionPanel:
    """Show a question with a field for its answer; the button keeps what stands there in the journal.

    Until it is measured a prediction can be changed. Whoever predicts nothing just goes on. Run again, a cell shows
    what was kept. Raises a ParameterError for what is no Question.
    """

    def __init__(self, question: Question):
        check_kind("question", question, Question, "a Question")
        self.question = question
        self.form = PredictionForm(
            question=question.text,
            tolerance=f"({question.tolerance} is right)" if question.tolerance else "",
            label="your prediction:",
            unit=question.unit,
            choices=list(question.choices),
        )
        self._show_kept()
        self.form.observe(lambda _change: self._keep(), names="presses")
        replace_earlier(self)

    def _keep(self) -> None:
        try:
            self._say(keep_prediction(self.question, self._given(), self.form.sure))
        except KdLabError as error:
            self.form.message = f"Not kept. {reason(error)}"

    def _given(self) -> float | str:
        answer = self.form.answer.strip()
        if not answer:
            raise ParameterError("Nothing is predicted yet.")
        with suppress(ValueError):
            return answer if self.question.choices else float(answer)
        raise ParameterError(f"Write a number, such as 0.5 or 1200. Got {answer!r:.40}.")

    def _show_kept(self) -> None:
        try:
            kept = predictions(self.question.name).get(self.question.name)
        except KdLabError as error:
            self.form.message = reason(error)
            return
        if kept and kept.question == self.question:  # not that of an older lesson
            self.form.answer = kept.value if self.question.choices else f"{kept.value:.12g}"
            self.form.sure = min(kept.sure, MOST)
            self._say(kept)

    def _say(self, prediction: Prediction) -> None:
        self.form.message = f"Kept: {prediction}."

    def close(self) -> None:
        """Take the panel off the page; IPython's Out keeps it itself."""
        self.form.layout.close()
        self.form.close()

    def __repr__(self) -> str:
        return f"{self.question.text} Run the lesson to predict it here."

    def _repr_mimebundle_(self, **_options: Any) -> Any:
        """Give the live panel, and beside it a sentence for where no widgets are: GitHub, nbconvert, PDF."""
        view = {"version_major": 2, "version_minor": 0, "model_id": self.form.model_id}
        words = {"text/html": f"<i>{html.escape(repr(self))}</i>", "text/plain": repr(self)}
        return for_colab({VIEW: view, **words}, self.form)
