"""Run one benchmark: python -m benchmarks NAME. The last line printed is one JSON object with every figure.

An option, such as --rerun or --tests, is a parameter of the benchmark's run(). --rerun makes a record again, in as many
processes as there are cores or in --workers N, or on the Dask cluster at --dask ADDRESS; what was killed goes on.
"""

import importlib
import inspect
import json
import pkgutil
import sys

import benchmarks
from kd_lab.errors import KdLabError, ParameterError, check_choice, check_whole_number, reason

NAMES = sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__) if not module.name.startswith("_"))


def main(arguments: list[str]) -> None:
    """Run the benchmark that the command line names."""
    name, *options = arguments or [None]
    check_choice("NAME", name, NAMES)
    run = importlib.import_module(f"benchmarks.{name}").run
    kinds = {f"--{each.name}": each.annotation for each in inspect.signature(run).parameters.values()}
    given = read_options(options, kinds, name)
    if given.keys() & {"--workers", "--dask"} and not given.get("--rerun"):
        raise ParameterError("--workers and --dask say where --rerun runs. Give it, too.")
    if given.keys() >= {"--workers", "--dask"}:
        raise ParameterError("--workers are processes of this machine, and --dask is a cluster. Give one of them.")
    flags = {option: False for option, kind in kinds.items() if kind is bool}
    print(json.dumps(run(**{option[2:]: value for option, value in (flags | given).items()})))


def read_options(options: list[str], kinds: dict[str, type], name: str) -> dict[str, object]:
    """Return the values of options, --name, --name VALUE or --name=VALUE, by their names."""
    given, left = {}, list(options)
    while left:
        option, assigned, value = left.pop(0).partition("=")
        if option not in kinds or (assigned and kinds[option] is bool):
            raise ParameterError(f"{option}{assigned}{value} is not known to {name}.")
        if kinds[option] is bool:
            given[option] = True
            continue
        value = value if assigned else left.pop(0) if left else ""
        if not value or value.startswith("--"):
            raise ParameterError(f"{option} needs a value.")
        given[option] = value if kinds[option] == str | None else whole_number(option, value)
    return given


def whole_number(option: str, text: str) -> int:
    """Return the number of workers, or of anything else, that a text says."""
    return check_whole_number(option, int(text) if text.isdecimal() else text, "[1, 1000]")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KdLabError as error:
        sys.exit(f"python -m benchmarks: {reason(error)}")
