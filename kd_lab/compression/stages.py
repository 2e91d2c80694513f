"""The stages of a recipe: each takes a network of plain numbers and a way to fine-tune it, and returns a new one."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kd_lab.errors import check_choice, check_fields, check_that, check_whole_number
from kd_lab.factorization import NEAREST, factorize, rank_range
from kd_lab.formats.grid_codes import compact_step
from kd_lab.networks.copies import copied
from kd_lab.networks.layers import Weight, weighted_layers, weights
from kd_lab.networks.permanent import make_permanent, without
from kd_lab.networks.zoo import thin_layers
from kd_lab.pruning import cubic_sparsities, hard_prune, prune, prune_channels, prune_layer_adaptive, set_masks
from kd_lab.pruning.channels import sort_channels
from kd_lab.pruning.schedules import gradual_steps
from kd_lab.quantization import FakeQuantizer, Quantizer, find_grid, kmeans, quantize_weights, share_weights
from kd_lab.quantization.weights import bits_by_layer

FineTuning = Callable[[nn.Module, int], nn.Module]  # of a network, for a number of epochs
Stage = Callable[[nn.Module, FineTuning], nn.Module]
EPOCHS_RANGE = "[0, 1000]"  # 0 leaves fine-tuning out
CALIBRATION_IMAGES = 2000


@dataclass(frozen=True)
class RecipeTuning:
    """The fine-tuning of a recipe, which has the `images` that it learns from for stages that look at some."""

    run: FineTuning
    images: Tensor

    def __call__(self, model: nn.Module, epochs: int) -> nn.Module:
        return self.run(model, epochs)


@dataclass(frozen=True)
class FineTune:
    """Fine-tune what is left; weights of zero stay zero."""

    epochs: int

    def __post_init__(self):
        check_fields(self, epochs=EPOCHS_RANGE)

    def __call__(self, model: nn.Module, fine_tune: FineTuning) -> nn.Module:
        return fine_tune(model, self.epochs)


@dataclass(frozen=True)
class Prune:
    """Prune single weights gradually, and fine-tune after each step (soft pruning).

    `sparsity` is one for the network, shared out by layer-adaptive magnitude, or one for each layer by name.
    """

    sparsity: float | dict[str, float]
    steps: int = 10
    epochs: int = 2

    def __post_init__(self):
        check_fields(self, sparsity="(0, 1)", steps="[1, 1000]", epochs=EPOCHS_RANGE)

    def __call__(self, model: nn.Module, fine_tune: FineTuning) -> nn.Module:
        kept = {name: weight.value != 0 for name, weight in weights(model).items()}
        highest = max(self.sparsity.values()) if isinstance(self.sparsity, dict) else self.sparsity

        def prune_to(pruned: nn.Module, step: float) -> nn.Module:
            return _without_others(self._prune_to(pruned, step), kept)

        row = cubic_sparsities(highest, self.steps)
        # one step after another and not prune_gradually, which ends with what is finished: half a stage is none
        *_, pruned = gradual_steps(model, row, lambda pruned: fine_tune(pruned, self.epochs), prune_to)
        return pruned

    def _prune_to(self, model: nn.Module, sparsity: float) -> nn.Module:
        """Prune the network, or the layer that is to lose most, to this sparsity, and other layers in proportion."""
        if not isinstance(self.sparsity, dict):
            return prune_layer_adaptive(model, sparsity)
        share = sparsity / max(self.sparsity.values())
        return prune(model, {name: share * each for name, each in self.sparsity.items()}, scope="per_layer")


@dataclass(frozen=True)
class PruneUnits:
    """Prune units and channels, fine-tune what is left, and remove what no layer reads any more (hard pruning).

    `ratio` is one for all layers but the last, or one for each by name.
    """

    ratio: float | dict[str, float]
    epochs: int = 2

    def __post_init__(self):
        check_fields(self, ratio="[0, 1)", epochs=EPOCHS_RANGE)

    def __call__(self, model: nn.Module, fine_tune: FineTuning) -> nn.Module:
        return hard_prune(fine_tune(with_masks(hard_prune(prune_channels(model, self.ratio))), self.epochs))


@dataclass(frozen=True)
class Factorize:
    """Put two thin layers in place of one, nearest to its output or to its weight, and fine-tune (low rank).

    `ranks` has a rank for each layer that is to be two, by name; `nearest` is "output", for 2,000 of the images that
    are trained on, or "weight". Behind it fc1 is fc1.first and fc1.second, whose zeros are trained, too; other layers
    keep theirs.
    """

    ranks: dict[str, int]
    epochs: int = 2
    nearest: str = "output"

    def __post_init__(self):
        fits = isinstance(self.ranks, dict) and self.ranks
        check_that("ranks", self.ranks, fits, "a dict of ranks by the names of layers, as in {'fc1': 20}")
        check_fields(self, ranks="[1, 10000]", epochs=EPOCHS_RANGE)
        check_choice("nearest", self.nearest, list(NEAREST))

    def __call__(self, model: nn.Module, fine_tune: FineTuning) -> nn.Module:
        images = getattr(fine_tune, "images", None)  # a function of your own has none
        some = images if images is None else images[:CALIBRATION_IMAGES]
        return fine_tune(with_masks(factorize(model, self.ranks, some, self.nearest)), self.epochs)

    def outline(self, model: nn.Module) -> nn.Module:
        """Return a new network with the layers that there are behind it; their weights say nothing."""
        outline = copied(model)
        for name, rank in self.ranks.items():
            layer = outline.get_submodule(name)
            check_whole_number(f"rank of {name}", rank, rank_range(layer.weight))
            outline.set_submodule(name, thin_layers(layer, rank))
        return outline


@dataclass(frozen=True)
class Quantize:
    """Round the weights of each layer to one grid of few bits, so to few values, and fine-tune through it.

    `num_bits` is one for all layers, or one for each by name.
    """

    num_bits: int | dict[str, int]
    epochs: int = 2

    def __post_init__(self):
        check_fields(self, num_bits="[1, 8]", epochs=EPOCHS_RANGE)

    def __call__(self, model: nn.Module, fine_tune: FineTuning) -> nn.Module:
        return fine_tune(quantize_weights(model, self.num_bits, "per_tensor"), self.epochs)


@dataclass(frozen=True)
class Share(Quantize):
    """Share 2^num_bits values among the weights of a layer, 2^bias_bits among its biases; fine-tune the former.

    `num_bits` is one for all layers, or one for each by name. Weights and biases end in half precision, which a file
    keeps in two bytes each.
    """

    bias_bits: int = 4

    def __post_init__(self):
        super().__post_init__()
        check_fields(self, bias_bits="[1, 8]")

    def __call__(self, model: nn.Module, fine_tune: FineTuning) -> nn.Module:
        shared = share_weights(model, self.num_bits)
        for layer in weighted_layers(shared).values():
            for name, bias in layer.named_parameters(recurse=False):
                if "bias" in name:  # recurrent layers have several
                    values, codes = kmeans(bias, 2**self.bias_bits)
                    bias.data = values.half().float()[codes.int()]
                    bias.requires_grad_(False)
        return _halve(fine_tune(shared, self.epochs))


@dataclass(frozen=True)
class Grid:
    """Round the weights and biases of each layer to grids of few bits, each of one step, and fine-tune through them.

    `num_bits` is one for the weights of all layers, or one for each by name; biases have `bias_bits`. A step is the
    nearest of those that a packed file keeps in one byte, so that numbers stay on their grids whatever is trained. At
    last the channels are put in the order of their biases, which takes a file fewer bits.
    """

    num_bits: int | dict[str, int]
    epochs: int = 2
    bias_bits: int = 6

    def __post_init__(self):
        check_fields(self, num_bits="[2, 8]", epochs=EPOCHS_RANGE, bias_bits="[2, 8]")

    def __call__(self, model: nn.Module, fine_tune: FineTuning) -> nn.Module:
        rounded = without(model, Quantizer)
        wanted = bits_by_layer(rounded, self.num_bits)
        for name, weight in weights(rounded).items():
            if name in wanted:
                weight.parametrize(_compact_grid(weight.value, wanted[name]))
        for layer in weighted_layers(rounded).values():
            for name, bias in [*layer.named_parameters(recurse=False)]:
                if "bias" in name:  # recurrent layers have several
                    Weight(layer, name).parametrize(_compact_grid(bias, self.bias_bits))
        tuned = make_permanent(fine_tune(rounded, self.epochs))
        images = getattr(fine_tune, "images", None)  # a function of your own has none
        return tuned if images is None else sort_channels(tuned, images[:2])


def _compact_grid(values: Tensor, num_bits: int) -> FakeQuantizer:
    """Return the grid of the step nearest to the one whose rounding errs least; 0 lies on it."""
    scale, zero_point = find_grid(values.detach().reshape(1, -1), num_bits, True, "least_squares")
    return FakeQuantizer(torch.full_like(scale, compact_step(float(scale))), zero_point, num_bits)


BY_LAYER = Prune, PruneUnits, Factorize, Quantize, Grid  # whose settings may be a dict, by the names of layers


def with_masks(model: nn.Module) -> nn.Module:
    """Return a new model whose weights of zero are masked, so that training leaves them zero."""
    return _without_others(copied(model), {name: weight.value != 0 for name, weight in weights(model).items()})


def _without_others(model: nn.Module, kept: dict[str, Tensor]) -> nn.Module:
    """Return the model with all weights masked but those that are kept and are not zero now."""
    present = weights(model)
    set_masks(model, {name: mask & (present[name].value != 0) for name, mask in kept.items() if not mask.all()})
    return model


def _halve(model: nn.Module) -> nn.Module:
    plain = make_permanent(model)
    for parameter in plain.parameters():
        parameter.data = parameter.data.half().float()
        parameter.requires_grad_(True)
    return plain
