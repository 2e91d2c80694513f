"""What the tests share: real data, small parts of it, and an empty home for whatever they make."""

import matplotlib
import pytest

from kd_lab.data import load_mnist

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    """Keep every test out of the user's cache folder."""
    monkeypatch.setenv("KD_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def mnist():
    return load_mnist()


@pytest.fixture(scope="session")
def few(mnist):
    """2,000 training images, enough to learn something within a second."""
    return mnist.train[:2000]


@pytest.fixture(scope="session")
def validation(mnist):
    return mnist.validation[:1000]
