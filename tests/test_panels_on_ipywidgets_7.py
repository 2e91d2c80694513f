"""The panels pass their tests on the ipywidgets that Colab has as on the one of today."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Words in the names of tests that a version of ipywidgets can change: of what every panel has of its own …
WIDGETS = "(widget and not cell_that_is_run) or slider or set_checks or screen_reader"
# … and of what all have from Panel, so one is enough. Other tests measure.
ALIKE = "button or cell_that_is_run or closing or is_shown or keeps_its_size or storm"
SHARED = f"(test_panel.py or test_pruning_panel.py) and ({ALIKE})"
BESIDE = ROOT / ".venv" / "ipywidgets7"  # `make setup` puts it there; ahead on the path, it hides the other


@pytest.mark.slow
def test_panels_on_ipywidgets_7():
    environment = os.environ | {"PYTHONPATH": str(BESIDE)}
    version = subprocess.run(
        [sys.executable, "-c", "import ipywidgets; print(ipywidgets.__version__)"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert version.stdout == "7.7.1\n", version.stderr
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        f"{WIDGETS} or {SHARED}",
        "tests/panels",
    ]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
