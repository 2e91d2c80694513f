"""Recurrent layers, the kit's and a learner's own, go through the tools; removed units leave the masked answers."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from kd_lab.cost import count_macs, count_nonzeros, count_parameters
from kd_lab.errors import ParameterError
from kd_lab.networks import build_model, describe, predict, weights
from kd_lab.networks.layers import weighted_layers
from kd_lab.pruning import channel_groups, hard_prune, prune, prune_channels, remove_channels, set_masks
from kd_lab.quantization import quantize_model, quantize_weights, share_weights

IMAGES = torch.randn(9, 1, 28, 28, generator=torch.Generator().manual_seed(0))
KINDS = nn.RNN, nn.GRU, nn.LSTM


class Rows(nn.Module):
    """A learner's own network: features of the rows, a recurrent layer, a norm, and an answer from the last step."""

    def __init__(self, kind, layers=1, both=False, batch_first=True, answer="last"):
        super().__init__()
        self.batch_first, self.answer, width = batch_first, answer, 12 * (1 + both)
        self.first = nn.Linear(28, 8)
        self.cells = kind(8, 12, layers, batch_first=batch_first, bidirectional=both)
        self.norm, self.out = nn.BatchNorm1d(width), nn.Linear(28 * width if answer == "all" else width, 10)

    def forward(self, x):
        x = torch.relu(self.first(x.squeeze(1)))
        x = x if self.batch_first else x.transpose(0, 1)
        if isinstance(self.cells, nn.LSTM):
            steps, (last, _) = self.cells(x)
        else:
            steps, last = self.cells(x)
        if self.answer == "all":
            return self.out(steps.flatten(1))
        if self.answer == "state":
            return self.out(last[-1])
        return self.out(self.norm(steps[:, -1] if self.batch_first else steps[-1]))


