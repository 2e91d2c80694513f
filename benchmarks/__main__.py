"""Run one benchmark: python -m benchmarks NAME. The last line printed is one JSON object with every figure."""

import importlib
import json
import pkgutil
import sys

import benchmarks
from kd_lab.errors import ParameterError, check_choice

NAMES = sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__) if not module.name.startswith("_"))


def main(arguments: list[str]) -> None:
    """Run the benchmark that the command line names."""
    check_choice("python -m benchmarks", "NAME", arguments[0] if len(arguments) == 1 else None, NAMES)
    figures = importlib.import_module(f"benchmarks.{arguments[0]}").run()
    print(json.dumps(figures))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ParameterError as error:
        sys.exit(str(error))
