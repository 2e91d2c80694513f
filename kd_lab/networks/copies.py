"""Copy any network, with what it keeps of its last run and the functions that run its modules."""

import copy
from collections.abc import Iterator
from contextlib import suppress
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from kd_lab.errors import saying
from kd_lab.networks.checks import check_model


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
        with saying("'model' must be one that can be copied"):
            made = copy.deepcopy(model, copies)
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
