"""The stages of a recipe: each takes a network of plain numbers and a way to fine-tune it, and returns a new one."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from kd_lab.errors import check_number, check_whole_number
from kd_lab.parametrizations import make_permanent, weighted_layers
from kd_lab.pruning import hard_prune, prune_channels, prune_gradually, prune_layer_adaptive
from kd_lab.quantization import kmeans, quantize_weights, share_weights

FineTuning = Callable[[nn.Module, int], nn.Module]  # of a network, for so many epochs
Stage = Callable[[nn.Module, FineTuning], nn.Module]
EPOCHS = "[0, 1000]"  # 0 leaves fine-tuning out


@dataclass(frozen=True)
class FineTune:
    """Fine-tune what is left; weights of zero stay zero."""

    epochs: int

    def __post_init__(self):
        check_whole_number("FineTune", "epochs", self.epochs, EPOCHS)

    def __call__(self, model: nn.Module, fine_tune: FineTuning) -> nn.Module:
        return fine_tune(model, self.epochs)


@dataclass(frozen=True)
class Prune:
    """Prune single weights gradually, by layer-adaptive magnitude, and fine-tune after each step (soft pruning)."""

    sparsity: float
    steps: int = 10
    epochs: int = 2

    def __post_init__(self):
        check_number("Prune", "sparsity", self.sparsity, "(0, 1)")
        check_whole_number("Prune", "steps", self.steps, "[1, 1000]")
        check_whole_number("Prune", "epochs", self.epochs, EPOCHS)

    def __call__(self, model: nn.Module, fine_tune: FineTuning) -> nn.Module:
        return prune_gradually(model, self.sparsity, self.steps, lambda pruned: fine_tune(pruned, self.epochs),
                               prune=prune_layer_adaptive)


@dataclass(frozen=True)
class PruneUnits:
    """Take units and channels away, fine-tune what is left, and remove what nothing reads any more (hard pruning)."""

    ratio: float
    epochs: int = 2

    def __post_init__(self):
        check_number("PruneUnits", "ratio", self.ratio, "[0, 1)")
        check_whole_number("PruneUnits", "epochs", self.epochs, EPOCHS)

    def __call__(self, model: nn.Module, fine_tune: FineTuning) -> nn.Module:
        return hard_prune(fine_tune(hard_prune(prune_channels(model, self.ratio)), self.epochs))


@dataclass(frozen=True)
class Quantize:
    """Round the weights to a grid of few bits, and fine-tune through it."""

    num_bits: int
    epochs: int = 2

    def __post_init__(self):
        _check_bits("Quantize", self.num_bits, self.epochs)

    def __call__(self, model: nn.Module, fine_tune: FineTuning) -> nn.Module:
        return fine_tune(quantize_weights(model, self.num_bits), self.epochs)


@dataclass(frozen=True)
class Share:
    """Let the weights of a layer share 2^num_bits values, and its biases 2^bias_bits; then fine-tune the former.

    All values end as numbers of half precision, which a file keeps in two bytes each.
    """

    num_bits: int
    epochs: int = 2
    bias_bits: int = 4

    def __post_init__(self):
        _check_bits("Share", self.num_bits, self.epochs)
        check_whole_number("Share", "bias_bits", self.bias_bits, "[1, 8]")

    def __call__(self, model: nn.Module, fine_tune: FineTuning) -> nn.Module:
        shared = share_weights(model, self.num_bits)
        for layer in weighted_layers(shared).values():
            if layer.bias is not None:
                values, codes = kmeans(layer.bias, 2 ** self.bias_bits)
                layer.bias.data = values.half().float()[codes.int()]
                layer.bias.requires_grad_(False)
        return _halve(fine_tune(shared, self.epochs))


def _halve(model: nn.Module) -> nn.Module:
    plain = make_permanent(model)
    for parameter in plain.parameters():
        parameter.data = parameter.data.half().float()
        parameter.requires_grad_(True)
    return plain


def _check_bits(stage: str, num_bits: int, epochs: int) -> None:
    check_whole_number(stage, "num_bits", num_bits, "[1, 8]")
    check_whole_number(stage, "epochs", epochs, EPOCHS)
