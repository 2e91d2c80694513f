"""The recipe panel makes what compress makes, stage by stage, only as long as it is asked to, and shows it."""

import functools
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.faults import count_widgets
from kd_lab.checkpoints import load_trained
from kd_lab.compression import compress
from kd_lab.cost import count_nonzeros
from kd_lab.data import Mnist
from kd_lab.distillation import DistillationLoss
from kd_lab.errors import ParameterError
from kd_lab.evaluation import accuracy, paired_difference
from kd_lab.formats.kdz import pack
from kd_lab.networks.zoo import small_student
from kd_lab.panels import RecipePanel
from kd_lab.panels import recipe as recipe_module
from kd_lab.panels.measurement import percent
from kd_lab.panels.recipe import PARTS, STAGES, TRAINING, Recipe

STEPS = 2  # a part of a time through the images: more than the least


@pytest.fixture(scope="module")
def dense(student):
    return student


@pytest.fixture(scope="module")
def teacher():
    return load_trained("mlp128")


@pytest.fixture(scope="module")
def part(mnist):
    return Mnist(mnist.train[: STEPS * PARTS * 128], mnist.validation[:200], mnist.test[:300])


def count_as_bytes(patch):
    """Take what is not zero for the size of a file, which is known at once."""
    patch.setattr(recipe_module, "pack", lambda model: bytes(count_nonzeros(model)))


@pytest.fixture(scope="module")
def panel(dense, teacher, part):
    panel = RecipePanel(dense, teacher, part)
    with pytest.MonkeyPatch.context() as patch:
        count_as_bytes(patch)
        panel.flush()
    panel._after.cache_clear()
    yield panel
    panel.close()


@pytest.fixture
def fast(monkeypatch):
    count_as_bytes(monkeypatch)


@pytest.fixture
def begun(losses_in):
    return losses_in(recipe_module)


def answers(panel, **setting):
    panel.flush()  # one at a time: only its worker measures
    return list(panel.measure(**(panel.setting | setting)))


@pytest.mark.slow
def test_both_networks_are_what_compress_makes_and_the_table_holds_them(panel, dense, teacher, part, monkeypatch):
    monkeypatch.setattr("kd_lab.cost.latency", lambda *_arguments: 1e-3)  # which compress times …
    monkeypatch.setattr("kd_lab.cost.zipped_bytes", lambda *_arguments: 1)  # … and zips
    panel.set(ratio=0.9, bits=2, temperature=3, alpha=0.2)
    tables = panel.flush().tables
    taught, plain = (
        compress(
            dense,
            each,
            part,
            Recipe(0.9, 3, 0.2, 2).stages,
            temperature=3.0,
            alpha=0.2,
            progress=False,
            steps_per_epoch=STEPS,
            **TRAINING,
        )
        for each in (teacher, None)
    )
    *_, last = answers(panel)
    for step, expected in ((last.taught[-1], taught), (last.plain[-1], plain)):
        assert torch.equal(step.comparison.answers, expected.model(part.validation.images).argmax(1))
        assert step.bytes == list(expected.bytes.values())[-1] == len(pack(expected.model))
        assert step.nonzeros == count_nonzeros(expected.model)
        assert f"{step.bytes:,}" in tables and f"{step.nonzeros:,}" in tables and f"{expected.ratio:.1f} ×" in tables
    for model in (dense, taught.model, plain.model):
        assert f"{100 * accuracy(model, part.validation).value:.2f} % (" in tables
    for pair in ((taught.model, dense), (plain.model, dense), (taught.model, plain.model)):
        assert f"{100 * paired_difference(*pair, part.validation).value:+.2f} (" in tables
    assert "200 validation images" in tables and "not read for this setting" in tables


def test_they_go_stage_by_stage_side_by_side_from_the_same_start(panel, fast):
    found = answers(panel, ratio=0.85)
    lengths = [(len(answer.taught), len(answer.plain)) for answer in found]
    assert lengths[:4] == [(1, 1), (2, 1), (2, 2), (3, 2)] and lengths[-1] == (len(STAGES), len(STAGES))
    assert found[-1].taught[0] is found[-1].plain[0]
    sizes = [step.nonzeros for step in found[-1].taught]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.slow
