"""Run one trial in whatever process, and give what is kept of it as text: what it returned, or its error."""

import json
import socket
import sys
import time
import traceback
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from joblib.externals.loky.cloudpickle_wrapper import dumps, loads
from tqdm import tqdm

from kd_lab.environment import use_one_thread
from kd_lab.errors import ParameterError, SetupError, reason
from kd_lab.sweeps.settings import not_json


class Lost(str):
    """In place of the answer of a trial whose worker was lost: how it was."""


def say(text: str) -> None:
    """Print a line above the progress bar."""
    tqdm.write(text, file=sys.stdout)


def packed(function: Callable[..., Any]) -> bytes:
    """Return a function as bytes that another process can load."""
    try:
        return dumps(function)
    except Exception as error:  # of any kind, since it comes from what the function holds
        raise ParameterError(
            f"'function' can't be sent to another process: {reason(error)}. Let the function itself load or open it."
        ) from error


def answer(payload: bytes, trial: dict[str, Any]) -> str:
    """Run one trial of a function that was packed, and return what is kept of it, as JSON."""
    function = _loaded(payload)
    use_one_thread()
    start, result, error, text = time.perf_counter(), None, "", ""
    try:
        result = function(**trial)
        if where := not_json(result):
            result, error = None, f"What it returned can't be kept, since {where}: JSON has no such value"
    except (Exception, SystemExit) as raised:  # noqa: BLE001 of any kind: the other trials go on
        result, error, text = None, f"{type(raised).__name__}: {raised}", traceback.format_exc()
    seconds, host = round(time.perf_counter() - start, 4), socket.gethostname()
    return json.dumps({"result": result, "error": error, "traceback": text, "seconds": seconds, "host": host})


@lru_cache(maxsize=1)
def _loaded(payload: bytes) -> Callable[..., Any]:
    try:
        return loads(payload)
    except Exception as error:
        raise SetupError(
            f"The function can't be loaded on {socket.gethostname()}: {reason(error)}. Install there what it uses."
        ) from error
