"""Prune in steps with training in between: gradually, with steps back, or from the initial weights again."""

from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

from kd_lab.errors import EmptyLayerError, KdLabError, ParameterError, check_kind, check_number, check_whole_number
from kd_lab.evaluation import PairedDifference, check_scorable, correct_answers
from kd_lab.networks.checks import check_model
from kd_lab.networks.copies import copied
from kd_lab.networks.layers import weights
from kd_lab.pruning.masks import Mask, check_fraction, prune, set_masks

PruneFunction = Callable[[nn.Module, float], nn.Module]
FineTuneFunction = Callable[[nn.Module], nn.Module]
MIN_STEP = 0.05
SAME_SPARSITY = 0.005  # what is asked for and what is measured are told apart from this difference on


def cubic_sparsities(sparsity: float, steps: int, start: float = 0.0) -> list[float]:
    """Return rising sparsities from `start` (left out) to `sparsity`: large steps first, while there is much to spare.

    After step t of n it is s + (start − s)·(1 − t/n)³: Zhu & Gupta 2017, arXiv 1710.01878, equation 1.
    """
    sparsity = check_fraction("sparsity", sparsity)
    start = check_number("start", start, f"[0, {sparsity}]")
    steps = check_whole_number("steps", steps, "[1, 1000]")
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

    `fine_tune(model)` and `prune(model, sparsity)` return models, and may change those that they get, which are copies.
    Between two prunings the masks are fixed; at each one all weights are ranked again, so that a weight may come back.
    Raises a ParameterError where fine-tuning brings back a weight that was pruned. An interrupt in a later step ends it
    with the network of the last step that was finished.
    """
    _check_functions(fine_tune, prune)
    row = cubic_sparsities(sparsity, steps, start)
    done: list[float] = []
    # by its sparsity alone nobody would see that a network is not the one that was asked for: an error stays one
    with keep_finished(done, "steps", len(row), (KeyboardInterrupt,)):
        for step, pruned in zip(row, gradual_steps(model, row, fine_tune, prune), strict=True):
            model = pruned
            done.append(step)
    return model


def gradual_steps(
    model: nn.Module, sparsities: list[float], fine_tune: FineTuneFunction, prune: PruneFunction
) -> Iterator[nn.Module]:
    """Yield the network of each step of `prune_gradually`, for those who have no use for some of them."""
    for step in sparsities:
        model = _fine_tuned(model, check_returned("prune", prune(copied(model), step)), fine_tune)
        yield model


@contextmanager
def keep_finished(
    finished: Sized,
    unit: str,
    total: int | None = None,
    endings: tuple[type[BaseException], ...] = (Exception, KeyboardInterrupt),
) -> Iterator[None]:
    """Go on with what a long loop has finished where one of the endings comes; raise that where nothing is finished.

    Says what ended it and how many units were done, of how many. A second interrupt loses nothing either.
    """
    try:
        yield
    except endings as error:
        if not len(finished):
            raise
        with suppress(KeyboardInterrupt):
            print(f"{_said(error)} {len(finished)}{f' of {total}' if total else ''} {unit} are done.")


def _said(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted."
    return str(error) if isinstance(error, KdLabError) else f"{type(error).__name__}: {error}."


def _fine_tuned(model: nn.Module, pruned: nn.Module, fine_tune: FineTuneFunction) -> nn.Module:
    """Return the pruned network fine-tuned; raise a ParameterError unless all that was pruned is still zero."""
    gone = _gone(model, pruned)
    tuned = check_returned("fine_tune", fine_tune(pruned))
    found = {name: weight.value for name, weight in weights(tuned).items()}
    for name, places in gone.items():
        if name not in found or found[name].shape != places.shape:
            raise ParameterError(f"'fine_tune' must return the network that it got. Got another layer {name!r}.")
        if back := int((found[name][places] != 0).sum()):
            raise ParameterError(
                f"'fine_tune' must keep at zero what was pruned. Got {back:,} of {int(places.sum()):,} weights back in "
                f"layer {name!r}. Did make_permanent() take the masks away before the training?"
            )
    return tuned


def _gone(model: nn.Module, pruned: nn.Module) -> dict[str, Tensor]:
    """Return where the weights of each layer are pruned: masked or, in a layer without a mask, zero unlike before."""
    before, places = weights(model), {}
    for name, weight in weights(pruned).items():
        places[name] = weight.value == 0
        if mask := weight.parametrization(Mask):
            places[name] = ~mask.mask
        elif name in before and before[name].value.shape == weight.value.shape:
            places[name] &= before[name].value != 0
    return places


def check_returned(argument: str, network: Any) -> nn.Module:
    """Return what a learner's function gave; raise a ParameterError that names it unless that is a network."""
    try:
        check_model(network)
    except ParameterError as error:
        hint = " Is the line missing that returns it?" if network is None else ""
        raise ParameterError(error.problem.replace("'model' must be", f"{argument!r} must return") + hint) from None
    return network


