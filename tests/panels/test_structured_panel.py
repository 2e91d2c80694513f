"""The structured panel shows what hard pruning gives, measured; each layer has its ratio and keeps a channel."""

import io
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks.faults import count_widgets
from kd_lab.checkpoints import load_trained
from kd_lab.cost import count_macs, count_parameters, file_bytes
from kd_lab.data import Mnist
from kd_lab.errors import ParameterError
from kd_lab.evaluation import accuracy, paired_difference
from kd_lab.networks.zoo import MODELS, build_model
from kd_lab.panels import StructuredPruningPanel
from kd_lab.panels.measurement import percent, points
from kd_lab.panels.structured import HEIGHT
from kd_lab.pruning import IMPORTANCES, hard_prune, prune_channels

pytestmark = pytest.mark.usefixtures("quick_latency")


@pytest.fixture(scope="module")
def model():
    return load_trained("lenet300")


@pytest.fixture(scope="module")
def part(mnist):
    return Mnist(mnist.train[:500], mnist.validation[:1125], mnist.test[:10])


@pytest.fixture(scope="module")
def shared(model, part, quick_latency):
    panel = StructuredPruningPanel(model, part)
    panel.flush()
    yield panel
    panel.close()


def answers(panel, **setting):
    panel.flush()  # one at a time: only its worker measures
    return list(panel.measure(**(panel.setting | setting)))


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_it_measures_what_hard_pruning_gives(panel, model, part, importance):
    ratios = {"fc1": 0.8, "fc2": 0.3}
    pruned = hard_prune(prune_channels(model, ratios, importance, data=part.train))
    first, everything, *_, last = answers(panel, ratios=ratios, importance=importance)
    assert first.comparison.accuracy == accuracy(pruned, part.validation[:1000])
    assert everything.comparison.accuracy == accuracy(pruned, part.validation)
    assert everything.comparison.difference == paired_difference(pruned, model, part.validation)
    assert list(last.costs.values()) == [count_parameters(pruned), file_bytes(pruned), count_macs(pruned)]
    shown = panel.draw(last)
    for text in (
        *(f"{cost:,}" for cost in last.costs.values()),
        f"{file_bytes(model):,}",
        "60 of 300",
        "70 of 100",
        percent(last.comparison.accuracy),
        points(last.comparison, last.comparison.dense),
    ):
        assert text in shown.tables
    assert shown.title.startswith(f"67.5 % removed by {importance}: ")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_any_model_of_the_kit_can_be_pruned(name, mnist):
    model, few = load_trained(name), Mnist(*(part[:250] for part in mnist))
    panel = StructuredPruningPanel(model, few)
    panel.set(ratio=0.4)
    shown = panel.flush()
    assert panel.draw(answers(panel)[-1]).title == shown.title
    expected = accuracy(hard_prune(prune_channels(model, 0.4)), few.validation)
    assert f"{100 * expected.value:.2f} % right" in shown.title
    panel.close()


def test_the_latency_comes_last_beside_that_of_the_dense_network(panel, model):
    first, *_, one, both = answers(panel)
    assert first.seconds == {} and len(one.seconds) == 1 and len(both.curve) == 11
    assert "…" in panel.draw(one).tables
    tables = panel.draw(both).tables
    for batch_size, (dense, left) in both.seconds.items():
        assert dense == 1e-8 * batch_size * 266_610 and left == 1e-8 * batch_size * both.costs["parameters"]
        assert f"{1000 * dense:.3g}</td>" in tables and f"{dense / left:.2f} ×" in tables
    assert f"measured on {torch.get_num_threads()} thread" in tables and "…" not in tables


def test_it_can_be_stopped_between_two_measurements_of_time(panel, monkeypatch):
    times = []

    def move(*arguments):
        times.append(arguments)
        if len(times) == 1:
            panel.set(ratio=0.3)
        return 1.0

    panel.flush()
    monkeypatch.setattr("kd_lab.panels.measurement.latency", move)
    panel.set(ratio=0.6)
    assert panel.flush().title.startswith("30 % removed") and len(times) == 1 + 8


