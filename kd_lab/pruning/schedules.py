"""Prune in steps with training in between: gradually, with steps back, or from the initial weights again."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from tabulate import tabulate
from torch import Tensor, nn

from kd_lab.errors import EmptyLayerError, ParameterError, check_kind, check_number, check_whole_number
from kd_lab.evaluation import PairedDifference, check_scorable, correct_answers
from kd_lab.networks.layers import check_model, copied, weights
from kd_lab.pruning.masks import SPARSITY_RANGE, Mask, prune, set_masks

PruneFunction = Callable[[nn.Module, float], nn.Module]
FineTuneFunction = Callable[[nn.Module], nn.Module]
MIN_STEP = 0.05


def cubic_sparsities(sparsity: float, steps: int, start: float = 0.0) -> list[float]:
    """Return rising sparsities from `start` (left out) to `sparsity`: large steps first, while there is much to spare.

    After step t of n it is s + (start − s)·(1 − t/n)³: Zhu & Gupta 2017, arXiv 1710.01878, equation 1.
    """
    check_number("sparsity", sparsity, SPARSITY_RANGE)
    check_number("start", start, f"[0, {sparsity}]")
    check_whole_number("steps", steps, "[1, 1000]")
    return [sparsity + (start - sparsity) * (1 - step / steps) ** 3 for step in range(1, steps + 1)]


def prune_gradually(
    model: nn.Module,
    sparsity: float,
    steps: int,
    fine_tune: FineTuneFunction,
    *,
    start: float = 0.0,
    prune: PruneFunction = prune,
) -> nn.Module:
    """Return a new model that was pruned to a cubic row of sparsities, from `start` on, and fine-tuned after each.

    `fine_tune(model)` and `prune(model, sparsity)` return new models. Between two prunings the masks are fixed; at each
    one all weights are ranked again, so that a weight may come back.
    """
    _check_functions(fine_tune, prune)
    for step in cubic_sparsities(sparsity, steps, start):
        model = fine_tune(prune(model, step))
        check_model(model)
    return model


@dataclass(frozen=True)
class Attempt:
    """One step: how far it pruned, what that changed against the first model, and whether it was kept.

    `difference` is None where a layer would have been emptied.
    """

    sparsity: float
    difference: PairedDifference | None
    kept: bool


@dataclass(frozen=True, repr=False)
class Attempts:
    """Every attempt on the way to the target; shown as a table."""

    target: float
    attempts: list[Attempt]

    @property
    def reached(self) -> float:
        """Return the sparsity of the model that was returned, 0 if no step was kept."""
        return max((attempt.sparsity for attempt in self.attempts if attempt.kept), default=0.0)

    def __repr__(self) -> str:
        rows = []
        for attempt in self.attempts:
            points = f"{100 * attempt.difference.value:+.2f}" if attempt.difference else "a layer emptied"
            rows.append([f"{attempt.sparsity:.3f}", points, "kept" if attempt.kept else "restored"])
        table = tabulate(rows, ["sparsity", "points", ""], disable_numparse=True)
        return f"{table}\nreached {self.reached:.3f} of {self.target:.3f}"


def prune_until(
    model: nn.Module,
    target: float,
    data: tuple[Tensor, Tensor],
    fine_tune: FineTuneFunction,
    *,
    tolerance: float = 0.005,
    step: float = 0.2,
    prune: PruneFunction = prune,
) -> tuple[nn.Module, Attempts]:
    """Prune step by step, and restore the model before a step whose accuracy falls by more than `tolerance`.

    `data`, (images, labels) from the validation part, judges; accuracy and `tolerance` are fractions. A step prunes
    that share of what is left; after a restoration it is halved. Ends at `target`, or when a step would be less than
    a twentieth, and returns the best model and how far it got.
    """
    check_number("target", target, "(0, 1)")
    check_number("tolerance", tolerance, "[0, 0.5]")
    check_number("step", step, f"[{MIN_STEP}, 1)")
    _check_functions(fine_tune, prune)
    data = check_scorable(model, data)
    right = correct_answers(model, data)
    best, outcome = copied(model), Attempts(target, [])
    while outcome.reached < target and step >= MIN_STEP:
        sparsity = min(target, 1 - (1 - outcome.reached) * (1 - step))
        difference = None
        with suppress(EmptyLayerError):
            tried = fine_tune(prune(best, sparsity))
            difference = PairedDifference.of(correct_answers(tried, data), right)
        kept = difference is not None and difference.value >= -tolerance
        outcome.attempts.append(Attempt(sparsity, difference, kept))
        best, step = (tried, step) if kept else (best, step / 2)
    return best, outcome


def rewind(pruned: nn.Module, initial: nn.Module) -> nn.Module:
    """Return a lottery ticket: a new model with the weights of `initial` and the masks of `pruned`.

    Frankle & Carbin 2019, arXiv 1803.03635: train, prune, rewind, and train again. With another initial model it is
    their control, the random re-initialisation.
    """
    masks = {name: mask.mask for name, weight in weights(pruned).items() if (mask := weight.parametrization(Mask))}
    if not masks:
        raise ParameterError("'pruned' must have masks. Got a model without; did make_permanent settle them?")
    ticket = copied(initial)
    set_masks(ticket, masks)
    return ticket


def _check_functions(fine_tune: FineTuneFunction, prune: PruneFunction) -> None:
    check_kind("fine_tune", fine_tune, Callable, "a function of a model")
    check_kind("prune", prune, Callable, "a function of a model and a sparsity")
