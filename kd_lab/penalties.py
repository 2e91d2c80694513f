"""Add to the loss what keeps weights small, near zero or near a teacher's: train(…, penalty=…).

None of them prunes: a weight near zero is still a weight.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn.utils import parametrize

from kd_lab.errors import ParameterError, check_choice, check_kind, check_number, check_that
from kd_lab.networks.checks import check_model
from kd_lab.networks.layers import Weight, weights
from kd_lab.networks.permanent import make_permanent

Penalty = Callable[[nn.Module], Tensor]
MAX_NAMED = 5  # of the parameters that don't fit


def l1_penalty(model: nn.Module) -> Tensor:
    """Return Σ|w| of all weights that compression transforms; its pull is as strong on a small one as on a large."""
    return sum(weight.value.abs().sum() for weight in weights(model).values())


def l2_penalty(model: nn.Module) -> Tensor:
    """Return Σw² of all weights that compression transforms; its pull, 2w, fades as a weight gets small."""
    return sum(weight.value.square().sum() for weight in weights(model).values())


def group_lasso_penalty(model: nn.Module, layers: Sequence[str]) -> Tensor:
    """Return Σ√n·‖w‖₂ over the units or channels of the named layers, each with its n incoming weights.

    Like L1, but a whole unit at a time is drawn to zero: Yuan & Lin 2006; Wen et al. 2016, arXiv 1608.03665.
    """
    present = weights(model)
    check_kind("layers", layers, (list, tuple), "a list of names, as in ['fc1']")
    for name in layers:
        check_choice("layers", name, list(present))
    rows = [_by_outputs(present[name]).flatten(1) for name in layers]
    return sum(row.shape[1] ** 0.5 * row.norm(dim=1).sum() for row in rows)


def _by_outputs(weight: Weight) -> Tensor:
    """Return a weight as (outputs, …); that of a transposed convolution is (inputs, outputs / groups, …)."""
    if weight.output_axis == 0:
        return weight.value
    return weight.value.unflatten(0, (weight.module.groups, -1)).transpose(1, 2).flatten(0, 1)


def used_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters by name; of a weight with parametrizations (a mask, rounding) the one that is used.

    One that several modules share has the name of the first.
    """
    check_model(model)
    found: dict[tuple[int, ...], tuple[str, Tensor]] = {}
    for name, module in model.named_modules():
        own = [key for key, _ in module.named_parameters(recurse=False)]
        own += module.parametrizations if parametrize.is_parametrized(module) else []
        for key in own if "parametrizations" not in name.split(".") else []:
            found.setdefault(_originals(module, key), (f"{name}.{key}".lstrip("."), getattr(module, key)))
    return dict(found.values())


def _originals(module: nn.Module, key: str) -> tuple[int, ...]:
    """Return what tells the parameter of a module, or those that it is computed from, apart from others."""
    if not parametrize.is_parametrized(module, key):
        return (id(getattr(module, key)),)
    return tuple(map(id, module.parametrizations[key].parameters(recurse=False)))


def match_parameters(teacher: nn.Module, strength: float, layers: Sequence[str] | None = None) -> Penalty:
    """Return the penalty strength·Σ|θ - θᵗ| over the student's parameters θ and the teacher's, copied now, θᵗ.

    `layers` names those that are compared, all unless given: a student with units removed agrees in some only. The
    penalty raises a ParameterError, which `train` does before it begins, for a student whose parameters have other
    names or shapes.
    """
    check_model(teacher)
    strength = check_number("strength", strength, "[0, 1e6]")
    targets = {name: parameter.detach() for name, parameter in used_parameters(make_permanent(teacher)).items()}
    _check_layers(layers, sorted({name.rpartition(".")[0] for name in targets}))
    targets = _chosen(targets, layers)

    def penalty(student: nn.Module) -> Tensor:
        found = _chosen(used_parameters(student), layers)
        _check_targets(found, targets)
        return strength * sum((found[name] - target).abs().sum() for name, target in targets.items())

    return penalty


def _chosen(parameters: dict[str, Tensor], layers: Sequence[str] | None) -> dict[str, Tensor]:
    return {
        name: parameter for name, parameter in parameters.items() if layers is None or name.rpartition(".")[0] in layers
    }


def _check_layers(layers: Sequence[str] | None, present: list[str]) -> None:
    if not present:
        raise ParameterError("'teacher' must have parameters. Got a network without any.")
    check_kind("layers", layers, (list, tuple, type(None)), "a list of names, as in ['fc1'], or None for all")
    check_that("layers", layers, layers is None or len(layers) > 0, f"one of {', '.join(present)}")
    for name in layers or []:
        check_choice("layers", name, present)


def _check_targets(found: dict[str, Tensor], targets: dict[str, Tensor]) -> None:
    """Raise a ParameterError that names the parameters which one has and the other has not, or in another shape."""
    shapes = [{name: tuple(tensor.shape) for name, tensor in each.items()} for each in (found, targets)]
    others = [
        f"{name!r}: {' and '.join(str(each.get(name, 'none')) for each in shapes)}"
        for name in shapes[0] | shapes[1]
        if shapes[0].get(name) != shapes[1].get(name)
    ]
    if others:
        named = "; ".join(others[:MAX_NAMED]) + ("; …" if len(others) > MAX_NAMED else ".")
        raise ParameterError(
            f"student and teacher must have the same parameters. They differ in {named} 'layers' can name those to "
            "compare."
        )
