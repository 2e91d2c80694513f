"""Compress a network by a whole recipe, and keep it in a file of few bytes."""

from kd_lab.compression.huffman import canonical_codes, huffman_lengths
from kd_lab.compression.leaderboard import Entry, Leaderboard, leaderboard, submit
from kd_lab.compression.packed import load_packed, pack, save_packed, unpack
from kd_lab.compression.recipe import Outcome, compress
from kd_lab.compression.search import Search, search_recipe
from kd_lab.compression.stages import FineTune, Prune, PruneUnits, Quantize, Share
