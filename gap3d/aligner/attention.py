"""Attention of the diffusion transformer: torch's, but where this processor has a faster one that learns.

On processors for which ``gap3d.features.attention`` is meant, torch's kernel takes as long in bfloat16 as in float32.
There self-attention is that module's, and its gradient is made of the same batched products in bfloat16:

    P = softmax(Q K^T)      dV = P^T dO      dS = P (dO V^T - rowsum(dO O))      dQ = dS K      dK = dS^T Q

P is kept for the gradient, 2 H T^2 bytes a sample, as long as the activations of its block are: with activation
checkpointing, one block's. The row sum, in two bfloat16 numbers, is in the product that makes dS, before it is rounded.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gap3d.features.attention import blocked, is_faster

FASTER = is_faster()  # asked once: torch.compile can't ask


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(query key^T / sqrt(D)) value.

    Args:
        query: [B, T, H, D].
        key: [B, M, H, D].
        value: [B, M, H, D].

    Returns:
        [B, T, H, D].
    """
    scale = query.shape[-1] ** -0.5
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    exact = math.frexp(scale)[0] == 0.5  # a power of two: scaling the queries loses nothing
    same = query.shape == key.shape and query.dtype == key.dtype == value.dtype == torch.bfloat16
    if same and exact and query.device.type == "cpu" and FASTER:
        learning = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
        return attention(query, key, value, scale, learning)[0]
    return scaled_dot_product_attention(query, key, value).transpose(1, 2)


@torch.library.custom_op("gap3d::attention", mutates_args=(), device_types="cpu")
def attention(query: Tensor, key: Tensor, value: Tensor, scale: float, learning: bool) -> tuple[Tensor, Tensor]:
    """``blocked`` of [B, H, T, D] with a gradient.

    An operator of torch, so that torch.compile takes it as it is.

    Returns:
        [B, T, H, D], and the softmax [B, H, T, T]; empty where nothing learns.
    """
    batch, heads, tokens, _ = query.shape
    kept = query.new_empty(batch, heads, tokens, tokens) if learning else None
    result = blocked(query, key, value, scale, kept)
    return result, query.new_empty(0) if kept is None else kept


@torch.library.custom_op("gap3d::attention_backward", mutates_args=(), device_types="cpu")
def attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, result: Tensor, kept: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``attention``.

    Args:
        gradient: [B, T, H, D].
        query: bfloat16 [B, H, T, D].
        key: the same shape.
        value: the same shape.
        result: what ``attention`` made of them, [B, T, H, D].
        kept: the softmax, [B, H, T, T].
        scale: a power of two.

    Returns:
        Of query, key and value, [B, T, H, D].
    """
    batch, heads, tokens, width = query.shape
    less = torch.linalg.vecdot(gradient.float(), result.float()).transpose(1, 2).neg_()  # minus the row sums, [B, H, T]
    gradients = query.new_empty(batch, heads, tokens, width + 2)  # [gradient, row sum, what its rounding lost]
    gradients[..., :width] = gradient.transpose(1, 2)
    gradients[..., width] = less
    gradients[..., width + 1] = less - gradients[..., width]
    values = query.new_ones(gradients.shape)  # [value, 1, 1]
    values[..., :width] = value
    query, key = query.contiguous(), key.contiguous()
    of_query, of_key, of_value = (query.new_empty(batch, tokens, heads, width) for _ in range(3))
    together = min(heads, torch.get_num_threads())  # a head each
    memory = query.new_empty(together, tokens, tokens)
    for image in range(batch):
        for head in range(0, heads, together):
            these = slice(head, min(head + together, heads))
            p, of_scores = kept[image, these], memory[: these.stop - head]  # [h, T, T]
            back = p.transpose(1, 2)
            torch.bmm(back, gradients[image, these, :, :width], out=of_value[image, :, these].transpose(0, 1))
            torch.bmm(gradients[image, these], values[image, these].transpose(1, 2), out=of_scores)
            of_scores *= p
            torch.bmm(of_scores, key[image, these], out=of_query[image, :, these].transpose(0, 1))
            back = of_scores.transpose(1, 2)
            torch.bmm(back, query[image, these], out=of_key[image, :, these].transpose(0, 1))
    return of_query.mul_(scale), of_key.mul_(scale), of_value


@attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, scale: float, learning: bool) -> tuple[Tensor, Tensor]:
    batch, heads, tokens, width = query.shape
    kept = query.new_empty(batch, heads, tokens, tokens) if learning else query.new_empty(0)
    return query.new_empty(batch, tokens, heads, width), kept


@attention_backward.register_fake
def _(gradient: Tensor, query: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, tokens, width = query.shape
    of_query, of_key, of_value = (query.new_empty(batch, tokens, heads, width) for _ in range(3))
    return of_query, of_key, of_value


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    query, key, value, ctx.scale, _ = inputs
    ctx.save_for_backward(query, key, value, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, gradient: Tensor, _: Any) -> Any:
    gradients = attention_backward(gradient, *ctx.saved_tensors, ctx.scale)
    return *(x.transpose(1, 2) for x in gradients), None, None


attention.register_autograd(_backward, setup_context=_keep)
