"""What is drawn on the pad is answered by all networks as torch answers it, only the newest, errors in words."""

import base64
import io
import re
import threading
from importlib.metadata import files

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image
from torch import nn

from benchmarks.faults import count_widgets, ipython, run_cell
from kd_lab.checkpoints import load_trained
from kd_lab.data import MEAN, STD
from kd_lab.errors import KdLabError, ParameterError
from kd_lab.formats import network_file_bytes
from kd_lab.networks.zoo import build_model
from kd_lab.panels import DrawingPanel
from kd_lab.panels import pad as pad_module
from kd_lab.panels.canvas import COLOR
from kd_lab.panels.pad import Pad
from kd_lab.panels.panel import VIEW
from kd_lab.pruning import hard_prune, prune
from kd_lab.quantization import quantize_model, to_integer


@pytest.fixture(scope="module", autouse=True)
def quick(mnist):
    """Time nothing, and load MNIST no second time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pad_module, "latency", lambda *_: 0.00123)
        patch.setattr(pad_module, "real_images", lambda *_: mnist.validation.images[:1])
        yield


@pytest.fixture(scope="module")
def models(mnist):
    dense = load_trained("mlp128")
    integer = to_integer(quantize_model(dense, mnist.train.images[:100]))
    return {"dense": dense, "masked": prune(dense, 0.9), "pruned": hard_prune(prune(dense, 0.9)), "int8": integer}


@pytest.fixture(scope="module")
def shared(models):
    panel = DrawingPanel(models)
    yield panel
    panel.close()


def pixels(image):
    return (image * STD + MEAN).clamp(0, 1).flatten().tolist()


def cells(shown):
    rows = re.findall("<tr>(.*?)</tr>", shown.tables)[1:]
    return [[cell.strip() for cell in re.findall("<td.*?>(.*?)</td>", row)] for row in rows]


@pytest.mark.parametrize("place", [3, 8, 18])
def test_the_widget_draws_what_it_is_sent_and_all_answer_as_torch_does(place, panel, models, mnist):
    image = mnist.test.images[place : place + 1]
    panel.controls["digit"].set_state({"value": pixels(image)})  # as the browser does
    shown = panel.flush()
    for row, bars, (name, model) in zip(cells(shown), panel._drawing._bars, models.items(), strict=True):
        shares = model.eval()(image)[0].softmax(0).detach().numpy()
        assert row[:2] == [name, f"{shares.argmax()}, {100 * shares.max():.0f} %"] and row[3] == "1.23"
        assert np.allclose([bar.get_height() for bar in bars], shares, atol=1e-4)
        assert [to_hex(bar.get_facecolor()) == COLOR for bar in bars] == [
            answer == shares.argmax() for answer in range(10)
        ]
    assert cells(shown)[0][2] == f"{network_file_bytes(models['dense']):,}"
    read = np.asarray(Image.open(io.BytesIO(shown.png)).convert("L"))[18:102:3, :84:3]
    assert np.abs(255 - read - np.array(pixels(image)).reshape(28, 28) * 255).max() < 40  # black on white, 256 colours


def test_before_a_drawing_and_after_it_is_cleared_an_example_is_answered(panel, mnist):
    assert panel.flush().title == f"This example is read as {mnist.validation.labels[0]}"
    panel.set(digit=[1.0] * 784)
    assert panel.flush().title.startswith("Your digit is read as ")
    panel.set(digit=())
    assert panel.flush().title.startswith("This example")


BAD = (
    None,
    "7",
    [0.0] * 783,
    [[0.0] * 28] * 28,
    [0.0] * 783 + [1.5],
    [float("nan")] * 784,
    ["0"] * 784,
    torch.zeros(784),
)


@pytest.mark.parametrize("value", BAD, ids=lambda value: repr(value)[:20])
def test_set_checks_a_drawing_and_so_does_the_widget(value, panel):
    panel.set(digit=[0.5] * 784)
    before = panel.flush()
    for change in (lambda: panel.set(digit=value), lambda: panel.controls["digit"].set_state({"value": value})):
        with pytest.raises(ParameterError, match="'digit' must be 784 numbers from 0 to 1, row by row, or an empty"):
            change()
    assert panel.flush() is before and panel.setting == {"digit": (0.5,) * 784}


begun, gate = threading.Event(), threading.Event()


class Held(nn.Module):
    """Answer 1 to what is dark and 0 to the rest, once the gate is open."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 2)

    def forward(self, images):
        begun.set()
        gate.wait(10)
        brightness = images.mean((1, 2, 3))
        if brightness.max() > 2.8:
            return torch.full((len(images), 2), torch.nan)
        return torch.stack([-brightness, brightness], 1)


