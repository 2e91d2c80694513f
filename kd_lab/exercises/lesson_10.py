"""The checks of lesson 10, without labels."""

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from kd_lab.distillation import layer_outputs
from kd_lab.exercises.judging import exercise, expect_number, expect_tensor, mnist, wrong_if, wrong_if_like
from kd_lab.networks import build_model
from kd_lab.pretraining import nt_xent


@exercise(
    "10.1",
    "Put all 2N views below each other. Which cosine belongs to which two of them?",
    "Normalise the rows; `views @ views.T / temperature` are the logits. What must a view not be compared with?",
    "Set the diagonal to -inf. The class of view i is i + N, that of view N + i is i: `torch.arange(2 * N).roll(N)`.",
)
def contrastive(answer: Any, draw: Generator) -> None:
    """`my_loss(first, second, temperature)` is the NT-Xent loss of N pairs of views."""
    for count, temperature in ((5, 0.5), (7, 2.0)):
        first = torch.randn(count, 6, generator=draw)
        second = 2 * first + torch.randn(count, 6, generator=draw)
        given = answer(first, second, temperature)
        if isinstance(given, Tensor) and given.shape == (1,):
            given = given[0]
        given = expect_tensor(given, (), "Return the mean over all views, a tensor of one number.")
        expected = nt_xent(torch.stack([first, second], dim=1), temperature)
        if not torch.allclose(given, expected, rtol=1e-4):
            _wrong_loss(given, first, second, temperature)
            hint = "Who is the partner of view i, which others can it choose, and what are the logits of this choice?"
            wrong_if(True, f"the loss is {given:.4f} where it should be {expected:.4f}", hint)
    one, other = torch.randn(2, 4, 3, generator=draw)
    trained = one.clone().requires_grad_()
    flows = [answer(*pair, 1.0).requires_grad for pair in ((trained, other), (other, trained))]
    trains = "No `.item()`, `.detach()` or `no_grad()`: it must train, by either view."
    wrong_if(not any(flows), "no gradient flows through the loss", trains)
    wrong_if(not all(flows), "the gradient reaches one of two views alone", trains)


def _wrong_loss(given: Tensor, first: Tensor, second: Tensor, temperature: float) -> None:
    """Raise Wrong if the loss is what a well-known mistake gives."""
    count, plain = len(first), torch.cat([first, second])
    views, partner = F.normalize(plain, dim=1), torch.arange(2 * len(first)).roll(len(first))
    logits = views @ views.T / temperature
    others, products = (each.clone().fill_diagonal_(-math.inf) for each in (logits, plain @ plain.T / temperature))
    zeros, loss = logits.clone().fill_diagonal_(0), F.cross_entropy
    own = "A view is most like itself, and that is no answer: set the diagonal of the logits to -inf."
    zero = "A logit of 0 still counts as exp(0) = 1. What is not to be chosen has a logit of -inf."
    across, own_class = logits[:count, count:], torch.arange(count)
    one = "Only the views of `first` choose, and only among those of `second`. All 2N choose, among all others."
    two = "Each chooses among N views, those of the other kind. It must choose among all 2N - 1 others."
    longer = "Long rows weigh more here. Cosines need rows of length 1: `F.normalize(…, dim=1)`."
    mistakes = {
        "each view is compared with itself, too": (loss(logits, partner), own),
        "the diagonal is 0": (loss(zeros, partner), zero),
        "this is the sum over all views": (loss(others, partner, reduction="sum"), "Take the mean over the 2N views."),
        "the temperature multiplies": (loss(others * temperature**2, partner), "Divide the cosines by it."),
        "the temperature is not used": (loss(others * temperature, partner), "The logits are cosines / temperature."),
        "half of the views don't choose": (loss(across, own_class), one),
        "half of the choice is missing": ((loss(across, own_class) + loss(across.T, own_class)) / 2, two),
        "these are products, not cosines": (loss(products, partner), longer),
    }
    wrong_if_like(given, mistakes)


@exercise(
    "10.2",
    "Cosines of all rows with all rows are one product of matrices. Which row is nearest to a row?",
    "Each row is nearest to itself: its own cosine must be out of the game before you take `argmax`.",
    "`nearest = (d @ d.T).fill_diagonal_(-2).argmax(dim=1)` with `d = F.normalize(features, dim=1)`; compare labels.",
)
def neighbours(answer: Any, draw: Generator) -> None:
    """`my_share(features, labels)` is the share of rows whose nearest other row has the same label."""
    for _ in range(3):  # in one draw, chance may give another way the same share
        _check_share(answer, draw)


def _check_share(answer: Any, draw: Generator) -> None:
    labels = torch.randint(3, (300,), generator=draw)
    directions = torch.randn(3, 5, generator=draw)[labels] + torch.randn(300, 5, generator=draw)
    features = directions * torch.empty(300, 1).uniform_(0.2, 5, generator=draw)
    given = expect_number(answer(features, labels), "[0, 300]", "One number for all rows, from 0 to 1.")
    expected = _share(F.normalize(features, dim=1), labels)
    if math.isclose(given, expected, abs_tol=1e-5):
        return
    said = f"{given:.3f} came, and {expected:.3f} is right"
    wrong_if(
        given == 1, "all rows have a neighbour with their own label", "Each row has found itself: not the diagonal."
    )
    wrong_if(math.isclose(given, 100 * expected, abs_tol=1e-3), said, "A fraction is asked for, not percent.")
    wrong_if(math.isclose(given, 300 * expected, abs_tol=1e-3), said, "This counts rows. Take the mean.")
    products = math.isclose(given, _share(features, labels), abs_tol=1e-5)
    wrong_if(products, said, "Without `F.normalize`, long rows are everybody's neighbours. Cosines have no length.")
    euclid = labels[torch.cdist(features, features).fill_diagonal_(math.inf).argmin(dim=1)] == labels
    wrong_if(math.isclose(given, euclid.float().mean(), abs_tol=1e-5), said, "This is the distance; take the cosine.")
    wrong_if(True, said, "For each row: the largest cosine among the *other* rows, then whether the two labels agree.")