def test_what_was_made_is_kept_and_other_bits_share_the_pruned_network(panel, begun, fast):
    panel.set(ratio=0.7, bits=4, temperature=4, alpha=0.1)
    panel.flush()
    before = len(begun)
    panel.set(bits=1)
    panel.flush()
    assert begun[before:] == [DistillationLoss(4, 0.1), F.cross_entropy]
    panel.set(bits=4)
    panel.flush()
    assert len(begun) == before + 2
    panel.set(temperature=8)
    panel.flush()
    assert begun[before + 2 :] == [DistillationLoss(8, 0.1)] * 6  # the one on labels alone stays as it is


def test_so_many_networks_are_kept_and_no_more(panel, monkeypatch, fast):
    few = functools.lru_cache(5)(panel._finish)
    monkeypatch.setattr(panel, "_after", few)
    *_, last = answers(panel, ratio=0.6)
    assert len(last.plain) == len(STAGES) and few.cache_info().currsize == 5
    assert few.cache_info().misses == 2 * (len(STAGES) - 1)  # a recipe needs none but the one before


def test_a_new_setting_stops_the_recipe_and_only_the_newest_is_shown(panel, monkeypatch, fast):
    reached, opened, shown = threading.Event(), threading.Event(), []
    after, show = panel._after, RecipePanel._show

    def held(*arguments):
        reached.set()
        opened.wait(10)
        return after(*arguments)

    monkeypatch.setattr(panel, "_after", held)
    monkeypatch.setattr(RecipePanel, "_show", lambda panel, each: (show(panel, each), shown.append(panel.shown.title)))
    panel.set(ratio=0.55)
    assert reached.wait(10)
    panel.set(ratio=0.95)
    before = len(shown)
    opened.set()
    assert panel.flush().title.startswith("95 % pruned")
    assert all(title.startswith("95 % pruned") for title in shown[before:])


def test_a_training_is_stopped_in_the_middle_of_a_stage(panel, monkeypatch, fast):
    parts, train_live = [], recipe_module.train_live
    reached, opened = threading.Event(), threading.Event()

    def held(*arguments, **settings):
        parts.append(0)
        for state in train_live(*arguments, **settings):
            parts[-1] += 1
            reached.set()
            opened.wait(10)
            yield state

    panel.flush()
    monkeypatch.setattr(recipe_module, "train_live", held)
    panel.set(ratio=0.61)
    assert reached.wait(10)
    panel.set(ratio=0.9)
    opened.set()
    panel.flush()
    assert parts[0] == 1 and set(parts[1:]) <= {PARTS + 1}  # and at last what was best


def test_the_table_compares_the_same_stage(panel, fast):
    for answer in answers(panel, ratio=0.85)[1:]:
        last = min(len(answer.taught), len(answer.plain)) - 1
        for step in (answer.taught[last], answer.plain[last]):
            assert f"{step.nonzeros:,}" in panel.draw(answer).tables


def test_the_picture_has_what_was_measured_and_says_how_far_it_is(panel, part, fast):
    found = answers(panel, ratio=0.85, bits=3)
    for answer in (found[0], found[5], found[-1]):
        shown, drawing = panel.draw(answer), panel._drawing
        done = (len(answer.taught) + len(answer.plain) - 2) / (2 * len(STAGES) - 2)
        assert drawing._bar.get_width() == pytest.approx(done)
        curves, lines = drawing._errors.lines[1::2], drawing._bytes.lines
        for steps, curve, line in zip((answer.plain, answer.taught), curves, lines, strict=True):
            errors = [100 * (step.comparison.answers != part.validation.labels).float().mean().item() for step in steps]
            assert curve.get_ydata() == pytest.approx(errors, abs=1e-4)
            assert list(line.get_ydata()) == [step.bytes for step in steps]
        assert ("under way" in shown.title) == (answer is not found[-1])
    assert [text.get_text() for text in panel._drawing._sparsities] == ["49 %", "74 %", "84 %", "85 %"]
    last = found[-1].taught[-1]
    assert shown.title.endswith(f": {percent(last.comparison.accuracy, ' right')}, {last.bytes:,} bytes")
    assert panel._drawing._said.get_text() == "done"


