"""How few bytes read digits, and what brings the gain? A search, and the frontier's files and controls over five seeds.

Scores the record again; --rerun makes what is missing, or was made by another recipe, and goes on where it was stopped.
"""

from benchmarks._campaign import campaign
from benchmarks._frontier_controls import NAME, measure_controls, score_controls
from benchmarks._frontier_files import enter_records, make_files, score_records
from benchmarks._frontier_search import make_search, score_search
from benchmarks._frontier_teacher import make_viewer
from kd_lab.data import load_mnist
from kd_lab.results import load_results


def run(rerun: bool, workers: int | None = None, dask: str | None = None) -> dict[str, float]:
    """Print the tables and return the figures; with `rerun`, make what is missing of the record first."""
    data = load_mnist()
    if rerun:
        with campaign(NAME, workers, dask) as running:
            make_search(running, data)
            make_viewer(running)
            make_files(running)
            measure_controls(running)
    recorded = load_results(NAME)
    if rerun:
        enter_records(recorded, data)
    return score_records(data) | score_search(recorded) | score_controls(recorded)
