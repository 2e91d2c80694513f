"""Each panel works on any network and any data, or its constructor says in one sentence what it can't do."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kd_lab.data import Mnist
from kd_lab.errors import ParameterError
from kd_lab.networks.zoo import small_student
from kd_lab.panels import (
    DistillationPanel,
    LeastSquaresPanel,
    LowRankPanel,
    PruningPanel,
    QuantizationPanel,
    RecipePanel,
    StructuredPruningPanel,
    pruning,
    quantization,
    structured,
)


class Unused(nn.Module):
    """Have a layer that is never run."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.spare = nn.Linear(64, 12), nn.Linear(12, 4), nn.Linear(9, 3)

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(x.view(-1, 64))))


class Attention(nn.Module):
    """Read the rows of an image by attention, whose out_proj is never called as a module."""

    def __init__(self):
        super().__init__()
        self.attention, self.fc = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(64, 4)

    def forward(self, x):
        rows = x.squeeze(1)
        return self.fc(self.attention(rows, rows, rows)[0].flatten(1))


class Rows(nn.Module):
    """Read the rows of an image in both directions."""

    def __init__(self):
        super().__init__()
        self.cells, self.fc = nn.GRU(8, 6, 2, batch_first=True, bidirectional=True), nn.Linear(12, 4)

    def forward(self, x):
        return self.fc(self.cells(x.squeeze(1))[0][:, -1])


class Convolutions(nn.Module):
    """Use view, functional ReLU, a residual addition, and keep the activation of the last run."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6 * 4 * 4, 4)

    def forward(self, x):
        self.kept = F.relu(self.conv1(x))
        x = F.max_pool2d(self.kept + F.relu(self.conv2(self.kept)), 2)
        return self.fc(x.view(-1, 6 * 4 * 4))


def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 4))


def part(count, dtype=torch.int64):
    """Return images of 8×8 and labels, of which the digit 2 is missing."""
    labels = torch.tensor([0, 1, 3])[torch.arange(count) % 3]
    return torch.randn(count, 1, 8, 8), labels.to(dtype)


def parts(*counts, images=lambda images: images, dtype=torch.int64):
    made = (part(count, dtype) for count in counts)
    return tuple((images(x), y) for x, y in made)


DATA = {
    "a tuple of pairs": lambda: parts(60, 40, 50),
    "lists": lambda: [[*each] for each in parts(60, 40, 50)],
    "three images": lambda: parts(3, 3, 3),
    "more than a thousand": lambda: parts(60, 1010, 50),
    **{str(dtype): lambda dtype=dtype: parts(60, 40, 50, dtype=dtype) for dtype in (torch.uint8, torch.int32)},
}
LAYERS = {"unused": "fc1", "attention": "fc", "rows": "fc", "convolutions": "conv2", "plain": "1", "bfloat16": "1"}
NETWORKS = {"unused": Unused, "attention": Attention, "rows": Rows, "convolutions": Convolutions, "plain": plain}
PANELS = {
    "pruning": PruningPanel,
    "quantization": QuantizationPanel,
    "structured": StructuredPruningPanel,
    "least squares": lambda model, data, layer="1": LeastSquaresPanel(model, data, layer),
    "low rank": lambda model, data, layer="1": LowRankPanel(model, data, layer),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Measure few points of each curve."""
    for module in (pruning, structured):
        monkeypatch.setattr(module, "CURVE", module.CURVE[::5])
    monkeypatch.setattr(quantization, "BITS", range(3, 5))
    monkeypatch.setattr("kd_lab.panels.measurement.latency", lambda *_: 1.0)


def works_or_says_why(build, every=()):
    """Move every control of a panel once; only its constructor may refuse."""
    try:
        panel = build()
    except ParameterError as error:
        assert "\n" not in str(error) and "tensor(" not in str(error)
        return False
    try:
        shown = panel.flush()
        assert shown.png and "validation images" in shown.title
        for values in every:
            panel.set(**values)
            panel.flush()
    finally:
        panel.close()
    return True


MOVES = {
    "pruning": [{"importance": "weight_gradient"}, {"scope": "per_layer"}],
    "quantization": [{"activation_bits": "4"}, {"weight_bits": 1}],
    "structured": [{"ratio": 0.9}, {"importance": "gradient"}],
    "least squares": [],
    "low rank": [{"rank": 1}],
}
OF_A_LAYER = "least squares", "low rank"
REFUSED = {("structured", "attention"), ("structured", "convolutions")}  # may say that no channels can go


