"""MNIST as tensors in memory: checked, and split once."""

import gzip
import math
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import pooch
import requests
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lab.errors import DataError, ParameterError, check_whole_number, described, reason
from kd_lab.storage import cache_folder, lock, set_aside, sweep_strays, writable, write_safely

REPOSITORY_DATA = Path(__file__).resolve().parents[1] / "data"
SHA256 = {  # of the unpacked files; torchvision itself checks only the archives
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MEAN, STD = 0.1307, 0.3081  # of the training pixels, as most MNIST tutorials round them
VALIDATION = 5_000  # images, as many of each digit
SPLIT_SEED = 0
CONNECT_TIMEOUT, READ_TIMEOUT = 3, 10  # seconds
OPTICAL_TEST, OPTICAL_VALIDATION = 500, 300  # of the 1,797 optical digits
BLACKEST_PIXEL = 16  # of the optical digits


class Split(NamedTuple):
    """Images (N, 1, 28, 28), float32 and normalised, beside their labels (N,), int64.

    `data.train[0]` is the first image with its label, a slice such as `data.train[:5000]` a Split of 5,000 images, and
    `images, labels = data.train` takes the two apart.
    """

    images: Tensor
    labels: Tensor

    def __getitem__(self, index):
        """Return the image and the label of a number, or a Split for a slice; a tuple's own would be all images."""
        image, label = self.images[index], self.labels[index]
        return Split(image, label) if isinstance(index, slice) else (image, label)


class Mnist(NamedTuple):
    """The three parts: one to learn from, one to choose with, one to report on."""

    train: Split
    validation: Split
    test: Split


@torch.inference_mode(False)  # whose tensors can't be trained on
def load_mnist() -> Mnist:
    """Return MNIST as 55,000 training, 5,000 validation and 10,000 test images in memory.

    The split is always the same. Validation has 500 images of each digit, in the order 0, 1, … 9, 0, 1, …, so the
    first n are balanced for every n. Raises a DataError where MNIST is neither here nor to be fetched.
    """
    raw = mnist_folder()
    published, test = _read(raw, "train"), _read(raw, "t10k")
    train, validation = (Split(*(part[indices] for part in published)) for indices in split_indices(published.labels))
    return Mnist(*(Split(_normalised(pixels), labels) for pixels, labels in (train, validation, test)))


def split_indices(labels: Tensor, count: int = VALIDATION, seed: int = SPLIT_SEED) -> tuple[Tensor, Tensor]:
    """Return the indices of the images that stay and of `count` that are taken out, the same of each class.

    Those come in the order 0, 1, … of their labels, again and again. Raises a ParameterError where a class has too few.
    """
    classes = int(labels.max()) + 1
    per_class = math.ceil(count / classes)
    fewest = int(torch.bincount(labels, minlength=classes).min())
    if fewest <= per_class:
        raise ParameterError(f"{count} images need more than {per_class} of each class. Got {fewest} of one.")
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = [shuffled[labels[shuffled] == label][:per_class] for label in range(classes)]
    taken = torch.stack(by_class, dim=1).flatten()[:count]  # (per class, classes) read row by row: one of each in turn
    return torch.from_numpy(np.setdiff1d(np.arange(len(labels)), taken)), taken


@torch.inference_mode(False)  # whose tensors can't be trained on
def split_data(images: Any, labels: Any = None, *, validation: int, test: int, seed: int = SPLIT_SEED) -> Mnist:
    """Return your own data in three parts, split as MNIST is: what is not taken out trains.

    Images (N, …) and labels (N,), 0 to classes - 1, are tensors, NumPy arrays or lists; or the images alone are a data
    set of (image, label), such as torchvision's with transform=ToTensor(). They become float32 and int64, and their
    values stay: divide pixels of 0 to 255 by 255 first. Whole numbers other than bytes, such as words, stay whole. In
    the two parts every class has as many images, up to one, and so it is among their first n for every n. Raises a
    ParameterError for other data, or too few.
    """
    images, labels = _examples(images, labels)
    count = f"[1, {len(labels)}]"
    seed = check_whole_number("seed", seed, "[0, 1000000]")
    rest, tested = split_indices(labels, check_whole_number("test", test, count), seed)
    kept, chosen = split_indices(labels[rest], check_whole_number("validation", validation, count), seed)
    return Mnist(*(Split(images[part], labels[part]) for part in (rest[kept], rest[chosen], tested)))


def _examples(images: Any, labels: Any) -> tuple[Tensor, Tensor]:
    """Return images in float32 and labels in int64; raise a ParameterError for what can't be turned into them."""
    try:
        if labels is None:
            singles, labels = zip(*(images[index] for index in range(len(images))), strict=True)
            images = torch.stack(singles)
        images, labels = torch.as_tensor(images).detach(), torch.as_tensor(labels)
        images = images.float() if images.is_floating_point() or images.dtype == torch.uint8 else images
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError) as error:
        words = isinstance(labels, (list, tuple, np.ndarray)) and np.asarray(labels).dtype.kind in "USO"
        hint = ". Did you mean labels=np.unique(labels, return_inverse=True)[1]?" * words
        raise ParameterError(
            "'images' and 'labels' must be tensors or arrays, or 'images' a data set of (image, label) whose images "
            f"are tensors of one shape, as transform=ToTensor() makes them. Got {described(images)}: "
            f"{reason(error)}{hint}"
        ) from error
    if labels.dim() != 1 or images.dim() < 2 or len(images) != len(labels):
        problem = f"must be (N, …) and (N,). Got {described(images)} and {described(labels)}."
        raise ParameterError(f"'images' and 'labels' {problem}" + (" Did you swap them?" if images.dim() == 1 else ""))
    found = labels.unique().tolist()
    if not bool(images.isfinite().all()) or found != list(range(len(found))):
        raise ParameterError(
            "'images' must be finite, and 'labels' 0 to classes - 1, each at least once; "
            f"np.unique(labels, return_inverse=True)[1] numbers them. Got labels {found[:10]}."
        )
    return images, labels.long()


