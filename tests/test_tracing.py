"""The data are followed through a network, and a graph that would answer otherwise is refused."""

import pytest
import torch
from torch import nn

from kd_lab.errors import ParameterError
from kd_lab.networks.tracing import is_plain, trace

IMAGES = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))


class Noted(nn.Linear):
    """A layer with a forward of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


class Counting(nn.Module):
    """Answer otherwise the second time, so that no graph can be right."""

    def __init__(self):
        super().__init__()
        self.fc, self.calls = nn.Linear(16, 3), 0

    def forward(self, x):
        self.calls += 1
        return self.fc(x.flatten(1)) * self.calls


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


def test_a_graph_with_other_answers_is_refused():
    with pytest.raises(ParameterError, match=r"torch.fx can't follow the network: .* answers would not be the same"):
        trace(Counting(), IMAGES)


def test_a_subclass_and_a_layer_with_a_hook_are_not_plain():
    hooked = nn.Linear(2, 2)
    assert is_plain(hooked, nn.Linear) and not is_plain(Noted(2, 2), nn.Linear) and not is_plain(hooked, nn.Conv2d)
    handle = hooked.register_forward_hook(lambda *_: None)
    assert not is_plain(hooked, nn.Linear)
    handle.remove()
    assert is_plain(hooked, nn.Linear)
