"""DINOv3 ViT: rotary positions, registers, patches of 16; TRELLIS.2 is conditioned on it."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from gap3d.features.family import SAME_IN_ALL, Family, geometry, weights_and_biases

ROPE_BASE = 100.0  # of every published DINOv3
UNUSED = ("rope_embed.periods", "local_cls_norm.weight", "local_cls_norm.bias")  # computed anew; of training alone
MASK = "attn.qkv.bias_mask"


class Dinov3(Family):
    """DINOv3 ViT. Any image size that is a multiple of the patch is native to its rotary positions."""

    title = "DINOv3 ViT"
    model_type = "dinov3_vit"
    blocks = "model.layer"
    names: Mapping[str, str] = {
        "cls_token": "embeddings.cls_token",
        "mask_token": "embeddings.mask_token",
        "storage_tokens": "embeddings.register_tokens",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.bias",
        "norm.weight": "norm.weight",
        "norm.bias": "norm.bias",
    }
    block_names: Mapping[str, tuple[str, ...]] = {
        **SAME_IN_ALL,
        **weights_and_biases(
            {
                "mlp.fc1": ("mlp.up_proj",),
                "mlp.fc2": ("mlp.down_proj",),
                "mlp.w1": ("mlp.gate_proj",),
                "mlp.w2": ("mlp.up_proj",),
                "mlp.w3": ("mlp.down_proj",),
            }
        ),
    }

    @property
    def model_class(self) -> Any:
        """See ``Family``."""
        from transformers import DINOv3ViTModel

        return DINOv3ViTModel

    def small_config(self, image_size: int) -> Any:
        """See ``Family``; not one count is that of the small DINOv2, so that nothing can rely on it."""
        return self.model_class.config_class(
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=3,
            patch_size=16,
            num_register_tokens=2,
            image_size=image_size,
        )

    def owns(self, names: Collection[str]) -> bool:
        """See ``Family``."""
        return "rope_embed.periods" in names

    def config_of(self, state: Mapping[str, Tensor]) -> Any:
        """See ``Family``; the periods of the rotary positions tell the heads' channels."""
        found = geometry(state)
        periods = state["rope_embed.periods"].float()
        channels = 4 * len(periods)  # a quarter each: sine and cosine of two axes
        expected = ROPE_BASE ** (torch.arange(len(periods)) / len(periods))
        if not torch.allclose(periods, expected, rtol=1e-2):  # they may be kept in bfloat16
            raise ValueError(f"the periods of its rotary positions are not those of base {ROPE_BASE:g}")
        if found["hidden_size"] % channels:
            raise ValueError(f"{found['hidden_size']} channels are no whole number of heads of {channels}")
        gated = "blocks.0.mlp.w1.weight" in state
        bias = "blocks.0.attn.qkv.bias" in state
        return self.model_class.config_class(
            **found,
            num_attention_heads=found["hidden_size"] // channels,
            intermediate_size=state[f"blocks.0.mlp.{'w1' if gated else 'fc1'}.weight"].shape[0],
            num_register_tokens=state["storage_tokens"].shape[1],
            use_gated_mlp=gated,
            hidden_act="silu" if gated else "gelu",
            mlp_bias=f"blocks.0.mlp.{'w3' if gated else 'fc2'}.bias" in state,
            query_bias=bias,
            key_bias=bias and f"blocks.0.{MASK}" not in state,
            value_bias=bias,
            proj_bias="blocks.0.attn.proj.bias" in state,
            rope_theta=ROPE_BASE,
        )

    def renamed(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Family``; where the authors mask the bias of the keys, there is none."""
        masked = any(name.endswith(MASK) for name in state)
        kept = {name: tensor for name, tensor in state.items() if name not in UNUSED and not name.endswith(MASK)}
        found = super().renamed(kept)
        if masked:
            found = {name: tensor for name, tensor in found.items() if not name.endswith("attention.k_proj.bias")}
        if "mask_token" in state:
            found[self.names["mask_token"]] = state["mask_token"].reshape(1, 1, -1)
        return found

    def prenorm(self, model: Any, pixels: Tensor) -> Tensor:
        """See ``Family``."""
        positions = model.rope_embeddings(pixels)
        return model.model(model.embeddings(pixels), position_embeddings=positions).last_hidden_state
