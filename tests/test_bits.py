"""Codes lie side by side, without gaps, and come back."""

import pytest
import torch

from kd_lab.errors import ParameterError
from kd_lab.formats import pack_bits, unpack_bits

GENERATOR = torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("codes", "num_bits", "packed"),
    [
        ([1, 0, 1, 1, 0, 0, 0, 1, 1], 1, [0b10110001, 0b10000000]),
        ([3, 0, 1, 2, 3], 2, [0b11000110, 0b11000000]),
        ([5, 2, 7], 3, [0b10101011, 0b10000000]),  # the third code lies on both sides of the byte's end
        ([15, 1], 4, [0b11110001]),
        ([255, 0, 129], 8, [255, 0, 129]),
        ([256, 1], 9, [0b10000000, 0b00000000, 0b01000000]),
        ([], 5, []),
    ],
)
def test_codes_are_packed_as_by_hand(codes, num_bits, packed):
    found = pack_bits(torch.tensor(codes, dtype=torch.int32), num_bits)
    assert found.dtype == torch.uint8 and found.tolist() == packed
    assert unpack_bits(found, num_bits, (len(codes),)).tolist() == codes


@pytest.mark.parametrize("num_bits", range(1, 17))
def test_what_is_packed_is_unpacked(num_bits):
    for shape in ((1,), (7,), (8, 3), (5, 3, 3, 3)):
        codes = torch.randint(2**num_bits, shape, generator=GENERATOR)
        packed = pack_bits(codes, num_bits)
        assert len(packed) == -(-codes.numel() * num_bits // 8)
        assert torch.equal(unpack_bits(packed, num_bits, shape), codes.int())


def test_another_layout_is_packed_in_the_same_order():
    codes = torch.randint(8, (4, 3, 5, 5), generator=GENERATOR)
    assert torch.equal(pack_bits(codes.to(memory_format=torch.channels_last), 3), pack_bits(codes, 3))


@pytest.mark.parametrize(
    "call, part",
    [
        *(
            (
                lambda bits=bits: pack_bits(torch.ones(3).int(), bits),
                f"pack_bits(): 'num_bits' must be a whole number in [1, 16]. Got {bits!r}.",
            )
            for bits in (0, 33, 4.5, True, "4", None)
        ),
        *(
            (
                lambda bits=bits: unpack_bits(torch.ones(3).byte(), bits, (3,)),
                f"unpack_bits(): 'num_bits' must be a whole number in [1, 16]. Got {bits!r}.",
            )
            for bits in (0, 33, 4.5, True, "4", None)
        ),
        (lambda: pack_bits(torch.tensor([0, 16]), 4), "pack_bits(): 'codes' must be whole numbers from 0 to 15"),
        (lambda: pack_bits(torch.tensor([-1]), 4), "from 0 to 15, which is what 4 bits hold. Got tensor([-1])."),
        (lambda: pack_bits(torch.tensor([1.0]), 4), "'codes' must be whole numbers"),
        (lambda: pack_bits([1], 4), "pack_bits(): 'codes' must be a tensor"),
        (lambda: unpack_bits(torch.ones(3).byte(), 4, (3,)), "must be 2 bytes (uint8), which is what 3 codes of 4"),
        (lambda: unpack_bits(torch.ones(2).int(), 4, (3,)), "'packed' must be 2 bytes"),
        (lambda: unpack_bits([1, 2], 4, (3,)), "Got [1, 2]."),
        *(
            (
                lambda shape=shape: unpack_bits(torch.ones(2).byte(), 4, shape),
                "unpack_bits(): 'shape' must be a whole number in [0, 1e12].",
            )
            for shape in ((-1, -3), ("3",), (1.5,), ((3,),))
        ),
        (lambda: unpack_bits(torch.ones(2).byte(), 4, 3), "'shape' must be a tuple of whole numbers. Got 3."),
    ],
)
def test_bad_input_gets_one_clear_error(call, part):
    with pytest.raises(ParameterError) as error:
        call()
    assert part in str(error.value), str(error.value)
