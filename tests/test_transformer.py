"""The transformer's attention is torch's; its heads can be removed, those of nn.MultiheadAttention can't."""

import copy

import pytest
import torch
from torch import nn

from kd_lab.cost import count_macs, count_parameters
from kd_lab.errors import EmptyLayerError, ParameterError
from kd_lab.networks import SelfAttention, build_model, predict, weights
from kd_lab.networks.layers import describe
from kd_lab.pruning import channel_groups, hard_prune, prune, prune_channels, remove_channels, remove_layers
from kd_lab.quantization import quantize_activations, quantize_weights

IMAGES = torch.randn(9, 1, 28, 28, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(5, 7, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("num_heads", [1, 3, 12])
def test_attention_is_that_of_torch(num_heads):
    own, theirs = SelfAttention(12, num_heads), nn.MultiheadAttention(12, num_heads, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([own.query.weight, own.key.weight, own.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([own.query.bias, own.key.bias, own.value.bias]))
    theirs.out_proj.load_state_dict(own.output.state_dict())
    torch.testing.assert_close(own(TOKENS), theirs(TOKENS, TOKENS, TOKENS)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_heads", [0, 5, 13, 2.5, True])
def test_heads_must_divide_the_width(num_heads):
    with pytest.raises(ParameterError, match=r"SelfAttention\(\): 'num_heads' must"):
        SelfAttention(12, num_heads)


def test_heads_and_hidden_units_are_groups():
    groups = channel_groups(build_model("vit"))
    assert {name: group.size for name, group in groups.items() if name.startswith("block2")} == {
        "block2.attention.query": 4,
        "block2.fc1": 128,
    }
    assert groups["block2.attention.query"].producers == tuple(
        f"block2.attention.{each}" for each in ("query", "key", "value")
    )
    assert groups["block2.attention.query"].consumers == ("block2.attention.output",)


@pytest.mark.filterwarnings("ignore:prune_channels.*LayerNorm")
@pytest.mark.parametrize("ratio", [0.25, 0.75])
def test_removed_heads_leave_the_answers_of_the_masked_network(ratio):
    model = build_model("vit")
    masked = prune_channels(model, ratio)
    narrow = hard_prune(masked)
    torch.testing.assert_close(predict(narrow, IMAGES), predict(masked, IMAGES), atol=1e-5, rtol=0)
    attention = narrow.block1.attention
    assert attention.heads.num_heads == round(4 * (1 - ratio)) and narrow.block1.fc1.out_features == 128 * (1 - ratio)
    assert attention.query.out_features == attention.output.in_features == 16 * attention.heads.num_heads
    assert attention.output.out_features == 64  # the width stays
    assert count_macs(narrow) < count_macs(model) and count_parameters(narrow) < count_parameters(model)


def test_the_head_that_is_removed_is_the_one_that_was_asked_for():
    model, name = build_model("vit"), "block3.attention.query"
    narrow = remove_channels(model, {name: torch.tensor([0, 2, 3])})
    stay = [*range(16), *range(32, 64)]
    assert torch.equal(narrow.block3.attention.key.weight, model.block3.attention.key.weight[stay])
    assert torch.equal(narrow.block3.attention.output.weight, model.block3.attention.output.weight[:, stay])
    assert narrow.block2.attention.heads.num_heads == 4 and model.block3.attention.heads.num_heads == 4


class Again(nn.Module):
    """Run the same heads twice."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(28, 28) for _ in range(4))
        self.heads = SelfAttention(28, 4).heads

    def forward(self, x):
        x = x.squeeze(1)
        y = self.heads(self.query(x), self.key(x), self.value(x))
        return self.out(self.heads(y, y, y)[:, 0])


def test_heads_that_run_twice_stay():
    with pytest.raises(ParameterError, match="'query' can't be removed safely: they reach 'heads'"):
        prune_channels(Again().eval(), {"query": 0.5})


def test_not_all_heads_of_a_layer_can_go():
    model, name = build_model("vit"), "block1.attention.query"
    with pytest.raises(ParameterError, match=f"'kept' leaves no channel in layer '{name}'"):
        remove_channels(model, {name: torch.zeros(4).bool()})
    with pytest.raises(EmptyLayerError, match=f"leaves no channel in group '{name}'"):
        prune_channels(model, {name: 0.9})
    with pytest.raises(ParameterError, match=f"go together with those of '{name}'"):
        prune_channels(model, {"block1.attention.value": 0.5})


def test_a_block_can_go_and_sequences_of_other_lengths_are_refused():
    model = build_model("vit")
    assert count_macs(remove_layers(model, ["block2"])) < count_macs(model)
    with pytest.raises(ParameterError, match=r"can't read images of shape \(1, 56, 28\)"):
        predict(model, torch.zeros(2, 1, 56, 28))


class Encoder(nn.Module):
    """A learner's own transformer, of torch's layers, over the rows of an image."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(28, 12)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 2, 16, batch_first=True), 2)
        self.out = nn.Linear(12, 10)

    def forward(self, x):
        return self.out(self.encoder(self.first(x.squeeze(1))).mean(1))


class Mixed(nn.Module):
    """Attention whose keys and values are narrower than its queries, so that each has a matrix of its own."""

    def __init__(self):
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(28, 4, kdim=14, vdim=7, batch_first=True), nn.Linear(28, 10)

    def forward(self, x):
        x = x.squeeze(1)
        return self.out(self.attention(query=x, key=x[..., :14], value=x[..., :7])[0].mean(1))


@pytest.mark.parametrize("build, count", [(Encoder, 10), (Mixed, 5)])
@pytest.mark.parametrize("change", [lambda model: prune(model, 0.6), lambda model: quantize_weights(model, 2)])
def test_attention_of_torch_computes_with_its_changed_weights(build, count, change):
    model = build().eval()
    changed, plain = change(model), copy.deepcopy(model)
    assert len(weights(changed)) == count
    for name, weight in weights(plain).items():
        weight.value.data = weights(changed)[name].value.detach().clone()
    for answer in (predict(changed, IMAGES), changed(IMAGES)):  # by the fast path, and with gradients
        torch.testing.assert_close(answer, predict(plain, IMAGES), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(predict(model, IMAGES), predict(plain, IMAGES), atol=1e-3)


def test_what_attention_reads_is_rounded_once():
    model = Encoder().eval()
    quantized = quantize_activations(model, IMAGES, 2)
    taken = []
    quantized.encoder.layers[0].self_attn.register_forward_hook(lambda _module, inputs, _output: taken.append(inputs))
    quantized(IMAGES)
    query, key, value = taken[0]
    assert query is key is value and len(query.unique()) <= 4


def test_heads_of_torch_are_named_as_not_removable_with_what_to_use_instead():
    model = Encoder().eval()
    words = r"'first'.* they reach 'encoder' \(TransformerEncoder\), whose heads can't be removed.*: take SelfAttention"
    with pytest.raises(ParameterError, match=words):
        hard_prune(prune_channels(model, {"first": 0.5}))
    with pytest.raises(ParameterError, match=r"'encoder.layers.0.self_attn' can't be removed safely.*SelfAttention"):
        prune_channels(model, {"encoder.layers.0.self_attn": 0.5})
    assert describe(model.encoder.layers[0].self_attn) == "MultiheadAttention 12, 2 heads"
