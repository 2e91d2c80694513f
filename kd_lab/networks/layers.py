"""Find the layers and weights of any network, run it, and make permanent what its parametrizations give.

Masks, fake quantization, binary weights and codebooks are parametrizations (torch.nn.utils.parametrize): the layer
keeps the original weight, which training changes, and computes the one that it uses from it, so they compose and hold
whatever the optimizer does.
"""

import copy
import inspect
import itertools
import operator
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from numbers import Real
from pathlib import Path
from types import CellType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from kd_lab.errors import ParameterError, called_function, reason

BATCH_SIZE = 125  # images in a forward pass: many more no longer fit the processor's cache
TOLERANCE = 1e-3  # of the largest logit: what rounding may change when a network is rewritten
SCRIPTED = ", which torch.jit made: give the network that it was made of"
MNIST_IMAGE = 1, 28, 28  # what a network is shown where no images of its own are given
TRANSPOSED = nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d  # whose weights are (inputs, outputs, …)
CONVOLUTIONS = nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED
EMBEDDINGS = nn.Embedding, nn.EmbeddingBag
NORMALIZERS = {WeightNorm: remove_weight_norm, SpectralNorm: remove_spectral_norm}  # hooks, before parametrizations
# the tensors of each kind of module that compression transforms
WEIGHTED: dict[type[nn.Module], tuple[str, ...]] = dict.fromkeys((nn.Linear, *CONVOLUTIONS, *EMBEDDINGS), ("weight",))


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
    """Return what compression transforms: weights of Linear layers, convolutions and embeddings, by the layer's name.

    A module's weight that is not called "weight" has its own name behind it; one that several layers share has the name
    of the first. Raises a ParameterError where there is none.
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
        name if tensor == "weight" else f"{name}.{tensor}": Weight(module, tensor)
        for name, module in model.named_modules()
        for tensor in _weighted_tensors(module)
    }
    for title, weight in found.items():
        _check_weight(title, weight.module, weight.name)
    if not found:
        raise ParameterError(
            "'model' must have a Linear or Conv2d layer, another convolution or an embedding. Got "
            f"{type(model).__name__}{SCRIPTED if isinstance(model, torch.jit.ScriptModule) else ''}."
        )
    return found


def check_not_compiled(model: nn.Module) -> None:
    """Raise a ParameterError for a compiled network: it would run without the hooks that are added to it later."""
    if any("_orig_mod" in module._modules or module._compiled_call_impl for module in model.modules()):
        raise ParameterError(
            "'model' must be a network that is not compiled. Got one that is: give the network that torch.compile took "
            "(its _orig_mod), and compile what comes of it."
        )


def _weighted_tensors(module: nn.Module) -> tuple[str, ...]:
    if not isinstance(module, tuple(WEIGHTED)):  # which is quicker
        return ()
    return next(tensors for kind, tensors in WEIGHTED.items() if isinstance(module, kind))


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
        remedy = " Call make_permanent(model) first." if any(map(_removal, module._forward_pre_hooks.values())) else ""
        raise ParameterError(
            f"the weight of layer {title!r} must be a parameter. Got one that is computed from others.{remedy}"
        )
    if weight.layout != torch.strided:
        raise ParameterError(f"the weight of layer {title!r} must be dense. Got {weight.layout}. Use its to_dense().")
    if _has_own_mode(module) and _changes_with_mode(module, name):
        raise ParameterError(
            f"the weight of layer {title!r} must be the same in training and in evaluation. Got one that its train() "
            "and eval() change, as LoRA does: put the merged weight into an ordinary layer first."
        )


def _has_own_mode(module: nn.Module) -> bool:
    return type(module).train is not nn.Module.train or type(module).eval is not nn.Module.eval


def _changes_with_mode(module: nn.Module, name: str) -> bool:
    trained, judged = copied(module).train(), copied(module).eval()
    return not torch.equal(getattr(trained, name), getattr(judged, name))


def warn_of_whole_weights(model: nn.Module) -> None:
    """Warn of the weights that compression can't transform, such as those of an LSTM; it names them with their kinds.

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
            f"{called_function()}(): {', '.join(whole)} stay whole: only the weights of Linear layers, convolutions "
            "and embeddings are pruned and quantized.",
            stacklevel=5,  # in the learner's code: quantize_weights, set_quantizers and what wraps it lie between
        )


def weighted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the Linear layers, convolutions and embeddings by name; raise a ParameterError where there is none."""
    return {name: weight.module for name, weight in _all_weights(model).items()}


def describe(layer: nn.Module) -> str:
    """Return a layer's kind and, of the known ones, size: "Linear 784-300", "Conv2d 16-32, 3×3, 4 groups"."""
    name = next((kind.__name__ for kind in WEIGHTED if isinstance(layer, kind)), "")
    if isinstance(layer, nn.Linear):
        return f"Linear {layer.in_features}-{layer.out_features}"
    if isinstance(layer, EMBEDDINGS):
        return f"{name} {layer.num_embeddings}-{layer.embedding_dim}"
    if isinstance(layer, CONVOLUTIONS):
        window, groups = "×".join(map(str, layer.kernel_size)), f", {layer.groups} groups" * (layer.groups > 1)
        return f"{name} {layer.in_channels}-{layer.out_channels}, {window}{groups}"
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


