"""Prune with compensation: take the weights that a layer's output misses least, and let the others make up for them.

Optimal Brain Surgeon (Hassibi & Stork 1993), for each output of a layer by itself, as Optimal Brain Compression does
(Frantar & Alistarh 2022, arXiv 2208.11580). Needs no labels and no training, only some inputs of the layer.
"""

import itertools
import sys
import timeit
from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from kd_lab.errors import ParameterError, called_function
from kd_lab.networks.checks import check_mask, check_shapes, check_tensors
from kd_lab.networks.inputs import grouped_inputs
from kd_lab.networks.layers import Weight, warn_of_whole_weights, weights
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.predictions import predict
from kd_lab.pruning.importance import importances
from kd_lab.pruning.masks import Sparsity, check_sparsity, rank, set_masks

DAMPING = 0.01  # of the mean of the diagonal, as GPTQ has it (Frantar et al. 2022, arXiv 2210.17323)
MAX_INVERSES = 2**24  # numbers in the inverses of the rows that are worked on side by side, 128 MB
STEPS = 128  # removals between two changes of the inverses, chosen for speed
MIN_DIAGONAL_MEAN = 1e-9  # the least mean of a diagonal
TIE_BREAK = 1e-12  # by how much more a weight matters than one of its row that went before it at the same cost
MIN_MINUTES = 0.5  # of work that is announced
COST = 4  # multiplications or additions of a matrix product that take as long as one weight's share of the work
PROBE = 512  # rows and columns of the product that is timed
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"


@torch.inference_mode(False)  # in which nothing can be made that is trained later
@torch.no_grad()
def prune_least_squares(model: nn.Module, sparsity: Sparsity, images: Tensor) -> nn.Module:
    """Return a new model with masks (soft pruning) whose kept weights are refitted to make up for the pruned ones.

    `sparsity` is the fraction in [0, 1) of each layer's weights that become zero, or one for each layer by name; a
    layer that it leaves out stays as it is. `images` (N, …), a thousand or more of the training part, are what the
    layers' outputs are compared on. Layer after layer, each reads what the pruned ones below it give, and aims at what
    it gave in the dense network. Weights that an earlier mask had pruned are the first to go. The work grows with the
    cube of a layer's inputs: where it takes long it is announced, and an interrupt keeps the layers that are done.
    Raises a ParameterError for a layer that computes something else than its weight times its inputs.
    """
    dense, pruned, masks = make_permanent(model), make_permanent(model), {}
    cut = _check(dense, sparsity, images)
    present, work = weights(pruned), {name: _work(weight) for name, weight in weights(dense).items() if name in cut}
    quick = _announce(work)
    try:
        with tqdm(None, "least squares", sum(work.values()), file=sys.stdout, bar_format=BAR, disable=quick) as bar:
            for name, fraction in cut.items():
                inputs, before = (grouped_inputs(each, name, images) for each in (pruned, dense))
                masks[name] = _prune_layer(name, present[name].value, fraction, inputs, before, bar.update)
    except KeyboardInterrupt:
        if not masks:
            raise
        print(
            f"{called_function()}(): interrupted after {len(masks)} of {len(cut)} layers: {', '.join(masks)} are "
            "pruned, the others are whole."
        )
    set_masks(pruned, masks)
    return pruned


def _prune_layer(
    name: str, weight: Tensor, fraction: float, inputs: Tensor, before: Tensor, tick: Callable[[float], object]
) -> Tensor:
    """Prune a layer's weight and refit what is kept, in place; return the mask.

    It reads `inputs` and read those `before` in the dense network, both (groups, N, n).
    """
    check_shapes(f"layer {name!r} must run as often once layers below it are pruned", tuple.__eq__, inputs, before)
    aims, hessians = [], []
    for rows, x, dense in zip(weight.flatten(1).unflatten(0, (len(inputs), -1)), inputs, before, strict=True):
        hessians.append(damped_hessian(x))
        # as if the layer had been trained for these inputs: without it, errors add up in a deep network
        lost = (dense - x).double() @ rows.double().T
        aims.append(rows + torch.linalg.solve(hessians[-1], x.double().T @ lost / len(x)).T)
    costs = [_importance(*_checked(aim, hessian), tick) for aim, hessian in zip(aims, hessians, strict=True)]
    mask = rank({name: torch.cat(costs)}, "per_layer").masks(fraction)[name]
    parts = zip(aims, mask.tensor_split(len(aims)), hessians, strict=True)
    weight.copy_(torch.cat([compensated_weight(*part) for part in parts]).view_as(weight))
    return mask.view_as(weight)


