"""The distillation panel trains what the plain functions train, only as long as it is asked to, and shows it."""

import base64
import io
import threading
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from benchmarks.faults import count_widgets, ipython, run_cell
from kd_lab import checkpoints
from kd_lab.checkpoints import load_trained, student_recipe
from kd_lab.cost import count_parameters, file_bytes
from kd_lab.data import Mnist
from kd_lab.distillation import DistillationLoss, soft_targets, with_answers
from kd_lab.errors import ParameterError
from kd_lab.evaluation import accuracy, paired_difference
from kd_lab.networks.zoo import build_model, small_student
from kd_lab.panels import DistillationPanel, distillation
from kd_lab.panels.distillation import HEIGHT
from kd_lab.panels.measurement import Cache
from kd_lab.training import train

POINTS, SOFT = 5, "soft targets only"


@pytest.fixture(scope="module")
def teacher():
    return load_trained("mlp128")


@pytest.fixture(scope="module")
def part(mnist):
    return Mnist(mnist.train[:1000], mnist.validation[:500], mnist.test[:300])


@pytest.fixture(scope="module", autouse=True)
def short():
    """Train for five points of five small steps, so that each test takes no time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "STUDENT_RECIPES", {float("inf"): (32, 25, 1e-2)})
        patch.setattr(checkpoints, "CURVE_POINTS", POINTS)
        yield


@pytest.fixture(scope="module")
def shared(teacher, part):
    panel = DistillationPanel(teacher, part)
    panel.flush()
    yield panel
    panel.close()


@pytest.fixture
def panel(panel, monkeypatch):
    """Return the shared panel as if it had trained no students yet but those of its first setting."""
    *_, first = panel.measure(**panel.setting)
    students = Cache(panel._students.size)
    students.update({key: panel._students[key] for key in first.setting.keys})
    monkeypatch.setattr(panel, "_students", students)
    return panel


@pytest.fixture
def begun(losses_in):
    return losses_in(distillation)


def answers(panel, **setting):
    panel.flush()  # one at a time: only its worker measures
    return list(panel.measure(**(panel.setting | setting)))


def plainly(loss, teacher, part, width, count):
    train_part, validation = (with_answers(teacher, each) for each in (part.train[:count], part.validation))
    parts = slice(None) if isinstance(loss, DistillationLoss) else slice(2)
    return train(
        small_student(width),
        train_part[parts],
        loss,
        validation=validation[parts],
        progress=False,
        **student_recipe(count),
    )


@pytest.mark.parametrize("temperature, alpha, width, images", [(1, 0, 5, "500"), (20, 0.5, 30, "1,000")])
def test_both_students_are_what_the_one_training_loop_gives(panel, teacher, part, temperature, alpha, width, images):
    *_, last = answers(panel, temperature=temperature, alpha=alpha, width=width, images=images)
    for loss, found in ((DistillationLoss(temperature, alpha), last.taught), (F.cross_entropy, last.labelled)):
        expected, history = plainly(loss, teacher, part, width, int(images.replace(",", "")))
        assert torch.equal(found.logits.argmax(1), expected(part.validation.images).argmax(1))
        assert found.kept == history.best_epoch and len(found.accuracies) == POINTS


@pytest.mark.slow
def test_the_weights_that_are_kept_need_not_be_the_last(panel, teacher, part, monkeypatch):
    # so long, in small steps, that it learns by heart evenly, whichever way a processor rounds
    monkeypatch.setattr(checkpoints, "STUDENT_RECIPES", {float("inf"): (32, 1000, 5e-3)})
    *_, last = answers(panel, alpha=1, images="500", width=50)
    expected, history = plainly(F.cross_entropy, teacher, part, 50, 500)
    assert last.labelled.kept == history.best_epoch < POINTS
    assert torch.equal(last.labelled.logits.argmax(1), expected(part.validation.images).argmax(1))


def test_the_curves_grow_point_by_point_and_side_by_side(panel):
    found = answers(panel, temperature=2, width=7)
    lengths = [(len(answer.taught.accuracies), len(answer.labelled.accuracies)) for answer in found]
    assert lengths[:5] == [(0, 0), (1, 0), (1, 1), (2, 1), (2, 2)] and lengths[-1] == (POINTS, POINTS)
    assert found[-1].taught.accuracies[-1] > found[1].taught.accuracies[0]
    for earlier, later in pairwise(found):
        assert later.taught.accuracies[: len(earlier.taught.accuracies)] == earlier.taught.accuracies


def test_both_have_the_same_start_and_the_same_batches(panel):
    *_, last = answers(panel, alpha=1)  # then the taught one has the labels alone, too
    assert last.taught.accuracies == last.labelled.accuracies
    assert torch.allclose(last.taught.logits, last.labelled.logits, atol=1e-4)
    *_, other = answers(panel, alpha=0)
    assert other.taught.accuracies != other.labelled.accuracies


def test_what_was_trained_is_kept(panel, begun):
    panel.set(temperature=8)
    panel.flush()
    assert begun == [DistillationLoss(8, 0.1)]  # the checkpoints on labels alone stays as it is
    panel.set(digit="7", view=SOFT)
    panel.set(temperature=4)
    panel.set(temperature=8, view="train a student")
    panel.flush()
    assert begun == [DistillationLoss(8, 0.1)]
    panel.set(width=31)
    panel.flush()
    assert begun[1:] == [DistillationLoss(8, 0.1), F.cross_entropy]


def test_so_many_students_are_kept_and_no_more(panel, begun):
    panel._students.size = 3
    for temperature in (1, 2, 3, 4, 5):
        answers(panel, temperature=temperature)
    assert len(panel._students) == 3 and (F.cross_entropy, 30, 1000) in panel._students
    assert F.cross_entropy not in begun and begun.count(DistillationLoss(4, 0.1)) == 1
    answers(panel, temperature=1)
    assert begun.count(DistillationLoss(1, 0.1)) == 2  # forgotten, so trained again


class Gate:
    """Hold up every checkpoints after some points, until it is opened."""

    def __init__(self, monkeypatch, points):
        self.reached, self.opened, self.learned = threading.Event(), threading.Event(), []
        learn = distillation.Student.learn

        def held(checkpoints):
            self.learned.append(checkpoints)
            if len(self.learned) == points:
                self.reached.set()
                self.opened.wait(10)
            learn(checkpoints)

        monkeypatch.setattr(distillation.Student, "learn", held)


def test_a_new_setting_stops_the_training_and_only_the_newest_is_shown(panel, monkeypatch):
    gate, shown = Gate(monkeypatch, 3), []
    show = DistillationPanel._show
    monkeypatch.setattr(
        DistillationPanel, "_show", lambda panel, each: (show(panel, each), shown.append(panel.shown.title))
    )
    panel.set(temperature=2)
    assert gate.reached.wait(10)
    stopped = gate.learned[-1]
    panel.set(temperature=20)
    before = len(shown)
    gate.opened.set()
    assert panel.flush().title.startswith("T = 20, alpha 0.1: ")
    assert all(each.startswith("T = 20, ") for each in shown[before:]) and len(shown) > before + POINTS
    assert gate.learned.count(stopped) == 3 and stopped.progress.kept is None
    assert panel._picture.value == panel.shown.png and panel._tables.value == panel.shown.tables


def test_a_training_that_was_left_goes_on_where_it_was(panel, monkeypatch, begun):
    gate = Gate(monkeypatch, 3)
    panel.set(temperature=2)
    gate.reached.wait(10)
    panel.set(temperature=20)
    gate.opened.set()
    panel.flush()
    panel.set(temperature=2)
    panel.flush()
    assert begun == [DistillationLoss(2, 0.1), DistillationLoss(20, 0.1)]
    assert gate.learned.count(gate.learned[0]) == POINTS + 1  # then what was best


def test_closing_ends_the_training_soon(teacher, part, monkeypatch):
    gate = Gate(monkeypatch, 3)
    panel = DistillationPanel(teacher, part)
    panel.refresh()
    gate.reached.wait(10)
    threading.Timer(0.1, gate.opened.set).start()
    start = time.perf_counter()
    panel.close()
    assert time.perf_counter() - start < 5 and len(gate.learned) == 3


@pytest.mark.parametrize("digit, temperature", [("3", 0.5), ("9", 20)])
def test_the_second_view_trains_nothing_and_shows_the_softened_answer(panel, begun, part, digit, temperature):
    panel.set(view=SOFT)
    panel.set(temperature=temperature, digit=digit)
    shown = panel.flush()
    assert begun == []
    place = part.validation.labels.tolist().index(int(digit))
    expected = soft_targets(panel._teacher(part.validation.images[place : place + 1]), temperature)[0].tolist()
    assert [bar.get_width() for bar in panel._drawing._teacher] == pytest.approx(expected, rel=1e-4)
    others = sum(expected) - expected[int(digit)]
    assert shown.title == f"T = {temperature:g}: the teacher gives {100 * others:.2g} % to other digits than {digit}"
    assert panel._drawing._numbers[int(digit)].get_text() == f"{100 * expected[int(digit)]:.1f} %"
    assert "nothing" in panel._drawing._caption.get_text()


def test_the_student_s_softened_answer_stands_beside_the_teacher_s(panel, part):
    *_, last = answers(panel, temperature=3, digit="5")
    panel.draw(last)
    expected = soft_targets(last.taught.logits[5], 3).tolist()
    assert [bar.get_width() for bar in panel._drawing._student] == pytest.approx(expected)
    panel.draw(answers(panel, temperature=2.5, digit="5")[0])
    assert [bar.get_width() for bar in panel._drawing._student] == [0] * 10  # not trained yet


def test_the_picture_has_the_points_that_were_measured(panel):
    found = answers(panel, temperature=6)
    for answer in (found[3], found[-1]):
        panel.draw(answer)
        for progress, (line, point) in zip(
            (answer.labelled, answer.taught), zip(*[iter(panel._drawing._traces.lines)] * 2, strict=True), strict=True
        ):
            places = [(step + 1) / POINTS for step in range(len(progress.accuracies))]
            assert line.get_xdata().tolist() == places and tuple(line.get_ydata()) == progress.accuracies
            kept = [[progress.kept / POINTS, progress.accuracies[progress.kept - 1]]] if progress.kept else []
            assert point.get_xydata().tolist() == kept


def test_the_table_holds_what_was_measured(panel, teacher, part):
    tables = panel.flush().tables
    taught, labelled = (
        plainly(loss, teacher, part, 30, 1000)[0] for loss in (DistillationLoss(4, 0.1), F.cross_entropy)
    )
    for model in (teacher, taught, labelled):
        assert f"{100 * accuracy(model, part.validation).value:.2f} % (" in tables
        assert f"{count_parameters(model):,}" in tables and f"{file_bytes(model):,}" in tables
    assert f"{100 * paired_difference(taught, labelled, part.validation).value:+.2f} (" in tables
    assert "500 validation images" in tables and "…" not in tables and "not read for this setting" in tables
    assert "…" in panel.draw(answers(panel, temperature=7.5)[0]).tables


def test_the_teacher_is_asked_once_about_every_image(teacher, part):
    panel = DistillationPanel(teacher, part)
    panel.flush()
    asked = []
    panel._teacher.register_forward_hook(lambda _module, arguments, _answer: asked.append(len(arguments[0])))
    panel.set(temperature=9, images="500")
    panel.flush()
    assert asked == []
    assert torch.equal(panel._train_logits, with_answers(teacher, part.train)[2])
    panel.close()


def test_the_test_part_is_read_only_by_the_button_and_once(panel, teacher, part, reads, button):
    panel.set(temperature=5)
    panel.flush()
    assert reads == []
    for _ in range(3):
        button(panel, "Reveal test").click()
        shown = panel.flush()
    assert len(reads) == 3 and all(
        torch.equal(data.images, part.test.images) for data in reads
    )  # teacher and both students
    for model in (teacher, plainly(DistillationLoss(5, 0.1), teacher, part, 30, 1000)[0]):
        assert f"{100 * accuracy(model, part.test).value:.2f} % (" in shown.tables
    panel.set(digit="8")
    assert "not read" not in panel.flush().tables
    panel.set(alpha=0.5)
    assert "not read for this setting" in panel.flush().tables and len(reads) == 3


def test_an_error_in_training_is_shown_and_the_panel_goes_on(panel, monkeypatch):
    before = panel.flush()
    with monkeypatch.context() as patch:
        patch.setattr("kd_lab.training._AdamW.step", lambda *_: {}["<missing>"])
        panel.set(temperature=10)
        with pytest.raises(KeyError):
            panel.flush()
        assert "KeyError: &#x27;&lt;missing&gt;&#x27;" in panel._message.value
        assert panel.shown.title == "T = 10, alpha 0.1: nothing is trained yet"
    panel.set(temperature=4)
    assert panel.flush() == before and panel._message.value == ""
    panel.set(temperature=10)
    assert "validation images" in panel.flush().title


@pytest.mark.parametrize(
    "name, value, allowed",
    [
        ("temperature", 0, "a number in [0.5, 20]"),
        ("temperature", float("nan"), "a number in [0.5, 20]"),
        ("temperature", "4", "a number in [0.5, 20]"),
        ("alpha", 1.1, "a number in [0, 1]"),
        ("alpha", -0.1, "a number in [0, 1]"),
        ("width", 4, "a whole number in [5, 300]"),
        ("width", 30.0, "a whole number in [5, 300]"),
        ("width", True, "a whole number in [5, 300]"),
    ],
)
def test_a_slider_refuses_what_it_cannot_stand_at(panel, name, value, allowed):
    before = panel.setting
    for change in (
        lambda: panel.set(**{name: value}),
        lambda: setattr(panel.controls[name], "value", value),
        lambda: panel.controls[name].set_state({"value": value}),
    ):  # the last as the browser sends it
        with pytest.raises(ParameterError) as error:
            change()
        assert f"{name!r} must be {allowed}. Got {value!r}." in str(error.value)
    assert panel.setting == before


def test_set_checks_everything_before_it_changes_anything(panel):
    for values, expected in [
        (dict(temperature=2, images="2,000"), "one of 500, 1,000"),  # of so many as there are
        (dict(temperature=2, images=500), "Did you mean '500'?"),
        (dict(temperature=2, digit=3), "Did you mean '3'?"),
        (dict(temperature=2, view="soft targets"), "Did you mean 'soft targets only'?"),
        (dict(temp=2), "Did you mean 'temperature'?"),
    ]:
        with pytest.raises(ParameterError) as error:
            panel.set(**values)
        assert expected in str(error.value) and "DistillationPanel.set()" in str(error.value)
    assert panel.setting == {
        "temperature": 4,
        "alpha": 0.1,
        "width": 30,
        "images": "1,000",
        "digit": "4",
        "view": "train a student",
    }


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (("lenet300", None), "Did you mean load_trained(name)?"),
        ((nn.ReLU(), None), "must have a Linear layer"),
        ((build_model("mlp128"), (1, 2)), "Got tuple of int, int."),
        ((nn.Sequential(nn.Flatten(), nn.Linear(784, 11)), None), "the teacher gives 11 classes"),
    ],
)
def test_a_panel_of_nothing_is_refused_and_leaves_no_widget(arguments, expected, part):
    before = count_widgets()
    with pytest.raises(ParameterError) as error:
        DistillationPanel(arguments[0], arguments[1] or part)
    assert expected in str(error.value) and str(error.value).startswith("DistillationPanel()")
    assert count_widgets() == before


def test_the_picture_moves_and_keeps_its_size(panel):
    pictures = []
    for setting in (dict(temperature=1), dict(temperature=20), dict(view=SOFT, digit="0", temperature=3)):
        panel.set(**setting)
        pictures.append(np.asarray(Image.open(io.BytesIO(panel.flush().png)).convert("RGB")))
    assert {picture.shape for picture in pictures} == {(HEIGHT, 800, 3)}
    for one, other in pairwise(pictures):
        assert 0.005 < (one != other).any(axis=2).mean() < 0.3
    for picture in pictures:  # nothing reaches the edge, so nothing is cut off
        assert all((edge == 255).all() for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]))


def test_no_title_is_cut_off(panel):
    for answer in answers(panel, temperature=19.5, alpha=0.05):
        assert len(panel._drawing.title(answer)) < 95


def test_the_random_numbers_of_others_stay_as_they_were(panel):
    before = torch.get_rng_state()
    answers(panel, temperature=12, width=12)
    assert torch.equal(before, torch.get_rng_state())


def test_every_control_has_a_name_for_a_screen_reader(panel, button):
    assert [panel.controls[name].label for name in ("temperature", "alpha", "width")] == [
        "temperature",
        "alpha",
        "width",
    ]
    assert [panel.controls[name].description for name in ("images", "digit", "view")] == ["images", "digit", "view"]
    assert button(panel, "Reveal test") and button(panel, "Pin")


def test_where_no_widgets_are_a_picture_is(panel):
    bundle = panel._repr_mimebundle_()
    assert Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).size == (
        800,
        HEIGHT + 30,
    )  # the title stands above it
    assert bundle["text/plain"] == repr(panel) == f"DistillationPanel: {panel.shown.title}"


@pytest.mark.slow
def test_a_cell_that_is_run_again_replaces_its_panel_and_closing_leaves_no_widget(teacher, part):
    before = count_widgets()
    cell = "from kd_lab.panels import DistillationPanel\npanel = DistillationPanel(teacher, data)\npanel"
    with ipython(data=part, teacher=teacher) as shell:
        run_cell(shell, cell)
        first, made = shell.user_ns["panel"], count_widgets() - before
        run_cell(shell, cell)
        assert count_widgets() - before == made and "closed" in repr(first)
        shell.user_ns["panel"].flush()
        shell.user_ns["panel"].close()
        assert count_widgets() == before
