"""The condition of the diffusion transformer: a frozen Qwen2.5-VL reads a text, and soft tokens take from it
what the transformer needs (paper 3.1; docs/method.md 4).

Soft tokens stand at the end of the prompt and attention is causal, so nothing of the text depends on them: the
text is read without gradients, once, and they attend to its keys and values. What comes out, and the gradient, are
those of one pass over the whole prompt; the backward pass goes over M positions instead of up to 512.
"""

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gap3d.aligner.prompt import QWEN_IDS, SOFT_SLOT, Prompt, PromptBatch
from gap3d.aligner.vision import VisualTower
from gap3d.aligner_settings import RANDOM_VLM, AlignerSettings
from gap3d.features.encoder import UNTRAINED, UNTRAINED_MARK
from gap3d.features.tokens import TORCH_DTYPES
from gap3d.features.weights import ATTENTION, first_line, pinned_revision, weights_hash
from gap3d.fingerprints import digest_of
from gap3d.records import SystemicFault

log = logging.getLogger(__name__)

Prefix = list[tuple[Tensor, Tensor]]  # keys and values [B, heads, L, channels] of each layer


class Conditioner(nn.Module):
    """A frozen language model with trainable soft tokens.

    Move it by ``to(device)`` and not by dtype: the angles of the positions are a buffer, and rounded they turn others.

    Args:
        language_model: of transformers, ``Qwen2_5_VLTextModel``, in the precision it computes in.
        tokenizer: its tokenizer.
        settings: name of the model; number, start and seed of the soft tokens.
        trained: False if the weights are random.
        revision: where the weights come from, e.g. the hub commit.
        load_tower: gives the visual tower, asked when the first image comes.

    Attributes:
        soft_tokens: float32 [1, M, H], the only parameter with a gradient.
        checkpointing: compute the soft tokens' activations anew in the backward pass instead of keeping them.

    Raises:
        ValueError: the tokenizer is not this model's.
    """

    added: Tensor  # [H]

    def __init__(
        self,
        language_model: Any,
        tokenizer: Any,
        settings: AlignerSettings,
        *,
        trained: bool = True,
        revision: str | None = None,
        load_tower: Callable[[], VisualTower] | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.trained = trained
        self.revision = revision
        self.checkpointing = False
        self.prompt = Prompt(tokenizer, settings.soft_tokens)
        self.language_model = language_model.eval().requires_grad_(False)
        self.tower: VisualTower | None = None
        self._load_tower = load_tower
        table = language_model.embed_tokens.weight  # [rows, H]
        _check_ids(self.prompt, len(table))
        # What the released training gives the tokens it adds; rounded as there, also in float32.
        mean = table[: self.prompt.vocabulary].to(torch.bfloat16).mean(0)
        self.register_buffer("added", mean.to(table.dtype), persistent=False)
        rng = np.random.Generator(np.random.PCG64(settings.seed))
        start = settings.soft_tokens_std * rng.standard_normal((1, settings.soft_tokens, self.width))
        self.soft_tokens = nn.Parameter(torch.from_numpy(start).float())

    @property
    def width(self) -> int:
        """Channels H of the condition."""
        return self.language_model.config.hidden_size

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.soft_tokens.device

    @property
    def label(self) -> str:
        """What the frozen weights are, for reports and files."""
        return f"{self.settings.vlm} (revision {self.revision})" if self.trained else UNTRAINED

    @functools.cached_property
    def description(self) -> dict[str, Any]:
        """What conditions are made with; ``weights`` is the same in any precision that holds the published numbers."""
        state = sorted(self.language_model.state_dict().items())
        return {
            "vlm": self.settings.vlm,
            "revision": self.revision,
            "weights": digest_of([weights_hash({name: tensor.bfloat16()}) for name, tensor in state]),
            "trained": self.trained,
            "label": self.label,
            "layers": self.language_model.config.num_hidden_layers,
            "width": self.width,
            "soft_tokens": self.prompt.soft_tokens,
            "dtype": str(self.added.dtype).removeprefix("torch."),
        }

    def train(self, mode: bool = True) -> "Conditioner":
        """The frozen halves stay as they are."""
        super().train(mode)
        for frozen in (self.language_model, self.tower):
            if frozen is not None:
                frozen.eval()
        return self

    def forward(self, texts: Sequence[str], images: Sequence[Image.Image | None] | None = None) -> Tensor:
        """Conditions of texts, with a gradient to the soft tokens; a text's does not depend on the others.

        Args:
            texts: captions; where there is an image, how the object is to differ from it.
            images: one or none for each text.

        Returns:
            [B, M, H] in the precision of the model.

        Raises:
            Failure: an image is a very long strip.
            ValueError: an image's embeddings do not fit in a prompt.
        """
        with torch.no_grad():
            prompts, embedded = self._embed(texts, images)
            prefix = self._read(prompts, embedded)
        soft = self.soft_tokens.to(embedded.dtype).expand(len(texts), -1, -1)  # [B, M, H]
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self._continue, soft, prompts, prefix, use_reentrant=False)
        return self._continue(soft, prompts, prefix)

    def _embed(self, texts: Sequence[str], images: Sequence[Image.Image | None] | None) -> tuple[PromptBatch, Tensor]:
        """Prompts and their embeddings [B, L, H]."""
        pictures = [image for image in images or [] if image is not None]
        if not pictures:
            prompts, seen = self.prompt.batch(texts).to(self.device), None
        else:
            seen = self._visual_tower()(pictures)  # [N, K, H]
            slots = [0 if image is None else seen.shape[1] for image in images or []]
            prompts = self.prompt.batch(texts, slots).to(self.device)
        own = prompts.ids < self.prompt.vocabulary
        embedded = self.language_model.embed_tokens(prompts.ids * own)  # [B, L, H]
        embedded = torch.where(own[..., None], embedded, self.added)
        if seen is not None:
            embedded[prompts.images] = seen.flatten(0, 1).to(embedded.dtype)
        return prompts, embedded

    def _read(self, prompts: PromptBatch, embedded: Tensor) -> Prefix:
        """Keys and values of the text, of every layer."""
        rows, columns = prompts.ids.shape
        positions = torch.arange(columns, device=self.device).expand(3, rows, -1)  # plain, on all axes; images too
        cache = self.language_model(
            inputs_embeds=embedded, attention_mask=prompts.mask, position_ids=positions, use_cache=True
        ).past_key_values
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _continue(self, soft: Tensor, prompts: PromptBatch, prefix: Prefix) -> Tensor:
        """Last hidden states, after the final norm, of soft tokens [B, M, H] behind their prompts."""
        from transformers import DynamicCache

        rows, count, _ = soft.shape
        places = prompts.lengths[:, None] + torch.arange(count, device=soft.device)  # [B, M]
        mask = torch.cat([prompts.mask, prompts.mask.new_ones(rows, count)], dim=1)  # [B, L + M]
        return self.language_model(
            inputs_embeds=soft,
            attention_mask=mask,
            position_ids=places.expand(3, -1, -1),
            past_key_values=DynamicCache(prefix),
        ).last_hidden_state

    def _visual_tower(self) -> VisualTower:
        if self.tower is None:
            if self._load_tower is None:
                raise ValueError("this conditioner was made without a visual tower: it takes no images")
            self.tower = self._load_tower().to(self.device)
        return self.tower


