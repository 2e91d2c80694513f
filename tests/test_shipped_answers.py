"""All shipped networks and recorded .kdz files answer as in version 0.1, on every validation and test image.

The networks score what their files say, too. A lenet5 reads the images ten times as long as its file is read, so the
first file of each of its recipes answers; the others give the same weights to the bit, whose answers were the same.
"""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from kd_lab.checkpoints import RECIPES, SHIPPED, load_trained
from kd_lab.formats import load_packed
from kd_lab.networks import MODELS, predict
from kd_lab.results import RESULTS
from kd_lab.storage import load_tensors

ANSWERS, WEIGHTS = (
    json.loads(Path(__file__).with_name(f"shipped_{name}.json").read_text()) for name in ("answers", "weights")
)
FILES = sorted((RESULTS / "deep_compression").glob("*.kdz"))
FEW = FILES[:: len(FILES) // 2]
SLOW = "lenet5", "lenet5_classic", "resnet", "vit"
LATER = {"lstm", "vit"}  # than version 0.1


@pytest.fixture(scope="module")
def images(mnist):
    return torch.cat([mnist.validation.images, mnist.test.images])


def digits(model, images):
    """Return the digits that a network reads."""
    return predict(model, images).argmax(1).to(torch.uint8)


def digest(*tensors):
    """Return the SHA-256 of tensors, which is the same on every machine."""
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


def test_every_network_and_every_file_is_recorded():
    assert sorted([*ANSWERS, *WEIGHTS]) == sorted([*MODELS.keys() - LATER, *(path.name for path in FILES)])


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MODELS])
def test_a_shipped_network_answers_as_it_did_and_scores_what_its_file_says(name, images, mnist):
    found = digits(load_trained(name), images)
    assert name in LATER or digest(found) == ANSWERS[name]
    _, metadata = load_tensors(SHIPPED / f"{name}.safetensors")
    assert metadata["recipe"] == RECIPES[name] and metadata["seed"] == 0 and metadata["architecture"] == name
    sizes = [len(mnist.validation.labels), len(mnist.test.labels)]
    for part, read in zip(("validation", "test"), found.split(sizes), strict=True):
        correct = int((read == getattr(mnist, part).labels).sum())
        assert abs(correct - metadata["correct"][part]) <= 2  # another processor may round a borderline digit otherwise


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.name, marks=[] if path in FEW else pytest.mark.slow) for path in FILES]
)
def test_a_recorded_file_answers_as_it_did(path, images):
    model = load_packed(path)
    if path.name in WEIGHTS:
        assert digest(*model.state_dict().values()) == WEIGHTS[path.name]
    else:
        assert digest(digits(model, images)) == ANSWERS[path.name]