@pytest.mark.parametrize(
    "network",
    [
        "unused",
        "convolutions",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("attention", "rows", "plain")),
    ],
)
@pytest.mark.parametrize("kind", PANELS)
def test_a_panel_works_on_any_network(kind, network):
    torch.manual_seed(0)
    layer = [LAYERS[network]] if kind in OF_A_LAYER else []
    worked = works_or_says_why(lambda: PANELS[kind](NETWORKS[network](), parts(60, 40, 50), *layer), MOVES[kind])
    assert worked or (kind, network) in REFUSED


@pytest.mark.parametrize("kind", ["pruning", "least squares"])
def test_a_panel_works_on_a_network_that_keeps_a_lock(kind):
    model = plain()
    model.lock = threading.Lock()
    assert works_or_says_why(lambda: PANELS[kind](model, parts(60, 40, 50)), MOVES[kind])


@pytest.mark.parametrize("kind", PANELS)
def test_a_panel_works_in_half_precision(kind):
    data = parts(60, 40, 50, images=lambda images: images.bfloat16())
    works_or_says_why(lambda: PANELS[kind](plain().bfloat16(), data), MOVES[kind])


@pytest.mark.parametrize(
    "kind, data",
    [*(("pruning", data) for data in DATA if data != "torch.uint8"), *((kind, "torch.uint8") for kind in PANELS)],
)
def test_a_panel_works_on_any_data(kind, data):
    assert works_or_says_why(lambda: PANELS[kind](plain(), DATA[data]()))


@pytest.mark.parametrize("shape", [(64,), (3, 5, 7)])
def test_a_panel_draws_what_is_no_digit(shape):
    data = tuple((torch.randn(30, *shape), torch.arange(30) % 4) for _ in range(3))
    model = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 4))
    assert works_or_says_why(lambda: PruningPanel(model, data))


@pytest.mark.parametrize("kind", ["pruning", "structured"])
def test_a_panel_made_in_inference_mode_works(kind):
    with torch.inference_mode():
        panel = PANELS[kind](plain(), parts(60, 40, 50))
    assert works_or_says_why(lambda: panel, MOVES[kind])


@pytest.mark.parametrize(
    "arguments, said",
    [
        (lambda model, data: (data, model), r"Got a network\. Did you swap 'model' and 'data'\?"),
        (lambda model, data: (model, data[0]), r"Got tuple of Tensor, Tensor\. Is that one part of it\?"),
        (lambda model, data: (model, data[:2]), r"Got tuple of tuple, tuple\.$"),
        (lambda model, data: (model, None), r"each \(images, labels\)\. Got None\.$"),
    ],
)
@pytest.mark.parametrize("kind", [PruningPanel, QuantizationPanel, StructuredPruningPanel, DistillationPanel])
def test_what_is_no_data_is_named_without_a_tensor(kind, arguments, said):
    with pytest.raises(ParameterError, match=said) as error:
        kind(*arguments(plain(), parts(6, 6, 6)))
    assert str(error.value).startswith(f"{kind.__name__}(): ") and "tensor(" not in str(error.value)


def test_a_student_is_shown_the_digits_that_there_are():
    data = Mnist(*((torch.randn(30, 1, 28, 28), torch.tensor([0, 7])[torch.arange(30) % 2]) for _ in range(3)))
    panel = DistillationPanel(small_student(8), data)
    assert panel.controls["digit"].options == ("0", "7")
    panel.set(view="soft targets only")
    assert panel.flush().title.startswith("T = 4: the teacher gives")
    panel.close()


def test_what_no_student_of_the_panel_can_learn_is_named():
    with pytest.raises(ParameterError, match=r"reads 784 numbers .* images \(1, 8, 8\) .* the teacher gives 4 classes"):
        DistillationPanel(plain(), parts(6, 6, 6))


def test_a_recipe_says_what_it_can_not_do():
    assert not works_or_says_why(lambda: RecipePanel(plain(), plain(), parts(6, 6, 6)))


@pytest.mark.parametrize("make", [PruningPanel, QuantizationPanel, StructuredPruningPanel])
@pytest.mark.parametrize("count, said", [(40, "on 40 images"), (1010, "on 1,000 images")])
def test_a_picture_says_on_how_many_images_its_curve_is(make, count, said):
    panel = make(plain(), parts(60, count, 50))
    panel.flush()
    drawing = getattr(panel, "_drawing", None) or next(iter(panel._pictures.values()))
    panel.close()
    assert any(said in axes.get_title() for axes in drawing._canvas._agg.figure.axes)
