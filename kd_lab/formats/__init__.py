"""Files that hold a network and read back to the same predictions: safetensors, or the fewest bytes."""

from kd_lab.formats.bits import pack_bits, unpack_bits
from kd_lab.formats.huffman import canonical_codes, huffman_lengths
from kd_lab.formats.kdz import load_packed, pack, save_packed, unpack
from kd_lab.formats.network_file import load_network, network_file_bytes, save_network
