"""MNIST is checked, split alike everywhere and fetched where it is missing; optical digits look like it."""

import hashlib
import os
import shutil
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import Subset, TensorDataset
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

from benchmarks.faults import damage_data, fork
from kd_lab import data
from kd_lab.checkpoints import load_trained
from kd_lab.data import load_mnist, load_optical_digits, mnist_folder, split_data, split_indices
from kd_lab.errors import DataError, ParameterError
from kd_lab.evaluation import accuracy

ARCHIVES = data.REPOSITORY_DATA / "MNIST" / "raw"
SMALL = "t10k-labels-idx1-ubyte"


# ---- the split


def test_the_parts_have_their_sizes_and_types(mnist):
    for part, count in zip(mnist, (55_000, 5_000, 10_000), strict=True):
        assert part.images.shape == (count, 1, 28, 28) and part.images.dtype == torch.float32
        assert part.labels.shape == (count,) and part.labels.dtype == torch.int64


def test_every_prefix_of_the_validation_part_is_balanced(mnist):
    counts = torch.nn.functional.one_hot(mnist.validation.labels, 10).cumsum(0)
    assert (counts.amax(1) - counts.amin(1)).max() <= 1
    assert counts[-1].tolist() == [500] * 10


def test_a_slice_of_a_part_cuts_images_and_labels(mnist):
    part = mnist.train[10:30:2]
    assert torch.equal(part.images, mnist.train.images[10:30:2])
    assert torch.equal(part.labels, mnist.train.labels[10:30:2])
    images, labels = part
    assert images is part.images and labels is part.labels


def test_a_number_gives_one_image_with_its_label(mnist):
    for index in (0, 7, -1):
        image, label = mnist.train[index]
        assert torch.equal(image, mnist.train.images[index]) and label == mnist.train.labels[index]
    with pytest.raises(IndexError):
        mnist.train[55_000]


def test_the_split_shares_no_image_and_loses_none():
    labels = MNIST(ARCHIVES.parents[1], train=True).targets
    train, validation = split_indices(labels)
    assert torch.cat([train, validation]).sort().values.equal(torch.arange(60_000))


def test_the_split_is_the_same_on_every_machine():
    train, validation = split_indices(MNIST(ARCHIVES.parents[1], train=True).targets)
    digest = hashlib.sha256(validation.numpy().tobytes() + train.numpy().tobytes()).hexdigest()
    assert digest.startswith("794e36040bbf1ce7")


def test_the_pixels_are_torchvisions_normalised(mnist):
    published = MNIST(ARCHIVES.parents[1], train=False)
    assert torch.allclose(mnist.test.images[:, 0] * data.STD + data.MEAN, published.data / 255, atol=1e-6)
    assert mnist.test.labels.equal(published.targets)
    assert abs(mnist.train.images.mean()) < 0.01 and abs(mnist.train.images.std() - 1) < 0.01


def test_the_archives_are_those_that_torchvision_checks():
    for name, md5 in MNIST.resources:
        assert hashlib.md5((ARCHIVES / name).read_bytes()).hexdigest() == md5


