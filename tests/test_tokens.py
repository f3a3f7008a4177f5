"""Token layout and stored form."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gap3d.features.tokens import (
    TORCH_DTYPES,
    TokenLayout,
    columns_of,
    dequantise,
    pack,
    quantise,
    targets_from_prenorm,
    unpack,
)

LAYOUT = TokenLayout(registers=4, grid=(3, 5), width=8)


def test_split_and_join_are_inverse_and_in_order():
    tokens = torch.arange(2 * LAYOUT.count * 8.0).view(2, LAYOUT.count, 8)
    cls, registers, patches = LAYOUT.split(tokens)
    assert (cls.shape, registers.shape, patches.shape) == ((2, 8), (2, 4, 8), (2, 15, 8))
    assert torch.equal(cls, tokens[:, 0])
    assert torch.equal(patches[:, 0], tokens[:, 5])
    assert torch.equal(LAYOUT.join(cls, registers, patches), tokens)


def test_the_papers_layout():
    layout = TokenLayout(4, (518 // 14, 518 // 14), 1024)
    assert (layout.patches, layout.count) == (1369, 1374)


@pytest.mark.parametrize("shape", [(2, 19, 8), (2, 20, 7), (20, 8)])
def test_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"\[B, 20, 8\]"):
        LAYOUT.split(torch.zeros(shape))


@given(arrays.arrays(np.float32, (2, 3, 16), elements=st.floats(-100, 100, width=32)))
def test_targets_have_no_mean_and_unit_variance(values):
    out = targets_from_prenorm(torch.from_numpy(values)).numpy()
    exact = values.astype(np.float64)
    centred = exact - exact.mean(-1, keepdims=True)
    np.testing.assert_allclose(out, centred / np.sqrt(exact.var(-1, keepdims=True) + 1e-5), atol=2e-3)
    assert out.dtype == np.float32


def test_targets_of_half_precision_are_computed_in_float32():
    half = torch.randn(1, 2, 64).bfloat16()
    assert torch.equal(targets_from_prenorm(half), targets_from_prenorm(half.float()))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_pack_and_unpack(dtype):
    tensor = torch.randn(3, 5)
    packed = pack(tensor, dtype)
    assert len(packed) == 30
    back = unpack(packed, (3, 5), dtype)
    assert torch.equal(back, tensor.to(back.dtype))
    assert pack(tensor.numpy(), dtype) == packed
    assert pack(tensor.T, dtype) == pack(tensor.T.contiguous(), dtype)


def test_the_bytes_are_little_endian_halves():
    assert pack(np.array([1.0, -2.0]), "float16") == np.array([1, -2], "<f2").tobytes()
    assert pack(np.array([1.0]), "bfloat16") == b"\x80\x3f"


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_packing_takes_one_thread_whatever_torch_may_have(dtype):
    layout = TokenLayout(4, (16, 16), 512)
    tokens = torch.randn(layout.count, layout.width)

    def threads_more():
        before = len(list(Path("/proc/self/task").iterdir()))
        columns_of(tokens, layout, dtype)
        return torch.get_num_threads(), len(list(Path("/proc/self/task").iterdir())) - before

    given = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(threads_more).result() == (3, 0)
    finally:
        torch.set_num_threads(given)


def test_a_row_keeps_no_more_than_its_own_numbers():
    layout = TokenLayout(0, (2, 2), 8)
    tokens = torch.randn(layout.count, layout.width)
    row = columns_of(tokens, layout, "float16")
    assert row["cls"].tolist() == tokens[0].tolist()
    assert not np.shares_memory(row["cls"], tokens.numpy())


def test_unpack_copies_nothing_and_keeps_the_buffer():
    column = pa.array([pack(torch.full((4,), float(i)), "float16") for i in range(3)], pa.binary(8))
    values = column.buffers()[1]
    rows = unpack(values, (3, 4), "float16")
    assert rows.data_ptr() == values.address
    del column, values
    assert rows[:, 0].tolist() == [0, 1, 2]


def test_unpack_of_nothing():
    assert unpack(b"", (0, 4), "float16").shape == (0, 4)


def test_a_wrong_length_is_refused():
    with pytest.raises(ValueError, match="10 bytes"):
        unpack(bytes(10), (6,), "float16")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_numbers_that_do_not_fit_are_refused(value):
    with pytest.raises(ValueError, match="finite"):
        pack(np.array([value]), "float16")


def test_the_description_is_enough_to_decode():
    described = LAYOUT.describe("bfloat16")
    tokens = torch.randn(1, LAYOUT.count, LAYOUT.width)
    for name, part in zip(("registers", "patches"), LAYOUT.split(tokens)[1:], strict=True):
        back = unpack(pack(part[0], "bfloat16"), tuple(described[name]["shape"]), described[name]["dtype"])
        assert torch.equal(back, part[0].bfloat16())


@given(arrays.arrays(np.float32, (3, 16), elements=st.floats(-100, 100, width=32)))
def test_int8_is_off_by_at_most_half_a_step_of_its_token(values):
    tokens = torch.from_numpy(values)
    steps, scales = quantise(tokens)
    back = steps.double() * scales.double()[:, None]
    subnormal = 1e-40  # where float32 has no numbers that close
    assert ((back - tokens).abs() <= scales[:, None].double() * 0.5001 + subnormal).all()
    assert (scales == tokens.abs().amax(-1) / 127).all()
    assert torch.equal(dequantise(steps, scales), (steps.float() * scales[:, None]).half())


def test_int8_refuses_what_is_not_finite():
    with pytest.raises(ValueError, match="finite"):
        quantise(torch.tensor([[1.0, float("inf")]]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("value", [65503.0, 65519.9, 65520.0, -65520.0, 3.3961e38, 3.3962e38, -3.4e38, np.inf, np.nan])
def test_packing_refuses_exactly_what_its_format_has_no_number_for(dtype, value):
    array = torch.zeros(5, 7)
    array[3, 2] = value
    if torch.isfinite(array.to(TORCH_DTYPES[dtype])).all():
        assert torch.equal(unpack(pack(array, dtype), (5, 7), dtype), array.to(TORCH_DTYPES[dtype]))
    else:
        with pytest.raises(ValueError, match="finite"):
            pack(array, dtype)
