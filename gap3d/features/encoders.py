"""The frozen image encoder whose tokens are the targets: DINOv2 with registers (specification 3).

A target is taken before the encoder's final norm; ``tokens.targets_from_prenorm`` makes it.
"""

import functools
import hashlib
import importlib.metadata
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gap3d.features import images
from gap3d.features.tokens import TORCH_DTYPES, TokenLayout, targets_from_prenorm
from gap3d.parts import write_atomically
from gap3d.records import SystemicFault
from gap3d.settings import TargetSettings

if TYPE_CHECKING:  # seconds to import, and a run with nothing to encode needs none of it
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

log = logging.getLogger(__name__)

RANDOM_SMALL = "random-small"
UNTRAINED = "UNTRAINED random weights"
UNTRAINED_MARK = "gap3d_untrained"  # in the configuration of a saved random-small

# Images per forward pass, whatever the caller's batch: a matrix product may sum in another order when its
# shape changes, and stored bytes must not depend on which images happened to travel together. One image at
# a time costs a CPU nothing; a GPU gets full passes, the last one filled up.
CPU_PASS = 1
GPU_PASS = 16


class Encoder:
    """A DINOv2 with registers, ready to make targets.

    Args:
        model: float32 weights.
        settings: image size, precision and preprocessing.
        trained: False if the weights are random.
        revision: where the weights come from, e.g. the hub commit.
        device: ``cpu``, ``cuda`` ...; default: a GPU if there is one.

    Raises:
        ValueError: the image size is no multiple of the patch size.
    """

    def __init__(
        self,
        model: "Dinov2WithRegistersModel",
        settings: TargetSettings,
        *,
        trained: bool = True,
        revision: str | None = None,
        device: str | None = None,
    ) -> None:
        self.settings = settings
        self.trained = trained
        config = model.config
        self.layout = _layout(config.patch_size, settings.image_size, config.num_register_tokens, config.hidden_size)
        self.weights_hash = weights_hash(model.state_dict())
        self.revision = revision
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._model = model.eval().requires_grad_(False).to(self._device, TORCH_DTYPES[settings.dtype])

    @property
    def label(self) -> str:
        """What the weights are, for reports and previews."""
        return f"{self.settings.encoder} (revision {self.revision})" if self.trained else UNTRAINED

    @property
    def device(self) -> str:
        """Where it runs: cpu, or the name of the GPU."""
        return torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else self._device.type

    @property
    def images_per_pass(self) -> int:
        """Images per forward pass; a batch that is a multiple of it wastes nothing."""
        return GPU_PASS if self._device.type == "cuda" else CPU_PASS

    @property
    def description(self) -> dict[str, Any]:
        """What the numbers are made with, for the metadata and the fingerprint of the rows."""
        config = self._model.config
        return {
            "encoder": self.settings.encoder,
            "revision": self.revision,
            "weights": self.weights_hash,
            "trained": self.trained,
            "label": self.label,
            "patch_size": config.patch_size,
            "image_size": self.settings.image_size,
            "layers": config.num_hidden_layers,
            "width": config.hidden_size,
            "registers": config.num_register_tokens,
            "dtype": self.settings.dtype,
            "preprocessing": images.describe(self.settings),
        }

    @torch.inference_mode()
    def encode(self, pixels: Tensor | NDArray[np.float32]) -> Tensor:
        """Targets of images; those of one image do not depend on the others in the batch.

        Args:
            pixels: float32 [B, 3, S, S] from ``images.to_pixels``, S being ``settings.image_size``.

        Returns:
            float32 [B, T, C] on the CPU; T and C as in ``layout``.

        Raises:
            ValueError: the shape is another.
        """
        pixels = torch.as_tensor(pixels)
        side = self.settings.image_size
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, side, side):
            raise ValueError(f"pixels {tuple(pixels.shape)} are not [B, 3, {side}, {side}]")
        targets = torch.empty(len(pixels), self.layout.count, self.layout.width)
        for start in range(0, len(pixels), self.images_per_pass):
            chunk = pixels[start : start + self.images_per_pass].to(self._device)
            filled = torch.nn.functional.pad(chunk, (0, 0) * 3 + (0, self.images_per_pass - len(chunk)))
            targets[start : start + len(chunk)] = targets_from_prenorm(self._prenorm(filled))[: len(chunk)].cpu()
        return targets

    def _prenorm(self, pixels: Tensor) -> Tensor:
        # The model's own forward would run the final norm too; hidden_states[-1] would keep all the others.
        return self._model.encoder(self._model.embeddings(pixels)).last_hidden_state

    def save(self, folder: Path) -> None:
        """Save weights and configuration for ``load_encoder``; random weights stay marked as such."""
        if not self.trained:
            setattr(self._model.config, UNTRAINED_MARK, True)
        self._model.save_pretrained(folder)