def _zero_share(model: nn.Module, dense: nn.Module) -> float:
    """Return the share of a network's weights that are zero in another made from it, or not there any more."""
    left, all_ = (
        sum(int(count(weight.value)) for weight in weights(each).values())
        for each, count in ((model, torch.count_nonzero), (dense, torch.numel))
    )
    return 1 - left / all_


@dataclass(frozen=True)
class Attempt:
    """One step: the sparsity asked for, what that changed against the first model, and whether it was kept.

    `zeros` is measured: the share of the first model's weights that are zero or removed. It and `difference` are None
    where a layer would have been emptied.
    """

    sparsity: float
    difference: PairedDifference | None
    kept: bool
    zeros: float | None = None


@dataclass(frozen=True, repr=False)
class Attempts:
    """Every attempt on the way to the target; shown as a table."""

    target: float
    attempts: list[Attempt]

    @property
    def reached(self) -> float:
        """Return the sparsity that `prune` was asked for where it made the model that was returned, 0 if none was."""
        return self._last.sparsity if self._last else 0.0

    @property
    def _last(self) -> Attempt | None:
        return next((attempt for attempt in reversed(self.attempts) if attempt.kept), None)

    def __repr__(self) -> str:
        rows = []
        for attempt in self.attempts:
            points = f"{100 * attempt.difference.value:+.2f}" if attempt.difference else "a layer emptied"
            rows.append([f"{attempt.sparsity:.3f}", points, "kept" if attempt.kept else "restored"])
        table = tabulate(rows, ["sparsity", "points", ""], disable_numparse=True)
        measured = (self._last and self._last.zeros) or 0.0
        apart = "" if abs(measured - self.reached) < SAME_SPARSITY else f"; measured: {measured:.3f} of all weights"
        return f"{table}\nreached {self.reached:.3f} of {self.target:.3f}{apart}"


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
    a twentieth, or by an interrupt or an error in a later step, and returns the best model and how far it got. The
    functions are as in `prune_gradually`.
    """
    check_fraction("target", target)
    target = check_number("target", target, "(0, 1)")
    tolerance = check_number("tolerance", tolerance, "[0, 0.5]")
    step = check_number("step", step, f"[{MIN_STEP}, 1)")
    _check_functions(fine_tune, prune)
    data = check_scorable(model, data)
    right = correct_answers(model, data)
    best, outcome = copied(model), Attempts(target, [])
    with keep_finished(outcome.attempts, "steps"):
        while outcome.reached < target and step >= MIN_STEP:
            sparsity = min(target, 1 - (1 - outcome.reached) * (1 - step))
            difference = zeros = None
            with suppress(EmptyLayerError):
                tried = _fine_tuned(best, check_returned("prune", prune(copied(best), sparsity)), fine_tune)
                difference, zeros = PairedDifference.of(correct_answers(tried, data), right), _zero_share(tried, model)
            kept = difference is not None and difference.value >= -tolerance
            best, step = (tried, step) if kept else (best, step / 2)
            outcome.attempts.append(Attempt(sparsity, difference, kept, zeros))
    return best, outcome


def rewind(pruned: nn.Module, initial: nn.Module) -> nn.Module:
    """Return a lottery ticket: a new model with the weights of `initial` and the masks of `pruned`.

    Frankle & Carbin 2019, arXiv 1803.03635: train, prune, rewind, and train again. With another initial model it is
    their control, the random re-initialisation.
    """
    check_model(initial)
    masks = {name: mask.mask for name, weight in weights(pruned).items() if (mask := weight.parametrization(Mask))}
    if not masks:
        swapped = any(weight.parametrization(Mask) for weight in weights(initial).values())
        hint = "are the two networks swapped?" if swapped else "did make_permanent settle them?"
        raise ParameterError(f"'pruned' must have masks. Got a model without; {hint}")
    ticket = copied(initial)
    set_masks(ticket, masks)
    return ticket


def _check_functions(fine_tune: FineTuneFunction, prune: PruneFunction) -> None:
    check_kind("fine_tune", fine_tune, Callable, "a function of a model")
    check_kind("prune", prune, Callable, "a function of a model and a sparsity")
