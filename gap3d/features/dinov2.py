"""DINOv2, with register tokens (the paper's encoder) and without."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from gap3d.features.family import HEAD_CHANNELS, SAME_IN_ALL, Family, geometry, weights_and_biases


class Dinov2(Family):
    """DINOv2 ViT: learned positions, interpolated at image sizes other than its own.

    With registers the interpolation is its authors' (bicubic with antialiasing, offset 0). Without, transformers
    leaves out their offset of 0.1: only at the encoder's own size (518) are the tokens exactly theirs.

    Args:
        registers: whether it has register tokens.
    """

    blocks = "encoder.layer"
    names: Mapping[str, str] = {
        "cls_token": "embeddings.cls_token",
        "mask_token": "embeddings.mask_token",
        "pos_embed": "embeddings.position_embeddings",
        "register_tokens": "embeddings.register_tokens",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    block_names: Mapping[str, tuple[str, ...]] = {
        **SAME_IN_ALL,
        **weights_and_biases(
            {
                "mlp.fc1": ("mlp.fc1",),
                "mlp.fc2": ("mlp.fc2",),
                "mlp.w12": ("mlp.gate_proj", "mlp.up_proj"),  # the giant's SwiGLU
                "mlp.w3": ("mlp.down_proj",),
            }
        ),
    }

    def __init__(self, *, registers: bool) -> None:
        self.registers = registers
        self.title = "DINOv2 with registers" if registers else "DINOv2"
        self.model_type = "dinov2_with_registers" if registers else "dinov2"

    @property
    def model_class(self) -> Any:
        """See ``Family``."""
        from transformers import Dinov2Model, Dinov2WithRegistersModel

        return Dinov2WithRegistersModel if self.registers else Dinov2Model

    def small_config(self, image_size: int) -> Any:
        """See ``Family``."""
        return self.model_class.config_class(
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            patch_size=14,
            image_size=image_size,
            **({"num_register_tokens": 4} if self.registers else {}),
        )

    def owns(self, names: Collection[str]) -> bool:
        """See ``Family``."""
        return "pos_embed" in names and ("register_tokens" in names) == self.registers

    def config_of(self, state: Mapping[str, Tensor]) -> Any:
        """See ``Family``; heads have 64 channels."""
        found = geometry(state)
        width = found["hidden_size"]
        positions = state["pos_embed"].shape[1] - 1
        side = math.isqrt(positions)
        if side * side != positions:
            raise ValueError(f"{positions} positions of patches are no square grid")
        if width % HEAD_CHANNELS:
            raise ValueError(f"{width} channels are no whole number of heads of {HEAD_CHANNELS}")
        gated = "blocks.0.mlp.w12.weight" in state
        hidden = state["blocks.0.mlp.w3.weight"].shape[1] if gated else state["blocks.0.mlp.fc1.weight"].shape[0]
        # The gated one keeps two thirds of what its ratio says.
        ratio = round(hidden / width * (1.5 if gated else 1))
        return self.model_class.config_class(
            **found,
            num_attention_heads=width // HEAD_CHANNELS,
            image_size=side * found["patch_size"],
            mlp_ratio=ratio,
            use_swiglu_ffn=gated,
            qkv_bias="blocks.0.attn.qkv.bias" in state,
            **({"num_register_tokens": state["register_tokens"].shape[1]} if self.registers else {}),
        )

    def prenorm(self, model: Any, pixels: Tensor) -> Tensor:
        """See ``Family``."""
        return model.encoder(model.embeddings(pixels)).last_hidden_state
