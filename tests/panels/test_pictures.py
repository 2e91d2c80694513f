"""Every text of every panel's picture lies inside it, and what is pinned is drawn, at all ends of the controls."""

import random
from itertools import product

import pytest

from kd_lab import checkpoints
from kd_lab.checkpoints import load_trained
from kd_lab.data import Mnist
from kd_lab.networks.layers import weighted_layers
from kd_lab.panels import (
    DistillationPanel,
    FrontierPanel,
    LeastSquaresPanel,
    LowRankPanel,
    PruningPanel,
    QuantizationPanel,
    RecipePanel,
    StructuredPruningPanel,
)
from kd_lab.panels import recipe as recipe_module
from kd_lab.panels.canvas import FAINT, Canvas, Traces, new_figure
from kd_lab.panels.controls import Slider
from kd_lab.panels.measurement import Measurement


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Measure as little as can be: what is drawn counts here."""
    monkeypatch.setattr("kd_lab.panels.measurement.latency", lambda *_: 1e-3)
    monkeypatch.setattr(checkpoints, "STUDENT_RECIPES", {float("inf"): (32, 4, 1e-2)})
    monkeypatch.setattr(checkpoints, "CURVE_POINTS", 2)
    monkeypatch.setattr(recipe_module, "train_live", lambda model, *_, **_settings: [(model, None)])
    monkeypatch.setattr("kd_lab.compression.stages.share_weights", lambda model, _bits: model)
    monkeypatch.setattr(recipe_module, "pack", lambda *_: bytes(9_999))
    monkeypatch.setattr("kd_lab.panels.pruning.zip_stepwise", lambda _model: [999_999])
    monkeypatch.setattr("kd_lab.panels.quantization.CALIBRATION_IMAGES", 50)
    monkeypatch.setattr("kd_lab.panels.quantization.ERROR_IMAGES", 10)
    monkeypatch.setattr("kd_lab.panels.quantization.network_file_bytes", lambda _network: 99_999)
    monkeypatch.setattr("kd_lab.panels.least_squares.CURVE", (0.0, 0.99))
    complete = Measurement.complete
    few = lambda measurement, curve, places, network_at: complete(measurement, curve, [*places][::7], network_at)
    monkeypatch.setattr(Measurement, "complete", few)


@pytest.fixture(scope="module")
def part(mnist):
    return Mnist(mnist.train[:600], mnist.validation[:100], mnist.test[:100])


def last_layer(model):
    return list(weighted_layers(model))[-1]


PANELS = {
    "pruning": lambda model, part: PruningPanel(model, part),
    "structured": lambda model, part: StructuredPruningPanel(model, part),
    "quantization": lambda model, part: QuantizationPanel(model, part),
    "least squares": lambda model, part: LeastSquaresPanel(model, part, last_layer(model)),
    "low rank": lambda model, part: LowRankPanel(model, part, last_layer(model)),
    "distillation": lambda model, part: DistillationPanel(model, part),
    "recipe": lambda model, part: RecipePanel(load_trained("mlp128"), model, part),
    "frontier": lambda _model, part: FrontierPanel(part),
}
OTHERS = (
    ("structured", "resnet"),
    ("structured", "lenet5"),
    ("quantization", "lenet5_classic"),
    ("low rank", "cnn"),
    *product(PANELS, ["lenet300"]),
)
CASES = list(product(PANELS, ["mlp128"]))
SLOW = "recipe", "distillation", "quantization"


def ends(control):
    """Return the least and the most of a slider, the first and the last of a dropdown."""
    if isinstance(control, Slider):
        return [control.kind(control.min), control.kind(control.max)]
    return [control.options[0], control.options[-1]]


def settings(panel, end):
    """Yield settings in which all controls are at the same end, and then each in turn at the other one."""
    names = list(panel.controls)
    alike = {name: ends(panel.controls[name])[end] for name in names}
    yield alike
    yield from ({**alike, name: ends(panel.controls[name])[1 - end]} for name in names)


@pytest.mark.parametrize(
    "kind, name, sides",
    [
        *(pytest.param(*case, [0]) for case in CASES if case[0] not in SLOW),
        *(pytest.param(*case, [1], marks=pytest.mark.slow) for case in CASES if case[0] not in SLOW),
        *(pytest.param(*case, [0, 1], marks=pytest.mark.slow) for case in CASES if case[0] in SLOW),
        *(pytest.param(*case, [0, 1], marks=pytest.mark.slow) for case in OTHERS),
    ],
)
def test_every_text_lies_inside_the_picture(kind, name, sides, part, outside):
    panel = PANELS[kind](load_trained(name), part)
    panel.pin()
    for setting in (setting for end in sides for setting in settings(panel, end)):
        panel.set(**setting)
        panel.flush()
        assert outside == [], setting
    panel.close()


def test_a_text_that_runs_out_of_the_picture_is_found(outside):
    figure = new_figure(30, 300)
    text = figure.text(0.95, 0.5, "teacher 0.74 %", ha="right")
    Canvas(figure, [])
    assert outside == []
    text.set_ha("left")
    Canvas(figure, [])
    assert set(outside) == {"teacher 0.74 %"}


@pytest.mark.parametrize("kind", PANELS)
def test_what_is_pinned_is_drawn_in_faint_grey_until_it_is_taken_off(kind, part, monkeypatch):
    traces, begin = [], Traces.__init__
    monkeypatch.setattr(Traces, "__init__", lambda trace, *lines: traces.append(trace) or begin(trace, *lines))
    panel = PANELS[kind](load_trained("mlp128"), part)

    def drawn():
        both = [lines for trace in traces for lines in (trace.lines, trace.pinned)]
        return [[line.get_xydata().tolist() for line in lines] for lines in both]

    panel.flush()
    shown, pinned = drawn()[::2], drawn()[1::2]
    assert all(not points for lines in pinned for points in lines)
    panel.pin()
    slider = next(iter(panel.controls))
    panel.set(**{slider: ends(panel.controls[slider])[1]})
    panel.flush()
    assert str(drawn()[1::2]) == str(shown) != str(drawn()[::2])  # as text, since NaN is not NaN
    assert {line.get_color() for trace in traces for line in trace.pinned} == {FAINT}
    panel.pin()
    panel.pin()
    assert all(not points for lines in drawn()[1::2] for points in lines)
    panel.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", PANELS)
def test_twenty_recorded_settings_take_at_most_600_kb(kind, part, tmp_path):
    panel, choose, count = PANELS[kind](load_trained("mlp128"), part), random.Random(0), 5
    chosen = [{name: somewhere(control, choose) for name, control in panel.controls.items()} for _ in range(count)]
    panel.save_html(tmp_path / "page.html", chosen)
    assert 20 / count * (tmp_path / "page.html").stat().st_size <= 600_000  # four times as many take less than that
    panel.close()


def somewhere(control, choose):
    """Return a value that a control may have."""
    if isinstance(control, Slider):
        return control.kind(choose.uniform(control.min, control.max))
    return choose.choice(control.options)
