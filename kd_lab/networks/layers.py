"""Find the layers and weights of any network, run it, and make permanent what its parametrizations give.

Masks, fake quantization, binary weights and codebooks are parametrizations (torch.nn.utils.parametrize): the layer
keeps the original weight, which training changes, and computes the one that it uses from it, so they compose and hold
whatever the optimizer does.
"""

import copy
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kd_lab.errors import ParameterError, reason

BATCH_SIZE = 125  # images in a forward pass: many more no longer fit the processor's cache
TOLERANCE = 1e-3  # of the largest logit: what rounding may change when a network is rewritten
MNIST_IMAGE = 1, 28, 28  # what a network is shown where no images of its own are given
WEIGHTED = {nn.Linear: ("weight",), nn.Conv2d: ("weight",)}  # the tensors of each kind that compression transforms


class Weight(NamedTuple):
    """A tensor that compression transforms: the module that has it, and its name there."""

    module: nn.Module
    name: str = "weight"

    @property
    def value(self) -> Tensor:
        """Return the weight as the module uses it, with parametrizations."""
        return getattr(self.module, self.name)

    def parametrization(self, kind: type[nn.Module]) -> nn.Module | None:
        """Return the parametrization of this kind, None where the weight has none."""
        if not parametrize.is_parametrized(self.module, self.name):
            return None
        chain = self.module.parametrizations[self.name]
        return next((module for module in chain if isinstance(module, kind)), None)

    def parametrize(self, parametrization: nn.Module) -> None:
        """Add a parametrization: from now on the module computes this weight with it."""
        parametrize.register_parametrization(self.module, self.name, parametrization)


def weights(model: nn.Module) -> dict[str, Weight]:
    """Return what compression transforms: the weights of the Linear layers and convolutions, by the layer's name.

    A module's weight that is not called "weight" has its own name behind it. Raises a ParameterError where there is
    none.
    """
    check_model(model)
    found = {
        name if tensor == "weight" else f"{name}.{tensor}": Weight(module, tensor)
        for name, module in model.named_modules()
        for kind, tensors in WEIGHTED.items()
        if isinstance(module, kind)
        for tensor in tensors
    }
    if not found:
        raise ParameterError(f"'model' must have a Linear or Conv2d layer. Got {type(model).__name__}.")
    for name, weight in found.items():
        if not parametrize.is_parametrized(*weight) and not isinstance(weight.value, nn.Parameter):
            raise ParameterError(
                f"the weight of layer {name!r} must be a parameter. Got one that is computed from others. Did "
                "torch.nn.utils.prune mask it? Call its remove() first."
            )
    return found


def weighted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the Linear layers and convolutions by name; raise a ParameterError where there is none."""
    return {name: weight.module for name, weight in weights(model).items()}


def describe(layer: nn.Module) -> str:
    """Return the kind of a layer and, of the kit's, the size: "Linear 784-300" or "Conv2d 16-32, 3×3"."""
    if isinstance(layer, nn.Linear):
        return f"Linear {layer.in_features}-{layer.out_features}"
    if isinstance(layer, nn.Conv2d):
        height, width = layer.kernel_size
        return f"Conv2d {layer.in_channels}-{layer.out_channels}, {height}×{width}"
    return parametrize.type_before_parametrizations(layer).__name__


def check_model(model: object) -> None:
    """Raise a ParameterError unless `model` is a network; the usual slips are a name and what `train` returns."""
    if isinstance(model, nn.Module):
        return
    hints = {"str": " Did you mean load_trained(name)?", "tuple": " Did you mean model, history = train(…)?"}
    got = type(model).__name__
    raise ParameterError(f"'model' must be a network (an nn.Module). Got {got}.{hints.get(got, '')}")


def check_tensors(dimensions: int | None = None, dtype: torch.dtype | None = None, /, **tensors: Tensor) -> None:
    """Raise a ParameterError unless all are tensors of finite numbers, at least one, of these dimensions and dtype."""
    kind = (f"{dimensions} dimensions and of " if dimensions else "") + "finite numbers, at least one"
    kind += f", in {dtype}" if dtype else ""
    for name, tensor in tensors.items():
        fits = isinstance(tensor, Tensor) and tensor.numel() and tensor.dtype != torch.bool
        fits = fits and tensor.dim() == (dimensions or tensor.dim()) and tensor.dtype == (dtype or tensor.dtype)
        if not fits or not torch.isfinite(tensor).all():
            got = f"{tensor.dtype}, {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ParameterError(f"{name!r} must be a tensor of {kind}. Got {got}.")


def check_shapes(rule: str, fits: Callable[..., bool], *tensors: Tensor) -> None:
    """Raise a ParameterError that begins with the rule unless their shapes fit it.

    Only shapes are looked at: where a student's outputs become NaN, `train` must see a loss of NaN.
    """
    shapes = [tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__ for tensor in tensors]
    if str in map(type, shapes) or not fits(*shapes):
        raise ParameterError(f"{rule}. Got {' and '.join(map(str, shapes))}.")


