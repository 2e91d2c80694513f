"""The start-up check says what to do about an old torch, a missing GPU and little shared memory."""

import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from kd_lab import environment
from kd_lab.errors import SetupError


@pytest.mark.parametrize("installed", ["1.13.1", "2.9.1+cpu", "2.2.0"])
def test_an_old_torch_is_refused(monkeypatch, installed):
    monkeypatch.setattr(environment, "version", lambda name: installed)
    with pytest.raises(SetupError, match=rf"needs torch 2\.10 or newer\. Got {installed[:3]}.*pip install --upgrade"):
        environment.check_torch()


@pytest.mark.parametrize("installed", ["2.10.0", "2.11.0+cpu", "2.15.0+cu132", "3.0.0.dev1"])
def test_a_newer_torch_passes(monkeypatch, installed):
    monkeypatch.setattr(environment, "version", lambda name: installed)
    environment.check_torch()


def test_a_missing_torch_is_named(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(environment, "version", missing)
    with pytest.raises(SetupError, match="Got none"):
        environment.check_torch()


def test_importing_kd_lab_checks_torch_first():
    code = "import importlib.metadata as m; m.version = lambda name: '2.2.0'; import kd_lab"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("kd_lab.errors.SetupError: kd_lab needs torch 2.10 or newer")


def test_the_oldest_torch_is_the_one_in_pyproject():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert f"torch>={environment.OLDEST_TORCH}" in project["dependencies"]


def test_little_shared_memory_and_no_gpu_are_told(monkeypatch):
    monkeypatch.setattr(environment, "_shared_memory", lambda: 64_000_000)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    report = environment.check_environment()
    assert "No GPU, and none is needed" in report
    assert "/dev/shm has only 64 MB" in report and "num_workers=0" in report


@pytest.mark.parametrize("size", [None, 8_000_000_000])
def test_enough_shared_memory_is_not_mentioned(monkeypatch, size):
    monkeypatch.setattr(environment, "_shared_memory", lambda: size)
    assert "/dev/shm" not in environment.check_environment()


def test_kd_lab_runs_torch_on_one_thread():
    assert torch.get_num_threads() == 1