def _check_ids(prompt: Prompt, rows: int) -> None:
    """Hold a tokenizer against the embedding table.

    Raises:
        ValueError: see ``Conditioner``.
    """
    if prompt.vocabulary > rows:
        raise ValueError(f"the tokenizer has {prompt.vocabulary} tokens, the model embeddings of {rows}")
    if rows > QWEN_IDS[SOFT_SLOT] and prompt.special != QWEN_IDS:
        wrong = [
            f"{token} is {number} instead of {QWEN_IDS[token]}"
            for token, number in prompt.special.items()
            if number != QWEN_IDS[token]
        ]
        raise ValueError(f"the tokenizer is not that of Qwen2.5-VL: {', '.join(wrong)}")


def load_conditioner(settings: AlignerSettings, device: str | torch.device | None = None) -> Conditioner:
    """Load the vision-language model that the settings name, with soft tokens at their start.

    Args:
        settings: a hub id with a revision, a local folder, or ``random-small``.
        device: ``cpu``, ``cuda`` ...; default: a GPU if there is one.

    Returns:
        The conditioner; ``trained`` is False, and a warning is logged, if its weights are random.

    Raises:
        SystemicFault: the weights cannot be had, are incomplete, or are no Qwen2.5-VL.
    """
    make = random_conditioner if settings.vlm == RANDOM_VLM else pretrained_conditioner
    conditioner = make(settings)
    if not conditioner.trained:
        log.warning(
            "%s: vision-language model %r makes conditions that mean nothing; use it to try the pipeline",
            UNTRAINED,
            settings.vlm,
        )
    return conditioner.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def random_conditioner(settings: AlignerSettings) -> Conditioner:
    """With the model of ``random_vlm``; its weights follow the settings' seed."""
    from gap3d.aligner.random_vlm import random_vlm

    made = random_vlm(settings.seed)
    for parameter in made.model.parameters():
        parameter.data = parameter.data.to(TORCH_DTYPES[settings.dtype])
    return Conditioner(
        made.model.model.language_model,
        made.tokenizer,
        settings,
        trained=False,
        revision=f"seed {settings.seed}",
        load_tower=lambda: VisualTower(made.model.model.visual, made.processor),
    )


