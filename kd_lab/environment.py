"""Check what this machine has, and say what to do about what it lacks."""

import importlib
import os
import platform
import re
import shutil
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from kd_lab.errors import SetupError

OLDEST_TORCH = "2.10"
SMALL_SHARED_MEMORY = 256_000_000  # bytes; containers often give 64 MB, not enough for two workers' batches


def check_torch() -> None:
    """Raise a SetupError that says what to do where torch is missing or older than OLDEST_TORCH."""
    try:
        installed = version("torch")
    except PackageNotFoundError:
        installed = "none"
    if _release(installed) < _release(OLDEST_TORCH):
        raise SetupError(
            f"kd_lab needs torch {OLDEST_TORCH} or newer. Got {installed}. Run "
            "'pip install --upgrade torch torchvision' (both, together), then restart the kernel."
        )


def optional(module: str, *packages: str) -> ModuleType:
    """Return a module that not every learner has, or raise a SetupError that says which packages to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SetupError(f"{module} is not installed. Run: pip install {' '.join(packages)}") from error


def use_one_thread() -> None:
    """Run small networks on one thread: two beside a busy neighbour can be ten times slower."""
    import torch  # only here, since check_torch must be able to speak before torch is imported

    torch.set_num_threads(1)


def check_environment() -> str:
    """Return a few lines on Python, torch, the processor and shared memory, with what to do about what is lacking."""
    import torch

    versions = f"Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores."
    gpu = "A GPU is here; the lessons run on the CPU." if torch.cuda.is_available() else "No GPU, and none is needed."
    size = _shared_memory()
    if size is None or size >= SMALL_SHARED_MEMORY:
        return f"{versions}\n{gpu}"
    return (
        f"{versions}\n{gpu}\n/dev/shm has only {size / 1e6:.0f} MB: kd_lab doesn't use it, but a DataLoader of yours "
        "needs num_workers=0 here (or start the container with --shm-size=1g)."
    )


def _release(text: str) -> tuple[int, ...]:
    """Return (2, 10) for "2.10.0+cpu"; no number at all counts as the oldest."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


def _shared_memory() -> int | None:
    return shutil.disk_usage("/dev/shm").total if os.path.exists("/dev/shm") else None