def _work(weight: Weight) -> int:
    """Return how much there is to do for a layer: for each of its rows the cube of its inputs."""
    return len(weight.value) * weight.value[0].numel() ** 3


def _announce(work: dict[str, int]) -> bool:
    """Say how long it will take, measured by a product of matrices; return whether it is too short to say so."""
    probe = torch.ones(PROBE, PROBE, dtype=torch.float64)
    seconds = min(timeit.repeat(lambda: probe @ probe, number=1, repeat=3))
    minutes = COST * sum(work.values()) * seconds / (2 * PROBE**3) / 60
    if minutes >= MIN_MINUTES:
        longest = max(work, key=lambda name: work[name])
        print(
            f"{called_function()}(): about {minutes:,.2g} minutes, most for layer {longest!r}. "
            "An interrupt keeps the layers that are done."
        )
    return minutes < MIN_MINUTES


def damped_hessian(inputs: Tensor) -> Tensor:
    """Return H, the mean of x xᵀ over the inputs (N, n) plus a little on its diagonal, (n, n) in float64.

    e H eᵀ is the mean squared error of an output whose weights are wrong by e (n,). The little is 1 % of the mean of
    the diagonal; without it H would be singular where inputs never change, as at the edge of MNIST's images. It is
    never zero, so that a layer which reads nothing but zeros is pruned by magnitude.
    """
    check_tensors(2, inputs=inputs)
    moments = sum(part.double().T @ part.double() for part in inputs.split(10_000)) / len(inputs)
    return moments + DAMPING * moments.diagonal().mean().clamp(min=MIN_DIAGONAL_MEAN) * torch.eye(
        len(moments), dtype=torch.float32
    )


def least_squares_importance(weight: Tensor, hessian: Tensor) -> Tensor:
    """Return how much the squared error of its row's output grows when each weight (rows, n) goes, (rows, n) float64.

    In each row the weight with the smallest w² / [H⁻¹]ₚₚ goes first, and the others make up for it; so on with those
    that are left. In each row importance never falls along this order, so whatever is cut is a beginning of it.
    """
    return _importance(*_checked(weight, hessian), lambda _work: None)