def load_encoder(settings: TargetSettings, *, threads: int | None = None, device: str | None = None) -> Encoder:
    """Load the encoder that the settings name.

    Args:
        settings: a hub id with a revision, a local folder, or ``random-small``.
        threads: CPU threads of torch in this process.
        device: see ``Encoder``.

    Returns:
        The encoder; ``trained`` is False, and a warning is logged, if its weights are random.

    Raises:
        SystemicFault: the weights cannot be had, are incomplete, or are not a DINOv2 with registers.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    config = _config(settings)
    trained = not getattr(config, UNTRAINED_MARK, False)
    if settings.encoder == RANDOM_SMALL:
        model = _random_model(config, settings.seed)
        revision: str | None = f"seed {settings.seed}"
    else:
        model = _pretrained_model(settings)
        revision = getattr(model.config, "_commit_hash", None) or settings.revision
    encoder = Encoder(model, settings, trained=trained, revision=revision, device=device)
    if not trained:
        log.warning(
            "%s: encoder %r makes tokens that mean nothing; use it to try the pipeline", UNTRAINED, settings.encoder
        )
    return encoder


def identity(settings: TargetSettings) -> dict[str, Any]:
    """The encoder's ``description`` without keeping it loaded; ``weights`` goes into fingerprints.

    Weights are read once: what was found is remembered by the names, sizes and times of their files, so
    that a run with nothing to compute loads no encoder.

    Raises:
        SystemicFault: see ``load_encoder``.
    """
    folder = _weights_folder(settings)
    files = sorted(folder.iterdir()) if folder else []
    stamps = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return dict(_identity(settings, json.dumps(stamps)))


@functools.lru_cache(maxsize=4)
def _identity(settings: TargetSettings, stamps: str) -> dict[str, Any]:
    if stamps == "[]" and settings.encoder != RANDOM_SMALL:
        return load_encoder(settings, device="cpu").description
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gap3d" / "encoders"
    versions = [importlib.metadata.version(name) for name in ("torch", "transformers")]
    name = hashlib.sha256(json.dumps([settings.model_dump(), stamps, versions]).encode()).hexdigest()
    known = cache / f"{name}.json"
    if known.exists():
        return json.loads(known.read_text())
    found = load_encoder(settings, device="cpu").description
    write_atomically(known, json.dumps(found).encode())
    return found


def _weights_folder(settings: TargetSettings) -> Path | None:
    """Where the encoder's files lie on this machine, if they do: a local folder, or the hub's cache."""
    if settings.encoder == RANDOM_SMALL:
        return None
    if Path(settings.encoder).is_dir():
        return Path(settings.encoder)
    found = huggingface_hub.try_to_load_from_cache(settings.encoder, "config.json", revision=settings.revision)
    return Path(found).parent if isinstance(found, str) else None


def layout_of(settings: TargetSettings) -> TokenLayout:
    """The token layout, without keeping the encoder loaded.

    Raises:
        SystemicFault: see ``load_encoder``.
        ValueError: the image size is no multiple of the patch size.
    """
    found = identity(settings)
    return _layout(found["patch_size"], settings.image_size, found["registers"], found["width"])


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, number formats and bytes of the weights, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def from_hub_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of facebookresearch/dinov2, renamed for transformers.

    Args:
        state: names such as ``blocks.0.attn.qkv.weight``; the three parts of qkv are stacked on axis 0.

    Returns:
        A state dict of ``Dinov2WithRegistersModel``.

    Raises:
        KeyError: a name is not of a DINOv2 with registers.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in HUB_NAMES:
            renamed[HUB_NAMES[name]] = tensor
            continue
        blocks, index, part = [*name.split(".", 2), "", ""][:3]
        if blocks != "blocks" or part not in HUB_BLOCK_NAMES:
            raise KeyError(f"{name} is not a weight of a DINOv2 with registers")
        targets = HUB_BLOCK_NAMES[part]
        for target, piece in zip(targets, tensor.chunk(len(targets)), strict=True):
            renamed[f"encoder.layer.{index}.{target}"] = piece.clone()
    return renamed


HUB_NAMES = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    "register_tokens": "embeddings.register_tokens",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
HUB_BLOCK_NAMES = {
    "ls1.gamma": ("layer_scale1.lambda1",),
    "ls2.gamma": ("layer_scale2.lambda1",),
    **{
        f"{hub}.{kind}": tuple(f"{name}.{kind}" for name in names)
        for kind in ("weight", "bias")
        for hub, names in (
            ("attn.qkv", ("attention.q_proj", "attention.k_proj", "attention.v_proj")),
            ("attn.proj", ("attention.o_proj",)),
            ("norm1", ("norm1",)),
            ("norm2", ("norm2",)),
            ("mlp.fc1", ("mlp.fc1",)),
            ("mlp.fc2", ("mlp.fc2",)),
        )
    },
}


def _layout(patch: Any, image_size: int, registers: int, width: int) -> TokenLayout:
    if not isinstance(patch, int):
        raise ValueError(f"patches of {patch} are not square")
    side, rest = divmod(image_size, patch)
    if rest:
        raise ValueError(f"targets.image_size = {image_size} is no multiple of the encoder's patch of {patch}")
    return TokenLayout(registers, (side, side), width)


def _config(settings: TargetSettings) -> "Dinov2WithRegistersConfig":
    from transformers import AutoConfig, Dinov2WithRegistersConfig

    if settings.encoder == RANDOM_SMALL:
        config = Dinov2WithRegistersConfig(
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            patch_size=14,
            num_register_tokens=4,
            image_size=settings.image_size,
        )
        setattr(config, UNTRAINED_MARK, True)
        return config
    try:
        config = AutoConfig.from_pretrained(settings.encoder, revision=settings.revision or "main")
    except (OSError, ValueError) as error:
        raise _unobtainable(settings, error) from error
    if not isinstance(config, Dinov2WithRegistersConfig):
        raise SystemicFault(f"encoder {settings.encoder!r} is a {config.model_type}, not a DINOv2 with registers")
    return config


def _pretrained_model(settings: TargetSettings) -> "Dinov2WithRegistersModel":
    from transformers import Dinov2WithRegistersModel

    try:
        loaded: Any = Dinov2WithRegistersModel.from_pretrained(
            settings.encoder,
            revision=settings.revision or "main",
            dtype=torch.float32,
            attn_implementation="sdpa",
            use_safetensors=True,  # never a pickle
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise _unobtainable(settings, error) from error
    model, report = loaded
    # transformers would fill what is missing with random numbers and go on.
    if report["missing_keys"] or report["mismatched_keys"]:
        lost = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise SystemicFault(f"encoder {settings.encoder!r} lacks {len(lost)} weights, e.g. {', '.join(lost[:3])}")
    return model


def _unobtainable(settings: TargetSettings, error: Exception) -> SystemicFault:
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return SystemicFault(
        f"encoder {settings.encoder!r} cannot be had: {first_line} "
        "It needs a network to the Hugging Face hub, or a local folder with config.json and model.safetensors: "
        "set targets.encoder to that folder (--targets.encoder DIR). To try the pipeline without weights, "
        f"set it to {RANDOM_SMALL}."
    )


def _random_model(config: "Dinov2WithRegistersConfig", seed: int) -> "Dinov2WithRegistersModel":
    from transformers import Dinov2WithRegistersModel

    with torch.random.fork_rng(devices=[]):
        model = Dinov2WithRegistersModel._from_config(config, attn_implementation="sdpa")
    # numpy's normal numbers are the same on every processor; torch's depend on the vector unit. Scaled so
    # that image, position and attention all show in the tokens. Biases and norms keep their zeros and ones.
    rng = np.random.Generator(np.random.PCG64(seed))
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.ndim > 1:
            scale = 0.5 if name.startswith("embeddings.") and tensor.ndim < 4 else tensor[0].numel() ** -0.5
            tensor.copy_(torch.from_numpy(scale * rng.standard_normal(tensor.shape)))
    return model
