"""The checks of lesson 03, pruning with care."""

from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from kd_lab.checkpoints import load_trained
from kd_lab.errors import described
from kd_lab.evaluation import paired_difference
from kd_lab.exercises.judging import (
    close,
    exercise,
    expect_number,
    expect_numbers,
    expect_tensor,
    mnist,
    wrong_if,
    wrong_if_like,
)
from kd_lab.networks import build_model
from kd_lab.pruning import prune, prune_least_squares, rewind
from kd_lab.training import train


def _problem(draw: Generator) -> tuple[Tensor, Tensor]:
    """Return the weights of a unit and the Hessian of inputs that are alike, as in section 1."""
    inputs = torch.randn(40, 6, generator=draw, dtype=torch.float64)
    inputs += inputs[:, [1, 2, 3, 4, 5, 0]] + torch.linspace(0.2, 2, 6, dtype=torch.float64)
    return torch.randn(6, generator=draw, dtype=torch.float64), inputs.T @ inputs / 40


def _damped(hessian: Tensor) -> Tensor:
    """Return the Hessian as the kit uses it, which the exercises don't ask for."""
    return hessian + 0.01 * hessian.diagonal().mean() * torch.eye(6, dtype=hessian.dtype)


@exercise(
    "03.1",
    "Section 1 has the formula: the inverse is in the denominator.",
    "`torch.linalg.inv(hessian)` once; then its diagonal, one entry for each weight.",
    "`weight.square() / torch.linalg.inv(hessian).diagonal()`",
)
def costs(answer: Any, draw: Generator) -> None:
    """`my_costs(weight, hessian)` is what each removal costs if the others make up for it."""
    for _ in range(3):
        weight, hessian = _problem(draw)
        inverse = torch.linalg.inv(hessian).diagonal()
        given = expect_tensor(answer(weight, hessian), weight.shape, "One cost for each weight.")
        if close(given, weight.square() / inverse):
            continue
        alone = "That is the error if the others stay as they are. [H⁻¹]_pp is not 1 / H_pp: invert first."
        mistakes = {
            "this is w² · H_pp": (weight.square() * hessian.diagonal(), alone),
            "this is w² / H_pp": (weight.square() / hessian.diagonal(), "Divide by the diagonal of the *inverse*."),
            "this is w² · [H⁻¹]_pp": (weight.square() * inverse, "The diagonal of the inverse divides."),
            "this is |w| / [H⁻¹]_pp": (weight.abs() / inverse, "The weight is squared."),
            "this is w / [H⁻¹]_pp": (weight / inverse, "The weight is squared: a cost is never negative."),
            "this is w_p² / [H⁻¹]_pp with damping": (
                weight.square() / torch.linalg.inv(_damped(hessian)).diagonal(),
                "Invert H as it is given.",
            ),
            "this is w², the magnitude": (weight.square(), "The inputs, by way of H, are not used."),
        }
        wrong_if_like(given, mistakes)
        factor = (given / (weight.square() / inverse)).float()
        wrong_if(close(factor, factor[:1].expand(6)), "the order is right, the numbers are not", "No other factor.")
        wrong_if(True, "these are other numbers than w_p² / [H⁻¹]_pp", "The diagonal of the inverse, entry by entry.")


@exercise(
    "03.2",
    "H_KK has the rows *and* the columns of the weights that stay.",
    "`hessian[keep][:, keep]` is H_KK; `(hessian @ weight)[keep]` is the right side.",
    "`refitted = torch.zeros_like(weight)`, then `refitted[keep] = torch.linalg.solve(…, …)`.",
)
def refit(answer: Any, draw: Generator) -> None:
    """`my_refit(weight, keep, hessian)` is the best that the weights that stay can do."""
    for _ in range(3):
        weight, hessian = _problem(draw)
        keep = torch.randperm(6, generator=draw) < 4
        hint = "All weights in their places, zeros where they went: not the four that stay alone."
        given = expect_tensor(answer(weight, keep, hessian), weight.shape, hint)
        expected = _solved(keep, hessian, hessian @ weight)
        if close(given, expected):
            continue
        same = "The right side is (H w)_K: multiply by the whole H and the whole weight first, then take the rows K."
        mistakes = {
            "the weights that stay are as they were": (weight * keep, same),
            "this solves H_KK w' = w_K": (_solved(keep, hessian, weight), "The right side is (H w)_K, not w_K."),
            "these are the changes of the weights": (expected - weight * keep, "Add them to the weights that stay."),
            "H is damped": (_solved(keep, _damped(hessian), _damped(hessian) @ weight), "Use H as it is given."),
            "the weights that go are fitted, not those that stay": (
                _solved(~keep, hessian, hessian @ weight),
                "K: `keep` is True.",
            ),
        }
        wrong_if_like(given, mistakes)
        wrong_if((given[~keep] != 0).any(), "weights that should go are not zero", "Zero where `keep` is False.")
        error, best = ((each - weight) @ hessian @ (each - weight) for each in (given, expected))
        said = f"the outputs' squared error is {error:.3g}, and {best:.3g} can be had"
        wrong_if(True, said, "Solve H_KK w' = (H w)_K for the weights that stay.")