def test_no_title_is_cut_off(panel, fast):
    for answer in answers(panel, ratio=0.99, temperature=19.5, alpha=0.05, bits=2):
        assert len(panel.draw(answer).title) < 95


@pytest.mark.slow
def test_the_test_part_is_read_only_by_the_button_and_once(panel, dense, part, reads, button, fast):
    panel.set(ratio=0.75)
    panel.flush()
    assert reads == []
    for _ in range(2):
        button(panel, "Reveal test").click()
        shown = panel.flush()
    assert len(reads) == 3  # dense, taught and plain
    assert all(torch.equal(data.images, part.test.images) for data in reads)
    assert f"{100 * accuracy(dense, part.test).value:.2f} % (" in shown.tables
    panel.set(alpha=0.5)
    assert "not read for this setting" in panel.flush().tables and len(reads) == 3


def test_an_error_in_training_is_shown_and_the_panel_goes_on(panel, monkeypatch, fast):
    with monkeypatch.context() as patch:
        patch.setattr("kd_lab.training._AdamW.step", lambda *_: {}["<missing>"])
        panel.set(temperature=10)
        with pytest.raises(KeyError):
            panel.flush()
        assert "KeyError: &#x27;&lt;missing&gt;&#x27;" in panel._message.value
    panel.set(temperature=11)
    assert "bytes" in panel.flush().title and panel._message.value == ""


@pytest.mark.parametrize(
    "name, value, allowed",
    [
        ("ratio", 1, "a number in [0.5, 0.99]"),
        ("ratio", float("nan"), "a number in [0.5, 0.99]"),
        ("temperature", 0, "a number in [1, 20]"),
        ("alpha", 1.1, "a number in [0, 1]"),
        ("bits", 9, "a whole number in [1, 8]"),
        ("bits", 2.5, "a whole number in [1, 8]"),
    ],
)
def test_a_slider_refuses_what_it_cannot_stand_at(panel, name, value, allowed):
    before = panel.setting
    with pytest.raises(ParameterError) as error:
        panel.set(**{name: value})
    assert f"{name!r} must be {allowed}. Got {value!r}." in str(error.value) and panel.setting == before


@pytest.mark.parametrize(
    "change, expected",
    [
        (dict(model="mlp128"), "Did you mean load_trained(name)?"),
        (dict(data=(1, 2)), "Got tuple of int, int."),
        (dict(teacher=nn.Sequential(nn.Flatten(), nn.Linear(784, 7))), "must have one shape (N, classes)"),
        (
            dict(model=nn.Sequential(nn.Flatten(), nn.GELU(), nn.Linear(784, 10))),
            "'layer 1' must be one of torch's own",
        ),
    ],
)
def test_a_panel_of_nothing_is_refused_and_leaves_no_widget(dense, teacher, part, change, expected):
    before = count_widgets()
    with pytest.raises(ParameterError) as error:
        RecipePanel(**dict(model=dense, teacher=teacher, data=part) | change)
    assert expected in str(error.value) and str(error.value).startswith("RecipePanel()")
    assert count_widgets() == before


@pytest.mark.slow
def test_a_network_that_is_pruned_already_begins_as_it_is(teacher, part, fast):
    model = small_student(20)
    model[1].weight.data[:, :400] = 0
    panel = RecipePanel(model, teacher, part)
    *_, last = answers(panel, ratio=0.5)
    first, *_, end = last.taught
    assert first.nonzeros == 20 * 384 + 200 + 30 and end.nonzeros <= first.nonzeros
    assert not any(step.network[1].weight[:, :400].any() for step in (*last.taught, *last.plain))
    panel.close()