# ---- what is unpacked


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """A repository of its own with the four archives and the unpacked files."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in mnist_folder().glob("*ubyte*"):
        (raw / path.name).symlink_to(path)
    (raw / SMALL).unlink()
    shutil.copy(mnist_folder() / SMALL, raw)  # the one that tests change
    monkeypatch.setattr(data, "REPOSITORY_DATA", tmp_path / "data")
    return raw


def short(content):
    return content[: len(content) // 2]


def other_count(content):
    return content[:4] + (9_000).to_bytes(4, "big") + content[8 : 8 + 9_000]


def label_of_200(content):
    return content[:-1] + bytes([200])


@pytest.mark.parametrize("spoil", [short, other_count, label_of_200, lambda content: b""])
def test_a_spoilt_unpacked_file_is_unpacked_again(raw, spoil):
    sound = (raw / SMALL).read_bytes()
    (raw / SMALL).write_bytes(spoil(sound))
    assert mnist_folder() == raw
    assert (raw / SMALL).read_bytes() == sound


@pytest.mark.slow
def test_damage_is_never_loaded_silently():
    assert damage_data(6)["faults.silent"] == 0


def test_the_repository_is_used_as_it_is_where_nothing_can_be_written(raw, monkeypatch, empty_cache):
    monkeypatch.setattr(data, "writable", lambda folder: False)
    assert mnist_folder() == raw
    (raw / SMALL).unlink()
    monkeypatch.setattr(data, "writable", lambda folder: str(folder).startswith(str(empty_cache)))
    assert mnist_folder() == empty_cache / "MNIST" / "raw"
    assert not (raw / SMALL).exists()


def test_without_any_writable_folder_the_variable_to_set_is_named(raw, monkeypatch):
    (raw / SMALL).unlink()
    monkeypatch.setattr(data, "writable", lambda folder: False)
    with pytest.raises(DataError, match="Set KD_LAB_CACHE"):
        mnist_folder()


# ---- what is fetched


class Mirrors(BaseHTTPRequestHandler):
    """Answer as the first folder of the address says: /404/…, /login/…, /stall/…, /reset/…, /short/…, /good/…"""

    served: ClassVar[list[str]] = []

    def do_HEAD(self):
        self.send_response(200)
        self.end_headers()

    def do_GET(self):
        _, behaviour, name = self.path.split("/")
        self.served.append(behaviour)
        getattr(self, f"answer_{behaviour}", self.answer_status)((ARCHIVES / name).read_bytes(), behaviour)

    def answer_status(self, content, behaviour):
        self.send_error(int(behaviour))

    def answer_good(self, content, behaviour):
        self.send_body(content, len(content))

    def answer_login(self, content, behaviour):
        self.send_body(b"<html>Please log in</html>", 26)

    def answer_short(self, content, behaviour):
        self.send_body(content[:100], len(content))

    def answer_stall(self, content, behaviour):
        self.send_body(content[:100], len(content))
        time.sleep(30)

    def answer_once_short(self, content, behaviour):
        first = self.served.count(behaviour) == 1
        self.send_body(content[:100] if first else content, len(content))

    def answer_reset(self, content, behaviour):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    def send_body(self, content, length):
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def mirrors(tmp_path, monkeypatch, empty_cache):
    """A function that sets torchvision's mirror list to a local server's behaviours; no repository is there."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Mirrors)
    server.block_on_close = False  # don't wait for one that stalls
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    Mirrors.served.clear()
    monkeypatch.setattr(data, "REPOSITORY_DATA", tmp_path / "absent")
    monkeypatch.setattr(data, "READ_TIMEOUT", 0.3)
    monkeypatch.setattr("pooch.core.time", SimpleNamespace(sleep=lambda seconds: None))  # between two tries
    monkeypatch.setenv("NO_PROXY", "*")

    def set_mirrors(*behaviours):
        base = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(MNIST, "mirrors", [f"{base}/{behaviour}/" for behaviour in behaviours])

    yield set_mirrors
    server.shutdown()
    server.server_close()
    thread.join()


def fetch_small(empty_cache):
    name = f"{SMALL}.gz"
    data._fetch(name, dict(MNIST.resources)[name], empty_cache)
    return (empty_cache / name).read_bytes() == (ARCHIVES / name).read_bytes()


@pytest.mark.parametrize("behaviour", ["403", "404", "503", "login", "short", "stall", "reset"])
def test_the_next_mirror_is_asked(mirrors, empty_cache, behaviour):
    mirrors(behaviour, "good")
    start = time.perf_counter()
    assert fetch_small(empty_cache)
    assert time.perf_counter() - start < 10
    assert Mirrors.served[-1] == "good" and 1 <= Mirrors.served.count(behaviour) <= 2


def test_a_broken_answer_is_asked_for_again(mirrors, empty_cache):
    mirrors("once_short")
    assert fetch_small(empty_cache)
    assert Mirrors.served == ["once_short", "once_short"]


def test_the_error_lists_all_mirrors_and_where_to_drop_the_files(mirrors, empty_cache):
    mirrors("404", "login")
    with pytest.raises(DataError) as caught:
        mnist_folder()
    message = str(caught.value)
    assert "/404/: 404" in message and "/login/: " in message and "hash" in message
    assert str(empty_cache / "MNIST" / "raw") in message and "t10k-labels-idx1-ubyte.gz" in message
    assert not list((empty_cache / "MNIST" / "raw").glob("*ubyte*"))


@pytest.mark.slow
def test_offline_the_instructions_come_within_five_seconds(mirrors, monkeypatch, empty_cache):
    def hang(address, timeout):
        time.sleep(20)  # as a name server that never answers

    mirrors("good", "404")
    monkeypatch.setattr(data.requests, "head", hang)
    saved = data.CONNECT_TIMEOUT - 0.5
    monkeypatch.setattr(data, "CONNECT_TIMEOUT", 0.5)
    start = time.perf_counter()
    with pytest.raises(DataError, match=r"/good/: no answer\n.*/404/: no answer\nGet the four archives"):
        mnist_folder()
    assert time.perf_counter() - start + saved < 5


