"""Names of the trainable weights: here, and in a released GAP3D checkpoint (the table of docs/method.md 5.7).

A released checkpoint also holds the frozen vision-language model and the frozen encoder. Those are no part of an
aligner's checkpoint and are passed over.
"""

import re
from collections.abc import Mapping
from typing import TypeVar

DIT, RELEASED_DIT = "dit.", "model.dit.model."
SOFT_TOKENS, RELEASED_SOFT_TOKENS = "conditioner.soft_tokens", "model.latent_queries"
FROZEN = ("model.", "visual.", "lm_head.")  # all of these that is neither soft tokens nor DiT

# Ours to released, by the dotted parts of a name; a weight's last part (weight, bias) follows.
WHOLE = {
    "cls_in": "cls_embed",
    "cls_role": "cls_role",
    "registers_in": "reg_embed",
    "registers_role": "reg_roles",
    "patches_in": "patch_embedder.proj",
    "condition_in.0": "caption_projection.linear_1",
    "condition_in.2": "caption_projection.linear_2",
    "modulator.time.0": "time_caption_embed.timestep_embedder.linear_1",
    "modulator.time.2": "time_caption_embed.timestep_embedder.linear_2",
    "modulator.pooled.0": "time_caption_embed.caption_embedder.0",
    "modulator.pooled.1": "time_caption_embed.caption_embedder.1",
    "scale_out": "norm_out.linear_1",
    "out": "norm_out.linear_2",
}
OF_A_BLOCK = {
    "modulation": "norm1.linear",
    "attention_norm": "norm1.norm",
    "attention_norm_out": "norm2",
    "condition_norm": "norm1_context",
    "feed_forward_norm": "ffn_norm1",
    "feed_forward_norm_out": "ffn_norm2",
    "attention.self_q": "attn1.to_q",
    "attention.self_k": "attn1.to_k",
    "attention.self_v": "attn1.to_v",
    "attention.self_q_norm": "attn1.norm_q",
    "attention.self_k_norm": "attn1.norm_k",
    "attention.cross_q": "attn2.to_q",
    "attention.cross_k": "attn2.to_k",
    "attention.cross_v": "attn2.to_v",
    "attention.cross_q_norm": "attn2.norm_q",
    "attention.cross_k_norm": "attn2.norm_k",
    "attention.gate": "gate",
    "attention.out": "attn2.to_out.0",
    "feed_forward.gate": "feed_forward.linear_1",
    "feed_forward.up": "feed_forward.linear_3",
    "feed_forward.down": "feed_forward.linear_2",
}
NAME = re.compile(r"(?:(?:blocks|layers)\.(?P<block>\d+)\.)?(?P<module>.+?)(?P<kind>\.weight|\.bias)?")

Value = TypeVar("Value")


def to_released(state: Mapping[str, Value]) -> dict[str, Value]:
    """The trainable weights of an aligner under their released names.

    Args:
        state: by the names of ``Aligner``'s parameters: ``dit.*`` and ``conditioner.soft_tokens``; the values may be
            tensors, shapes, file names.

    Raises:
        ValueError: a name is none of these.
    """
    return {_released(name): value for name, value in state.items()}


def from_released(state: Mapping[str, Value]) -> dict[str, Value]:
    """The inverse of ``to_released``; what belongs to the frozen models is left out.

    Raises:
        ValueError: a name is of no GAP3D checkpoint.
    """
    return {_ours(name): value for name, value in state.items() if is_trainable(name)}


def is_trainable(name: str) -> bool:
    """Whether a name of a released checkpoint is of a trainable weight, and not of a frozen one.

    Raises:
        ValueError: the name is of no GAP3D checkpoint.
    """
    if name == RELEASED_SOFT_TOKENS or name.startswith(RELEASED_DIT):
        return True
    if name.startswith(FROZEN):
        return False
    raise ValueError(f"{name!r} is no name of a released GAP3D checkpoint")


def _released(name: str) -> str:
    if name == SOFT_TOKENS:
        return RELEASED_SOFT_TOKENS
    return RELEASED_DIT + _renamed(name, DIT, "layers", WHOLE, OF_A_BLOCK)


def _ours(name: str) -> str:
    if name == RELEASED_SOFT_TOKENS:
        return SOFT_TOKENS
    return DIT + _renamed(name, RELEASED_DIT, "blocks", _turned(WHOLE), _turned(OF_A_BLOCK))


def _turned(names: dict[str, str]) -> dict[str, str]:
    return {theirs: ours for ours, theirs in names.items()}


def _renamed(name: str, prefix: str, blocks: str, whole: dict[str, str], of_a_block: dict[str, str]) -> str:
    match = NAME.fullmatch(name.removeprefix(prefix)) if name.startswith(prefix) else None
    known = None
    if match:
        block, module, kind = match.group("block", "module", "kind")
        known = (whole if block is None else of_a_block).get(module)
    if match is None or known is None:
        raise ValueError(f"{name!r} is no name of the diffusion transformer's weights")
    return f"{known}{kind or ''}" if block is None else f"{blocks}.{block}.{known}{kind or ''}"