def test_the_slider_sets_the_chosen_layer_and_the_others_keep_theirs(panel):
    every, first, second = panel.controls["layer"].options
    assert (every, first, second) == ("all layers", "fc1: Linear 784-300", "fc2: Linear 300-100")
    panel.set(ratio=0.2)
    assert panel.setting["ratios"] == {"fc1": 0.2, "fc2": 0.2}
    panel.set(ratio=0.7, layer=second)  # in whatever order they are named
    assert panel.setting["ratios"] == {"fc1": 0.2, "fc2": 0.7}
    panel.set(layer=first)
    assert panel.controls["ratio"].value == 0.2 and panel.setting["ratios"] == {"fc1": 0.2, "fc2": 0.7}
    assert "240 of 300" in panel.flush().tables and "30 of 100" in panel.shown.tables
    panel.set(layer=every)  # which changes nothing until the slider moves
    assert panel.setting["ratios"] == {"fc1": 0.2, "fc2": 0.7}
    panel.set(ratio=0.4)
    assert panel.setting["ratios"] == {"fc1": 0.4, "fc2": 0.4}
    assert "60 of 100" in panel.flush().tables


def test_layers_that_share_channels_are_chosen_together(mnist):
    panel = StructuredPruningPanel(build_model("resnet"), Mnist(*(part[:10] for part in mnist)))
    assert panel.controls["layer"].options[1] == "conv1 + block1.body.conv2: Conv2d 1-16, 3×3"
    panel.set(layer="conv1 + block1.body.conv2: Conv2d 1-16, 3×3", ratio=0.75)
    panel.flush()
    assert [label.get_text() for label in panel._drawing._labels] == [
        "1\nchannel",
        "16 → 4\nchannels",
        "16 → 8\nchannels",
        "16 → 4\nchannels",
        "48 → 24\nchannels",
        "48 → 24\nchannels",
        "48 → 24\nchannels",
        "10\nunits",
    ]
    panel.close()


def test_a_layer_keeps_its_last_channel_and_that_is_said(mnist):
    panel = StructuredPruningPanel(load_trained("lenet5_classic"), Mnist(*(part[:100] for part in mnist)))
    panel.set(ratio=0.95)
    tables = panel.flush().tables
    assert re.findall(r"(conv\d: [^<]*?) *\(none would be left, so one stays\)", tables) == ["conv1: Conv2d 1-6, 5×5"]
    assert "1 of 6" in tables and "1 of 16" in tables
    panel.close()


def test_the_curve_is_measured_and_so_is_the_point(panel, model, part):
    *_, last = answers(panel, ratios={"fc1": 0.37, "fc2": 0.37})
    assert sorted(last.curve)[:3] == [0.0, pytest.approx(0.1), pytest.approx(0.2)]
    for removed, value in last.curve.items():
        assert value == accuracy(hard_prune(prune_channels(model, removed)), part.validation[:1000]).value
    panel.draw(last)
    drawing, interval = panel._drawing, last.comparison.accuracy.interval
    assert drawing._curve.point.get_xydata().tolist() == [[0.37, last.comparison.accuracy.value]]
    assert drawing._curve.bar.get_xydata().tolist() == [[0.37, interval[0]], [0.37, interval[1]]]
    assert drawing._curve.curve.get_xydata().tolist() == [list(point) for point in sorted(last.curve.items())]
    assert list(answers(panel, importance="random")[-1].curve.items()) != list(last.curve.items())


def test_heights_are_the_widths(panel):
    panel.draw(answers(panel, ratios={"fc1": 0.5, "fc2": 0.9})[0])
    assert [column.get_height() for column in panel._drawing._columns] == [
        1,
        150 / 784,
        10 / 784,
        pytest.approx(10 / 784),
    ]
    assert [label.get_text() for label in panel._drawing._labels] == [
        "784\npixels",
        "300 → 150\nunits",
        "100 → 10\nunits",
        "10\nunits",
    ]