def _share(rows: Tensor, labels: Tensor) -> float:
    nearest = (rows @ rows.T).fill_diagonal_(-math.inf).argmax(dim=1)
    return (labels[nearest] == labels).float().mean().item()


ERRORS = {10: (9.2, 11.0), 100: (3.3, 4.3), 1000: (2.7, 3.5)}  # percent; other instruction sets give the same


@exercise(
    "10.3",
    "Freeze all with `requires_grad_(False)`, then free `fc2` again. Load the encoder anew for each draw.",
    "Two loops: over the counts, and over the seeds of `few_labels`. Percent wrong is 100 - 100 · accuracy.",
    "With 10 labels about 10 % are wrong, with 100 fewer than 5 %.",
)
def few_are_enough(answer: Any, draw: Generator) -> None:
    """`my_errors` is a dict: the mean validation error in percent with 10, 100 and 1,000 labels."""
    errors = _percents(answer, list(ERRORS), "Give {10: …, 100: …, 1000: …}, the mean of three draws for each.")
    if all(low <= errors[count] <= high for count, (low, high) in ERRORS.items()):
        return
    said = "; ".join(f"{errors[count]:.2f} with {count:,} labels" for count in ERRORS)
    wrong_if(max(errors.values()) < 1, said, "These are fractions. Times 100 they are percent.")
    wrong_if(min(errors.values()) > 80, said, "These are shares of digits read rightly. The errors are what is left.")
    wrong_if(len({*errors.values()}) == 1, f"all errors are {errors[10]:.2f}", "Does `count` reach `few_labels`?")
    started = "Much too good for ten labels. Does each draw start from the encoder again, or go on from the last?"
    wrong_if(errors[10] < 7, said, started)
    everything = "Are all layers trained? Freeze the network, then `network.fc2.requires_grad_(True)`."
    wrong_if(errors[100] > 6, said, everything)
    three = "With 10 labels it matters which: is each of the seeds 0, 1 and 2 in the mean, and no other?"
    wrong_if(not ERRORS[10][0] <= errors[10] <= ERRORS[10][1], said, three)
    wrong_if(True, said, "Near, but not there: compare your settings with those of the question, one by one.")


@exercise(
    "10.4",
    'Only two things differ from *More*: `build_model("mlp128")` and the data of the question.',
    'Features: `layer_outputs(network, "fc1", some.images).relu()`. Does your `my_share` of 10.2 pass its check?',
    "The masked task is better by about four points; telling views apart is about as good as no training.",
)
def tasks(answer: Any, draw: Generator) -> None:
    """`my_shares` is a dict: neighbours of the same digit in percent, untrained and after either task."""
    keys = ["untrained", "contrastive", "masked"]
    shares = _percents(answer, keys, 'Give {"untrained": …, "contrastive": …, "masked": …}.')
    untrained, contrastive, masked = (shares[key] for key in keys)
    here, best = 100 * _untrained(), max(untrained, contrastive)
    if abs(untrained - here) < 0.5 and 84 < contrastive < 89 and 89 < masked < 93 and masked > best + 2:
        return  # five seeds, and arithmetic of other processors, give 86.1 to 87.0 and 90.6 to 91.6
    said = ", ".join(f"{key} {shares[key]:.1f}" for key in keys)
    wrong_if(max(shares.values()) <= 1, said, "These are fractions. Times 100 they are percent.")
    wrong_if(max(shares.values()) < 20, said, "These look like errors. How many neighbours show the *same* digit?")
    own = "Each image has found itself. Leave the diagonal out, and check 10.2."
    wrong_if(min(shares.values()) > 99, said, own)
    wrong_if(
        contrastive > masked, said, "Which network is this? `lenet5_classic` gives about that. Or are two swapped?"
    )
    control = f'`build_model("mlp128")` as it comes has {here:.1f} here: `fc1` after ReLU, the first 2,000 images.'
    wrong_if(abs(untrained - here) > 0.5, said, control)
    wrong_if(masked == untrained, said, "`pretrain` returns a *new* network and a history. Do you look at the old one?")
    wrong_if(True, said, "Are these the first 2,000 validation images, and `fc1` after ReLU? `epochs=4`, 4,000 images?")


@cache
def _untrained() -> float:
    """Return the share of neighbours that show the same digit, by the features of an untrained network."""
    some = mnist().validation[:2000]
    features = layer_outputs(build_model("mlp128"), "fc1", some.images).relu()
    return _share(F.normalize(features, dim=1), some.labels)


def _percents(answer: Any, keys: list, hint: str) -> dict[Any, float]:
    """Return the numbers of a dict with these keys; raise Wrong if it is another."""
    wrong_if(not isinstance(answer, dict) or {*answer} != {*keys}, "this is not the dict that is asked for", hint)
    return {key: expect_number(answer[key], "[0, 100]", "Percent, as plain numbers.") for key in keys}
