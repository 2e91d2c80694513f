"""Run one benchmark: python -m benchmarks NAME. The last line printed is one JSON object with every figure.

An option, such as --rerun or --tests, is a parameter of the benchmark's run(). --rerun makes a record again.
"""

import importlib
import inspect
import json
import pkgutil
import sys

import benchmarks
from kd_lab.errors import ParameterError, check_choice, reason

NAMES = sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__) if not module.name.startswith("_"))


def main(arguments: list[str]) -> None:
    """Run the benchmark that the command line names."""
    name, *options = arguments or [None]
    check_choice("NAME", name, NAMES)
    run = importlib.import_module(f"benchmarks.{name}").run
    known = list(inspect.signature(run).parameters)
    if unknown := [option for option in options if option not in [f"--{each}" for each in known]]:
        raise ParameterError(f"{' '.join(unknown)} is not known to {name}.")
    print(json.dumps(run(**{each: f"--{each}" in options for each in known})))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ParameterError as error:
        sys.exit(f"python -m benchmarks: {reason(error)}")
