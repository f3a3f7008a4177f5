"""A small Qwen2.5-VL of UNTRAINED random weights, with a tokenizer made here: for tests, and to try the pipeline.

Its conditions tell texts apart and mean nothing. It has the structure of the real one: the same classes, special
tokens in the same order, rows of the embedding table that belong to no token.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gap3d.features.encoder import UNTRAINED_MARK
from gap3d.features.weights import ATTENTION, randomise

WIDTH = 64
PATCH = 28  # pixels of a patch of the visual tower
ROWS = 320  # of the embedding table, more than there are tokens

# Qwen2.5's special tokens, in the order of their ids.
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)


class RandomVlm(NamedTuple):
    """What a folder of a Qwen2.5-VL holds.

    Attributes:
        model: of transformers, ``Qwen2_5_VLForConditionalGeneration``, float32.
        tokenizer: each byte is a token.
        processor: of images.
    """

    model: Any
    tokenizer: Any
    processor: Any

    def save(self, folder: Path) -> None:
        """Write the folder as the hub has them; its configuration is marked as untrained."""
        for part in self:
            part.save_pretrained(folder)


def random_vlm(seed: int) -> RandomVlm:
    """Two decoder layers of width 64, two blocks of a visual tower that makes 64 embeddings of an image."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = byte_tokenizer()
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": ROWS,
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
            "bos_token_id": None,
            "eos_token_id": None,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": PATCH,
            "window_size": 224,
            "fullatt_block_indexes": [1],
            "out_hidden_size": WIDTH,
        },
        tie_word_embeddings=True,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    setattr(config, UNTRAINED_MARK, True)
    with torch.random.fork_rng(devices=[]):
        model = Qwen2_5_VLForConditionalGeneration._from_config(
            config, attn_implementation=ATTENTION, dtype=torch.float32
        )
    randomise(model, seed, scale_of)
    return RandomVlm(model, tokenizer, Qwen2VLImageProcessorPil(patch_size=PATCH))


def scale_of(name: str, tensor: Tensor) -> float:
    """Embeddings as large as soft tokens at their start, and attention sharp enough that texts differ."""
    scales = {"embed_tokens": 1.0, "q_proj": 0.25, "o_proj": 0.5}
    return next((scale for part, scale in scales.items() if f".{part}." in name), 0.0)


def byte_tokenizer(fill: int = 0) -> Any:
    """Qwen2.5's tokenizer without merges: the bytes, and then its special tokens.

    Args:
        fill: tokens between the two that no text has; their number moves the ids of the special tokens.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    words = [*sorted(ByteLevel.alphabet()), *(f"<fill {number}>" for number in range(fill))]
    vocabulary = {word: number for number, word in enumerate(words)}
    return Qwen2Tokenizer(vocab=vocabulary, merges=[], extra_special_tokens=list(SPECIAL[1:]))
