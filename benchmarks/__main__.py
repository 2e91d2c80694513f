"""Run one benchmark: python -m benchmarks NAME. The last line printed is one JSON object with every figure.

Those that score a record, and take --rerun, make it anew with it.
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
    takes = {"rerun": "--rerun" in options} if "rerun" in inspect.signature(run).parameters else {}
    if options not in ([], ["--rerun"] * len(takes)):
        raise ParameterError(f"{' '.join(options)} is not known to {name}.")
    print(json.dumps(run(**takes)))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ParameterError as error:
        sys.exit(f"python -m benchmarks: {reason(error)}")