def test_the_picture_moves_and_keeps_its_size(panel):
    pictures = []
    for ratio in (0, 0.5, 0.95):
        panel.set(ratio=ratio)
        pictures.append(np.asarray(Image.open(io.BytesIO(panel.flush().png)).convert("RGB")))
    assert {picture.shape for picture in pictures} == {(HEIGHT, 800, 3)}
    for one, other in pairwise(pictures):
        assert 0.005 < (one != other).any(axis=2).mean() < 0.3
    for picture in pictures:  # nothing reaches the edge, so nothing is cut off
        assert all((edge == 255).all() for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]))


def test_a_storm_of_moves_ends_on_the_last(panel):
    for step in range(100):
        panel.set(ratio=round(0.9 * step / 99, 2))
    assert panel.flush().title.startswith("90 % removed by")
    assert panel._picture.value == panel.shown.png and panel._tables.value == panel.shown.tables


def test_set_checks_everything_before_it_changes_anything(panel):
    for values, part in [
        (dict(ratio=50), "'ratio' must be a number in [0, 0.95]. Got 50. Did you mean 0.5?"),
        (dict(ratio=0.1, layer="fc2"), "must be one of all layers, fc1: Linear 784-300"),
        (dict(ratio=0.1, importance="random", scope="global"), "'name of the control'"),
    ]:
        with pytest.raises(ParameterError) as error:
            panel.set(**values)
        assert part in str(error.value) and "StructuredPruningPanel.set()" in str(error.value)
    assert panel.setting == {"ratios": {"fc1": 0.5, "fc2": 0.5}, "importance": "magnitude"}


def with_nan():
    model = build_model("mlp128")
    model[1].weight.data[0] = torch.nan
    return model


@pytest.mark.parametrize(
    "arguments, part",
    [
        (("mlp128", None), "Did you mean load_trained(name)?"),
        ((nn.ReLU(), None), "must have a Linear layer"),
        ((build_model("mlp128"), (1, 2)), "Got tuple of int, int."),
        ((with_nan(), None), "NaN or infinite"),
        ((nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), None), "they are the network's answers"),
    ],
)
def test_a_panel_of_nothing_is_refused_and_leaves_no_widget(arguments, part, mnist):
    before = count_widgets()
    with pytest.raises(ParameterError) as error:
        StructuredPruningPanel(arguments[0], arguments[1] or mnist)
    assert part in str(error.value) and str(error.value).startswith("StructuredPruningPanel()")
    assert count_widgets() == before


def test_a_masked_model_is_its_own_baseline_and_is_left_as_it_was(part):
    masked = prune_channels(load_trained("mlp128"), 0.5)
    before = {name: tensor.clone() for name, tensor in masked.state_dict().items()}
    panel = StructuredPruningPanel(masked, part)
    assert answers(panel, ratios={"fc1": 0.5})[1].comparison.difference.value == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in masked.state_dict().items())
    panel.close()


def test_closing_leaves_no_widget(model, part):
    before = count_widgets()
    panel = StructuredPruningPanel(model, part)
    assert panel.controls["ratio"].label == "ratio"
    assert [panel.controls[name].description for name in ("layer", "importance")] == ["layer", "importance"]
    panel.close()
    assert count_widgets() == before


class TiedBeside(nn.Module):
    """Have a grouped transposed convolution, and two layers that share a weight."""

    def __init__(self):
        super().__init__()
        self.first, self.up = nn.Conv2d(1, 6, 3), nn.ConvTranspose2d(6, 12, 2, groups=3)
        self.second, self.fc = nn.Conv2d(12, 4, 3), nn.Linear(4 * 25, 8)
        self.one, self.other, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.other.weight = self.one.weight

    def forward(self, x):
        x = self.fc(self.second(self.up(self.first(x).relu()).relu()).flatten(1)).relu()
        return self.last(self.other(self.one(x).relu()).relu())


@pytest.mark.slow
def test_widths_are_those_of_grouped_and_of_tied_layers():
    data = Mnist(*((torch.randn(30, 1, 8, 8), torch.arange(30) % 3) for _ in range(3)))
    panel = StructuredPruningPanel(TiedBeside(), data)
    panel.flush()
    widths = panel._drawing._dense
    panel.close()
    assert widths == [1, 6, 12, 4, 8, 8, 8, 3]
