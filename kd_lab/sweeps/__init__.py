"""Run one function with many settings, on all cores or on a cluster, and keep each result when it is there."""

from kd_lab.sweeps.kept import KeptTrial, load_sweep
from kd_lab.sweeps.trials import sweep
