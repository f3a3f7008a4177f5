"""The prompt of the vision-language model, character by character (docs/method.md 1.3 and 4).

    <|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n
    <|im_start|>user\\nPlease generate image based on the following caption: {caption}<|im_end|>\\n
    <|im_start|>assistant\\n<|im_end|>\\n[IMG]<image> x M

The assistant's turn is closed and empty. ``<image>`` is the slot of a soft token. With an image, the caption is
``Create a precise replica of: <|vision_start|><|image_pad|> x N<|vision_end|>\\nbut: {text}``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
USER = "<|im_start|>user\nPlease generate image based on the following caption: "
REPLICA = "Create a precise replica of: <|vision_start|>"
EDIT = "<|vision_end|>\nbut: "
END = "<|im_end|>\n"
ASSISTANT = "<|im_start|>assistant\n<|im_end|>\n"
PAD, IMAGE_SLOT = "<|endoftext|>", "<|image_pad|>"
START_OF_SOFT, SOFT_SLOT = "[IMG]", "<image>"
MAX_LENGTH = 512  # text, [IMG] and soft tokens

# Ids that the released weights belong to; the last two are added to Qwen2.5-VL's tokenizer behind all of its own.
QWEN_IDS = {
    PAD: 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    IMAGE_SLOT: 151655,
    START_OF_SOFT: 151665,
    SOFT_SLOT: 151667,
}


@dataclass(frozen=True)
class PromptBatch:
    """Prompts up to the first soft token, padded on the right; a soft token follows where its own prompt ends.

    Attributes:
        ids: int64 [B, L]: text, ``[IMG]``, padding.
        mask: bool [B, L]: what is no padding.
        lengths: int64 [B]: ids before the first soft token, which is its position.
        images: bool [B, L]: slots of the embeddings of images, in their order.
    """

    ids: Tensor
    mask: Tensor
    lengths: Tensor
    images: Tensor

    def to(self, device: torch.device) -> "PromptBatch":
        """The same elsewhere."""
        return PromptBatch(*(part.to(device) for part in (self.ids, self.mask, self.lengths, self.images)))


class Prompt:
    """Texts as the ids of prompts.

    Args:
        tokenizer: of Qwen2.5-VL, or one with its special tokens. ``[IMG]`` and ``<image>`` may be missing: as the
            first and third id behind all of its own they are what adding them would make of them.
        soft_tokens: M.
        max_length: ids of a prompt with its soft tokens, at most.

    Raises:
        ValueError: a special token is missing, or the vocabulary.
    """

    def __init__(self, tokenizer: Any, soft_tokens: int, max_length: int = MAX_LENGTH) -> None:
        self.tokenizer = tokenizer
        self.soft_tokens = soft_tokens
        self.limit = max_length - soft_tokens - 1
        known = tokenizer.get_vocab()
        added = {START_OF_SOFT: len(tokenizer), SOFT_SLOT: len(tokenizer) + 2}
        missing = [token for token in QWEN_IDS if token not in known and token not in added]
        if missing:
            raise ValueError(f"the tokenizer has no {', '.join(missing)}: is it that of a Qwen2.5-VL?")
        self.special: dict[str, int] = {token: known.get(token, added.get(token)) for token in QWEN_IDS}
        self._system, self._assistant, self._replica = self._encode([SYSTEM, ASSISTANT, USER + REPLICA])
        # transformers makes a tokenizer without a vocabulary where its file is missing.
        if tokenizer.decode(self._replica) != USER + REPLICA:
            raise ValueError("the tokenizer does not give back what it is given: is its tokenizer.json missing?")

    @property
    def vocabulary(self) -> int:
        """Number of the ids before ``[IMG]``."""
        return self.special[START_OF_SOFT]

    def ids(self, text: str, image_slots: int = 0) -> list[int]:
        """All ids of one prompt, soft tokens too, at most ``max_length``."""
        return [*self._heads([text], [image_slots])[0], *[self.special[SOFT_SLOT]] * self.soft_tokens]

    def batch(self, texts: Sequence[str], image_slots: Sequence[int] | None = None) -> PromptBatch:
        """Prompts of a batch.

        Args:
            texts: captions; where there is an image, how the replica of it is to differ.
            image_slots: embeddings of each text's image, 0 where it has none.

        Raises:
            ValueError: an image has more embeddings than a prompt has room.
        """
        slots = [0] * len(texts) if image_slots is None else list(image_slots)
        heads = self._heads(texts, slots)
        lengths = torch.tensor([len(head) for head in heads], dtype=torch.int64)
        pad = self.special[PAD]
        ids = torch.full((len(heads), max(map(len, heads), default=0)), pad, dtype=torch.int64)
        images = torch.zeros(ids.shape, dtype=torch.bool)
        first = len(self._system) + len(self._replica)
        for row, (head, count) in enumerate(zip(heads, slots, strict=True)):
            ids[row, : len(head)] = torch.tensor(head)
            # By place, not by id: a caption may spell the slot's name.
            images[row, first : first + count] = True
        return PromptBatch(ids, ids != pad, lengths, images)

    def _heads(self, texts: Sequence[str], slots: Sequence[int]) -> list[list[int]]:
        """Each prompt's ids up to ``[IMG]``; what is too long loses its end, as in the released training."""
        room = self.limit - len(self._system) - len(self._replica)
        if max(slots, default=0) > room:
            raise ValueError(f"an image of {max(slots)} embeddings does not fit in a prompt, which has room for {room}")
        users = self._encode([(EDIT if count else USER) + text + END for text, count in zip(texts, slots, strict=True)])
        heads = []
        for user, count in zip(users, slots, strict=True):
            # A special token ends what can merge, so that pieces between them have the ids of the whole.
            image = [*self._replica, *[self.special[IMAGE_SLOT]] * count] if count else []
            text = [*self._system, *image, *user, *self._assistant]
            heads.append([*text[: self.limit], self.special[START_OF_SOFT]])
        return heads

    def _encode(self, messages: Sequence[str]) -> list[list[int]]:
        """Ids of messages, each by itself."""
        known = [message.encode("utf-8", "replace").decode() for message in messages]  # half characters are none
        return self.tokenizer(known, add_special_tokens=False)["input_ids"] if known else []