def _solved(keep: Tensor, hessian: Tensor, right: Tensor) -> Tensor:
    """Return the solution of H_KK w'_K = right_K, with zeros where `keep` is False."""
    solved = torch.zeros_like(right)
    solved[keep] = torch.linalg.solve(hessian[keep][:, keep], right[keep])
    return solved


@exercise(
    "03.3",
    "Images only: `prune_least_squares(classic, 0.8, data.train.images[start:start + 100])`.",
    "Points lost are `-100 * paired_difference(pruned, classic, data.validation).value`.",
    "Noise: `torch.randn_like(data.train.images[:100])`. Its pixels know nothing of each other; those of digits do.",
)
def calibration_images(answer: Any, draw: Generator) -> None:
    """`my_lost` has the points lost with three hundreds of images, and with noise."""
    form = 'Return {"hundreds": [three numbers], "noise": a number}, in points.'
    right = isinstance(answer, dict) and {*answer} == {"hundreds", "noise"}
    wrong_if(not right, f"{described(answer)} has other keys", form)
    noise = expect_number(answer["noise"], "[-100, 100]", form)
    hundreds = expect_numbers(answer["hundreds"], 3, "[-100, 100]", form)
    said = f"{hundreds} with the hundreds, {noise:g} with noise"
    wrong_if(min(noise, *hundreds) < 0, said, "Points *lost*: a network that reads fewer images has lost more than 0.")
    wrong_if(noise < 1 or max(hundreds) < 0.05, said, "These are fractions. Times 100 they are points.")
    wrong_if(len(set(hundreds)) == 1, said, "Each hundred needs images of its own: does `start` move?")
    half = "Noise costs far more than that. Noise of the images' shape, `torch.randn_like`, for every layer at 0.8?"
    wrong_if(noise < 15, said, half)
    classic, data = load_trained("lenet5_classic"), mnist()
    place = int(torch.randint(3, (), generator=draw))
    pruned = prune_least_squares(classic, 0.8, data.train.images[100 * place : 100 * place + 100])
    here = -100 * paired_difference(pruned, classic, data.validation).value
    said = f"hundreds[{place}] is {hundreds[place]:.2f}, and here {here:.2f} points are lost"
    magnitude = "That is about what `prune`, by magnitude, loses: least squares is asked for."
    wrong_if(hundreds[place] > 15, said, magnitude)
    same = "A sparsity of 0.8, images 0 to 99, 100 to 199, 200 to 299 of the training part, against `classic`?"
    wrong_if(abs(hundreds[place] - here) > 0.15, said, same)


