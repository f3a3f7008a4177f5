"""DINOv2 and DINOv3 written plainly from their papers, on weights under their authors' names: an independent truth.

Attention is a softmax of a matrix, rotary positions are products of complex numbers; nothing of transformers is used.
"""

import math

import torch
from torch.nn import functional


def noise(*shape, scale=1.0, generator):
    return scale * torch.randn(*shape, generator=generator)


def block_weights(prefix, width, hidden, gated, masked, generator):
    def linear(name, out, inside):
        return {
            f"{prefix}.{name}.weight": noise(out, inside, scale=inside**-0.5, generator=generator),
            f"{prefix}.{name}.bias": noise(out, scale=0.1, generator=generator),
        }

    made = {
        **linear("attn.qkv", 3 * width, width),
        **linear("attn.proj", width, width),
        **{f"{prefix}.{ls}.gamma": 1 + noise(width, scale=0.1, generator=generator) for ls in ("ls1", "ls2")},
    }
    for norm in ("norm1", "norm2"):
        made[f"{prefix}.{norm}.weight"] = 1 + noise(width, scale=0.1, generator=generator)
        made[f"{prefix}.{norm}.bias"] = noise(width, scale=0.1, generator=generator)
    if masked:
        mask = torch.ones(3 * width)
        mask[width : 2 * width] = 0
        made[f"{prefix}.attn.qkv.bias_mask"] = mask
    if gated == "w12":
        made |= linear("mlp.w12", 2 * hidden, width) | linear("mlp.w3", width, hidden)
    elif gated:
        made |= linear("mlp.w1", hidden, width) | linear("mlp.w2", hidden, width) | linear("mlp.w3", width, hidden)
    else:
        made |= linear("mlp.fc1", hidden, width) | linear("mlp.fc2", width, hidden)
    return made


def weights(*, family, width=128, depth=2, patch=7, registers=3, grid=6, hidden=512, gated="", seed=0):
    """Random weights as the authors would publish them."""
    generator = torch.Generator().manual_seed(seed)
    made = {
        "cls_token": noise(1, 1, width, generator=generator),
        "mask_token": noise(1, width, generator=generator),
        "patch_embed.proj.weight": noise(width, 3, patch, patch, scale=0.1, generator=generator),
        "patch_embed.proj.bias": noise(width, scale=0.1, generator=generator),
        "norm.weight": 1 + noise(width, scale=0.1, generator=generator),
        "norm.bias": noise(width, scale=0.1, generator=generator),
    }
    if family == "dinov2":
        made["pos_embed"] = noise(1, 1 + grid * grid, width, generator=generator)
        if registers:
            made["register_tokens"] = noise(1, registers, width, generator=generator)
    else:
        made["storage_tokens"] = noise(1, registers, width, generator=generator)
        made["rope_embed.periods"] = 100.0 ** (torch.arange(16) / 16)  # heads of 64 channels
    for index in range(depth):
        made |= block_weights(f"blocks.{index}", width, hidden, gated, family == "dinov3", generator)
    return made


def rotate(x, grid, periods):
    """Rotary positions [B, H, N, D] of the patches, as complex numbers: channel i with channel i + D / 2."""
    places = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid * 2 - 1
    rows, columns = places.repeat_interleave(grid), places.repeat(grid)
    angles = 2 * math.pi * torch.cat([rows[:, None] / periods, columns[:, None] / periods], dim=1)
    first, second = x.double().chunk(2, dim=-1)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=-1).to(x.dtype)


def prenorm(state, pixels, heads):
    """Tokens [B, T, C] before the final norm, of pixels [B, 3, S, S]."""
    patch = state["patch_embed.proj.weight"].shape[-1]
    grid = pixels.shape[-1] // patch
    x = functional.conv2d(pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=patch)
    x = x.flatten(2).transpose(1, 2)
    cls = state["cls_token"]
    if "pos_embed" in state:
        positions = state["pos_embed"][:, 1:]
        side = math.isqrt(positions.shape[1])
        if side != grid:
            square = positions.transpose(1, 2).unflatten(2, (side, side))
            square = functional.interpolate(square, size=(grid, grid), mode="bicubic", antialias=True)
            positions = square.flatten(2).transpose(1, 2)
        x, cls = x + positions, cls + state["pos_embed"][:, :1]
    registers = state.get("register_tokens", state.get("storage_tokens", cls[:, :0]))
    prefix = torch.cat([cls, registers], dim=1)
    x = torch.cat([prefix.expand(len(x), -1, -1), x], dim=1)
    for index in range(sum(name.endswith("ls1.gamma") for name in state)):
        x = block(state, f"blocks.{index}", x, heads, grid, prefix.shape[1])
    return x


def block(state, name, x, heads, grid, prefix):
    eps = 1e-6 if "pos_embed" in state else 1e-5

    def of(part):
        return state[f"{name}.{part}"]

    def linear(part, y):
        return y @ of(f"{part}.weight").T + of(f"{part}.bias")

    def norm(part, y):
        centred = y - y.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        return centred / (variance + eps).sqrt() * of(f"{part}.weight") + of(f"{part}.bias")

    bias = of("attn.qkv.bias") * state.get(f"{name}.attn.qkv.bias_mask", torch.ones(()))
    qkv = norm("norm1", x) @ of("attn.qkv.weight").T + bias
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    if "rope_embed.periods" in state:
        q, k = (
            torch.cat([t[:, :, :prefix], rotate(t[:, :, prefix:], grid, state["rope_embed.periods"])], dim=2)
            for t in (q, k)
        )
    attention = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
    x = x + of("ls1.gamma") * linear("attn.proj", (attention @ v).transpose(1, 2).flatten(2))
    y = norm("norm2", x)
    if f"{name}.mlp.w12.weight" in state:
        gate, up = linear("mlp.w12", y).chunk(2, dim=-1)
        inside, last = functional.silu(gate) * up, "mlp.w3"
    elif f"{name}.mlp.w1.weight" in state:
        inside, last = functional.silu(linear("mlp.w1", y)) * linear("mlp.w2", y), "mlp.w3"
    else:
        inside, last = functional.gelu(linear("mlp.fc1", y)), "mlp.fc2"
    return x + of("ls2.gamma") * linear(last, inside)
