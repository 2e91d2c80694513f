"""The quantization panel shows what the plain functions give, measured, and the grid of every channel."""

import base64
import io
import re
from itertools import islice, pairwise, product

import numpy as np
import pytest
import torch
from own_networks import Tied
from PIL import Image

from benchmarks.faults import count_widgets, ipython, run_cell
from kd_lab.checkpoints import load_trained
from kd_lab.cost import file_bytes
from kd_lab.data import Mnist, Split
from kd_lab.errors import ParameterError
from kd_lab.evaluation import accuracy, paired_difference
from kd_lab.networks.predictions import predict
from kd_lab.networks.zoo import MODELS, build_model
from kd_lab.panels import QuantizationPanel
from kd_lab.panels.quantization import HEIGHT
from kd_lab.pruning import prune
from kd_lab.quantization import (
    CALIBRATIONS,
    GRANULARITIES,
    find_grid,
    fold_batch_norm,
    output_errors,
    quantize_activations,
    quantize_model,
    quantize_weights,
)


@pytest.fixture(scope="module")
def model(student):
    return student


@pytest.fixture(scope="module")
def part(mnist):
    return Mnist(mnist.train[:300], mnist.validation[:1125], mnist.test[:500])


@pytest.fixture(scope="module")
def shared(model, part):
    panel = QuantizationPanel(model, part)
    panel.flush()
    yield panel
    panel.close()


def answers(panel, **setting):
    panel.flush()  # one at a time: only its worker measures
    return list(panel.measure(**(panel.setting | setting)))


def first(panel, **setting):
    panel.flush()
    return next(panel.measure(**(panel.setting | setting)))


def plain(model, part, weight_bits, activation_bits, granularity, grid, calibration):
    folded = fold_batch_norm(model)
    if activation_bits == "fp32":
        return quantize_weights(folded, weight_bits, granularity, grid == "symmetric", calibration)
    return quantize_model(
        model,
        part.train.images,
        weight_bits,
        int(activation_bits),
        granularity=granularity,
        symmetric=grid == "symmetric",
        calibration=calibration,
    )


CORNERS = [
    *product([3], ("fp32", "2"), GRANULARITIES, ("symmetric", "affine"), CALIBRATIONS),
    *product([1], ("fp32", "1"), GRANULARITIES, ["affine"], ["min_max"]),
    (8, "8", "per_channel", "symmetric", "least_squares"),
]
NAMES = ("weight_bits", "activation_bits", "granularity", "grid", "calibration")