@exercise(
    "03.4",
    'Both networks at 0.9 of every layer: `prune(classic, 0.9, scope="per_layer")` and `prune_least_squares`.',
    "The advantage is `100 * paired_difference(by_least_squares, by_magnitude, data.validation).value`.",
    "Train each by the same call on `data.train[:10000]`, and compare what the two calls return.",
)
def after_training(answer: Any, draw: Generator) -> None:
    """`my_advantage` has the points by which least squares is ahead, before training and after."""
    form = 'Return {"before": a number, "after": a number}, in points.'
    wrong_if(not isinstance(answer, dict) or {*answer} != {"before", "after"}, "the dict has other keys", form)
    before, after = (expect_number(answer[name], "[-100, 100]", form) for name in ("before", "after"))
    said = f"{before:g} before, {after:g} after"
    wrong_if(before < 0, said, "The sign: least squares comes first in `paired_difference`, magnitude second.")
    wrong_if(before < 1, said, "These are fractions. Times 100 they are points.")
    wrong_if(after > before + 1, said, "Training helps the worse network more: did you swap the two?")
    every = 'Is it 90 % of *every* layer, by magnitude with `scope="per_layer"`?'
    classic, data = load_trained("lenet5_classic"), mnist()
    by_care = prune_least_squares(classic, 0.9, data.train.images[:100])
    here = 100 * paired_difference(by_care, prune(classic, 0.9, scope="per_layer"), data.validation).value
    wrong_if(abs(before - here) > 3, f"{said}: before training the lead is {here:.2f} here", every)
    said = f"{after:g} points after training, of {before:g}"
    same = "These are the same networks. `train` returns *new* ones: compare these."
    wrong_if(abs(after - before) < 1, said, same)
    more = "That is more training than asked for: 10,000 images, one epoch, learning_rate=1e-3."
    wrong_if(after < 30, said, more)
    wrong_if(after > 60, said, "That is less training than asked for: 10,000 images, one epoch, learning_rate=1e-3.")


@exercise(
    "03.5",
    "Section 6 does much the same from seed 0. Three calls of `train`: whole, ticket, control.",
    "The mask comes from the trained network, the weights from before: `rewind(masked, initial)`.",
    "The loss after the second epoch is `history.validation_loss[1]`. The control rewinds to seed 6.",
)
def ticket(answer: Any, draw: Generator) -> None:
    """`my_losses` has the losses of the whole network, of its ticket and of the control."""
    form = 'Return {"whole": a number, "ticket": a number, "control": a number}.'
    names = ("whole", "ticket", "control")
    wrong_if(not isinstance(answer, dict) or {*answer} != {*names}, "the dict has other keys", form)
    whole, winner, control = (expect_number(answer[name], "[0, 100]", form) for name in names)
    said = f"whole {whole:.3f}, ticket {winner:.3f}, control {control:.3f}"
    accuracies = "Losses are asked for, not accuracies: `history.validation_loss[1]`."
    wrong_if(min(whole, winner, control) > 0.75, said, accuracies)
    kept = "These are too good for a start: rewind to the *initial* weights, not to the trained ones."
    wrong_if(winner < 0.21 <= whole, said, kept)
    wrong_if(
        abs(winner - control) < 0.02, said, "Ticket and control start from one set of weights: control from seed 6."
    )
    wrong_if(winner > control, said, "The ticket is behind its control: did you swap the two, or their seeds?")
    wrong_if(whole > control, said, "The whole network is behind the control. Did you swap them?")
    later = "That is the loss of a later epoch: after the second, `history.validation_loss[1]`."
    wrong_if(whole < 0.265, said, later)
    wrong_if(whole > 0.32, said, "That is the loss of the first epoch: after the second, `history.validation_loss[1]`.")
    here = _whole_and_ticket()
    said = f"{said}; here whole {here[0]:.3f}, ticket {here[1]:.3f}"
    wrong_if(
        abs(whole - here[0]) > 0.004, said, "Is it seed 1, and are the rate 0.0012 and constant, the batches of 60?"
    )
    mask = "Is the mask that of four epochs, 79 % of `fc1` and `fc2`, 54 % of `fc3`, each layer by itself?"
    wrong_if(abs(winner - here[1]) > 0.008, said, mask)
    same = "Is the control rewound to seed 6 with the ticket's mask, and trained as the ticket is?"
    wrong_if(not 0.31 < control < 0.40, said, same)


@cache  # takes seconds
def _whole_and_ticket() -> tuple[float, float]:
    """Return the losses of exercise 5 as measured here, of the whole network and of its ticket."""
    data, initial = mnist(), build_model("lenet300", seed=1)
    fit = partial(
        train,
        data=data.train[:6000],
        loss_fn=F.cross_entropy,
        validation=data.validation[:1000],
        batch_size=60,
        learning_rate=0.0012,
        schedule="constant",
        progress=False,
    )
    trained, whole = fit(initial, epochs=4)
    masked = prune(trained, {"fc1": 0.79, "fc2": 0.79, "fc3": 0.54}, scope="per_layer")
    return whole.validation_loss[1], fit(rewind(masked, initial), epochs=2)[1].validation_loss[1]
