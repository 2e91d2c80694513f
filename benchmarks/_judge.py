"""Judge a call: whether it gives what plain torch gives, or refuses in one sentence, and leaves its argument alone.

Plain torch always works on a network that is built from its text again: nothing of the kit has touched that one.
"""

import functools
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from benchmarks._networks import Network
from kd_lab.errors import KdLabError
from kd_lab.networks import weights

TOLERANCE = 1e-3  # of the largest number: what rounding may change
SMALLEST = 1e-4  # smaller ones are made of numbers around 1, and of their rounding
BROKEN = "raw", "silent"
HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks"
Values = dict[str, Tensor]


class Difference(Exception):
    """The kit's answer is not that of plain torch."""


class Case:
    """A network for many calls: `model` is the argument; `plain`, the same network, and its logits are right."""

    def __init__(self, network: Network):
        self.source, self.build, self.data = network.source, network.build, network.data
        self.model, self.plain = network.build(), plain(network)
        self.part = self.images, self.labels = network.data()
        self.logits = logits(self.plain, network)
        self.before = snapshot(self.model), self.images.clone()

    def check_unchanged(self) -> None:
        """Raise a Difference unless the argument and its images are as they were."""
        unchanged("the argument", self.model, self.before[0])
        holds("the images were changed", torch.equal(self.images, self.before[1]))

    @functools.cached_property
    def found_weights(self) -> Values:
        """Return the plain parameters of the layers that the kit compresses, one that several share only once."""
        return own_weights(self.plain, weights(self.build()))


def judge(network: Network, promise: Callable[[Any], None]) -> tuple[str, str]:
    """Return "worked", "refused", "silent" or "raw", and what was said."""
    case = _case(network)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = _outcome(case, promise)
        case.check_unchanged()
    except Difference as difference:
        outcome = "silent", str(difference)
    if outcome[0] in BROKEN:
        _case.cache_clear()  # whatever it has done shall not be laid at another function's door
    return outcome


@functools.lru_cache(maxsize=1)
def _case(network: Network) -> Case:
    """Return a network's case: one for all functions, since every call leaves it as it was."""
    return Case(network)


def _outcome(case: Case, promise: Callable[[Any], None]) -> tuple[str, str]:
    try:
        promise(case)
    except KdLabError as error:
        return "refused", str(error)
    except Difference:
        raise
    except Exception as error:  # noqa: BLE001 a raw error of any class is what is looked for
        return "raw", f"{type(error).__name__}: {error}"
    return "worked", ""


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return all that a call must leave as it was."""
    state = {f"tensor {name}": tensor.clone() for name, tensor in model.state_dict().items()}
    for name, module in model.named_modules():
        state[f"mode of {name}"] = module.training
        state[f"class of {name}"] = type(module)
        state[f"hooks of {name}"] = [list(getattr(module, kind).values()) for kind in HOOKS]
    for name, parameter in model.named_parameters():
        state[f"requires_grad of {name}"] = parameter.requires_grad
        state[f"layout of {name}"] = parameter.stride()
        state[f"gradient of {name}"] = None if parameter.grad is None else parameter.grad.clone()
    return state


def unchanged(what: str, model: nn.Module, before: dict[str, Any]) -> None:
    """Raise a Difference that names the first thing which is not as it was."""
    after = snapshot(model)
    for name in before | after:
        old, new = before.get(name), after.get(name)
        alike = (
            torch.equal(old, new) if isinstance(old, Tensor) and isinstance(new, Tensor) else old is new or old == new
        )
        holds(f"{what} was changed: {name}", alike)


def logits(model: nn.Module, network: Case | Network, seed: int = 0) -> Tensor:
    """Return a model's answers in evaluation mode, as anybody would compute them."""
    model.eval()
    with torch.no_grad():
        return model(network.data(seed)[0])


def plain(network: Case | Network, seed: int = 0) -> nn.Module:
    """Build the network in evaluation mode, its parametrized weights as plain ones."""
    model = network.build(seed).eval()
    for module in list(model.modules()):
        for name in list(getattr(module, "parametrizations", {})):
            parametrize.remove_parametrizations(module, name)
    return model