def check_model(model: object) -> None:
    """Raise a ParameterError unless `model` is a network whose weights have values: lazy layers must have run once."""
    network = _network(model)
    held = [part for each in network.modules() for part in (*each._parameters.values(), *each._buffers.values())]
    if any(is_lazy(each) or each.is_meta for each in held if each is not None):
        named = itertools.chain(network.named_parameters(), network.named_buffers())
        empty = [name for name, each in named if is_lazy(each) or each.is_meta]
        raise ParameterError(
            f"the weights of 'model' must have values. Got {', '.join(empty)} without. Lazy layers get theirs when the "
            "model runs once: call predict(model, images[:2])."
        )


def _network(model: object) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    hints = {"str": " Did you mean load_trained(name)?", "tuple": " Did you mean model, history = train(…)?"}
    got = type(model).__name__
    swapped = " Did you swap two arguments?" if isinstance(model, (Tensor, Real, Path)) else ""
    raise ParameterError(f"'model' must be a network (an nn.Module). Got {got}.{hints.get(got, swapped)}")


def check_tensors(dimensions: int | None = None, dtype: torch.dtype | None = None, /, **tensors: Tensor) -> None:
    """Raise a ParameterError unless all are tensors of finite numbers, at least one, of these dimensions and dtype."""
    kind = (f"{dimensions} dimensions and of " if dimensions else "") + "finite numbers, at least one"
    kind += f", in {dtype}" if dtype else ""
    for name, tensor in tensors.items():
        fits = is_dense(tensor) and tensor.numel() and tensor.dtype != torch.bool
        fits = fits and tensor.dim() == (dimensions or tensor.dim()) and tensor.dtype == (dtype or tensor.dtype)
        if not fits or not torch.isfinite(tensor).all():
            got = f"{tensor.dtype}, {tuple(tensor.shape)}" if is_dense(tensor) else type(tensor).__name__
            got += ", with NaN or infinite ones" if fits else ""
            raise ParameterError(f"{name!r} must be a tensor of {kind}. Got {got}.{conversion_hint(tensor)}")


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
        return torch.randn(count, *MNIST_IMAGE, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    if not is_dense(images) or images.numel() == 0 or images.dim() == 0:
        got = f"shape {tuple(images.shape)}" if is_dense(images) else type(images).__name__
        raise ParameterError(
            f"'images' must be a tensor of one image or more, (N, …). Got {got}.{conversion_hint(images)}"
        )
    return images[:count]


def is_dense(tensor: Any) -> bool:
    """Return whether this is a tensor that has its numbers in memory, one beside the other."""
    strided = isinstance(tensor, Tensor) and tensor.layout == torch.strided
    return strided and not (tensor.is_nested or tensor.is_quantized or tensor.is_meta)


def conversion_hint(images: object) -> str:
    """Return for the end of an error what makes a dense tensor of an array, a list or a DataLoader, "" of others."""
    if isinstance(images, Tensor) and not is_dense(images):
        if images.is_meta:
            return ' It lies on the device "meta", without numbers.'
        kinds = images.is_nested, images.is_quantized, True
        return f" Give its {('to_padded_tensor(0)', 'dequantize()', 'to_dense()')[kinds.index(True)]}."
    if isinstance(images, nn.Module):
        return " Did you swap two arguments?"
    calls = {
        "ndarray": "torch.as_tensor(images, dtype=torch.float32)",
        "list": "torch.as_tensor(images, dtype=torch.float32), or of tensors torch.stack(images)",
        "DataLoader": "torch.cat([images for images, *_ in loader])",
        "Split": "its .images",
        "tuple": "its first part, the images, alone",
    }
    call = calls.get(type(images).__name__)
    return f" Give {call}." if call else ""


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits (N, classes), computed in evaluation mode and without gradients.

    Raises a ParameterError for images that the model can't read, and for answers that are not one tensor (N, …).
    """
    return torch.cat(list(predict_by_batch(model, images)))


@torch.no_grad()
def predict_by_batch(model: nn.Module, images: Tensor) -> Iterator[Tensor]:
    """Yield what `predict` returns, a batch of images at a time; the model is in evaluation mode until the last."""
    _network(model)
    if not is_dense(images):
        got = type(images).__name__
        raise ParameterError(f"'images' must be a tensor (N, 1, 28, 28). Got {got}.{conversion_hint(images)}")
    with evaluation_mode(model):
        with _reading(model, images):
            reader = computed_once(model) if len(images) > BATCH_SIZE else model
        writes = True  # a step in place would change the caller's images, so the first batch is a copy
        for batch in images.split(BATCH_SIZE):
            given = batch.clone() if writes else batch
            with _reading(model, images):
                answer = reader(given)
            writes = writes and (given.is_inference() or given._version > 0)
            yield _one_tensor(answer, batch)


@contextmanager
def _reading(model: nn.Module, images: Tensor):
    try:
        yield
    except Exception as error:
        raise ParameterError(_unreadable(model, images, error)) from error


def _one_tensor(answer: Any, batch: Tensor) -> Tensor:
    if is_dense(answer) and answer.shape[:1] == batch.shape[:1] and answer.is_floating_point():
        return answer
    got = f"shape {tuple(answer.shape)}" if is_dense(answer) else type(answer).__name__
    real = not isinstance(answer, Tensor) or answer.is_floating_point()
    got += "" if real else f" and {answer.dtype}, which are no real numbers"
    count = len(batch)
    raise ParameterError(f"the model must answer {count} images with a tensor ({count}, …). Got {got}.")


def _unreadable(model: nn.Module, images: Tensor, error: Exception) -> str:
    """Return the sentence for images that a model can't read: theirs, what would help, and the model's own error."""
    found, read = (tuple(images.shape[1:]), images.dtype), (MNIST_IMAGE, torch.float32)
    kit = f"; the kit's networks take {read[0]} and {read[1]}, as load_mnist() gives" if found != read else ""
    known = isinstance(error, (RuntimeError, ValueError, TypeError, IndexError))
    said = reason(error) if known else f"{type(error).__name__}: {error}"
    return (
        f"the model can't read images of shape {found[0]} and {found[1]}{kit}. {_remedy(model, images)}"
        f"The layer said: {said}"
    )


def own_reason(error: Exception) -> str:
    """Return what a learner's own layer said, which `predict` keeps as the cause of its error."""
    return reason(error.__cause__ if isinstance(error.__cause__, Exception) else error)


def _remedy(model: nn.Module, images: Tensor) -> str:
    """Return the sentence that says how the model would read these images, "" where nothing known helps."""
    dtype = next((parameter.dtype for parameter in model.parameters()), images.dtype)
    bytes_ = images.dtype == torch.uint8 and dtype == torch.float32
    converted = "Give images / 255. " if bytes_ else f"Give images.to({dtype}). " * (dtype != images.dtype)
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        converted: lambda few: few.to(dtype),
        "Put nn.Flatten() in front of its layers. ": lambda few: few.flatten(1),
        "Give images.unsqueeze(1), which have a channel. ": lambda few: few.unsqueeze(1),
    }
    try:
        inspect.signature(model.forward).bind(images)
    except TypeError:
        return "Its forward must take one argument, the images. "
    for sentence, change in changes.items():
        with suppress(Exception):
            model(change(images[:2].clone()))
            return sentence
    others = (
        "A network that reads others needs some of its own, as 'images' or 'data'. "  # else it was tried with these
    )
    return others * (images.shape[1:] == MNIST_IMAGE)


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
    check_not_compiled(model)
    modules, calls = {model.get_submodule(name): name for name in names}, defaultdict(list)
    taken: dict[nn.Module, tuple] = {}

    def take(module: nn.Module, inputs: tuple, named: dict) -> None:
        taken[module] = _own((*inputs, *named.values()))

    def note(module: nn.Module, inputs: tuple, named: dict, output: Any) -> None:
        calls[modules[module]].append(_own(keep(taken.pop(module, (*inputs, *named.values())), output)))

    with ExitStack() as hooks:
        for module in modules:
            if parametrize.type_before_parametrizations(module) not in WEIGHTED:  # it may change what it takes in place
                hooks.enter_context(module.register_forward_pre_hook(take, with_kwargs=True))
            hooks.enter_context(module.register_forward_hook(note, with_kwargs=True))
        predict(model, images)
    return calls


