"""Find the layers and the weights of any network that compression transforms.

Masks, fake quantization, binary weights and codebooks are parametrizations (torch.nn.utils.parametrize): the layer
keeps the original weight, which training changes, and computes the one that it uses from it, so they compose and hold
whatever the optimizer does.
"""

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from kd_lab.errors import ParameterError, called_function
from kd_lab.networks.checks import check_model, check_not_compiled
from kd_lab.networks.modes import changes_with_mode, evaluation_mode, has_own_mode

SCRIPTED = ", which torch.jit made: give the network that it was made of"
TRANSPOSED = nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d  # whose weights are (inputs, outputs, …)
CONVOLUTIONS = nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED
EMBEDDINGS = nn.Embedding, nn.EmbeddingBag
RECURRENT = nn.RNN, nn.LSTM, nn.GRU
CELLS = nn.RNNCell, nn.LSTMCell, nn.GRUCell
NORMALIZERS = {WeightNorm: remove_weight_norm, SpectralNorm: remove_spectral_norm}  # hooks, before parametrizations
WEIGHTED = nn.Linear, *CONVOLUTIONS, *EMBEDDINGS, *RECURRENT, *CELLS, nn.MultiheadAttention


class Weight(NamedTuple):
    """A tensor that compression transforms: the module that has it, its name there, and other modules that share it."""

    module: nn.Module
    name: str = "weight"
    tied: tuple["Weight", ...] = ()

    @property
    def value(self) -> Tensor:
        """Return the weight as the module uses it in evaluation mode, with parametrizations."""
        if not parametrize.is_parametrized(self.module, self.name):
            return getattr(self.module, self.name)
        with evaluation_mode(self.module.parametrizations[self.name]):  # some drop out, or change, while they train
            return getattr(self.module, self.name)

    @property
    def trained(self) -> bool:
        """Return whether training changes the weight: whether it, or what its parametrizations keep, isn't frozen."""
        if not parametrize.is_parametrized(self.module, self.name):
            return self.value.requires_grad
        return any(parameter.requires_grad for parameter in self.module.parametrizations[self.name].parameters())

    @property
    def output_axis(self) -> int:
        """Return the axis of the outputs, each of which has a grid of its own; an embedding's are its rows."""
        return int(isinstance(self.module, TRANSPOSED))

    def parametrization(self, kind: type[nn.Module]) -> nn.Module | None:
        """Return the parametrization of this kind, None where the weight has none."""
        if not parametrize.is_parametrized(self.module, self.name):
            return None
        chain = self.module.parametrizations[self.name]
        return next((module for module in chain if isinstance(module, kind)), None)

    def parametrize(self, parametrization: nn.Module) -> None:
        """Add a parametrization: from now on every module that shares this weight computes it so."""
        for module, name, _ in (self, *self.tied):
            _own_class(module)
            with evaluation_mode(module):  # torch computes the weight, which changes some parametrizations in training
                parametrize.register_parametrization(module, name, parametrization)


def _own_class(module: nn.Module) -> None:
    """Give a parametrized module a class of its own: a copy shares it with its model, which would change with it."""
    if parametrize.is_parametrized(module):
        kind = type(module)
        namespace = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
        module.__class__ = type(kind.__name__, kind.__bases__, namespace)


def weights(model: nn.Module) -> dict[str, Weight]:
    """Return what compression transforms, the matrices that a layer multiplies by, under the layer's name.

    They are those of Linear layers, convolutions, embeddings, recurrent layers and attention. One that its module does
    not call "weight" has its own name behind it, as "lstm.weight_ih_l0"; one that several layers share has the name of
    the first. Raises a ParameterError where there is none.
    """
    tied: dict[tuple, list[tuple[str, Weight]]] = defaultdict(list)
    for title, weight in _all_weights(model).items():
        tied[identity(weight.module, weight.name)].append((title, weight))
    return {title: Weight(*first[:2], tuple(each for _, each in others)) for (title, first), *others in tied.values()}


def _all_weights(model: nn.Module) -> dict[str, Weight]:
    """Return the weight of every layer, tied or not."""
    check_model(model)
    check_not_compiled(model)
    found = {
        title: Weight(module, tensor)
        for name, module in model.named_modules()
        for title, tensor in weight_titles(name, module).items()
    }
    for title, weight in found.items():
        _check_weight(title, weight.module, weight.name)
    if not found:
        raise ParameterError(
            "'model' must have a Linear layer, a convolution, an embedding, a recurrent layer or attention. Got "
            f"{type(model).__name__}{SCRIPTED if isinstance(model, torch.jit.ScriptModule) else ''}."
        )
    return found


def weight_titles(name: str, module: nn.Module) -> dict[str, str]:
    """Return the names of the tensors that compression transforms in a module by what `weights` calls them."""
    tensors = _weighted_tensors(module)
    return {name if tensor == "weight" else f"{name}.{tensor}".lstrip("."): tensor for tensor in tensors}


def _weighted_tensors(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, RECURRENT):
        kinds = ("ih", "hh", "hr") if module.proj_size else ("ih", "hh")
        return tuple(f"weight_{kind}_{layer}" for layer in recurrent_layers(module) for kind in kinds)
    if isinstance(module, CELLS):
        return "weight_ih", "weight_hh"
    if isinstance(module, nn.MultiheadAttention):
        together = module.kdim == module.vdim == module.embed_dim
        return ("in_proj_weight",) if together else ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    return ("weight",) if isinstance(module, WEIGHTED) else ()


