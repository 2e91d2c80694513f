"""Recurrent networks and transformers, low rank, and few labels, over five seeds; recorded in results/.

Scores the records again; --rerun makes them anew, which takes about two hours of one core.
"""

from benchmarks._campaign import campaign
from benchmarks._families import family_campaign, score_families
from benchmarks._few_labels import few_label_figures
from benchmarks._low_rank import low_rank_campaign, score_low_rank
from kd_lab.results import load_results


def run(rerun: bool, workers: int | None = None, dask: str | None = None) -> dict[str, float]:
    """Print the tables and return the figures; with `rerun`, make the records first."""
    if rerun:
        with campaign("beyond", workers, dask) as running:
            family_campaign(running)
            running.keep("low_rank", low_rank_campaign(running))
    recorded = load_results("beyond")
    few_labels = few_label_figures(rerun, workers, dask)
    parts = {**score_families(recorded), "low_rank": score_low_rank(recorded), **few_labels}
    return {f"beyond.{part}.{key}": round(value, 4) for part, found in parts.items() for key, value in found.items()}
