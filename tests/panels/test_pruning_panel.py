"""The pruning panel shows what prune() gives, measured; nothing stale, nothing that piles up, every error in words."""

import base64
import copy
import io
import json
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from IPython.lib.pretty import pretty
from PIL import Image
from torch.nn.utils import prune as torch_prune

from benchmarks.faults import count_widgets, ipython, run_cell
from kd_lab.checkpoints import load_trained
from kd_lab.cost import file_bytes, zipped_bytes
from kd_lab.data import Mnist
from kd_lab.errors import ParameterError
from kd_lab.evaluation import accuracy, paired_difference, predict_classes_by_batch
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.zoo import build_model
from kd_lab.panels import PruningPanel
from kd_lab.panels.panel import VIEW
from kd_lab.panels.pruning import HEIGHT
from kd_lab.pruning import IMPORTANCES, SCOPES, prune


@pytest.fixture(scope="module")
def model(student):
    return student


@pytest.fixture(scope="module")
def part(mnist):
    return Mnist(mnist.train[:2000], mnist.validation[:1125], mnist.test[:500])


@pytest.fixture(scope="module")
def shared(model, part):
    panel = PruningPanel(model, part)
    panel.flush()
    yield panel
    panel.close()


def answers(panel, **setting):
    panel.flush()  # one at a time: only its worker measures
    return list(panel.measure(**(panel.setting | setting)))


def first(panel, **setting):
    panel.flush()
    return next(panel.measure(**(panel.setting | setting)))


@pytest.mark.parametrize(
    "importance, scope",
    [
        pytest.param(importance, scope, marks=[pytest.mark.slow] * ((place + other) % 2))
        for place, importance in enumerate(IMPORTANCES)
        for other, scope in enumerate(SCOPES)
    ],
)
def test_it_measures_what_prune_gives(panel, model, part, importance, scope):
    pruned = prune(model, 0.8, importance, scope, data=part.train[:1000])
    early, everything, *_, last = answers(panel, sparsity=0.8, importance=importance, scope=scope)
    assert early.comparison.accuracy == accuracy(pruned, part.validation[:1000])
    assert everything.comparison.accuracy == accuracy(pruned, part.validation)
    assert everything.comparison.difference == paired_difference(pruned, model, part.validation)
    assert last.zipped == zipped_bytes(make_permanent(pruned))
    shown = panel.draw(last)
    for text in (f"{last.zipped:,} bytes", f"{file_bytes(model):,} bytes", "not read for this setting"):
        assert text in shown.tables
    assert shown.title.startswith(f"80 % pruned by {importance}, {scope}: ")
    assert shown.title.endswith("of 1,125 validation images")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lenet300", "cnn", "lenet5", "lenet5_classic", "resnet"])
def test_any_model_of_the_kit_can_be_pruned(name, mnist):
    model, few = load_trained(name), Mnist(*(part[:250] for part in mnist))
    panel = PruningPanel(model, few)
    panel.set(sparsity=0.9)
    shown = panel.flush()
    assert panel.draw(first(panel)).title == shown.title
    assert f"{100 * accuracy(prune(model, 0.9), few.validation).value:.2f} %" in shown.title
    panel.close()


def test_the_curve_is_measured_and_so_is_the_point(panel, model, part):
    panel.flush()
    *_, last = answers(panel, sparsity=0.37)
    assert 0.37 not in last.curve and len(last.curve) == 15
    for sparsity in (0.0, 0.8, 0.99):
        assert last.curve[sparsity] == accuracy(prune(model, sparsity), part.validation[:1000]).value
    assert last.comparison.accuracy == accuracy(prune(model, 0.37), part.validation)


@pytest.mark.slow
def test_every_importance_and_scope_has_a_curve_of_its_own(panel, model, part):
    for importance, scope in (("magnitude", "global"), ("magnitude", "per_layer"), ("random", "per_layer")):
        curve = answers(panel, importance=importance, scope=scope)[-1].curve
        expected = accuracy(prune(model, 0.9, importance, scope), part.validation[:1000]).value
        assert curve[0.9] == expected


def test_the_first_answer_compares_with_the_dense_network_on_the_same_images(panel, model, part, monkeypatch):
    panel.flush()
    reads = []
    monkeypatch.setattr(
        "kd_lab.panels.measurement.predict_classes_by_batch",
        lambda network, x: reads.append(network) or predict_classes_by_batch(network, x),
    )
    comparison = first(panel, sparsity=0.9).comparison
    assert comparison.difference == paired_difference(prune(model, 0.9), model, part.validation[:1000])
    assert panel._dense not in reads  # it was asked once, at the beginning


