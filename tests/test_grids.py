"""Grids agree with torch's, integers stand for what they should, and calibration errs as little as it says."""

import numpy as np
import pytest
import torch

from kd_lab.errors import ParameterError
from kd_lab.quantization import (
    CALIBRATIONS,
    dequantize,
    fake_quantize,
    find_grid,
    integer_range,
    quantize,
    scale_and_zero_point,
)

BITS = range(1, 17)


def numbers(*shape, seed=0, size=1.0):
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("num_bits", BITS)
def test_a_grid_for_each_channel_gives_torchs_numbers_and_gradients(num_bits, symmetric):
    ours, theirs = (numbers(40, 50, seed=num_bits).requires_grad_() for _ in range(2))
    scale, zero_point = find_grid(ours, num_bits, symmetric)
    scale = 0.7 * scale  # so that some lie beyond the ends
    found = fake_quantize(ours, scale[:, None], zero_point[:, None], num_bits)
    expected = torch.fake_quantize_per_channel_affine(theirs, scale, zero_point, 0, *integer_range(num_bits))
    assert torch.equal(found, expected)
    for output in (found, expected):
        output.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e30])
@pytest.mark.parametrize("num_bits", BITS)
def test_one_grid_gives_torchs_numbers(num_bits, size):
    x = numbers(4, 3, 5, 5, seed=num_bits, size=size)
    scale, zero_point = find_grid(x.reshape(1, -1), num_bits)
    expected = torch.fake_quantize_per_tensor_affine(x, scale.item(), zero_point.item(), *integer_range(num_bits))
    assert torch.equal(fake_quantize(x, scale, zero_point, num_bits), expected)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("num_bits", BITS)
def test_integers_stand_for_what_fake_quantization_gives(num_bits, symmetric):
    x = numbers(8, 100)
    grid = find_grid(x.reshape(1, -1), num_bits, symmetric)
    q = quantize(x, *grid, num_bits)
    assert q.dtype == (torch.int8 if num_bits <= 8 else torch.int16)
    smallest, largest = integer_range(num_bits)
    assert smallest <= q.min() and q.max() <= largest
    assert torch.equal(dequantize(q, *grid), fake_quantize(x, *grid, num_bits))


@pytest.mark.parametrize("num_bits", BITS)
def test_an_affine_grid_errs_by_half_a_step_and_has_zero_on_it(num_bits):
    x = numbers(1, 1000).abs() + 0.5  # all on one side of zero
    scale, zero_point = find_grid(x, num_bits)
    assert (fake_quantize(x, scale, zero_point, num_bits) - x).abs().max() <= 0.501 * scale + 1e-6
    assert fake_quantize(torch.zeros(1), scale, zero_point, num_bits).item() == 0


def test_a_symmetric_grid_by_hand():
    scale, zero_point = find_grid(torch.tensor([[-0.9, 0.2, 0.31, 0.7]]), 3, symmetric=True)
    assert scale.item() == pytest.approx(0.3) and zero_point.item() == 0
    found = fake_quantize(torch.tensor([-0.9, 0.2, 0.31, 0.7]), scale, zero_point, 3)
    torch.testing.assert_close(found, torch.tensor([-0.9, 0.3, 0.3, 0.6]))


def test_an_affine_grid_by_hand():
    low, high = torch.tensor([-1.0]), torch.tensor([2.0])
    scale, zero_point = scale_and_zero_point(low, high, 2, symmetric=False)
    assert scale.item() == 1 and zero_point.item() == -1  # -2 … 1 stand for -1, 0, 1, 2
    assert quantize(torch.tensor([-1.0, 0.4, 1.6, 9.0]), scale, zero_point, 2).tolist() == [-2, -1, 1, 1]


