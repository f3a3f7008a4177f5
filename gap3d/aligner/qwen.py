"""The two halves of Qwen2.5-VL that are used, as classes that load alone: no head, and the tower only for images.

Imported where a model is made, not before: transformers takes seconds.
"""

from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLTextModel,
)

# Of checkpoints with a head or without one, as transformers 4 and 5 name them.
TEXT_NAMES = {r"^(?:model\.language_model|language_model|model)\.": ""}
TOWER_NAMES = {r"^(?:model\.)?visual\.": ""}


class LanguageModel(Qwen2_5_VLTextModel):
    """Embeddings, decoder layers, final norm."""

    _keys_to_ignore_on_load_unexpected: list[str] | None = [r"^(?:model\.)?visual\.", r"^lm_head\."]  # noqa: RUF012


class Tower(Qwen2_5_VisionTransformerPretrainedModel):
    """Patches to embeddings of the language model."""

    _keys_to_ignore_on_load_unexpected: list[str] | None = [r"^(?:model|language_model|lm_head)\."]  # noqa: RUF012