def test_the_picture_shows_what_was_measured(panel, model):
    *_, last = answers(panel, sparsity=0.9)
    panel.draw(last)
    drawing, low_high = panel._drawing, last.comparison.accuracy.interval
    assert drawing._curve.point.get_xydata().tolist() == [[0.9, last.comparison.accuracy.value]]
    assert drawing._curve.bar.get_xydata().tolist() == [[0.9, low_high[0]], [0.9, low_high[1]]]
    assert drawing._curve.curve.get_xydata().tolist() == [list(point) for point in sorted(last.curve.items())]
    weights = torch.cat([layer.weight.detach().flatten() for layer in (model[1], model[3])])
    assert drawing._kept.get_data().values.sum() == round(0.1 * len(weights))
    ends = [segment[0][0] for segment in drawing._thresholds.get_segments()]
    assert ends == [-last.thresholds[0], last.thresholds[0]]


def test_the_lost_digits_are_those_that_only_the_dense_network_reads(panel):
    comparison = answers(panel, sparsity=0.95)[1].comparison
    assert len(comparison.lost) == comparison.difference.lost > 10
    assert (comparison.dense_answers[comparison.lost] == comparison.labels[comparison.lost]).all()


def test_the_threshold_is_the_smallest_weight_kept(panel, model):
    weights = torch.cat([layer.weight.abs().flatten() for layer in (model[1], model[3])])
    kept = weights.sort(descending=True).values[round(0.1 * len(weights)) - 1]
    assert first(panel, sparsity=0.9).thresholds == [pytest.approx(kept.item())]
    assert len(first(panel, sparsity=0.9, scope="per_layer").thresholds) == 2
    assert first(panel, sparsity=0.0).thresholds == []
    assert first(panel, importance="random").thresholds == []


def test_the_picture_moves_and_keeps_its_size(panel):
    pictures = []
    for sparsity in (0, 0.5, 0.9, 0.99):
        panel.set(sparsity=sparsity)
        pictures.append(np.asarray(Image.open(io.BytesIO(panel.flush().png)).convert("RGB")))
    assert {picture.shape for picture in pictures} == {(HEIGHT, 800, 3)}
    for one, other in pairwise(pictures):
        assert 0.005 < (one != other).any(axis=2).mean() < 0.2
    assert tuple(pictures[0][0, 0]) == (255, 255, 255)


def test_a_storm_of_moves_ends_on_the_last(panel):
    for step in range(200):
        panel.set(sparsity=round(0.99 * step / 199, 2))
    assert panel.flush().title.startswith("99 % pruned by")
    assert panel._picture.value == panel.shown.png and panel._tables.value == panel.shown.tables


def test_the_test_part_is_read_only_by_the_button_and_once(panel, model, part, reads, button):
    panel.set(sparsity=0.6)
    panel.flush()
    assert reads == []
    for _ in range(3):
        button(panel, "Reveal test").click()
        shown = panel.flush()
    assert len(reads) == 1
    assert f"{100 * accuracy(prune(model, 0.6), part.test).value:.2f} %" in shown.tables
    for other in (dict(sparsity=0.7), dict(sparsity=0.6, scope="per_layer"), dict(scope="global", importance="random")):
        panel.set(**other)
        assert "not read for this setting" in panel.flush().tables and len(reads) == 1


def test_an_error_is_shown_in_words_raised_by_flush_and_the_last_picture_stays(panel, monkeypatch):
    before = panel.flush()
    with monkeypatch.context() as patch:
        patch.setattr(panel, "_ranking", lambda *_: {}["<missing>"])
        panel.set(sparsity=0.3)
        with pytest.raises(KeyError):
            panel.flush()
        assert "KeyError: &#x27;&lt;missing&gt;&#x27;" in panel._message.value
        assert panel.shown == before and panel._picture.value == before.png
        panel._repr_mimebundle_()  # a panel that failed is shown all the same
    panel.set(sparsity=0.4)
    assert panel.flush().title.startswith("40 % pruned by") and panel._message.value == ""


def test_an_emptied_layer_is_named(part):
    model = build_model("mlp128")
    model[3].weight.data.mul_(1e-6)
    panel = PruningPanel(model, part)
    tables = panel.draw(next(panel.measure(**panel.setting))).tables
    assert "100 %: nothing left" in tables.split("Linear 128-10")[1]
    panel.close()


@pytest.mark.parametrize(
    "value, said",
    [
        (1.5, "in [0, 0.99]. Got 1.5."),
        (50, "Did you mean 0.5?"),
        (float("nan"), "Got nan"),
        (float("inf"), "Got inf"),
        (-0.1, "Got -0.1"),
        (True, "Got True"),
        ("0.5", "Did you mean 0.5?"),
        (None, "Got None"),
    ],
)
def test_a_slider_refuses_what_it_cannot_stand_at(panel, value, said):
    before = panel.flush()
    for change in (lambda: panel.set(sparsity=value), lambda: setattr(panel.controls["sparsity"], "value", value)):
        with pytest.raises(ParameterError) as error:
            change()
        assert said in str(error.value) and "'sparsity'" in str(error.value)
    with pytest.raises(ParameterError):
        panel.controls["sparsity"].set_state({"value": value})  # as the browser sends it
    assert panel.controls["sparsity"].value == 0.5 and panel.flush() == before