def test_zero_lies_on_the_integer_that_is_nearest():
    low, high = torch.tensor([-1.2, -1.3]), torch.tensor([2.3, 2.2])  # 2.4 and 2.6 steps below 0
    scale, zero_point = scale_and_zero_point(low, high, 3, symmetric=False)
    torch.testing.assert_close(scale, torch.tensor([0.5, 0.5]))
    assert zero_point.tolist() == [-4 + 2, -4 + 3]


def test_numbers_too_small_for_a_step_of_their_own_are_kept_finite():
    rows = torch.tensor([[0.0, 1e-40, -1e-40]])
    for calibration in CALIBRATIONS:
        assert torch.isfinite(fake_quantize(rows, *find_grid(rows, 8, calibration=calibration), 8)).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("num_bits", [1, 2, 8, 16])
def test_channels_of_one_value_are_kept(num_bits, calibration, symmetric):
    rows = torch.tensor([[0.0], [3.0], [-3.0], [1e-40], [3e38], [-3e38]]).expand(6, 20)
    scale, zero_point = find_grid(rows, num_bits, symmetric, calibration)
    found = fake_quantize(rows, scale[:, None], zero_point[:, None], num_bits)
    assert torch.isfinite(scale).all() and torch.isfinite(found).all()
    assert torch.equal(found[0], torch.zeros(20))
    if not symmetric or num_bits > 1:  # one symmetric bit has no positive number
        torch.testing.assert_close(found, rows, atol=1e-30, rtol=1e-5)


def test_a_range_wider_than_any_number_has_a_finite_grid():
    rows = torch.tensor([[-3e38, 0.0, 3e38]])
    found = fake_quantize(rows, *find_grid(rows, 8), 8)
    torch.testing.assert_close(found, rows, rtol=0.01, atol=0)


def test_the_percentile_leaves_an_outlier_out():
    row = torch.cat([torch.linspace(-1, 1, 4000), torch.tensor([100.0])])[None]
    scale, _ = find_grid(row, 8, True, "percentile")
    sorted_row = np.sort(row[0].numpy())
    expected = max(-sorted_row[len(sorted_row) - round(0.999 * 4001)], sorted_row[round(0.999 * 4001) - 1]) / 127
    assert scale.item() == pytest.approx(expected)
    assert find_grid(row, 8, True)[0].item() == pytest.approx(100 / 127)
    scale, zero_point = find_grid(torch.arange(-1000.0, 1000)[None], 8, False, "percentile")  # -998 to 997
    assert scale.item() == pytest.approx(1995 / 255) and zero_point.item() == -128 + round(998 * 255 / 1995)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("num_bits", range(1, 9))
def test_least_squares_errs_least_of_all_shrunken_ranges(num_bits, symmetric):
    rows = numbers(5, 300) ** 3  # long tails

    def errors(scale, zero_point):
        return (fake_quantize(rows, scale[:, None], zero_point[:, None], num_bits) - rows).square().sum(1)

    found = errors(*find_grid(rows, num_bits, symmetric, "least_squares"))
    for step in range(1, 41):
        low, high = rows.amin(1) * step / 40, rows.amax(1) * step / 40
        assert (found <= errors(*scale_and_zero_point(low, high, num_bits, symmetric)) * 1.00001).all()


@pytest.mark.parametrize("num_bits", [0, 33, 4.5, True, "4", None, float("nan"), -1, 17])
def test_bits_that_are_none_are_refused(num_bits):
    x, one = torch.ones(1, 3), torch.ones(1)
    for function, arguments in {
        fake_quantize: (x, one, one, num_bits),
        quantize: (x, one, one, num_bits),
        find_grid: (x, num_bits),
        integer_range: (num_bits,),
    }.items():
        with pytest.raises(ParameterError, match=r"'num_bits' must be a whole number in \[1, 16\]"):
            function(*arguments)