def recurrent_layers(module: nn.RNNBase) -> list[str]:
    """Return what the names of the tensors end in, for each layer and direction: ["l0", "l0_reverse", "l1", …]."""
    ways = ("", "_reverse") if module.bidirectional else ("",)
    return [f"l{layer}{way}" for layer in range(module.num_layers) for way in ways]


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in the place of another, in place and under each of its names."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            model.set_submodule(name, new)


def identity(module: nn.Module, name: str) -> tuple[int, ...]:
    """Return what two modules share that have one weight: the tensor and its parametrizations."""
    if not parametrize.is_parametrized(module, name):
        return (id(getattr(module, name)),)
    chain = module.parametrizations[name]
    parts = *chain._modules.values(), *chain._parameters.values(), *chain._buffers.values()
    return tuple(map(id, parts))


def _check_weight(title: str, module: nn.Module, name: str) -> None:
    """Raise a ParameterError unless a weight is a dense parameter, or has parametrizations."""
    if parametrize.is_parametrized(module, name):
        return
    weight = getattr(module, name)
    if not isinstance(weight, nn.Parameter):
        remedy = " Call make_permanent(model) first." if any(map(removal, module._forward_pre_hooks.values())) else ""
        raise ParameterError(
            f"the weight of layer {title!r} must be a parameter. Got one that is computed from others.{remedy}"
        )
    if weight.layout != torch.strided:
        raise ParameterError(f"the weight of layer {title!r} must be dense. Got {weight.layout}. Use its to_dense().")
    if has_own_mode(module) and changes_with_mode(module, name):
        raise ParameterError(
            f"the weight of layer {title!r} must be the same in training and in evaluation. Got one that its train() "
            "and eval() change, as LoRA does: put the merged weight into an ordinary layer first."
        )


def removal(hook: Any) -> tuple[Callable[..., nn.Module], str] | None:
    """Return what settles a tensor that torch computes by a hook before each pass, and its name."""
    if isinstance(hook, prune.BasePruningMethod):
        return prune.remove, hook._tensor_name
    return next(((remove, hook.name) for kind, remove in NORMALIZERS.items() if isinstance(hook, kind)), None)


def warn_of_whole_weights(model: nn.Module) -> None:
    """Warn of the weights that compression can't transform, such as a table of positions, each with its kind.

    Call it where weights are pruned or quantized. Normalization layers, biases and other vectors are not named.
    """
    whole = [
        f"{name}.{tensor} ({parametrize.type_before_parametrizations(module).__name__})".removeprefix(".")
        for name, module in model.named_modules()
        if not isinstance(module, (nn.LayerNorm, parametrize.ParametrizationList))
        for tensor, parameter in module.named_parameters(recurse=False)
        if tensor not in _weighted_tensors(module) and sum(size > 1 for size in parameter.shape) > 1
    ]
    if whole:
        warnings.warn(
            f"{called_function()}(): {', '.join(whole)} stay whole: only the weights of Linear layers, convolutions, "
            "embeddings, recurrent layers and attention are pruned and quantized.",
            stacklevel=5,  # in the learner's code: quantize_weights, set_quantizers and what wraps it lie between
        )


def weighted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that `weights` are of, by name; raise a ParameterError where there is none."""
    _all_weights(model)
    return {name: module for name, module in model.named_modules() if _weighted_tensors(module)}


def sequential_steps(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield what is in a Sequential, by name, in the order in which it is run; another module is one step."""
    if type(module) is not nn.Sequential:
        yield name or "model", module
    else:
        for key, child in module._modules.items():  # named_children() would leave out a module's second place
            yield from sequential_steps(child, f"{name}.{key}".lstrip("."))


def describe(layer: nn.Module) -> str:
    """Return a layer's kind and, of the known ones, size: "Linear 784-300", "Conv2d 16-32, 3×3", "LSTM 28-128"."""
    name = next((kind.__name__ for kind in WEIGHTED if isinstance(layer, kind)), "")
    if isinstance(layer, nn.Linear):
        return f"Linear {layer.in_features}-{layer.out_features}"
    if isinstance(layer, EMBEDDINGS):
        return f"{name} {layer.num_embeddings}-{layer.embedding_dim}"
    if isinstance(layer, CONVOLUTIONS):
        window, groups = "×".join(map(str, layer.kernel_size)), f", {layer.groups} groups" * (layer.groups > 1)
        return f"{name} {layer.in_channels}-{layer.out_channels}, {window}{groups}"
    if isinstance(layer, (*RECURRENT, *CELLS)):
        return f"{name} {layer.input_size}-{layer.hidden_size}"
    if isinstance(layer, nn.MultiheadAttention):
        return f"{name} {layer.embed_dim}, {layer.num_heads} heads"
    return parametrize.type_before_parametrizations(layer).__name__


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all tensors of a model by their names in its state dict, one that several names share by the first.

    Raises a ParameterError for state that is no tensor.
    """
    check_model(model)
    state, shared = model.state_dict(), tied_names(model)
    sparse = [name for name, value in state.items() if isinstance(value, Tensor) and value.layout != torch.strided]
    if others := other_state(model) + sparse:
        raise ParameterError(
            f"'model' must keep its state in dense tensors. Got {', '.join(others)}, which no safe file holds: take "
            "torch.save(model.state_dict(), path)."
        )
    return {name: tensor for name, tensor in state.items() if name not in shared}


def other_state(model: nn.Module) -> list[str]:
    """Return the names in a model's state dict of what is no tensor."""
    return [name for name, value in model.state_dict().items() if not isinstance(value, Tensor)]


def tied_names(model: nn.Module) -> dict[str, str]:
    """Return the names of tensors that have an earlier name in the state dict as well, with that name."""
    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)  # the tensors themselves, not views of them
    return {name: earlier for name, value in state.items() if (earlier := first.setdefault(id(value), name)) != name}