def _importance(weight: Tensor, hessian: Tensor, inverse: Tensor, tick: Callable[[float], object]) -> Tensor:
    parts = [_removals(rows, inverse, tick) for rows in weight.split(max(1, MAX_INVERSES // hessian.numel()))]
    order, growth = (torch.cat(part) for part in zip(*parts, strict=True))
    growing = growth.cummax(dim=1).values * (1 + TIE_BREAK * torch.arange(len(hessian), dtype=torch.float64))
    return torch.empty_like(growing).scatter_(1, order, growing)


def _removals(weight: Tensor, inverse: Tensor, tick: Callable[[float], object]) -> tuple[Tensor, Tensor]:
    """Return the order in which each row's weights go, and what each costs, both (rows, n); tell `tick` of the work."""
    left = torch.arange(len(inverse)).repeat(len(weight), 1)  # (rows, m), the weights that are left
    spaces = itertools.cycle(weight.new_empty(2, len(weight) * inverse.numel()))  # new memory each time is slower
    weight, inverse, orders, growths = weight.clone(), inverse.expand(len(weight), -1, -1), [], []
    while left.shape[1]:
        order, growth, updates = _remove_some(weight, inverse)
        orders.append(left.gather(1, order))
        growths.append(growth)
        stay = torch.ones_like(left).scatter_(1, order, 0).nonzero()[:, 1].view(len(left), -1)
        tick(len(left) * (left.shape[1] ** 3 - stay.shape[1] ** 3))
        weight, left = weight.gather(1, stay), left.gather(1, stay)
        inverse = _shrink(inverse, updates, stay, next(spaces))
    return torch.cat(orders, 1), torch.cat(growths, 1)


def _shrink(inverse: Tensor, updates: Tensor, stay: Tensor, space: Tensor) -> Tensor:
    """Return the inverses (rows, m, m) of the weights that stay (rows, m), written into a piece of memory."""
    rows, m = stay.shape
    result = space[: rows * m * m].view(rows, m, m)
    for new, old, u, i in zip(result, inverse, updates, stay, strict=True):
        torch.index_select(old[i], 1, i, out=new)
        new.addmm_(u[:, i].T, u[:, i], alpha=-1)
    return result


def _remove_some(weight: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Remove the next weights of each row, and compensate, in place.

    Returns their places and what each costs, both (rows, steps), and u (rows, steps, m): H⁻¹ is less uᵀu from now on,
    which is cheaper to subtract once than at each step.
    """
    rows, steps = torch.arange(len(weight)), min(STEPS, weight.shape[1])
    diagonal, gone = inverse.diagonal(dim1=1, dim2=2).clone(), torch.zeros_like(weight)
    order, growth = torch.empty(len(weight), steps, dtype=torch.int64), weight.new_empty(len(weight), steps)
    updates = weight.new_empty(len(weight), steps, weight.shape[1])
    for step in range(steps):
        growth[:, step], place = (weight.square() / diagonal + gone).min(dim=1)
        earlier = updates[rows, :step, place].unsqueeze(1) @ updates[:, :step]
        column = inverse[rows, place] - earlier.squeeze(1)  # of H⁻¹ as it is by now
        u = updates[:, step] = column * column[rows, place].rsqrt().unsqueeze(1)
        weight -= u * (weight[rows, place] / u[rows, place]).unsqueeze(1)
        diagonal = (diagonal - u.square()).clamp(min=1e-30)  # zero where a weight is gone
        order[:, step], gone[rows, place] = place, torch.inf
    return order, growth, updates


def compensated_weight(weight: Tensor, mask: Tensor, hessian: Tensor) -> Tensor:
    """Return the weights (rows, n) in float64 that are zero where the mask (bool) is False and else come closest.

    In each row w' is the exact minimum of (w - w') H (w - w')ᵀ over the weights K that are kept: H_KK w'_K = (H w)_K.
    """
    weight, hessian, inverse = _checked(weight, hessian)
    check_mask("'mask'", mask, weight)
    target, result = weight @ hessian, torch.zeros_like(weight)
    for row, kept in enumerate(mask):
        gone = ~kept
        if kept.sum() < gone.sum():  # of two systems that say the same, the smaller
            result[row, kept] = _solve(hessian[kept][:, kept], target[row, kept])
        else:
            pull = _solve(inverse[gone][:, gone], weight[row, gone])
            result[row, kept] = weight[row, kept] - inverse[kept][:, gone] @ pull
    return result


def _solve(matrix: Tensor, vector: Tensor) -> Tensor:
    return torch.cholesky_solve(vector.unsqueeze(1), torch.linalg.cholesky(matrix)).squeeze(1)


def _check(model: nn.Module, sparsity: Sparsity, images: Tensor) -> dict[str, float]:
    """Return the sparsity of each layer to prune, in the order of the layers; refuse before the long work begins."""
    present = weights(model)
    warn_of_whole_weights(model)
    cut = check_sparsity("sparsity", sparsity, list(present))
    importances(model, "magnitude")  # says so where weights are no numbers
    check_tensors(images=images)
    predict(model, images[:2])
    for name, fraction in cut.items():
        grouped_inputs(model, name, images[:2])
        if round(fraction * (count := present[name].value.numel())) == count:
            raise ParameterError(f"sparsity {fraction} leaves no weight in layer {name!r}. Lower it.")
    return {name: cut[name] for name in present if name in cut}


def _checked(weight: Tensor, hessian: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return weight (rows, n), H and H⁻¹ (n, n), all in float64."""
    check_tensors(2, weight=weight, hessian=hessian)
    count = weight.shape[1]
    rule = f"'hessian' must have a row and a column for each of {count} weights of a row"
    check_shapes(rule, lambda square: square == (count, count), hessian)
    factor, failed = torch.linalg.cholesky_ex(hessian.double())
    if failed:
        raise ParameterError("'hessian' must be positive definite, as damped_hessian() gives it. Got one that is not.")
    return weight.double(), hessian.double(), torch.cholesky_inverse(factor)
