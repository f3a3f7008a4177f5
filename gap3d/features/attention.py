"""Attention in bfloat16 for processors that multiply bfloat16 and have no matrix tiles (AMX).

There torch's own kernel (scaled_dot_product_attention) multiplies at the rate of float32, while its batched matrix
products reach several times that. This one is made of those: scores, softmax and weighted sum over blocks of queries
that fit the cache.

The product writes scores in bfloat16, and 8 bits are too few for scores of 10 and more. So an estimate of each
query's greatest score, from its scores with every ``STEP``-th key, is subtracted inside the product, before the
rounding: what is left is small where the softmax is large. Any number may be subtracted, softmax does not see it; a
poor estimate costs digits and nothing else.

A row's numbers depend neither on the batch, nor on the number of threads, nor on the size of the blocks.
"""

import math
from typing import Any

import torch
from torch import Tensor

NAME = "gap3d_blocked"  # among the attn_implementation of transformers
LEAD, STEP = 16, 8  # keys that the estimate looks at: the first, which are the special tokens, and every STEP-th
BLOCK = 1 << 20  # scores of one head at a time: 2 MiB


def is_faster() -> bool:
    """Whether this processor is one of those for which this attention is meant.

    Measured on AMD Zen 4. With AMX torch's kernel takes another way, and without bfloat16 products there is nothing
    to gain.
    """
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16")) and not has.get("amx_bf16") and torch.backends.mkldnn.is_available()


def register() -> None:
    """Make ``attn_implementation=NAME`` known to transformers, for every model that lets its attention be chosen."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def install(model: Any) -> bool:
    """Let a model of transformers use this attention, if it is on a CPU in bfloat16 and gains by it.

    Args:
        model: on its device, in its precision, for inference.

    Returns:
        Whether it does.
    """
    if model.device.type != "cpu" or model.dtype != torch.bfloat16 or not is_faster():
        return False
    register()
    model.set_attn_implementation(NAME)
    return True


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface; whatever ``blocked`` is not made for goes to torch's kernel.

    Args:
        module: the layer.
        query: [B, H, T, D].
        key: the same shape.
        value: the same shape.
        attention_mask: passed on.
        dropout: passed on.
        scaling: default: D ** -0.5.
        kwargs: passed on.

    Returns:
        [B, T, H, D], and no weights.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    exact = math.frexp(scale)[0] == 0.5  # a power of two: scaling the queries loses nothing
    same = query.shape == key.shape == value.shape and query.dtype == torch.bfloat16 and query.device.type == "cpu"
    learning = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    causal = kwargs.get("is_causal", getattr(module, "is_causal", False))
    asked = any(wish is not None and wish is not False for wish in kwargs.values())  # softcap, position_bias ...
    if attention_mask is None and exact and same and not (dropout or learning or causal or asked):
        return blocked(query, key, value, scale), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)


def blocked(query: Tensor, key: Tensor, value: Tensor, scale: float, kept: Tensor | None = None) -> Tensor:
    """softmax(scale * query key^T) value, in bfloat16, without a gradient.

    Args:
        query: bfloat16 [B, H, T, D], of any strides.
        key: the same shape.
        value: the same shape.
        scale: a power of two.
        kept: bfloat16 [B, H, T, T] gets the softmax; none lets go of it.

    Returns:
        [B, T, H, D], contiguous.
    """
    batch, heads, tokens, width = query.shape
    # [query, estimate, 0] [key, -1, -1]^T = scores less the estimate; the zero because the products like pairs.
    queries = query.new_zeros(batch, heads, tokens, width + 2)
    keys = query.new_full((batch, heads, tokens, width + 2), -1)
    torch.mul(query, scale, out=queries[..., :width])
    keys[..., :width] = key
    some = torch.cat((keys[:, :, :LEAD], keys[:, :, LEAD::STEP]), 2).transpose(2, 3)
    keys, value = keys.transpose(2, 3), value.contiguous()
    result = query.new_empty(batch, tokens, heads, width)
    rows = math.ceil(tokens / math.ceil(tokens**2 / BLOCK))  # equal blocks
    together = min(heads, torch.get_num_threads())  # a head each
    memory = query.new_empty(together * max(rows, some.shape[3]) * tokens)  # fresh pages cost as much as a softmax
    for image in range(batch):
        for head in range(0, heads, together):
            these = slice(head, min(head + together, heads))
            count = these.stop - head
            sample = memory[: count * tokens * some.shape[3]].view(count, tokens, -1)
            torch.bmm(queries[image, these], some[image, these], out=sample)
            torch.amax(sample, -1, out=queries[image, these, :, width])
            for row in range(0, tokens, rows):
                block = queries[image, these, row : row + rows]
                scores = memory[: count * block.shape[1] * tokens].view(count, -1, tokens)
                if kept is not None:
                    scores = kept[image, these, row : row + rows]
                torch.bmm(block, keys[image, these], out=scores)
                torch.softmax(scores, -1, out=scores)
                into = result[image, row : row + rows, these].transpose(0, 1)
                torch.bmm(scores, value[image, these], out=into)
    return result
