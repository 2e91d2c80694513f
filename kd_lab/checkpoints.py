"""Load a trained network that ships or is in the cache, or train it once."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lab.data import REPOSITORY_DATA, Mnist, load_mnist
from kd_lab.errors import DamagedFileError, StorageError, TrainingError, check_choice, check_whole_number
from kd_lab.evaluation import accuracy
from kd_lab.formats.network_file import load_network
from kd_lab.networks.predictions import predict
from kd_lab.networks.zoo import MODELS, build_model
from kd_lab.pretraining import pretrain
from kd_lab.storage import cache_folder, cache_key, load_tensors, lock, save_tensors, set_aside
from kd_lab.training import FINISHED, History, train

_IN_PACKAGE = Path(__file__).parent / "shipped"  # where a wheel has them
SHIPPED = _IN_PACKAGE if _IN_PACKAGE.is_dir() else REPOSITORY_DATA / "checkpoints"
HINTON_LOGITS = SHIPPED / "hinton_logits.safetensors"
SEED = 0


RECIPES: dict[str, dict[str, Any]] = {  # the settings of `train` that made each network, chosen on the validation part
    "mlp128": {"epochs": 20, "learning_rate": 5e-3, "weight_decay": 0.2, "batch_size": 128},
    "lenet300": {"epochs": 30, "learning_rate": 3e-3, "weight_decay": 0.2, "batch_size": 128},
    "cnn": {"epochs": 10, "learning_rate": 5e-3, "weight_decay": 0.1, "batch_size": 64},
    "lenet5": {"epochs": 10, "learning_rate": 3e-3, "weight_decay": 0.1, "batch_size": 128},
    "lenet5_classic": {"epochs": 10, "learning_rate": 5e-3, "weight_decay": 0.1, "batch_size": 128},
    "resnet": {"epochs": 8, "learning_rate": 1e-2, "weight_decay": 0.1, "batch_size": 128},
    "lstm": {"epochs": 12, "learning_rate": 5e-3, "weight_decay": 0.1, "batch_size": 128},
    "vit": {"epochs": 12, "learning_rate": 2e-3, "weight_decay": 0.1, "batch_size": 128},
}

PRETRAINING: dict[str, Any] = {"task": "contrastive", "epochs": 5, "learning_rate": 3e-3, "batch_size": 256}
CURVE_POINTS = 20  # of the curve that a training draws
STUDENT_RECIPES = {
    1000: (128, 500, 1e-2),
    5000: (64, 300, 2e-2),
    20_000: (128, 1000, 2e-2),
    float("inf"): (256, 1080, 2e-2),
}  # of a student, by the most images


def load_trained(name: str, seed: int = SEED) -> nn.Module:
    """Return the trained network of this name in evaluation mode, a new one at each call.

    Loads the checkpoint that ships with the kit (seed 0) or one made before; else trains it, which takes a minute or a
    few, while other processes that want the same one wait. A damaged file is set aside and named in a DamagedFileError.
    """
    check_choice("name", name, list(RECIPES))
    return _loaded(name, seed, name, RECIPES[name], make_checkpoint)


def load_pretrained(name: str = "cnn", seed: int = SEED) -> nn.Module:
    """Return the network of this name, pre-trained on the training images alone, in evaluation mode.

    It has seen no label: its last layer has initial weights, and is to be trained. Loads or pre-trains it as
    `load_trained` does; that of seed 0 ships for the cnn.
    """
    check_choice("name", name, list(MODELS))
    return _loaded(name, seed, f"{name}_pretrained", PRETRAINING, make_pretrained)


def _loaded(name: str, seed: int, file: str, recipe: dict, make: Callable[[Path, str, Mnist, int], None]) -> nn.Module:
    """Return the network of a file that ships or was made before; else make it, unless another process has done so."""
    seed = check_whole_number("seed", seed, "[0, 1000000]")
    shipped = SHIPPED / f"{file}.safetensors"
    path = shipped if seed == SEED and shipped.exists() else cached_path(name, seed, file, recipe)
    if not path.exists():
        with lock(path):
            if not path.exists():
                print(f"Training {file} by its recipe, since no checkpoint of it is here.")
                make(path, name, load_mnist(), seed)
    try:
        model = load_network(path)
    except DamagedFileError as error:
        aside = set_aside(path)
        where = f"It was set aside as {aside.name}." if aside else "Delete it."
        raise DamagedFileError(f"{error} {where} Run this again to train {file} afresh.") from error
    if model.architecture != name:
        raise StorageError(f"{path} holds a {model.architecture}, not a {name}.")
    return model


def cached_path(name: str, seed: int, file: str = "", recipe: dict | None = None) -> Path:
    """Return where a network that was trained here is kept; another recipe or seed means another file.

    The key leaves out the layers' names, as version 0.1 had none: what it has trained is still found.
    """
    settings = {"model": str(_unnamed(build_model(name, seed))), "recipe": recipe or RECIPES[name], "seed": seed}
    return cache_folder() / "checkpoints" / f"{file or name}-{cache_key(settings)}.safetensors"


def _unnamed(module: nn.Module) -> nn.Module:
    """Return the module, changed in place, with the layers of every Sequential named by their places."""
    for name, child in module.named_children():
        setattr(module, name, _unnamed(child))
    return nn.Sequential(*module) if isinstance(module, nn.Sequential) else module


def make_checkpoint(path: Path, name: str, data: Mnist, seed: int) -> None:
    """Train a network by its recipe and save it with recipe, seed and scores.

    Reads the test part after training, for the score and to see that half precision changes no answer.
    """
    recipe, model = RECIPES[name], build_model(name, seed)
    model, history = train(model, data.train, F.cross_entropy, validation=data.validation, seed=seed, **recipe)
    _check_finished(history, name, seed)
    kept = _halve_if_same(model, torch.cat([data.validation.images, data.test.images]))
    scores = {part: accuracy(model, getattr(data, part)).correct for part in ("validation", "test")}
    metadata = {"architecture": name, "recipe": recipe, "seed": seed, "correct": scores}
    save_tensors(path, kept, {**metadata, "best_epoch": history.best_epoch, "torch": torch.__version__})


def _check_finished(history: History, name: str, seed: int) -> None:
    if history.stopped == "interrupted":
        raise KeyboardInterrupt  # a network that was not trained to the end must not be kept under this name
    if history.stopped != FINISHED:
        raise TrainingError(f"{name} from seed {seed} {history.stopped}, so it was not saved.")


def make_pretrained(path: Path, name: str, data: Mnist, seed: int) -> None:
    """Pre-train a network on the training images alone and save it, in half precision, with recipe and seed."""
    images, validation = data.train.images, data.validation.images
    model, history = pretrain(build_model(name, seed), images, validation=validation, seed=seed, **PRETRAINING)
    _check_finished(history, name, seed)
    metadata = {"architecture": name, "recipe": PRETRAINING, "seed": seed, "torch": torch.__version__}
    save_tensors(path, model.half().state_dict(), metadata)


def _halve_if_same(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return the model's tensors in half precision if it reads all of these images the same way, else as they are."""
    halved, rounded = copy.deepcopy(model).half().state_dict(), copy.deepcopy(model)
    rounded.load_state_dict(halved)
    same = torch.equal(predict(rounded, images).argmax(1), predict(model, images).argmax(1))
    return halved if same else model.state_dict()


