"""What the tests in Colab's environment share: the kit as it is installed there, and a session that has MNIST."""

import pytest

from benchmarks._reach_colab import fetch_mnist, install_kit, session


def pytest_configure(config):
    """Install the kit once, before the processes of xdist start."""
    if not hasattr(config, "workerinput"):
        install_kit()


@pytest.fixture(scope="session")
def folder():
    """Give the folder of a session, as a learner's in Colab: empty but for MNIST in its cache."""
    with session() as folder:
        fetch_mnist(folder)
        yield folder