def own_weights(model: nn.Module, names: Iterable[str]) -> Values:
    """Return the parameters of these layers by name, one that several share only once."""
    found: Values = {}
    for name in names:
        parameter = parameter_of(model, name)
        if not any(parameter is other for other in found.values()):
            found[name] = parameter
    return found


def parameter_of(model: nn.Module, name: str) -> Tensor:
    """Return the weight that the kit calls by this name: that of a layer, or "layer.weight_hh_l0"."""
    known = dict(model.named_parameters(remove_duplicate=False))
    weight = f"{name}.weight".lstrip(".")
    return known[weight if weight in known else name]


def module_of(model: nn.Module, name: str) -> nn.Module:
    """Return the module that has the weight that the kit calls by this name."""
    known = dict(model.named_modules())
    return known[name if name in known else name.rpartition(".")[0]]


def with_weights(network: Case, values: Values) -> nn.Module:
    """Return the plain network with these weights put in."""
    model = plain(network)
    with torch.no_grad():
        for name, value in values.items():
            parameter_of(model, name).copy_(value)
    return model


def seen(model: nn.Module, names: Iterable[str], network: Case, given: bool = False) -> dict[str, list[Tensor]]:
    """Return copies of what these modules take, or give, at each call, as it was at that moment."""
    found: dict[str, list[Tensor]] = {}
    hooks = []
    for name in names:
        if given:
            keep = lambda _m, _i, output, name=name: found.setdefault(name, []).append(first_of(output).clone())
            hooks.append(model.get_submodule(name).register_forward_hook(keep))
        else:
            keep = lambda _m, inputs, name=name: found.setdefault(name, []).append(inputs[0].clone())
            hooks.append(model.get_submodule(name).register_forward_pre_hook(keep))
    logits(model, network)
    for hook in hooks:
        hook.remove()
    return found


def first_of(output: Any) -> Tensor:
    """Return what a module gives, the steps of a recurrent layer and the tokens of attention."""
    return output[0] if isinstance(output, tuple) else output


def used(model: nn.Module) -> Values:
    """Return the weights that a model of the kit computes with in evaluation mode."""
    return {name: weight.value.detach().clone() for name, weight in weights(model.eval()).items()}


def same(what: str, found: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    """Raise a Difference unless two numbers or tensors are the same up to a part of the largest."""
    found, expected = (torch.as_tensor(each).detach().double() for each in (found, expected))
    if found.shape != expected.shape:
        raise Difference(f"{what} have shape {tuple(found.shape)}, not {tuple(expected.shape)}")
    largest = max(float(expected.abs().max()), SMALLEST) if expected.numel() else 1.0
    if not torch.allclose(found, expected, tolerance, tolerance * largest, equal_nan=True):
        off = float((found - expected).abs().max())
        raise Difference(f"{what} differ by {off:.3g}, where they reach {largest:.3g}")


def holds(what: str, truth: Any) -> None:
    """Raise a Difference unless it is true."""
    if not truth:
        raise Difference(what)


def close(what: str, found: Tensor, expected: Tensor, slack: float) -> None:
    """Raise a Difference where the mean error of rounded answers is above this part of the answers' size."""
    holds(f"{what}: shape {tuple(found.shape)}, not {tuple(expected.shape)}", found.shape == expected.shape)
    error = float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt().clamp(min=1e-9))
    holds(f"{what} differ by {error:.1%}, where {slack:.1%} may be rounding", error <= slack)


def same_answers(what: str, model: nn.Module, expected: nn.Module, network: Case) -> None:
    """Raise a Difference unless both give the same logits."""
    same(f"the logits of {what}", logits(model, network), logits(expected, network))


def computes_with_its_weights(what: str, model: nn.Module, network: Case) -> None:
    """Raise a Difference unless a model answers as the plain network with its weights put in."""
    same_answers(what, model, with_weights(network, used(model)), network)