def pretrained_conditioner(settings: AlignerSettings) -> Conditioner:
    """With a model of the hub or in a folder.

    Raises:
        SystemicFault: see ``load_conditioner``.
    """
    from transformers import AutoConfig, AutoTokenizer

    from gap3d.aligner import qwen

    try:
        at = settings.model_copy(update={"vlm_revision": pinned_revision(settings.vlm, settings.vlm_revision)})
        config = AutoConfig.from_pretrained(at.vlm, revision=at.vlm_revision or "main")
    except (OSError, ValueError) as error:
        raise unobtainable(settings, error) from error
    if config.model_type != "qwen2_5_vl":
        raise SystemicFault(
            f"vision-language model {settings.vlm!r} is a {config.model_type}, and no qwen2_5_vl: "
            "set aligner.vlm to a Qwen2.5-VL (--aligner.vlm ID or DIR)"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(at.vlm, revision=at.vlm_revision or "main")
    except (OSError, ValueError) as error:
        raise unobtainable(settings, error) from error
    model = pretrained(qwen.LanguageModel, at, config.text_config, qwen.TEXT_NAMES)
    try:
        return Conditioner(
            model,
            tokenizer,
            settings,
            trained=not getattr(config, UNTRAINED_MARK, False),
            revision=at.vlm_revision,
            load_tower=functools.partial(pretrained_tower, at, config.vision_config),
        )
    except ValueError as error:
        raise SystemicFault(f"vision-language model {settings.vlm!r}: {error}") from error


def pretrained_tower(settings: AlignerSettings, config: Any) -> VisualTower:
    """The visual tower and its image processor, of the hub or in a folder.

    Raises:
        SystemicFault: see ``load_conditioner``.
    """
    from transformers import AutoImageProcessor

    from gap3d.aligner import qwen

    model = pretrained(qwen.Tower, settings, config, qwen.TOWER_NAMES)
    try:
        # With torchvision, where it happens to be installed, pixels would be others.
        processor = AutoImageProcessor.from_pretrained(
            settings.vlm, revision=settings.vlm_revision or "main", backend="pil"
        )
    except (OSError, ValueError) as error:
        raise unobtainable(settings, error) from error
    return VisualTower(model, processor)


def pretrained(model_class: Any, settings: AlignerSettings, config: Any, names: dict[str, str]) -> Any:
    """A half of a Qwen2.5-VL, in the precision of the settings.

    Raises:
        SystemicFault: it cannot be had, or weights are missing.
    """
    try:
        model, report = model_class.from_pretrained(
            settings.vlm,
            config=config,
            revision=settings.vlm_revision or "main",
            dtype=TORCH_DTYPES[settings.dtype],
            attn_implementation=ATTENTION,
            key_mapping=names,
            use_safetensors=True,  # never a pickle
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise unobtainable(settings, error) from error
    # transformers would fill what is missing with random numbers and go on.
    lost = _names([*report["missing_keys"], *report["mismatched_keys"]])
    if lost:
        raise SystemicFault(
            f"vision-language model {settings.vlm!r} lacks {len(lost)} weights, e.g. {', '.join(lost[:3])}"
        )
    return model


def _names(keys: Iterable[Any]) -> list[str]:
    return sorted(key if isinstance(key, str) else str(key[0]) for key in keys)


def unobtainable(settings: AlignerSettings, error: Exception) -> SystemicFault:
    """The fault that says what to do."""
    return SystemicFault(
        f"vision-language model {settings.vlm!r} cannot be had: {first_line(error)} It needs a network to the Hugging "
        "Face hub, or a local folder of a Qwen2.5-VL with config.json, tokenizer.json, preprocessor_config.json and "
        "*.safetensors: set aligner.vlm to that folder (--aligner.vlm DIR). To try the pipeline without weights, set "
        f"it to {RANDOM_VLM}."
    )
