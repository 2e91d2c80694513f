"""The data are followed through a network, and a graph that would answer otherwise is refused."""

import pytest
import torch
from torch import nn

from kd_lab.errors import ParameterError
from kd_lab.networks.tracing import is_plain, trace, trace_training

IMAGES = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))


class Noted(nn.Linear):
    """A layer with a forward of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


class Counting(nn.Module):
    """Answer otherwise at each batch, so that no graph can be right."""

    def __init__(self):
        super().__init__()
        self.fc, self.calls = nn.Linear(16, 3), 0

    def forward(self, x):
        self.calls += 1
        return self.fc(x.flatten(1)) * self.calls


def test_a_network_is_followed_where_the_grader_has_turned_subclasses_of_tensors_off():
    class Clipped(nn.Module):
        def forward(self, x):
            return torch.relu(x.flatten(1))

    with torch._C.DisableTorchFunctionSubclass():
        assert [node.name for node in trace(Clipped(), IMAGES).graph.nodes][1:-1] == ["flatten", "relu"]


def test_the_graph_of_a_network_names_its_layers_in_the_order_of_the_data():
    layers = nn.ModuleDict({"last": nn.Linear(8, 3), "first": nn.Linear(16, 8)})

    class Crossed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers

        def forward(self, x):
            return self.layers["last"](self.layers["first"](x.flatten(1)))

    called = [node.target for node in trace(Crossed(), IMAGES).graph.nodes if node.op == "call_module"]
    assert called == ["layers.first", "layers.last"]


class Asking(nn.Module):
    """Ask about the data as people do, in training about what a BatchNorm gives."""

    def __init__(self):
        super().__init__()
        self.norm, self.wide, self.fc = nn.BatchNorm2d(1), nn.Linear(16, 3), nn.Linear(99, 3)

    def forward(self, x):
        assert x.dim() == 4, "images"
        x = self.norm(x)
        if x.shape[1] != 1 or (self.training and x.numel() == 99):
            return self.fc(x)
        return self.wide(x.view(len(x), -1))


@pytest.mark.parametrize("training", [False, True])
def test_what_a_network_asks_about_its_data_is_followed(training):
    model = Asking().train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    traced = trace_training(model, IMAGES) if training else trace(model, IMAGES)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["norm", "wide"]
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    assert model.training is training and "len" not in globals()
    many = torch.randn(7, 1, 4, 4)
    assert traced(many).equal(model(many))  # no length of the example is written into the graph


class Keeping(nn.Module):
    """Keep what was computed last, and add a number that is no parameter."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(16))
        self.last = None

    def forward(self, x):
        self.last = x.flatten(1)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * self.last.mean(0)
        return self.last - self.mean + torch.ones(16)


@pytest.mark.parametrize("follow", [trace, trace_training])
def test_following_a_network_leaves_nothing_in_it(follow):
    model = nn.Sequential(Keeping())
    model(IMAGES)
    before, state = dict(vars(model[0])), {name: value.clone() for name, value in model.state_dict().items()}
    traced = follow(model, IMAGES)
    if follow is trace_training:
        assert vars(model[0]).keys() == before.keys() and isinstance(model[0].last, torch.Tensor)
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())
    assert not any("constant" in name for name in (*vars(model), *model._buffers))
    assert traced.eval()(IMAGES).isfinite().all()


class Choosing(nn.Module):
    """Take another way for other images."""

    def forward(self, x):
        return nn.functional.relu(x.flatten(1) if x.sum() > 0 and x.shape[1] == 1 else -x.flatten(1))


@pytest.mark.parametrize("follow", [trace, trace_training])
def test_a_way_that_depends_on_the_images_is_refused(follow):
    with pytest.raises(ParameterError, match=r"torch\.fx can't follow the network.*control flow"):
        follow(Choosing(), IMAGES.abs())


def test_a_graph_with_other_answers_is_refused():
    with pytest.raises(ParameterError, match=r"torch.fx can't follow the network: .* answers would not be the same"):
        trace(Counting(), torch.randn(300, 1, 4, 4))


def test_a_subclass_and_a_layer_with_a_hook_are_not_plain():
    hooked = nn.Linear(2, 2)
    assert is_plain(hooked, nn.Linear) and not is_plain(Noted(2, 2), nn.Linear) and not is_plain(hooked, nn.Conv2d)
    handle = hooked.register_forward_hook(lambda *_: None)
    assert not is_plain(hooked, nn.Linear)
    handle.remove()
    assert is_plain(hooked, nn.Linear)