def _read(raw: Path, part: str) -> Split:
    pixels = _read_bytes(raw / f"{part}-images-idx3-ubyte", header=16).view(-1, 1, 28, 28)
    return Split(pixels, _read_bytes(raw / f"{part}-labels-idx1-ubyte", header=8).long())


def _normalised(pixels: Tensor) -> Tensor:
    return pixels.float().div_(255).sub_(MEAN).div_(STD)  # in place, without two more copies of 170 MB


def _read_bytes(path: Path, header: int) -> Tensor:
    return torch.from_numpy(np.fromfile(path, np.uint8, offset=header))  # an IDX file, checked by mnist_folder


def mnist_folder() -> Path:
    """Return the folder that holds the four unpacked files, each checked against its SHA-256.

    Unpacks or fetches what is missing or altered, once however many processes ask.
    """
    folders = [root / "MNIST" / "raw" for root in (REPOSITORY_DATA, cache_folder())]
    for raw in folders:
        if not _unsound(raw):
            return raw
    raw = next((raw for raw in folders if _has_archives(raw) and writable(raw)), folders[-1])
    if not writable(raw):
        raise DataError(f"{raw} can't be written. Set KD_LAB_CACHE to a folder of yours that can.")
    with lock(raw / "mnist"):
        _prepare(raw)
    return raw


def _prepare(raw: Path) -> None:
    sweep_strays(raw.glob("tmp*"))  # what a killed download of pooch left
    sweep_strays(raw.glob(".*.tmp"))
    for name in _unsound(raw):  # asked again under the lock: another process may have done the work meanwhile
        write_safely(raw / name, gzip.decompress(_archive(f"{name}.gz", raw).read_bytes()))


