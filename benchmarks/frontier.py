"""How few bytes read digits, and what brings the gain? The frontier's controls over five seeds, in results/.

Scores the record again; --rerun makes what is missing, or was made by another recipe, and goes on where it was stopped.
"""

from benchmarks._campaign import campaign
from benchmarks._frontier_controls import NAME, measure_controls, score_controls
from kd_lab.results import load_results


def run(rerun: bool, workers: int | None = None, dask: str | None = None) -> dict[str, float]:
    """Print the tables and return the figures; with `rerun`, make what is missing of the record first."""
    if rerun:
        with campaign(NAME, workers, dask) as running:
            measure_controls(running)
    return score_controls(load_results(NAME))
