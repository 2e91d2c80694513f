"""Read what a long campaign measured: results/NAME.json, which its benchmark wrote."""

import json
from pathlib import Path
from typing import Any

from kd_lab.errors import check_choice

_IN_PACKAGE = Path(__file__).parent / "recorded"  # where a wheel has them
RESULTS = _IN_PACKAGE if _IN_PACKAGE.is_dir() else Path(__file__).resolve().parents[1] / "results"


def load_results(name: str) -> dict[str, Any]:
    """Return the record of a campaign by its name, that of the benchmark: `python -m benchmarks NAME` makes it anew."""
    check_choice("name", name, sorted(path.stem for path in RESULTS.glob("*.json")))
    return json.loads((RESULTS / f"{name}.json").read_text())
