"""Reach: the site, every lesson in Colab's environment, a sweep amid kills, narrow windows, and where a learner waits.

Needs Chromium and, for Colab's environment, `make test-colab` once. Takes about twenty minutes; let nothing else run
beside it.
"""

from benchmarks._reach_colab import colab_figures
from benchmarks._reach_narrow import narrow_figures
from benchmarks._reach_site import site_figures
from benchmarks._reach_sweep import sweep_figures
from benchmarks._reach_waits import waits_figures

PARTS = (waits_figures, site_figures, colab_figures, sweep_figures, narrow_figures)


def run() -> dict[str, float]:
    """Print the tables of all parts and return their figures; what is timed comes first."""
    figures = {}
    for part in PARTS:
        figures |= part()
    return figures
