"""Prune with compensation: take the weights that a layer's output misses least, and let the others make up for them.

Optimal Brain Surgeon (Hassibi & Stork 1993), for each output of a layer by itself, as Optimal Brain Compression does
(Frantar & Alistarh 2022, arXiv 2208.11580). Needs no labels and no training, only some inputs of the layer.
"""

import itertools

import torch
from torch import Tensor, nn

from kd_lab.errors import ParameterError, check_choice
from kd_lab.networks.layers import check_shapes, check_tensors, make_permanent, predict, record, weighted_layers
from kd_lab.pruning.importance import importances
from kd_lab.pruning.masks import Sparsity, check_mask, check_sparsity, rank, set_masks

DAMPING = 0.01  # of the mean of the diagonal, as GPTQ has it (Frantar et al. 2022, arXiv 2210.17323)
MAX_INVERSES = 2**24  # numbers in the inverses of the rows that are worked on side by side, 128 MB
STEPS = 128  # removals between two changes of the inverses, chosen for speed
MIN_DIAGONAL_MEAN = 1e-9  # the least mean of a diagonal
TIE_BREAK = 1e-12  # by how much more a weight matters than one of its row that went before it at the same cost


@torch.no_grad()
def prune_least_squares(model: nn.Module, sparsity: Sparsity, images: Tensor) -> nn.Module:
    """Return a new model with masks (soft pruning) whose kept weights are refitted to make up for the pruned ones.

    `sparsity` is the fraction in [0, 1) of each layer's weights that become zero, or one for each layer by name; a
    layer that it leaves out stays as it is. `images` (N, 1, 28, 28), a thousand or more of the training part, are what
    the layers' outputs are compared on. Layer after layer, each reads what the pruned ones below it give, and aims at
    what it gave in the dense network. Weights that an earlier mask had pruned are the first to go.
    """
    dense, pruned, masks = make_permanent(model), make_permanent(model), {}
    cut = _check(dense, sparsity, images)
    for name, fraction in cut.items():
        layer = weighted_layers(pruned)[name]
        inputs = layer_inputs(pruned, name, images)
        hessian = damped_hessian(inputs)
        # as if the layer had been trained for these inputs: without it, errors add up in a deep network
        lost = (layer_inputs(dense, name, images) - inputs).double() @ layer.weight.flatten(1).double().T
        refit = torch.linalg.solve(hessian, inputs.double().T @ lost / len(inputs)).T
        weight = layer.weight.flatten(1) + refit
        mask = rank({name: least_squares_importance(weight, hessian)}, "per_layer").masks(fraction)[name]
        layer.weight.copy_(compensated_weight(weight, mask, hessian).view_as(layer.weight))
        masks[name] = mask.view_as(layer.weight)
    set_masks(pruned, masks)
    return pruned


def layer_inputs(model: nn.Module, layer: str, images: Tensor) -> Tensor:
    """Return what a layer reads when the model reads the images, in evaluation mode: (N, inputs) for a Linear layer.

    For a convolution they are its patches, (N · positions, channels · height · width), as its weight.flatten(1) is laid
    out. Raises a ParameterError for a grouped one: its outputs read different patches.
    """
    layers = weighted_layers(model)
    check_choice("layer", layer, list(layers))
    _check_groups(layer, layers[layer])
    found = record(model, [layer], images, lambda inputs, _output: _patches(layers[layer], inputs[0]))
    if not found:
        raise ParameterError(f"the model doesn't use its layer {layer!r}.")
    return torch.cat(found[layer])


def _patches(layer: nn.Module, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2)
    size = layer.weight[0].numel()
    # a convolution whose filters pick one input each: F.unfold knows no padding by "same" or by reflection
    picked = layer._conv_forward(x, torch.eye(size).view(size, *layer.weight.shape[1:]), None)
    return picked.flatten(2).mT.flatten(0, 1)


def damped_hessian(inputs: Tensor) -> Tensor:
    """Return H, the mean of x xᵀ over the inputs (N, n) plus a little on its diagonal, (n, n) in float64.

    e H eᵀ is the mean squared error of an output whose weights are wrong by e (n,). The little is 1 % of the mean of
    the diagonal; without it H would be singular where inputs never change, as at the edge of MNIST's images. It is
    never zero, so that a layer which reads nothing but zeros is pruned by magnitude.
    """
    check_tensors(2, inputs=inputs)
    moments = sum(part.double().T @ part.double() for part in inputs.split(10_000)) / len(inputs)
    return moments + DAMPING * moments.diagonal().mean().clamp(min=MIN_DIAGONAL_MEAN) * torch.eye(len(moments))


def least_squares_importance(weight: Tensor, hessian: Tensor) -> Tensor:
    """Return how much the squared error of its row's output grows when each weight (rows, n) goes, (rows, n) float64.

    In each row the weight with the smallest w² / [H⁻¹]ₚₚ goes first, and the others make up for it; so on with those
    that are left. In each row importance never falls along this order, so whatever is cut is a beginning of it.
    """
    weight, hessian, inverse = _checked(weight, hessian)
    parts = [_removals(rows, inverse) for rows in weight.split(max(1, MAX_INVERSES // hessian.numel()))]
    order, growth = (torch.cat(part) for part in zip(*parts, strict=True))
    growing = growth.cummax(dim=1).values * (1 + TIE_BREAK * torch.arange(len(hessian), dtype=torch.float64))
    return torch.empty_like(growing).scatter_(1, order, growing)


def _removals(weight: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Return the order in which each row's weights go, and what each costs, both (rows, n)."""
    left = torch.arange(len(inverse)).repeat(len(weight), 1)  # (rows, m), the weights that are left
    spaces = itertools.cycle(weight.new_empty(2, len(weight) * inverse.numel()))  # new memory each time is slower
    weight, inverse, orders, growths = weight.clone(), inverse.expand(len(weight), -1, -1), [], []
    while left.shape[1]:
        order, growth, updates = _remove_some(weight, inverse)
        orders.append(left.gather(1, order))
        growths.append(growth)
        stay = torch.ones_like(left).scatter_(1, order, 0).nonzero()[:, 1].view(len(left), -1)
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
    layers = weighted_layers(model)
    check_sparsity("sparsity", sparsity, list(layers))
    importances(model, "magnitude")  # says so where weights are no numbers
    check_tensors(4, images=images)
    predict(model, images[:2])
    cut = sparsity if isinstance(sparsity, dict) else dict.fromkeys(layers, sparsity)
    for name, fraction in cut.items():
        _check_groups(name, layers[name])
        if round(fraction * (count := layers[name].weight.numel())) == count:
            raise ParameterError(f"sparsity {fraction} leaves no weight in layer {name!r}. Lower it.")
    return {name: cut[name] for name in layers if name in cut}


def _check_groups(name: str, layer: nn.Module) -> None:
    if getattr(layer, "groups", 1) > 1:
        raise ParameterError(
            f"a grouped convolution can't be pruned by least squares here, and layer "
            f"{name!r} has {layer.groups} groups. Leave it out."
        )


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
