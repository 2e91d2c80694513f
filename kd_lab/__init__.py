"""Teach neural-network compression on MNIST with really measured models. README.md lists the modules."""

from kd_lab.environment import check_torch, use_one_thread

check_torch()
use_one_thread()
