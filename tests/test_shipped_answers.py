"""All shipped networks and recorded .kdz files answer as in version 0.1, on every validation and test image."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from kd_lab.checkpoints import load_trained
from kd_lab.formats import load_packed
from kd_lab.networks import MODELS, predict
from kd_lab.results import RESULTS

ANSWERS = json.loads(Path(__file__).with_name("shipped_answers.json").read_text())
FILES = sorted((RESULTS / "deep_compression").glob("*.kdz"))
FEW = FILES[:: len(FILES) // 2]
SLOW = "lenet5", "lenet5_classic", "resnet"


@pytest.fixture(scope="module")
def images(mnist):
    return torch.cat([mnist.validation.images, mnist.test.images])


def digest(model, images):
    """Return the SHA-256 of the digits that a network reads, which is the same on every machine."""
    return hashlib.sha256(predict(model, images).argmax(1).to(torch.uint8).numpy().tobytes()).hexdigest()


def test_every_network_and_every_file_is_recorded():
    assert set(ANSWERS) == {*MODELS, *(path.name for path in FILES)}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MODELS])
def test_a_shipped_network_answers_as_it_did(name, images):
    assert digest(load_trained(name), images) == ANSWERS[name]


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.name, marks=[] if path in FEW else pytest.mark.slow) for path in FILES]
)
def test_a_recorded_file_answers_as_it_did(path, images):
    assert digest(load_packed(path), images) == ANSWERS[path.name]
