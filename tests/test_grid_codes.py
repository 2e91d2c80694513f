"""Numbers on a grid come back to the bit, in hardly more than their entropy; the grid itself takes a byte or so."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_lab.errors import ParameterError
from kd_lab.formats import grid_codes
from kd_lab.formats.coding import Estimate, ShortRangeReader, ShortRangeWriter, code_choice
from kd_lab.formats.grid_codes import MAX_WATCHED, TensorCoder, compact_step, find_grid_codes, prior

STEPS = [(8 + m) / 8 * 2.0**-e for e in range(32) for m in range(8)]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def on_grid(tensor, bits, step):
    half = 2 ** (bits - 1)
    return (tensor * half / 2.5).round().clamp(-half, half - 1) * step


def coded(*tensors):
    writer = ShortRangeWriter()
    coder = TensorCoder(writer)
    for tensor in tensors:
        coder.write(tensor)
    return writer.content()


def plans(tensor, monkeypatch):
    """Return how a tensor is written."""
    found = []
    kept = TensorCoder._code

    def code(self, tensor, plan):
        if not isinstance(self._stream, Estimate):
            found.append(plan)
        return kept(self, tensor, plan)

    monkeypatch.setattr(TensorCoder, "_code", code)
    coded(tensor)
    return found[0]


# ---- steps


@pytest.mark.parametrize("scale", [*np.geomspace(1e-9, 1.9, 50).tolist(), 0.1, 1, 1e-12, 3, 1e30, np.float32(0.3)])
def test_the_step_is_the_nearest_in_ratio(scale):
    assert compact_step(scale) == min(STEPS, key=lambda step: abs(math.log(step / scale)))
    assert scale < 2**-31 or scale > 1.875 or abs(compact_step(scale) / scale - 1) < 0.07


@pytest.mark.parametrize("scale", [0, -1, math.nan, math.inf, True, "0.5", None, torch.ones(1)])
def test_a_scale_that_is_none_is_named(scale):
    with pytest.raises(ParameterError, match=r"^compact_step\(\): 'scale' must be a number in \(0, 1e38\]"):
        compact_step(scale)


@pytest.mark.parametrize("step", STEPS[::17])
def test_a_step_of_one_byte_is_found(step):
    assert find_grid_codes(np.array([[0, 3, -4, -0.0]], np.float32) * np.float32(step)) == (step, 3)


@pytest.mark.parametrize(
    ("codes", "bits"), [([0], 0), ([-1], 1), ([1], 2), ([-1, 1], 2), ([-2, 1], 2), ([2, -1], 3), ([-128, 127], 8)]
)
def test_numbers_need_as_many_bits_as_twos_complement(codes, bits):
    assert find_grid_codes(np.array([codes], np.float32))[1] == bits


def test_of_steps_that_fit_the_largest_is_taken():
    assert find_grid_codes(np.array([[0.5, -1.0, 1.5]], np.float32)) == (0.5, 3)
    assert find_grid_codes(np.array([[3 * 0.0625, -3 * 0.0625]], np.float32)) == (0.1875, 2)


@pytest.mark.parametrize(("step", "kind"), [(0.1, "single"), (float(np.float16(0.1)), "half"), (1e-20, "single")])
def test_other_steps_take_two_bytes_or_four(step, kind):
    values = np.arange(-8, 8, dtype=np.float32)[None] * np.float32(step)
    found, bits = find_grid_codes(values)
    assert np.array_equal(np.rint(values / found).astype(np.float32) * np.float32(found), values) and bits == 4
    assert grid_codes._step_kind(found) == kind


@pytest.mark.parametrize(
    "values", [[[0.1, 0.2345]], [[-129.0, 1.0]], [[128.0, 1.0]], np.linspace(0, 1, 300, dtype=np.float32)[None]]
)
def test_numbers_on_no_grid_of_eight_bits_are_seen(values):
    assert find_grid_codes(np.array(values, np.float32)) is None


def test_the_prior_is_the_one_by_hand():
    assert prior(2, 3).tolist() == [1 + 8192 * part // (16 + 32 + 64 + 32) for part in (16, 32, 64, 32)]
    assert prior(3, 7).tolist() == [1 + 1024] * 8
    assert prior(8, 0).min() == 1 and prior(1, 0).tolist() == [1 + 8192 // 9, 1 + 8192 * 8 // 9]


# ---- tensors


SHAPES = [(1,), (7,), (3, 5), (4, 1, 1, 1), (4, 2, 3, 3), (2, 3, 1, 5), (2, 3, 4, 1), (300, 30)]


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(SHAPES), st.integers(1, 8), st.sampled_from([0.125, 0.1, 1.0, 3e-5, None]), st.floats(0, 1)
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 1000),
)
def test_any_tensors_read_back_to_the_bit(parts, seed):
    tensors = []
    for shape, bits, step, dropped in parts:
        values = normal(*shape, seed=seed) * (
            torch.rand(shape, generator=torch.Generator().manual_seed(seed)) >= dropped
        )
        tensors.append(values if step is None else on_grid(values, bits, step))
    assert_read_back(*tensors)


def assert_read_back(*tensors):
    content = coded(*tensors)
    reader = ShortRangeReader(content)
    coder = TensorCoder(reader)
    for tensor in tensors:
        assert torch.equal(coder.read(torch.full_like(tensor, 7.0)), tensor)
    assert reader.is_at_end()


@pytest.mark.parametrize("shape", SHAPES[:-1])
def test_tensors_of_every_shape_read_back_to_the_bit(shape):
    values = normal(*shape)
    zeros = torch.zeros(shape)
    assert_read_back(
        on_grid(values, 3, 0.25), on_grid(values, 8, 0.1), values, zeros, -zeros, zeros + 1e30, values * 1e-44
    )


def test_the_bytes_are_near_the_entropy_and_the_grid_takes_one_or_two():
    for bits in (2, 3, 4):
        codes = on_grid(normal(20, 50), bits, 0.125)
        _, counts = np.unique(codes.numpy(), return_counts=True)
        entropy = -(counts * np.log2(counts / codes.numel())).sum()
        assert len(coded(codes)) <= 1.02 * entropy / 8 + 4
    biases = torch.tensor([-17.0, 3.0, 25.0, 8.0]) * 2**-6
    assert len(coded(biases)) <= 4 * 6 / 8 + 2
    assert len(coded(torch.zeros(1000))) <= 1


def test_what_was_chosen_before_costs_less_the_next_time():
    weight, bias = on_grid(normal(4, 8), 4, 0.125), on_grid(normal(4), 6, 0.25)
    estimate, bits = Estimate(), [0.0]
    coder = TensorCoder(estimate)
    for tensor in (weight, bias, weight, bias):
        coder.write(tensor)
        bits.append(estimate.bits)
    weight_first, bias_first, weight_again, bias_again = np.diff(bits)
    assert weight_again < weight_first - 4 and bias_again < bias_first - 4


def smooth():
    """Return windows whose neighbours are alike."""
    waves = torch.sin(torch.arange(5) / 1.5)
    return on_grid(1.5 * normal(30, 1, 1, 1) * (waves[:, None] + waves), 4, 0.125)


def sparse(rows=300, columns=100):
    kept = torch.rand(columns, generator=torch.Generator().manual_seed(1)) < 0.1
    return on_grid(normal(rows, columns) * kept, 3, 0.125)


@pytest.mark.parametrize(
    ("tensor", "way", "order", "most"),
    [
        (on_grid(normal(40), 6, 0.5).sort().values, "grid", "sorted", 256),
        (on_grid(normal(65), 6, 0.5).sort().values, "grid", "alone", 256),
        (on_grid(normal(40), 4, 0.5), "grid", "alone", 256),
        (on_grid(normal(10, 40), 4, 0.5), "grid", "alone", 256),
        (smooth(), "grid", "neighbours", 256),
        (sparse(), "grid", "matrix", 256),
        (normal(4)[torch.randint(4, (20, 30), generator=torch.Generator().manual_seed(0))], "values", "alone", 256),
        (normal(10), "values", "alone", 0),
    ],
    ids=[
        "sorted biases",
        "many biases",
        "biases",
        "weights",
        "smooth windows",
        "empty columns",
        "shared values",
        "raw",
    ],
)
def test_the_way_that_takes_the_fewest_bits_is_taken(tensor, way, order, most, monkeypatch):
    plan = plans(tensor, monkeypatch)
    assert (plan.way, plan.order, plan.most) == (way, order, most)


def test_neighbours_are_looked_at_in_small_windows_only():
    assert grid_codes._orders(torch.zeros(MAX_WATCHED // 4, 1, 2, 2)) == ["alone", "neighbours", "matrix"]
    for shape in ((MAX_WATCHED // 4 + 1, 1, 2, 2), (8, 8, 1, 1), (8, 8)):
        assert grid_codes._orders(torch.zeros(shape)) == ["alone", "matrix"]
    assert grid_codes._orders(torch.zeros(64)) == ["alone", "sorted"]
    assert grid_codes._orders(torch.zeros(1)) == grid_codes._orders(torch.zeros(65)) == ["alone"]


def test_sorted_numbers_take_less_by_the_bits_of_their_order():
    symbols, counts = np.rint(16 * normal(30).numpy()).astype(int) + 128, prior(8, 6)
    estimate = Estimate()
    grid_codes._code_sorted(estimate, np.sort(symbols), counts.tolist())
    _, times = np.unique(symbols, return_counts=True)
    orders = math.lgamma(31) - sum(math.lgamma(each + 1) for each in times)  # in nats
    in_any_order = np.log2(counts.sum() / counts[symbols]).sum()
    assert estimate.bits == pytest.approx(in_any_order - orders / math.log(2), abs=0.1)


@given(st.lists(st.integers(-4, 3), min_size=2, max_size=64), st.integers(1, 3))
def test_sorted_numbers_read_back_to_the_bit(numbers, times):
    assert_read_back(*[torch.tensor(sorted(numbers), dtype=torch.float32) * 0.25] * times)


def test_large_sparse_weights_take_no_more_than_two_percent_over_their_table():
    tensor = sparse(200, 400)
    writer = ShortRangeWriter()
    grid_codes.write_tensor(writer, tensor)
    assert len(coded(tensor)) <= 1.02 * len(writer.content())


# ---- what is not written


def test_a_longer_spelling_of_a_grid_is_refused(monkeypatch):
    tensor = on_grid(normal(3, 4), 3, 0.5)
    for name, value, part in (
        ("_step_kind", lambda _step: "half", "not written in the fewest bytes"),
        ("_step_kind", lambda _step: "single", "not written in the fewest bytes"),
        ("_bits_for", lambda _codes: 5, "fewer bits than it says"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(grid_codes, name, value)
            content = coded(tensor)
        with pytest.raises(ValueError, match=re.escape(part)):
            TensorCoder(ShortRangeReader(content)).read(tensor)


@pytest.mark.parametrize("step", [np.inf, np.nan, -1.0, 0.0])
def test_a_step_that_is_none_is_refused(step):
    writer = ShortRangeWriter()
    counts = grid_codes.WAY_COUNTS, grid_codes.BITS_COUNTS, grid_codes.STEP_KIND_COUNTS
    for value, each in zip((0, 2, 1), counts, strict=True):  # on a grid, of two bits, whose step is in half precision
        code_choice(writer, value, each)
    for byte in np.float16(step).tobytes():
        writer.whole(byte, 256)
    with pytest.raises(ValueError, match="a step is no number above 0"):
        TensorCoder(ShortRangeReader(writer.content())).read(torch.ones(3))
