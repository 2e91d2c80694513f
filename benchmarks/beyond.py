"""Recurrent networks and transformers, low rank, and few labels, over five seeds; recorded in results/.

Scores the records again; --rerun makes them anew, which takes about two hours of one core.
"""

from benchmarks._campaign import keep
from benchmarks._families import family_campaign, score_families
from benchmarks._few_labels import few_label_figures
from benchmarks._low_rank import low_rank_campaign, score_low_rank
from kd_lab.data import load_mnist
from kd_lab.results import load_results


def run(rerun: bool) -> dict[str, float]:
    """Print the tables and return the figures; with `rerun`, make the records first."""
    if rerun:
        data = load_mnist()
        family_campaign(data)
        keep("beyond", "low_rank", low_rank_campaign(data))
    recorded = load_results("beyond")
    parts = {**score_families(recorded), "low_rank": score_low_rank(recorded), **few_label_figures(rerun)}
    return {f"beyond.{part}.{key}": round(value, 4) for part, found in parts.items() for key, value in found.items()}
