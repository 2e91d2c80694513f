"""What the tests share: real data, small parts of it, and an empty home for whatever they make."""

from collections import deque

import matplotlib
import pytest
import torch
import torch.nn.functional as F
from digits import MNIST

from kd_lab.networks.zoo import small_student
from kd_lab.sweeps import work
from kd_lab.training import train

matplotlib.use("Agg")
# A process whose first gradients come after an export to ONNX can't be forked any more, and some tests fork.
torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    """Keep every test out of the user's cache folder, where the journal lies, too."""
    monkeypatch.setenv("KD_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KD_LAB_JOURNAL", raising=False)
    return tmp_path / "cache"


class InThisProcess:
    """What stands in for a sweep's processes: trials run here, one after another."""

    idle = True

    def __init__(self, payload, **_):
        self.payload, self.begun = payload, deque()

    def begin(self, key, trial):
        self.begun.append((key, trial))

    def answers(self):
        key, trial = self.begun.popleft()
        yield key, work.answer(self.payload, trial)

    def close(self):
        pass


@pytest.fixture
def in_this_process(monkeypatch):
    """Run the trials of sweeps in the test's own process, which starts at once."""
    monkeypatch.setattr("kd_lab.sweeps.trials.Processes", InThisProcess)


@pytest.fixture(scope="session")
def mnist():
    return MNIST


@pytest.fixture(scope="session")
def few(mnist):
    """2,000 training images, enough to learn something within a second."""
    return mnist.train[:2000]


@pytest.fixture(scope="session")
def validation(mnist):
    return mnist.validation[:1000]


@pytest.fixture(scope="session")
def student(few, validation):
    """A network that reads digits and is packed in a quarter of the time of the smallest that ships."""
    return train(small_student(32), few, F.cross_entropy, validation=validation, epochs=8, progress=False)[0].eval()


@pytest.fixture(params=["float64", "inference mode"])
def surroundings(request):
    """What may surround a learner's call: another default dtype, or inference mode."""
    if request.param == "inference mode":
        with torch.inference_mode():
            yield
        return
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