def test_dropped_in_archives_are_used_and_a_damaged_one_is_set_aside(mirrors, empty_cache):
    raw = empty_cache / "MNIST" / "raw"
    shutil.copytree(ARCHIVES, raw, ignore=shutil.ignore_patterns("*ubyte", "*.lock"))
    (raw / f"{SMALL}.gz").write_bytes(b"damaged")
    mirrors("good")
    assert mnist_folder() == raw
    assert Mirrors.served == ["good"]
    assert [file.read_bytes() for file in raw.glob("*.damaged")] == [b"damaged"]


def test_what_killed_downloads_left_is_swept(mirrors, empty_cache):
    raw = empty_cache / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "tmpabcd").write_bytes(b"half")
    (raw / f".{SMALL}.0000.tmp").write_bytes(b"half")
    mirrors("good")
    assert mnist_folder() == raw
    assert {file.name for file in raw.iterdir()} == {*data.SHA256, *dict(MNIST.resources), "mnist.lock"}


@pytest.mark.slow
def test_thirty_at_once_fetch_each_archive_once(mirrors, monkeypatch):
    mirrors("good")
    for timeout in ("CONNECT_TIMEOUT", "READ_TIMEOUT"):
        monkeypatch.setattr(data, timeout, 100)  # a busy machine is no stall
    children = [fork(mnist_folder) for _ in range(30)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 30
    assert Mirrors.served == ["good"] * 4


@pytest.mark.slow
def test_loading_twice_gives_the_same(mnist):
    assert all(
        torch.equal(*pair)
        for one, other in zip(mnist, load_mnist(), strict=True)
        for pair in zip(one, other, strict=True)
    )


# ---- optical digits


@pytest.fixture(scope="module")
def optical():
    return load_optical_digits()


def test_optical_digits_have_mnists_shape_and_every_digit_alike(optical):
    assert [len(part.labels) for part in optical] == [997, 300, 500]
    for images, labels in optical:
        assert images.shape == (len(labels), 1, 28, 28) and images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert (labels.bincount() - len(labels) / 10).abs().max() <= 3
        assert images.min() * data.STD + data.MEAN >= -1e-6 and images.max() * data.STD + data.MEAN <= 1 + 1e-6


def test_every_published_optical_digit_is_there_once(optical):
    images, labels = (torch.cat(parts) for parts in zip(*optical, strict=True))
    published = torch.tensor(load_digits().data, dtype=torch.float32).view(-1, 1, 8, 8)
    expected = torch.nn.functional.interpolate(published / 16, size=20, mode="bilinear")
    middle = images[:, :, 4:-4, 4:-4] * data.STD + data.MEAN
    distances = torch.cdist(middle.flatten(1), expected.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    assert distances.min(1).values.max() < 1e-3
    nearest = distances.argmin(1)
    assert nearest.unique().numel() >= len(labels) - 5  # a few were published twice
    assert torch.equal(torch.tensor(load_digits().target)[nearest], labels)
    assert images[:, :, :4].unique().numel() == 1  # the border is empty


def test_optical_digits_are_the_same_each_time_and_new_to_a_network_of_mnist(optical):
    for one, two in zip(optical, load_optical_digits(), strict=True):
        assert torch.equal(one.images, two.images) and torch.equal(one.labels, two.labels)
    assert 0.6 < accuracy(load_trained("lenet5"), optical.test).value < 0.95


# ---- data of one's own

DIGITS, NUMBERS = load_digits(return_X_y=True)
OWN = torch.tensor(DIGITS, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(NUMBERS)


@pytest.mark.parametrize("counts", [(300, 500), (37, 11), (1, 1)])
def test_own_data_are_split_and_balanced_as_mnist_is(counts):
    parts = split_data(*OWN, validation=counts[0], test=counts[1])
    assert [len(part.labels) for part in parts] == [1797 - sum(counts), *counts]
    for part in parts:
        assert part.images.dtype == torch.float32 and part.labels.dtype == torch.int64
    for part in parts[1:]:
        counted = torch.nn.functional.one_hot(part.labels, 10).cumsum(0)
        assert (counted.amax(1) - counted.amin(1)).max() <= 1
    rows = [torch.cat([images.flatten(1), labels[:, None]], 1) for images, labels in (*parts, OWN)]
    assert sorted(torch.cat(rows[:3]).tolist()) == sorted(rows[3].tolist())  # each image once, beside its label


def test_a_split_belongs_to_its_seed():
    one, same, other = (split_data(*OWN, validation=100, test=100, seed=seed) for seed in (1, np.int64(1), 2))
    assert all(torch.equal(a.images, b.images) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one.test.images, other.test.images)


@pytest.mark.parametrize(
    "own",
    [
        (OWN[0].numpy(), OWN[1].numpy()),
        (OWN[0].double().requires_grad_(), OWN[1].to(torch.uint8)),
        (OWN[0].tolist(), OWN[1].tolist()),
        (OWN[0], OWN[1].double()),
        (TensorDataset(*OWN),),
    ],
    ids=["arrays", "history", "lists", "float labels", "data set"],
)
def test_own_data_of_any_kind_are_split_alike(own):
    for found, expected in zip(*(split_data(*each, validation=30, test=50) for each in (own, OWN)), strict=True):
        assert torch.equal(found.images, expected.images) and torch.equal(found.labels, expected.labels)
        assert not found.images.requires_grad


@pytest.mark.parametrize("kind", [list, np.array])
def test_labels_in_words_get_the_line_that_numbers_them(kind):
    images, names = torch.rand(6, 4), kind(["cat", "dog", "cat", "dog", "cat", "dog"])
    with pytest.raises(ParameterError, match=r"Did you mean labels=np\.unique\(labels, return_inverse=True\)\[1\]\?$"):
        split_data(images, names, validation=2, test=2)
    numbers = np.unique(names, return_inverse=True)[1]
    assert split_data(images, numbers, validation=2, test=2).test.labels.tolist() == [0, 1]


def test_a_data_set_of_torchvision_is_split():
    published = Subset(MNIST(ARCHIVES.parents[1], train=False, transform=ToTensor()), range(1000))
    parts = split_data(published, validation=100, test=200)
    assert parts.train.images.shape == (700, 1, 28, 28) and parts.validation.labels[:10].tolist() == list(range(10))
    raw = Subset(MNIST(ARCHIVES.parents[1], train=False), range(100))
    with pytest.raises(ParameterError, match=r"^split_data\(\): .*transform=ToTensor\(\)"):
        split_data(raw, validation=10, test=10)


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ((OWN[1], OWN[0]), "Did you swap them"),
        ((OWN[0], OWN[1] + 1), r"0 to classes - 1.*Got labels \[1, 2"),
        ((OWN[0], OWN[1] / 2), "0 to classes - 1"),
        ((OWN[0] * float("nan"), OWN[1]), "must be finite"),
        ((OWN[0][:5], OWN[1]), r"must be \(N, …\) and \(N,\)"),
        ((OWN[0], None), "must be tensors or arrays"),
        ((None, None), "must be tensors or arrays"),
        ((OWN[0][:40], OWN[1][:40]), "need more than"),
    ],
)
def test_own_data_that_cannot_be_split_are_named(own, told):
    with pytest.raises(ParameterError, match=rf"^split_data\(\): .*{told}"):
        split_data(*own, validation=30, test=30)
    with pytest.raises(ParameterError, match=r"^split_data\(\): 'test' must be a whole number"):
        split_data(*OWN, validation=30, test=0.2)


@pytest.mark.parametrize(
    "load",
    [
        pytest.param(load_mnist, marks=pytest.mark.slow),
        load_optical_digits,
        lambda: split_data(*OWN, validation=30, test=30),
    ],
    ids=["mnist", "optical", "own"],
)
def test_data_are_the_same_whatever_surrounds_the_call(load, surroundings):
    images = load().validation.images
    torch.set_default_dtype(torch.float32)
    with torch.inference_mode(False):
        assert torch.equal(images, load().validation.images)
    assert images.dtype == torch.float32 and not images.is_inference()


def test_words_stay_whole_and_bytes_do_not():
    words, labels = torch.arange(60).reshape(20, 3), torch.arange(20) % 2
    parts = split_data(words, labels, validation=4, test=4)
    assert parts.train.images.dtype == torch.int64 and parts.validation.labels.tolist() == [0, 1, 0, 1]
    assert split_data(words.to(torch.uint8), labels, validation=4, test=4).train.images.dtype == torch.float32