def example_images(images: Tensor | None = None, count: int = 2) -> Tensor:
    """Return a few images to run a network on: the first of these or, without any, noise of MNIST's shape.

    Raises a ParameterError for what is no tensor of one image or more.
    """
    if images is None:
        return torch.randn(count, *MNIST_IMAGE, generator=torch.Generator().manual_seed(0))
    if not isinstance(images, Tensor) or images.numel() == 0 or images.dim() == 0:
        got = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ParameterError(f"'images' must be a tensor of one image or more, (N, …). Got {got}.")
    return images[:count]


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits (N, classes), computed in evaluation mode and without gradients.

    Raises a ParameterError for images that the model can't read.
    """
    check_model(model)
    if not isinstance(images, Tensor):
        raise ParameterError(f"'images' must be a tensor (N, 1, 28, 28). Got {type(images).__name__}.")
    try:
        with evaluation_mode(model), torch.no_grad():
            reader = computed_once(model) if len(images) > BATCH_SIZE else model
            return torch.cat([reader(batch) for batch in images.split(BATCH_SIZE)])
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ParameterError(
            f"the model can't read images of shape {tuple(images.shape[1:])} and {images.dtype}; the kit's networks "
            f"take {MNIST_IMAGE} and torch.float32, as load_mnist() gives. The layer said: {reason(error)}"
        ) from error


def check_same_answers(changed: nn.Module, model: nn.Module, images: Tensor, change: str) -> None:
    """Raise a ParameterError unless a rewritten network gives the model's logits for these images, up to rounding.

    `change` says in the message what was done to it.
    """
    expected, found = (predict(each, images) for each in (model, changed))
    check_shapes(f"the network can't be {change}: its answers have another shape", operator.eq, found, expected)
    largest = float(expected.nan_to_num().abs().max()) if expected.numel() else 0.0
    if not torch.allclose(found, expected, TOLERANCE, TOLERANCE * largest, equal_nan=True):
        raise ParameterError(
            f"the network can't be {change}: its answers would not be the same, but differ by up to "
            f"{(found - expected).abs().max():.3g} where logits reach {largest:.3g}."
        )


def record(model: nn.Module, names: Iterable[str], images: Tensor, keep: Callable[..., Any]) -> dict[str, list]:
    """Return `keep(inputs, output)` for each call of these modules, by name, while `predict` runs the model on images.

    The modules come in the order in which they are run; one that is never run is left out.
    """
    modules, calls = {model.get_submodule(name): name for name in names}, defaultdict(list)

    def note(module: nn.Module, inputs: tuple, output: Any) -> None:
        calls[modules[module]].append(keep(inputs, output))

    with ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_hook(note))
        predict(model, images)
    return calls


@contextmanager
def evaluation_mode(model: nn.Module):
    """Set every module to evaluation (no dropout, kept batch statistics) and restore the mode that each had."""
    modes = {module: module.training for module in model.modules()}
    _set_modes(dict.fromkeys(modes, False))
    try:
        yield
    finally:
        _set_modes(modes)


def _set_modes(modes: dict[nn.Module, bool]) -> None:
    for module, training in modes.items():
        own = type(module).train is not nn.Module.train or type(module).eval is not nn.Module.eval
        if own and module.training is not training:  # it may do more than to set the flag, for all that is inside it
            module.train() if training else module.eval()
    for module, training in modes.items():
        if module.training is not training:  # model.eval() would take a while to set what is set already
            module.training = training


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy of a model; what it keeps of its last run comes without history, and a lock is shared.

    Raises a ParameterError for a model that can't be copied.
    """
    held = [each for module in model.modules() for each in _leaves(vars(module))]
    memo = {id(each): each.detach().clone() for each in held if isinstance(each, Tensor) and not each.is_leaf}
    try:
        return copy.deepcopy(model, dict(memo))
    except Exception:  # noqa: BLE001 whatever a learner's class raises; most often it holds a lock or an open file
        return _with_shared(model, memo | {id(each): each for each in held if not _copies(each)})


def _with_shared(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise ParameterError(f"'model' must be one that can be copied: {reason(error)}") from error


def _leaves(value: object) -> Iterator[object]:
    """Yield what nested lists, tuples and dicts hold in the end, but for modules."""
    if isinstance(value, (dict, list, tuple, set)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _leaves(part)
    elif not isinstance(value, nn.Module):
        yield value


def _copies(value: object) -> bool:
    try:
        copy.deepcopy(value)
    except Exception:  # noqa: BLE001 see above
        return isinstance(value, Tensor)  # a tensor that can't be copied is named
    return True


def make_permanent(model: nn.Module) -> nn.Module:
    """Return a new, ordinary model whose weights are those that the parametrizations give in evaluation mode."""
    check_model(model)
    plain = copied(model)
    with evaluation_mode(plain):
        for module in list(plain.modules()):
            if parametrize.is_parametrized(module):
                _settle(module)
    return plain


def computed_once(model: nn.Module) -> nn.Module:
    """Return the model, or a copy whose parametrized weights are computed already, not again for each batch.

    A model with hooks stays itself: they may know its modules.
    """
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    if hooked or not any(map(parametrize.is_parametrized, model.modules())):
        return model
    try:
        return make_permanent(model)
    except ParameterError:  # it can't be copied
        return model


def _settle(module: nn.Module) -> None:
    # parametrize.remove_parametrizations would take `weight` from the class, which a copy shares with its model
    settled = {
        name: nn.Parameter(getattr(module, name).detach(), any(p.requires_grad for p in chain.parameters()))
        for name, chain in module.parametrizations.items()
    }
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, parameter in settled.items():
        module.register_parameter(name, parameter)


def without(model: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """Return a new model in which no weight has a parametrization of this kind; those of other kinds stay."""
    lifted = copied(model)
    for weight in weights(lifted).values():
        if weight.parametrization(kind):
            chain = weight.module.parametrizations[weight.name]
            others = [module for module in chain if not isinstance(module, kind)]
            del chain[:]
            chain.extend(others or [nn.Identity()])
    for module in list(lifted.modules()):  # one that has another weight with parametrizations keeps the Identity
        chains = module.parametrizations.values() if parametrize.is_parametrized(module) else []
        if chains and all(isinstance(each, nn.Identity) for chain in chains for each in chain):
            _settle(module)
    return lifted
