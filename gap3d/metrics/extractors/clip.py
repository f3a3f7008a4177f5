"""CLIP: how well pictures fit texts, or other pictures (docs/method.md 8.3).

OpenAI's weights were trained with QuickGELU; transformers' configurations of them say so.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gap3d.features.encoder import UNTRAINED_MARK
from gap3d.features.images import Normalisation, normalise, resize_and_crop
from gap3d.features.weights import first_line, pinned_revision, weights_hash
from gap3d.metrics.extractors.extractor import PictureFeatures, device_of
from gap3d.metrics.extractors.published import RANDOM_SMALL, randomise_layers
from gap3d.records import SystemicFault
from gap3d.settings import Limits

B32 = "openai/clip-vit-base-patch32"
"""That of the released code's text score."""
OPENAI = Normalisation((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
TEXT_TOKENS = 77  # longer texts are cut


class ClipFeatures(PictureFeatures):
    """Features of pictures and of texts in one space, not normalised.

    Args:
        weights: a hub id, a local folder with config.json, weights and the tokenizer's files, or ``random-small``.
        revision: of the hub.
        seed: of random weights.
        device: see ``device_of``.

    Raises:
        SystemicFault: the weights can't be had, or are incomplete.
    """

    def __init__(
        self, weights: str = B32, *, revision: str | None = None, seed: int = 0, device: str | None = None
    ) -> None:
        if weights == RANDOM_SMALL:
            model, self.tokenizer, source = small_model(seed), byte_tokenizer(), f"seed {seed}"
        else:
            model, self.tokenizer, revision = pretrained(weights, revision)
            source = f"{weights} (revision {revision})" if revision else weights
        trained = not getattr(model.config, UNTRAINED_MARK, False)
        self._side = model.config.vision_config.image_size
        patch, layers = model.config.vision_config.patch_size, model.config.vision_config.num_hidden_layers
        super().__init__(
            f"CLIP ViT/{patch}, {layers} layers",
            model.config.projection_dim,
            trained=trained,
            source=source,
            weights_hash=weights_hash(model.state_dict()),
            preprocessing=(
                f"shorter side to {self._side}, bicubic (Pillow), centre crop, {OPENAI}; texts cut at {TEXT_TOKENS} "
                f"tokens, tokenizer {tokenizer_hash(self.tokenizer)[:16]}; {model.config.vision_config.hidden_act}"
            ),
        )
        self._device = device_of(device)
        self._model = model.eval().requires_grad_(False).to(self._device)

    def pixels(self, image: Image.Image) -> Tensor:
        """See ``PictureFeatures``."""
        return torch.from_numpy(normalise(np.array(resize_and_crop(image, self._side, Limits().pixels)), OPENAI))

    def forward(self, pixels: Tensor) -> Tensor:
        """See ``PictureFeatures``."""
        return self._model.get_image_features(pixel_values=pixels.to(self._device)).pooler_output

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Features of texts: float32 [N, D] on the CPU; N may be 0."""
        if not texts:
            return torch.empty(0, self.width)
        inputs = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=TEXT_TOKENS, return_tensors="pt"
        ).to(self._device)
        found = self._model.get_text_features(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        return found.pooler_output.float().cpu()


def clip_score(pictures: Tensor, references: Tensor) -> float:
    """How well one object's pictures fit their text or picture: 100 x the mean cosine.

    Args:
        pictures: features of its views [N, D], at least one.
        references: feature of the text, or of the picture that it was made from, [D]; or one for each view [N, D].

    Raises:
        ValueError: there are no pictures, other shapes, or numbers that are not finite.
    """
    wanted = references.expand_as(pictures) if references.ndim == 1 else references
    if pictures.ndim != 2 or not len(pictures) or wanted.shape != pictures.shape:
        raise ValueError(f"features {tuple(pictures.shape)} and {tuple(references.shape)} have no score")
    cosines = torch.nn.functional.cosine_similarity(pictures.double(), wanted.double(), dim=-1)
    if not torch.isfinite(cosines).all():
        raise ValueError(f"{int((~torch.isfinite(cosines)).sum())} of {len(cosines)} cosines are not finite")
    return 100 * float(cosines.mean())


def pretrained(weights: str, revision: str | None) -> tuple[Any, Any, str | None]:
    """A float32 model, its tokenizer and the commit that they are of, from the hub or a folder.

    Raises:
        SystemicFault: see ``ClipFeatures``.
    """
    from transformers import CLIPModel, CLIPTokenizer

    try:
        revision = pinned_revision(weights, revision)
        tokenizer = CLIPTokenizer.from_pretrained(weights, revision=revision or "main")
        found: Any = CLIPModel.from_pretrained(
            weights, revision=revision or "main", dtype=torch.float32, output_loading_info=True
        )
        model, report = found
    except (OSError, ValueError, RuntimeError) as error:
        raise SystemicFault(
            f"CLIP {weights!r} cannot be had: {first_line(error)} It needs a network to the Hugging Face hub, or a "
            "local folder with config.json, model.safetensors, vocab.json and merges.txt: name it in evaluation.clip "
            f"(--evaluation.clip DIR). To try the evaluation without weights, set it to {RANDOM_SMALL}."
        ) from error
    # transformers would fill what is missing with random numbers and go on.
    if lost := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
        raise SystemicFault(f"CLIP {weights!r} lacks {len(lost)} weights, e.g. {', '.join(lost[:3])}")
    return model, tokenizer, revision


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 of all that turns a text into tokens: vocabulary, merges, special tokens, how it cuts words."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def small_model(seed: int) -> Any:
    """A small CLIP of random weights that follow the seed alone."""
    from transformers import CLIPConfig, CLIPModel

    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    start, end = len(byte_words()) - 2, len(byte_words()) - 1
    special = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    config = CLIPConfig(
        text_config={**layers, **special, "vocab_size": end + 1, "max_position_embeddings": TEXT_TOKENS},
        vision_config={**layers, "image_size": 64, "patch_size": 16},
        projection_dim=32,
    )
    setattr(config, UNTRAINED_MARK, True)
    with torch.random.fork_rng(devices=[]):
        model = CLIPModel._from_config(config, dtype=torch.float32)
    randomise_layers(model, seed)
    return model


def byte_words() -> list[str]:
    """The vocabulary of CLIP's tokenizer without merges: bytes, bytes that end a word, start and end of a text."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    return [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]


def byte_tokenizer() -> Any:
    """CLIP's tokenizer, each byte a token."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer(vocab={word: number for number, word in enumerate(byte_words())}, merges=[])