def test_set_checks_everything_before_it_changes_anything(panel):
    for values, said in [
        (dict(sparsity=0.1, scope="globl"), "Did you mean 'global'?"),
        (dict(sparsity=0.1, importanc="random"), "Did you mean 'importance'?"),
        (dict(sparsity=0.1, importance=None), "one of magnitude"),
    ]:
        with pytest.raises(ParameterError) as error:
            panel.set(**values)
        assert said in str(error.value) and "PruningPanel.set()" in str(error.value)
    assert panel.setting == {"sparsity": 0.5, "importance": "magnitude", "scope": "global"}


def torch_pruned():
    model = build_model("mlp128")
    torch_prune.l1_unstructured(model[1], "weight", 0.5)
    model(torch.zeros(1, 1, 28, 28))
    return model


def with_nan():
    model = build_model("mlp128")
    model[1].bias.data[0] = torch.nan
    return model


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("mlp128", None), "Did you mean load_trained(name)?"),
        ((torch.nn.ReLU(), None), "must have a Linear layer"),
        ((build_model("mlp128"), (1, 2)), "Got tuple of int, int."),
        ((torch_pruned(), None), "Call make_permanent(model) first."),
        ((with_nan(), None), "NaN or infinite"),
    ],
)
def test_a_panel_of_nothing_is_refused_and_leaves_no_widget(arguments, said, part):
    before = count_widgets()
    with pytest.raises(ParameterError) as error:
        PruningPanel(arguments[0], arguments[1] or part)
    assert said in str(error.value) and str(error.value).startswith("PruningPanel()")
    assert count_widgets() == before


def test_a_pruned_model_is_its_own_baseline_and_is_left_as_it_was(model, part):
    pruned = prune(model, 0.5)
    state = copy.deepcopy(pruned.state_dict())
    panel = PruningPanel(pruned, part)
    panel.set(sparsity=0)
    panel.flush()
    assert answers(panel, sparsity=0)[1].comparison.difference.value == 0
    assert all(torch.equal(state[name], tensor) for name, tensor in pruned.state_dict().items())
    panel.close()


def test_every_control_has_a_name_for_a_screen_reader(panel, button):
    """The browser test reads the names from the page; here they are at least set."""
    assert panel.controls["sparsity"].label == "sparsity"
    assert [panel.controls[name].description for name in ("importance", "scope")] == ["importance", "scope"]
    assert button(panel, "Reveal test") and button(panel, "Pin")


def test_where_no_widgets_are_a_picture_is(panel):
    bundle = panel._repr_mimebundle_()
    picture = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    assert picture.size == (800, HEIGHT + 30)  # the title stands above it
    assert bundle[VIEW]["model_id"] == panel._box.model_id
    assert bundle["text/plain"] == repr(panel) == f"PruningPanel: {panel.shown.title}" == pretty(panel)
    assert json.dumps(bundle)


CELL = """
from kd_lab.networks.zoo import small_student
from kd_lab.panels import PruningPanel
panels = [PruningPanel(small_student(8), data) for _ in range({count})]
panels[-1]
"""


@pytest.fixture
def shell(part):
    with ipython(data=Mnist(*(each[:100] for each in part))) as shell:
        yield shell


def run(shell, code):
    run_cell(shell, code)
    return shell.user_ns["panels"]


def test_a_cell_that_is_run_again_replaces_its_panels(shell):
    before = count_widgets()
    first = run(shell, CELL.format(count=2))  # both stay: they were made in one run
    made = count_widgets() - before
    [panel.flush() for panel in first]
    second = run(shell, CELL.format(count=2))
    assert count_widgets() - before == made
    assert [panel.flush() for panel in second] and "closed" in repr(first[0])
    with pytest.raises(AttributeError, match="its cell was run again"):
        first[0].flush()
    assert list(first[0]._repr_mimebundle_()) == ["text/plain"]
    other = run(shell, CELL.format(count=1))  # another cell leaves them
    assert second[0].flush() and other[0].flush() and count_widgets() - before == made + made // 2
    for panel in (*second, *other):
        panel.close()
    assert count_widgets() == before
    other[0].close()  # closing twice does no harm


def test_closing_stops_the_measuring(model, mnist):
    panel = PruningPanel(load_trained("resnet"), mnist)
    panel.refresh()
    start = time.perf_counter()
    panel.close()
    assert time.perf_counter() - start < 5


@pytest.mark.slow
def test_the_kernel_ends_while_a_panel_measures():
    code = (
        "from kd_lab.panels import PruningPanel\nfrom kd_lab.data import load_mnist\n"
        "from kd_lab.checkpoints import load_trained\nPruningPanel(load_trained('resnet'), load_mnist()).refresh()"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=150).returncode == 0
