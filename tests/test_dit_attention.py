"""Attention that learns, in bfloat16 on a CPU, and the scaled norm, against exact gradients."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from gap3d.aligner import attention, norm
from gap3d.aligner.attention import attend
from gap3d.aligner.norm import ScaledRMSNorm

needs_bfloat16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor has no oneDNN products in bfloat16"
)


@pytest.fixture(autouse=True)
def chosen(monkeypatch):
    """On every processor that can."""
    monkeypatch.setattr(attention, "FASTER", True)


def inputs(tokens, batch=2, heads=3, width=64, spread=1.0, dtype=torch.bfloat16):
    """Query, key, value and a gradient, [B, T, H, D]; scores of deviation ``spread``."""
    rng = torch.Generator().manual_seed(0)
    query, key, value, gradient = (torch.randn(batch, tokens, heads, width, generator=rng) for _ in range(4))
    return [x.to(dtype).requires_grad_() for x in (query * spread, key, value)], gradient.to(dtype)


def exact(tensors, gradient):
    """Result and gradients by torch in double precision."""
    copies = [x.detach().double().requires_grad_() for x in tensors]
    result = sdpa(*(x.transpose(1, 2) for x in copies)).transpose(1, 2)
    return [result.detach(), *torch.autograd.grad(result, copies, gradient.double())]


def error(found, wanted):
    return float((found.detach().double() - wanted).norm() / wanted.norm())


@needs_bfloat16
@pytest.mark.parametrize(("tokens", "spread"), [(2, 1), (17, 0.1), (301, 0.1), (301, 1), (301, 5), (1100, 1)])
def test_result_and_gradients_are_exact_to_the_digits_of_bfloat16(tokens, spread):
    tensors, gradient = inputs(tokens, spread=spread)
    result = attend(*tensors)
    assert result.grad_fn.name() == "GeneratedBackwardFor_gap3d_attention_defaultBackward"
    found = [result, *torch.autograd.grad(result, tensors, gradient)]
    wanted = exact(tensors, gradient)
    for name, mine, true in zip(("result", "query", "key", "value"), found, wanted, strict=True):
        assert error(mine, true) < 2**-6, name


@needs_bfloat16
def test_what_all_keys_share_leaves_no_trace_in_the_gradients():
    """dO V^T - row sum is a small difference of large numbers where values are nearly alike."""
    tensors, gradient = inputs(301)
    tensors[2] = (tensors[2].detach() + 8).requires_grad_()  # values of 8 and a bit
    found = torch.autograd.grad(attend(*tensors), tensors, gradient)
    plain = torch.autograd.grad(sdpa(*(x.transpose(1, 2) for x in tensors)).transpose(1, 2), tensors, gradient)
    for name, mine, torchs, true in zip("qkv", found, plain, exact(tensors, gradient)[1:], strict=True):
        assert error(mine, true) < 2 * error(torchs, true) + 2**-7, name


@needs_bfloat16
def test_gradients_do_not_depend_on_company_or_on_threads():
    tensors, gradient = inputs(130)
    together = torch.autograd.grad(attend(*tensors), tensors, gradient)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = torch.autograd.grad(attend(*(x[1:] for x in tensors)), tensors, gradient[1:])
    finally:
        torch.set_num_threads(before)
    for mine, company in zip(alone, together, strict=True):
        assert torch.equal(mine[1:], company[1:])


@needs_bfloat16
def test_nothing_is_kept_where_nothing_learns():
    tensors, _ = inputs(130)
    learned = attend(*tensors)
    with torch.no_grad():
        assert torch.equal(attend(*tensors), learned)
        query, key, value = (x.transpose(1, 2) for x in tensors)
        assert attention.attention(query, key, value, 0.125, False)[1].numel() == 0


@needs_bfloat16
def test_the_operators_are_what_torch_expects_of_them():
    tensors, _ = inputs(18)
    given = (*(x.transpose(1, 2) for x in tensors), 0.125, True)
    torch.library.opcheck(attention.attention, given, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("keys", "width", "dtype"), [(9, 64, torch.bfloat16), (30, 32, torch.bfloat16), (30, 64, torch.float32)]
)
def test_all_else_is_torchs(keys, width, dtype):
    """Cross-attention, scales that are no powers of two, other precisions."""
    tensors, _ = inputs(30, width=width, dtype=dtype)
    query, key, value = tensors[0], *(x[:, :keys] for x in tensors[1:])
    wanted = sdpa(*(x.transpose(1, 2) for x in (query, key, value))).transpose(1, 2)
    assert torch.equal(attend(query, key, value), wanted)


@pytest.mark.parametrize("modulated", [False, True])
def test_the_scaled_norm_has_the_gradients_of_its_formula(modulated):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, dtype=torch.float64, generator=rng).requires_grad_()
    shape = (2, 1, 5) if modulated else (5,)
    scale = torch.randn(shape, dtype=torch.float64, generator=rng).requires_grad_()
    wanted = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * scale
    torch.testing.assert_close(norm._Scaled.apply(x, scale, 1e-5), wanted)
    assert torch.autograd.gradcheck(norm._Scaled.apply, (x, scale, 1e-5))


@pytest.mark.parametrize("modulated", [False, True])
def test_the_scaled_norm_is_torchs(modulated):
    """Of which devices that are no CPU take the kernel."""
    rng = torch.Generator().manual_seed(0)
    layer = ScaledRMSNorm(32, 1e-5)
    x, weight = torch.randn(2, 7, 32, generator=rng), torch.randn(32, generator=rng)
    layer.load_state_dict({"weight": weight})
    scale = torch.randn(2, 1, 32, generator=rng) if modulated else None
    torch.testing.assert_close(layer(x, scale), norm.plain(x, weight, scale, 1e-5))
    rounded = layer.bfloat16()(x.bfloat16(), None if scale is None else scale.bfloat16())
    assert rounded.dtype == torch.bfloat16
    assert error(rounded, layer(x, scale).detach().double()) < 2**-7