def _own(kept: Any) -> Any:
    """Return a copy of the tensors in nested tuples, lists and dicts: what comes next may change them in place."""
    if isinstance(kept, dict):
        return {key: _own(value) for key, value in kept.items()}
    if isinstance(kept, (tuple, list)):
        return [_own(part) for part in kept] if isinstance(kept, list) else tuple(map(_own, kept))
    return kept.clone() if isinstance(kept, Tensor) else kept


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
        # its own may do more than to set the flag, for all that is inside it
        if _has_own_mode(module) and module.training is not training:
            module.train() if training else module.eval()
    for module, training in modes.items():
        if module.training is not training:  # model.eval() would take a while to set what is set already
            module.training = training


@torch.inference_mode(False)  # whose tensors could never be trained
def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy of a model; what it keeps of its last run comes without history, and a lock is shared.

    Raises a ParameterError for a model that can't be copied.
    """
    check_model(model)
    held = [each for module in model.modules() for each in _leaves(vars(module))]
    memo = {id(each): each.detach().clone() for each in held if isinstance(each, Tensor) and not each.is_leaf}
    try:
        made = copy.deepcopy(model, copies := dict(memo))
    except Exception:  # noqa: BLE001 whatever a learner's class raises; most often it holds a lock or an open file
        copies = memo | {id(each): each for each in held if not _copies(each)}
        made = _with_shared(model, copies)
    for module in made.modules():
        _rebind(vars(module), copies)
    return made


def _rebind(kept: Any, copies: dict[int, Any]) -> None:
    """Let the functions that a copy keeps, its hooks among them, run its own modules: a deep copy shares functions."""
    for key, value in list(kept.items() if isinstance(kept, dict) else enumerate(kept)):
        if isinstance(value, FunctionType):
            kept[key] = _rebound(value, copies)
        elif isinstance(value, (dict, list)):
            _rebind(value, copies)


def _rebound(kept: FunctionType, copies: dict[int, Any]) -> FunctionType:
    """Return a function with the copies of the modules and tensors in its closure and its defaults, itself if none."""
    cells, defaults = kept.__closure__ or (), kept.__defaults__ or ()
    own_cells = tuple(_own_cell(cell, copies) for cell in cells)
    own_defaults = tuple(_own_part(each, copies) for each in defaults)
    if all(one is other for one, other in zip(cells + defaults, own_cells + own_defaults, strict=True)):
        return kept
    made = FunctionType(kept.__code__, kept.__globals__, kept.__name__, own_defaults, own_cells or None)
    made.__kwdefaults__ = kept.__kwdefaults__
    return made


def _own_cell(cell: CellType, copies: dict[int, Any]) -> CellType:
    with suppress(ValueError):  # an empty one
        own = _own_part(cell.cell_contents, copies)
        return cell if own is cell.cell_contents else CellType(own)
    return cell


def _own_part(part: Any, copies: dict[int, Any]) -> Any:
    return copies.get(id(part), part) if isinstance(part, (nn.Module, Tensor)) else part


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


@torch.inference_mode(False)
def make_permanent(model: nn.Module) -> nn.Module:
    """Return a new, ordinary model whose weights are those that the parametrizations give in evaluation mode.

    So are those of torch.nn.utils.prune, and of the weight_norm and spectral_norm that torch had before it had
    parametrizations.
    """
    check_model(model)
    plain = copied(model)
    settled: dict[tuple, nn.Parameter] = {}  # tied weights stay one
    with evaluation_mode(plain):
        for module in list(plain.modules()):
            if parametrize.is_parametrized(module):
                _settle(module, settled)
            for hook in list(module._forward_pre_hooks.values()):
                if found := _removal(hook):
                    remove, name = found
                    remove(module, name)
    return plain


def _removal(hook: Any) -> tuple[Callable[..., nn.Module], str] | None:
    """Return what settles a tensor that torch computes by a hook before each pass, and its name."""
    if isinstance(hook, prune.BasePruningMethod):
        return prune.remove, hook._tensor_name
    return next(((remove, hook.name) for kind, remove in NORMALIZERS.items() if isinstance(hook, kind)), None)


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


def _settle(module: nn.Module, settled: dict[tuple, nn.Parameter]) -> None:
    # parametrize.remove_parametrizations would take `weight` from the class, which a copy shares with its model
    found = {name: _settled(module, name, settled) for name in module.parametrizations}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, parameter in found.items():
        module.register_parameter(name, parameter)


def _settled(module: nn.Module, name: str, settled: dict[tuple, nn.Parameter]) -> nn.Parameter:
    """Return the value of a parametrized weight, the same parameter for modules that share it."""
    key = identity(module, name)
    if key not in settled:
        settled[key] = nn.Parameter(getattr(module, name).detach(), Weight(module, name).trained)
    return settled[key]


@torch.inference_mode(False)
def without(model: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """Return a new model in which no weight has a parametrization of this kind; those of other kinds stay."""
    lifted = copied(model)
    parametrized = [module for module in lifted.modules() if parametrize.is_parametrized(module)]
    settled: dict[tuple, nn.Parameter] = {}
    placeholder = nn.Identity()  # one for all: tied weights have the same parametrizations
    for module in parametrized:
        chains = module.parametrizations.values()
        for chain in chains:
            others = [each for each in chain if not isinstance(each, kind)]
            if len(others) < len(chain):
                del chain[:]
                chain.extend(others or [placeholder])
        # one that has another weight with parametrizations keeps the Identity
        if all(isinstance(each, nn.Identity) for chain in chains for each in chain):
            _settle(module, settled)
    return lifted
