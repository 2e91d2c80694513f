"""Recurrent networks and transformers, and low rank, over five seeds; recorded in results/.

Scores the record again; --rerun makes it anew, which takes about two hours of one core.
"""

from benchmarks._campaign import keep
from benchmarks._families import family_campaign, score_families
from benchmarks._low_rank import low_rank_campaign, score_low_rank
from kd_lab.data import load_mnist
from kd_lab.results import load_results


def run(rerun: bool) -> dict[str, float]:
    """Print the tables and return the figures; with `rerun`, make the record first."""
    if rerun:
        data = load_mnist()
        family_campaign(data)
        keep("beyond", "low_rank", low_rank_campaign(data))
    recorded = load_results("beyond")
    low_rank = {f"beyond.low_rank.{key}": value for key, value in score_low_rank(recorded).items()}
    return score_families(recorded) | low_rank