@pytest.fixture
def held():
    gate.set()
    panel = DrawingPanel({"held": Held(), "as well": Held()})
    panel.flush()
    yield panel
    gate.set()
    panel.close()


def test_a_stale_answer_is_never_shown(held, monkeypatch):
    shown, show = [], DrawingPanel._show
    monkeypatch.setattr(DrawingPanel, "_show", lambda panel, each: (show(panel, each), shown.append(panel.shown.title)))
    gate.clear()
    begun.clear()
    held.set(digit=[0.0] * 784)
    assert begun.wait(10)
    for step in range(1, 50):
        held.set(digit=[step / 50] * 784)
    gate.set()
    assert held.flush().title == "Your digit is read as 1" and set(shown) == {"Your digit is read as 1"}
    assert len(shown) == 1


def test_logits_that_are_not_finite_are_said_in_words_and_drawing_goes_on(held):
    held.set(digit=[1.0] * 784)
    with pytest.raises(KdLabError, match="no finite logits for each image"):
        held.flush()
    assert "no finite logits" in held._message.value
    held.set(digit=[0.1] * 784)
    assert held.flush().title == "Your digit is read as 0" and held._message.value == ""


@pytest.mark.parametrize(
    "models, said",
    [
        (build_model("mlp128"), "'models' must be a dict from names to networks"),
        ({}, "'models' must be one network or more"),
        ({"it": 7}, "Got int"),
        ({"it": "no such network"}, "no such network"),
        ({"it": nn.Linear(28, 10)}, "networks with logits (N, classes)"),
        ({"it": nn.Linear(64, 10)}, "can't read images of shape (1, 28, 28)"),
        ({"it": build_model("mlp128").double()}, "can't read images"),
    ],
)
def test_what_can_not_be_drawn_for_is_refused_and_leaves_no_widget(models, said):
    before = count_widgets()
    with pytest.raises(KdLabError) as error:
        DrawingPanel(models)
    assert said in str(error.value) and "tensor(" not in str(error.value) and "\n" not in str(error.value)
    assert count_widgets() == before


def test_it_works_in_any_surroundings(surroundings):
    panel = DrawingPanel({"it": "mlp128"})
    panel.set(digit=[0.5] * 784)
    assert panel.flush().title.startswith("Your digit is read as")
    panel.close()


@pytest.mark.parametrize("classes", [1, 10, 30])
def test_every_text_lies_inside_the_picture(classes, outside):
    names = "it", "$x^2$ and \\frac", "a long name " * 9, "averylongword" * 9
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, classes))
    panel = DrawingPanel(dict.fromkeys(names, model))
    assert panel.flush() and outside == []
    panel.close()


def test_where_no_widgets_are_a_picture_is(panel):
    bundle = panel._repr_mimebundle_()
    picture = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    assert picture.size == (400, panel._drawing.height + 30)  # the title stands above it
    assert bundle[VIEW]["model_id"] == panel._box.model_id
    assert bundle["text/plain"] == f"DrawingPanel: {panel.shown.title}"


def test_a_cell_that_is_run_again_replaces_its_pad():
    before = count_widgets()
    with ipython() as shell:
        made = []
        for _ in range(2):
            run_cell(shell, 'from kd_lab.panels import DrawingPanel\npanel = DrawingPanel({"it": "mlp128"})\npanel')
            made.append(count_widgets() - before)
        assert made[0] == made[1]
        shell.user_ns["panel"].close()
    assert count_widgets() == before


def test_the_widget_needs_no_network_connection():
    pad = Pad()
    assert "createPad(el" in pad._esm and not re.search(r"https?:|import[ (]|fetch\(", pad._esm)
    pad.close()
    front_end = [str(path) for path in files("anywidget") if "share/jupyter/labextensions/anywidget/" in str(path)]
    assert any(path.endswith("/package.json") for path in front_end)
    assert any("/static/remoteEntry" in path for path in front_end)
