"""Files that hold a network and read back to the same predictions: safetensors, or the fewest bytes."""

from kd_lab.formats.coding import canonical_codes, huffman_lengths
from kd_lab.formats.grid_codes import compact_step
from kd_lab.formats.kdz import load_packed, pack, save_packed, unpack
from kd_lab.formats.network_file import load_network, network_file_bytes, pack_bits, save_network, unpack_bits
