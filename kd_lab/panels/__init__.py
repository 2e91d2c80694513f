"""Show live what a control does to a really measured network."""

from kd_lab.panels.pruning import PruningPanel

__all__ = ["PruningPanel"]