@pytest.mark.parametrize(
    "corner",
    [
        pytest.param(corner, marks=[pytest.mark.slow] * (place % 5 > 0 and corner[0] == 3))
        for place, corner in enumerate(CORNERS)
    ],
)
def test_it_measures_what_the_plain_functions_give(panel, model, part, corner):
    quantized = plain(model, part, *corner)
    early, everything, last = islice(panel.measure(*corner, layer="fc1"), 3)
    assert early.comparison.accuracy == accuracy(quantized, part.validation[:1000])
    assert everything.comparison.accuracy == accuracy(quantized, part.validation)
    assert everything.comparison.difference == paired_difference(quantized, fold_batch_norm(model), part.validation)
    errors = output_errors(quantized, fold_batch_norm(model), part.validation.images[:250])
    for name, (values, error) in last.layers.items():
        assert values == len(quantized.get_submodule(name).weight.unique())
        assert error == pytest.approx(errors[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_any_model_of_the_kit_can_be_quantized(name, mnist):
    model, few = load_trained(name), Mnist(*(part[:250] for part in mnist))
    panel = QuantizationPanel(model, few)
    panel.set(weight_bits=3, granularity="per_tensor")
    shown = panel.flush()
    assert panel.draw(answers(panel)[-1]).title == shown.title
    for activations in ("fp32", "3"):
        quantized = plain(model, few, 3, activations, "per_tensor", "symmetric", "min_max")
        found = first(panel, activation_bits=activations).comparison.accuracy
        assert found == accuracy(quantized, few.validation)
    panel.close()


def test_batch_norm_is_folded_in_the_dense_network_too(mnist):
    model, few = load_trained("resnet"), Mnist(*(part[:100] for part in mnist))
    panel = QuantizationPanel(model, few)
    shown = panel.draw(next(panel.measure(**panel.setting)))
    assert f"{file_bytes(fold_batch_norm(model)):,} bytes" in shown.tables
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in panel._dense.modules())
    panel.close()


class Looped(torch.nn.Module):
    """A learner's network, whose BatchNorm stands behind a layer and reads what a ReLU gives."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(324, 10)
        )
        torch.nn.init.normal_(self.layers[1].running_mean)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x.relu())
        return x


def test_the_dense_network_answers_as_the_one_that_was_given(mnist):
    torch.manual_seed(0)
    model, few = Looped().eval(), Mnist(*(part[:100] for part in mnist))
    with pytest.warns(UserWarning, match=r"^QuantizationPanel\(\): left 'layers\.1' as before"):
        panel = QuantizationPanel(model, few)
    comparison = next(panel.measure(**panel.setting)).comparison
    assert torch.equal(comparison.dense_answers, predict(model, few.validation.images).argmax(1))
    panel.close()


def test_the_tables_hold_what_was_measured(panel, model, monkeypatch):
    monkeypatch.setattr(panel, "_reports", {})
    *_, last = answers(panel, weight_bits=2)
    tables = panel.draw(last).tables
    for text in (
        "1,125",
        f"{file_bytes(model):,} bytes",
        f"{last.packed:,} bytes",
        "not read for this setting",
        f"{last.comparison.difference.lost:,}, {last.comparison.difference.gained:,}",
        *(f"{values:,}</td>" for values, _ in last.layers.values()),
        *(f"{100 * error:.1f}\u00a0%" for _, error in last.layers.values()),
    ):
        assert text in tables
    assert "…" not in tables and "keeps only its sign" not in tables
    assert "…" in panel.draw(answers(panel, weight_bits=5)[0]).tables
    assert "…" not in panel.draw(answers(panel, weight_bits=5)[0]).tables  # known from before


def test_at_one_bit_the_panel_says_that_grid_and_calibration_change_nothing(panel):
    found = [
        answers(panel, weight_bits=1, grid=grid, calibration=calibration)[1]
        for grid, calibration in (("symmetric", "min_max"), ("affine", "least_squares"))
    ]
    assert found[0].comparison.accuracy == found[1].comparison.accuracy
    assert "keeps only its sign" in panel.draw(found[0]).tables


def test_the_curve_is_measured_and_so_is_the_point(panel, model, part):
    *_, last = answers(panel, weight_bits=3)
    assert list(last.curve) == list(range(1, 9))
    for bits, value in last.curve.items():
        assert value == accuracy(quantize_weights(model, bits, calibration="min_max"), part.validation[:1000]).value
    panel.draw(last)
    drawing, interval = panel._pictures["fc1"], last.comparison.accuracy.interval
    assert drawing._curve.point.get_xydata().tolist() == [[3, last.comparison.accuracy.value]]
    assert drawing._curve.bar.get_xydata().tolist() == [[3, interval[0]], [3, interval[1]]]
    assert drawing._curve.curve.get_xydata().tolist() == [list(point) for point in sorted(last.curve.items())]


@pytest.mark.parametrize(
    "changed",
    [dict(activation_bits="1"), dict(granularity="per_tensor"), dict(grid="affine"), dict(calibration="percentile")],
)
def test_every_other_setting_has_a_curve_of_its_own(panel, model, part, changed):
    setting = {name: panel.setting[name] for name in NAMES} | changed | dict(weight_bits=2)
    *_, last = answers(panel, **changed)
    assert last.curve[2] == accuracy(plain(model, part, **setting), part.validation[:1000]).value
    assert last.curve != answers(panel)[-1].curve


def test_the_picture_shows_a_grid_for_every_channel_or_for_the_whole_layer(panel, model):
    panel.draw(first(panel, weight_bits=3, layer="fc2", calibration="least_squares"))
    rows = model[3].weight.detach()
    scale, _ = find_grid(rows, 3, True, "least_squares")
    expected = [(step * each).item() for each in scale for step in range(-4, 4)]
    assert ticks(panel, "fc2")[:, 0, 0].tolist() == pytest.approx(expected)
    assert len(np.unique(ticks(panel, "fc2")[:, :, 1], axis=0)) == 10  # a row each
    panel.draw(first(panel, weight_bits=3, layer="fc2", granularity="per_tensor", grid="affine"))
    scale, zero = find_grid(rows.reshape(1, -1), 3, False, "min_max")
    assert ticks(panel, "fc2")[:, 0, 0].tolist() == pytest.approx(
        [(step - zero.item()) * scale.item() for step in range(-4, 4)]
    )
    assert panel._pictures["fc2"]._caption.get_text() == "a grid of 8 levels for the whole layer"
    panel.draw(first(panel, weight_bits=1, layer="fc1"))
    sizes = model[1].weight.detach().abs().mean(1)[torch.linspace(0, 31, 16).long()]
    assert ticks(panel, "fc1")[:, 0, 0].tolist() == pytest.approx(torch.stack([-sizes, sizes], 1).flatten().tolist())
    assert panel._pictures["fc1"]._caption.get_text() == "a grid of 2 levels for each channel (16 of 32)"


def ticks(panel, layer):
    return np.array(panel._pictures[layer]._ticks.get_segments())


@pytest.mark.parametrize("bits", [8, 3, 2, 1])
@pytest.mark.parametrize("grid", ["symmetric", "affine"])
def test_the_histogram_holds_every_quantized_weight(panel, model, bits, grid):
    panel.draw(first(panel, weight_bits=bits, grid=grid, granularity="per_tensor"))
    counts = panel._pictures["fc1"]._quantized.get_data().values
    assert counts.sum() == model[1].weight.numel() and (counts > 0).sum() <= 2**bits


def test_a_sign_of_pruned_weights_has_three_values(part):
    panel = QuantizationPanel(prune(load_trained("mlp128"), 0.5), part)
    setting = panel.setting | dict(weight_bits=1, granularity="per_tensor")
    panel.draw(next(panel.measure(**setting)))
    low, zero, high = ticks(panel, "fc1")[:, 0, 0]
    assert low == -high < 0 == zero
    panel.close()


def test_the_picture_moves_and_keeps_its_size(panel):
    pictures = []
    for bits in (8, 3, 2, 1):
        panel.set(weight_bits=bits)
        pictures.append(np.asarray(Image.open(io.BytesIO(panel.flush().png)).convert("RGB")))
    assert {picture.shape for picture in pictures} == {(HEIGHT, 800, 3)}
    for one, other in pairwise(pictures):
        assert 0.005 < (one != other).any(axis=2).mean() < 0.2
    for picture in pictures:  # nothing reaches the edge, so nothing is cut off
        assert all((edge == 255).all() for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]))


def test_no_title_is_cut_off(panel):
    for setting in (dict(weight_bits=8), dict(weight_bits=1, activation_bits="1")):
        assert len(panel.draw(answers(panel, **setting)[1]).title) < 95
    assert re.match(
        r"1-bit weights, 1-bit activations: [\d.]+ % right \(", panel.draw(answers(panel, **setting)[1]).title
    )


def test_a_storm_of_moves_ends_on_the_last(panel):
    for step in range(100):
        panel.set(weight_bits=1 + step % 8)
    panel.set(weight_bits=6, layer="fc2")
    assert panel.flush().title.startswith("6-bit weights, fp32 activations: ")
    assert panel._picture.value == panel.shown.png and panel._tables.value == panel.shown.tables


def test_the_test_part_is_read_only_by_the_button_and_once(panel, model, part, reads, button):
    panel.set(weight_bits=2)
    panel.flush()
    assert reads == []
    for _ in range(3):
        button(panel, "Reveal test").click()
        shown = panel.flush()
    assert len(reads) == 1
    found = accuracy(quantize_weights(model, 2, calibration="min_max"), part.test)
    assert f"{100 * found.value:.2f} %" in shown.tables and "test part (500)" in shown.tables
    panel.set(layer="fc2")  # which is no other network
    assert "test part (500)" in panel.flush().tables
    for other in (dict(weight_bits=3), dict(weight_bits=2, grid="affine"), dict(grid="symmetric", activation_bits="1")):
        panel.set(**other)
        assert "not read for this setting" in panel.flush().tables and len(reads) == 1


def test_an_error_is_shown_in_words_and_the_last_picture_stays(panel, monkeypatch):
    before = panel.flush()
    with monkeypatch.context() as patch:
        patch.setattr(panel, "_network", lambda *_: {}["<missing>"])
        panel.set(weight_bits=3)
        with pytest.raises(KeyError):
            panel.flush()
        assert "KeyError: &#x27;&lt;missing&gt;&#x27;" in panel._message.value
        assert panel.shown == before and panel._picture.value == before.png
    panel.set(weight_bits=7)
    assert panel.flush().title.startswith("7-bit weights") and panel._message.value == ""


@pytest.mark.parametrize("value", [0, 9, 4.0, 2.5, float("nan"), True, "4", None])
def test_a_slider_refuses_bits_that_it_cannot_stand_at(panel, value):
    before = panel.flush()
    for change in (
        lambda: panel.set(weight_bits=value),
        lambda: setattr(panel.controls["weight_bits"], "value", value),
    ):
        with pytest.raises(ParameterError) as error:
            change()
        assert f"'weight_bits' must be a whole number in [1, 8]. Got {value!r}." in str(error.value)
    with pytest.raises(ParameterError):
        panel.controls["weight_bits"].set_state({"value": value})  # as the browser sends it
    assert panel.controls["weight_bits"].value == 4 and panel.flush() == before


def test_set_checks_everything_before_it_changes_anything(panel):
    before = panel.setting
    for values, expected in [
        (dict(weight_bits=2, activation_bits="9"), "one of fp32, 8, 7"),
        (dict(weight_bits=2, activation_bits=8), "Did you mean '8'?"),
        (dict(weight_bits=2, granularity="channel"), "Did you mean 'per_channel'?"),
        (dict(weight_bits=2, layer="2"), "one of fc1, fc2"),
        (dict(bits=2), "Did you mean 'weight_bits'?"),
    ]:
        with pytest.raises(ParameterError) as error:
            panel.set(**values)
        assert expected in str(error.value) and "QuantizationPanel.set()" in str(error.value)
    assert (
        panel.setting
        == before
        == {
            "weight_bits": 4,
            "activation_bits": "fp32",
            "granularity": "per_channel",
            "grid": "symmetric",
            "calibration": "min_max",
            "layer": "fc1",
        }
    )


def with_nan():
    model = build_model("mlp128")
    model[1].bias.data[0] = torch.nan
    return model


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (("mlp128", None), "Did you mean load_trained(name)?"),
        ((torch.nn.ReLU(), None), "must have a Linear layer"),
        ((build_model("mlp128"), (1, 2)), "Got tuple of int, int."),
        ((with_nan(), None), "NaN or infinite"),
    ],
)
def test_a_panel_of_nothing_is_refused_and_leaves_no_widget(arguments, expected, part):
    before = count_widgets()
    with pytest.raises(ParameterError) as error:
        QuantizationPanel(arguments[0], arguments[1] or part)
    assert expected in str(error.value) and str(error.value).startswith("QuantizationPanel()")
    assert count_widgets() == before


def test_layers_that_share_a_weight_are_one():
    parts = [Split(torch.randn(count, 64), torch.arange(count) % 10) for count in (60, 50, 40)]
    panel = QuantizationPanel(Tied(), Mnist(*parts))
    *_, last = answers(panel, weight_bits=3)
    assert list(last.layers) == ["encoder", "head"] == list(panel.controls["layer"].options)
    panel.draw(last)
    panel.close()


def test_a_quantized_model_is_its_own_baseline_and_is_left_as_it_was(model, part):
    images = part.train.images
    quantized = quantize_activations(quantize_weights(model, 3, calibration="min_max"), images, 4)
    state = {name: tensor.clone() for name, tensor in quantized.state_dict().items()}
    panel = QuantizationPanel(quantized, part)
    panel.set(weight_bits=3)
    panel.flush()
    assert answers(panel, weight_bits=3)[1].comparison.accuracy == accuracy(quantized, part.validation)
    assert answers(panel, weight_bits=3)[1].comparison.difference.value == 0
    assert all(torch.equal(state[name], tensor) for name, tensor in quantized.state_dict().items())
    panel.close()


def test_the_random_numbers_of_others_stay_as_they_were(panel):
    before = torch.get_rng_state()
    known = panel.measure(**panel.setting | dict(activation_bits="4", calibration="least_squares"))
    *_, last = islice(known, 4)
    assert len(last.curve) == 1
    assert torch.equal(before, torch.get_rng_state())


def test_every_control_has_a_name_for_a_screen_reader(panel, button):
    assert panel.controls["weight_bits"].label == "weight_bits"
    assert [panel.controls[name].description for name in (*NAMES[1:], "layer")] == [*NAMES[1:], "layer"]
    assert button(panel, "Reveal test") and button(panel, "Pin")


def test_where_no_widgets_are_a_picture_is(panel):
    bundle = panel._repr_mimebundle_()
    assert Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).size == (
        800,
        HEIGHT + 30,
    )  # the title stands above it
    assert bundle["text/plain"] == repr(panel) == f"QuantizationPanel: {panel.shown.title}"


CELL = "from kd_lab.panels import QuantizationPanel\npanel = QuantizationPanel(model, data)\npanel"


@pytest.mark.slow
def test_a_cell_that_is_run_again_replaces_its_panel_and_closing_leaves_no_widget(model, part):
    before = count_widgets()
    few = Mnist(*(each[:100] for each in part))
    with ipython(data=few, model=model) as shell:
        run_cell(shell, CELL)
        first, made = shell.user_ns["panel"], count_widgets() - before
        run_cell(shell, CELL)
        assert count_widgets() - before == made and "closed" in repr(first)
        shell.user_ns["panel"].flush()
        shell.user_ns["panel"].close()
        assert count_widgets() == before