def own(*args, **settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Rows(*args, **settings)


def by_hand(model, changed):
    """Return a copy of a model that has the weights of another as plain numbers."""
    plain = copy.deepcopy(model)
    for name, weight in weights(plain).items():
        weight.value.data = weights(changed)[name].value.detach().clone()
    return plain


def test_an_image_is_read_from_its_first_row_to_its_last():
    model = build_model("lstm")
    hidden, cell = (torch.zeros(len(IMAGES), 128) for _ in range(2))
    inner, fed, inner_bias, fed_bias = (parameter for parameter in model.lstm.parameters())
    for row in range(28):  # the equations of torch's documentation
        gates = IMAGES[:, 0, row] @ inner.T + inner_bias + hidden @ fed.T + fed_bias
        take, forget, new, give = gates.chunk(4, 1)
        cell = forget.sigmoid() * cell + take.sigmoid() * new.tanh()
        hidden = give.sigmoid() * cell.tanh()
    torch.testing.assert_close(model(IMAGES), model.fc1(hidden), atol=1e-5, rtol=1e-5)
    turned = IMAGES.transpose(2, 3)  # not laid out row by row
    torch.testing.assert_close(predict(model, turned), predict(model, turned.contiguous()))
    with pytest.raises(ParameterError, match=r"can't read images of shape \(1, 20, 28\)"):
        predict(model, IMAGES[:, :, :20])


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_of_every_layer_and_direction_is_found(kind):
    model = own(kind, layers=2, both=True)
    names = [
        f"cells.weight_{part}_l{layer}{way}" for layer in (0, 1) for way in ("", "_reverse") for part in ("ih", "hh")
    ]
    assert list(weights(model)) == ["first", *names, "out"]
    assert list(weighted_layers(model)) == ["first", "cells", "out"]
    assert describe(model.cells) == f"{kind.__name__} 8-12"
    projected = nn.LSTM(8, 12, proj_size=5)
    assert list(weights(projected)) == ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"]
    assert list(weights(nn.GRUCell(8, 12))) == ["weight_ih", "weight_hh"]


@pytest.mark.parametrize("kind, both", [*itertools.product(KINDS, (False, True))])
@pytest.mark.parametrize(
    "change",
    [lambda model: prune(model, 0.7), lambda model: quantize_weights(model, 2), lambda model: share_weights(model, 2)],
)
def test_the_layer_computes_with_its_changed_weights(kind, both, change):
    model = own(kind, both=both).eval()
    changed = change(model)
    expected = predict(by_hand(model, changed), IMAGES)
    torch.testing.assert_close(predict(changed, IMAGES), expected)
    torch.testing.assert_close(changed(IMAGES), expected)  # with gradients, as in training
    assert not torch.allclose(predict(model, IMAGES), expected, atol=1e-3)
    assert count_nonzeros(changed) == count_nonzeros(by_hand(model, changed))


@pytest.mark.filterwarnings("ignore:quantize_model.*left 'norm'")
def test_what_a_recurrent_layer_reads_is_rounded():
    model = own(nn.LSTM).eval()
    quantized = quantize_model(model, IMAGES, 8, 2)
    taken = []
    quantized.cells.register_forward_hook(lambda _module, inputs, _output: taken.append(inputs[0]))
    quantized(IMAGES)
    assert len(taken[0].unique()) <= 4


LAYOUTS = [
    {},
    {"layers": 2},
    {"both": True},
    {"layers": 2, "both": True},
    {"batch_first": False},
    {"answer": "state"},
    {"answer": "all"},
    {"answer": "all", "both": True},
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_removed_units_leave_the_answers_of_the_masked_network(kind, layout):
    model = own(kind, **layout).eval()
    masked = prune_channels(model, {"cells": 0.5, "first": 0.25})
    narrow = hard_prune(masked)
    torch.testing.assert_close(predict(narrow, IMAGES), predict(masked, IMAGES), atol=1e-5, rtol=0)
    assert narrow.cells.hidden_size == 6 and narrow.cells.input_size == narrow.first.out_features == 6
    assert count_macs(narrow) < 0.7 * count_macs(model) and count_parameters(narrow) < 0.7 * count_parameters(model)
    fresh = kind(6, 6, model.cells.num_layers, bidirectional=model.cells.bidirectional)
    shapes = ({name: tensor.shape for name, tensor in layer.state_dict().items()} for layer in (narrow.cells, fresh))
    assert next(shapes) == next(shapes)


def test_units_are_ranked_by_all_that_computes_them():
    model = own(nn.GRU).eval()
    with torch.no_grad():
        for weight in (model.cells.weight_ih_l0, model.cells.weight_hh_l0):
            weight.view(3, 12, -1)[:, [2, 5, 7]] *= 0.01  # each gate's rows of three units
    narrow = hard_prune(prune_channels(model, {"cells": 0.25}))
    stay = [unit for unit in range(12) if unit not in (2, 5, 7)]
    assert torch.equal(narrow.out.weight, model.out.weight[:, stay])
    assert torch.equal(
        narrow.cells.weight_hh_l0, model.cells.weight_hh_l0.view(3, 12, 12)[:, stay][:, :, stay].flatten(0, 1)
    )
    assert torch.equal(remove_channels(model, {"cells": torch.tensor(stay)}).cells.bias_hh_l0, narrow.cells.bias_hh_l0)


class Odd(nn.Module):
    """Use a recurrent layer in a way in which no unit can be removed."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.cells = nn.LSTM(
            28, 12, batch_first=True, bidirectional=way in ("states", "sliced"), proj_size=5 * (way == "projected")
        )
        self.out = nn.Linear(5 if way == "projected" else 12, 10)

    def forward(self, x):
        x = x.squeeze(1)
        if self.way == "started":
            return self.out(self.cells(x, (x.new_zeros(1, len(x), 12), x.new_zeros(1, len(x), 12)))[0][:, -1])
        if self.way == "sliced":
            return self.out(self.cells(x)[0][:, -1, :12])
        steps, (hidden, _) = self.cells(x)
        return self.out(hidden.mean(0) if self.way == "states" else steps[:, -1])


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("way", ["started", "states", "sliced", "projected"])
def test_where_no_unit_can_be_removed_it_is_said(way):
    model = Odd(way).eval()
    assert "cells" not in channel_groups(model)
    with pytest.raises(ParameterError, match="the channels of layer 'cells' can't be removed safely"):
        prune_channels(model, {"cells": 0.5})
    assert count_nonzeros(prune(model, 0.5)) < count_nonzeros(model)


class Packed(nn.Module):
    """Read a packed sequence, which is no tensor."""

    def __init__(self):
        super().__init__()
        self.cells, self.out = nn.GRU(28, 12, batch_first=True), nn.Linear(12, 10)

    def forward(self, x):
        packed = pack_padded_sequence(x.squeeze(1), torch.full((len(x),), 28), batch_first=True)
        return self.out(self.cells(packed)[1][-1])


def test_a_packed_sequence_is_read_as_it_is():
    model = Packed().eval()
    quantized = quantize_model(model, IMAGES)
    assert getattr(quantized.cells, "input_quantizer", None) is None and quantized.out.input_quantizer is not None
    assert predict(prune(model, 0.5), IMAGES).shape == (9, 10)


def test_a_mask_stays_through_copies_and_new_masks():
    model = build_model("lstm")
    pruned = prune(model, {"lstm.weight_hh_l0": 0.9}, scope="per_layer")
    pruned(IMAGES).sum().backward()  # torch keeps the computed weight, with its history, in the layer
    again = prune(pruned, {"lstm.weight_hh_l0": 0.5}, scope="per_layer")
    assert int((weights(again)["lstm.weight_hh_l0"].value == 0).sum()) == round(0.5 * 512 * 128)
    set_masks(pruned, {"lstm.weight_ih_l0": torch.zeros(512, 28).bool()})
    assert torch.equal(predict(pruned, IMAGES), predict(pruned, 0 * IMAGES))  # it no longer sees the image