@pytest.mark.parametrize(
    "rows",
    [
        torch.tensor([[float("inf")]]),
        torch.tensor([[float("nan")]]),
        torch.ones(0, 3),
        torch.ones(2, 2).long(),
        torch.ones(2, 2).double(),
        torch.ones(2, 2).half(),
        [[1.0]],
        None,
    ],
)
def test_what_is_no_finite_number_is_refused(rows):
    with pytest.raises(ParameterError, match=r"find_grid\(\): 'rows' must be a tensor of 2 dimensions and of finite"):
        find_grid(rows, 8)
    with pytest.raises(ParameterError, match=r"quantize\(\): 'x' must be"):
        quantize(rows, torch.ones(1), torch.zeros(1), 8)


ONE, ZERO, X = torch.ones(1), torch.zeros(1), torch.ones(2, 3)
WRONG_SHAPES = [torch.ones(2), torch.ones(4, 1), torch.ones(5, 2, 3), torch.ones(0)]


@pytest.mark.parametrize(
    "call, part",
    [
        *(
            (lambda scale=scale, function=function: function(X, scale, ZERO, 4), f"(): 'scale' must be {allowed}")
            for function in (quantize, fake_quantize)
            for allowed, scales in (
                ("a number or a tensor", [None, "1", [1.0]]),
                ("above 0", [0, -1.0, torch.tensor([0.0]), torch.tensor([[1.0], [-1.0]]), float("nan")]),
            )
            for scale in scales
        ),
        *(
            (
                lambda shape=shape: fake_quantize(X, shape, ZERO, 4),
                "fake_quantize(): 'scale' must have one number, or a shape that broadcasts to (2, 3), that of 'x'.",
            )
            for shape in WRONG_SHAPES
        ),
        *(
            (
                lambda shape=shape: quantize(X, ONE, shape, 4),
                "quantize(): 'zero_point' must have one number, or a shape",
            )
            for shape in WRONG_SHAPES
        ),
        *(
            (
                lambda shape=shape: dequantize(X.int(), shape, ZERO),
                "dequantize(): 'scale' must have one number, or a shape",
            )
            for shape in WRONG_SHAPES
        ),
        (lambda: quantize(X, ONE, None, 4), "quantize(): 'zero_point' must be a number or a tensor. Got None."),
        (lambda: fake_quantize([1.0], ONE, ZERO, 4), "fake_quantize(): 'x' must be a tensor. Got [1.0]."),
        (lambda: dequantize(5, ONE, ZERO), "dequantize(): 'q' must be a tensor. Got 5."),
        *(
            (
                lambda shape=shape: find_grid(torch.ones(shape), 4),
                "find_grid(): 'rows' must be a tensor of 2 dimensions and "
                f"of finite numbers, at least one, in torch.float32. Got torch.float32, {shape}.",
            )
            for shape in ((), (3,), (2, 3, 4))
        ),
        (lambda: find_grid(X, 4, "symmetric"), "'symmetric' must be True or False. Got 'symmetric'."),
        (
            lambda: scale_and_zero_point(ONE, torch.ones(2, 3), 4, 1),
            "scale_and_zero_point(): 'symmetric' must be True or",
        ),
        (
            lambda: scale_and_zero_point(torch.ones(2), torch.ones(3), 4, True),
            "'low' and 'high' must have one shape. Got (2,) and (3,).",
        ),
    ],
)
def test_bad_grids_get_one_clear_error(call, part):
    with pytest.raises(ParameterError) as error:
        call()
    assert part in str(error.value), str(error.value)


def test_a_number_does_for_scale_and_zero_point():
    assert quantize(torch.tensor(0.7), 0.5, 1, 4).item() == 2  # of 1.4 steps one
    assert torch.equal(fake_quantize(torch.tensor([1, 9]), 1, 0, 4), torch.tensor([1.0, 7.0]))
    assert dequantize(torch.tensor([1, 2]).int(), 0.5, 1).tolist() == [0.0, 0.5]


def test_an_unknown_calibration_names_the_closest():
    with pytest.raises(ParameterError, match="Did you mean 'min_max'"):
        find_grid(torch.ones(1, 3), 8, calibration="minmax")