class KeptLogits(NamedTuple):
    """A teacher's logits for the training (55,000, 10) and the validation images (5,000, 10), in their order."""

    train: Tensor
    validation: Tensor


def load_hinton_logits() -> KeptLogits:
    """Return the kept logits of a 784-1200-1200-10 teacher as in Hinton et al. 2015, which is too large to ship.

    `python -m benchmarks hinton --rerun` trains it, on the 55,000 alone; half precision, so good to a thousandth.
    """
    tensors, _ = load_tensors(HINTON_LOGITS)
    return KeptLogits(tensors["train"].float(), tensors["validation"].float())


def student_recipe(images: int) -> dict[str, float]:
    """Return the settings of `train` and `train_live` for a small student that learns from this number of images.

    Its "epochs" are the points of a curve, of which the one with the smallest validation loss is kept. Chosen on the
    validation part, at 30 hidden units, by the students that learn from labels alone.
    """
    check_whole_number("images", images, "[1, 1e9]")
    batch_size, steps, learning_rate = next(recipe for most, recipe in STUDENT_RECIPES.items() if images <= most)
    length = {"epochs": CURVE_POINTS, "steps_per_epoch": steps // CURVE_POINTS}
    return {**length, "batch_size": batch_size, "learning_rate": learning_rate}


def main() -> None:
    """Train the networks that ship again: python -m kd_lab.checkpoints."""
    data = load_mnist()
    for name in RECIPES:
        print(name)
        make_checkpoint(REPOSITORY_DATA / "checkpoints" / f"{name}.safetensors", name, data, SEED)
    make_pretrained(REPOSITORY_DATA / "checkpoints" / "cnn_pretrained.safetensors", "cnn", data, SEED)


if __name__ == "__main__":
    main()
