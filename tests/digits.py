"""MNIST, read once for all tests of a process: checking and reading it takes a second."""

from kd_lab.data import load_mnist

MNIST = load_mnist()
