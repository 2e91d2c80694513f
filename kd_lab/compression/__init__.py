"""Compress by a whole recipe, search for its settings, and compare the smallest files."""

from kd_lab.compression.allocation import allocate, bit_scan, choose_bits, choose_ranks, rank_scan, sensitivity_scan
from kd_lab.compression.architectures import search_architecture, search_architecture_live
from kd_lab.compression.leaderboard import Entry, Leaderboard, score_leaderboard, submit
from kd_lab.compression.recipe import CompressionResult, compress
from kd_lab.compression.search import Search, best_trial, search_recipe, search_settings, try_setting
from kd_lab.compression.stages import Factorize, FineTune, Grid, Prune, PruneUnits, Quantize, Share