def _unsound(raw: Path) -> list[str]:
    """Name the unpacked files that are missing here or not, byte for byte, those that were published."""
    return [name for name, digest in SHA256.items() if not _matches(raw / name, digest, "sha256")]


def _matches(path: Path, digest: str, algorithm: str) -> bool:
    return path.is_file() and pooch.file_hash(path, algorithm) == digest


def _published():
    """Return torchvision's MNIST, which knows the mirrors and the MD5 of every archive."""
    from torchvision.datasets import MNIST  # takes seconds, and is needed only where an unpacked file is missing

    return MNIST


def _has_archives(raw: Path) -> bool:
    return all(_matches(raw / name, md5, "md5") for name, md5 in _published().resources)


def _archive(name: str, raw: Path) -> Path:
    """Return where a sound archive lies: in the repository, in `raw`, or there once it is fetched."""
    md5 = dict(_published().resources)[name]
    for path in (REPOSITORY_DATA / "MNIST" / "raw" / name, raw / name):
        if _matches(path, md5, "md5"):
            return path
    set_aside(raw / name)  # a damaged one, if there is one
    _fetch(name, md5, raw)
    return raw / name


def _fetch(name: str, md5: str, raw: Path) -> None:
    """Fetch one archive from the first of torchvision's mirrors that gives the right bytes."""
    mirrors = _published().mirrors
    failures = _unreachable(mirrors)
    for mirror in [mirror for mirror in mirrors if mirror not in failures]:
        try:
            return _download(mirror, name, md5, raw)
        except (requests.RequestException, ValueError, OSError) as error:
            failures[mirror] = str(error)
    tried = "\n".join(f"  {mirror}: {failure}" for mirror, failure in failures.items())
    archives = ", ".join(dict(_published().resources))
    raise DataError(
        f"{name} can't be fetched:\n{tried}\nGet the four archives of MNIST ({archives}) from any source, put them "
        f"into {raw} and run this again; no network is needed then."
    )


def _download(mirror: str, name: str, md5: str, raw: Path) -> None:
    fetcher = pooch.create(raw, mirror, registry={name: f"md5:{md5}"}, retry_if_failed=1)
    fetcher.fetch(name, downloader=pooch.HTTPDownloader(timeout=(CONNECT_TIMEOUT, READ_TIMEOUT)))


def _unreachable(mirrors: list[str]) -> dict[str, str]:
    """Ask all mirrors at once whether they answer at all, so that being offline is told within seconds."""
    failures = dict.fromkeys(mirrors, "no answer")

    def ask(mirror: str) -> None:
        with suppress(requests.RequestException):
            requests.head(mirror, timeout=CONNECT_TIMEOUT)
            del failures[mirror]

    threads = [Thread(target=ask, args=(mirror,), daemon=True) for mirror in mirrors]  # an exit doesn't wait for them
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + CONNECT_TIMEOUT + 1  # looking up a name has no time-out of its own
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    return dict(failures)


@torch.inference_mode(False)  # whose tensors can't be trained on
def load_optical_digits() -> Mnist:
    """Return 997 training, 300 validation and 500 test images (N, 1, 28, 28) of other hands; needs no network.

    The 8×8 images of Alpaydin & Kaynak 1998 (UCI, optical recognition of handwritten digits) are enlarged to 20×20 and
    put in the middle of 28×28, where MNIST has its digits; MNIST's own mean and spread normalise them.
    """
    from sklearn.datasets import load_digits  # takes seconds, and is needed only here
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    small = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / BLACKEST_PIXEL
    images = (F.pad(F.interpolate(small, size=20, mode="bilinear"), [4, 4, 4, 4]) - MEAN) / STD
    rest, test = train_test_split(range(len(labels)), test_size=OPTICAL_TEST, random_state=0, stratify=labels)
    train, validation = train_test_split(rest, test_size=OPTICAL_VALIDATION, random_state=0, stratify=labels[rest])
    return Mnist(*(Split(images[part], torch.tensor(labels)[part]) for part in (train, validation, test)))
