"""The frozen image encoder whose tokens are the targets (docs/method.md 3).

A target is taken before the encoder's final norm; ``tokens.targets_from_prenorm`` makes it.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gap3d.features import attention, images, linear
from gap3d.features.families import family_of
from gap3d.features.images import Normalisation
from gap3d.features.passes import GPU_PASS, Passes
from gap3d.features.tokens import TORCH_DTYPES, TokenLayout, targets_from_prenorm
from gap3d.features.weights import PREPROCESSING, weights_hash
from gap3d.fingerprints import digest_of
from gap3d.records import SystemicFault
from gap3d.settings import TargetSettings

UNTRAINED = "UNTRAINED random weights"
UNTRAINED_MARK = "gap3d_untrained"  # in the configuration of saved random weights


class Encoder:
    """A frozen vision transformer of any of ``families.FAMILIES``, ready to make targets.

    Args:
        model: float32 weights.
        settings: image size, precision and preprocessing.
        trained: False if the weights are random.
        revision: where the weights come from, e.g. the hub commit.
        device: ``cpu``, ``cuda`` ...; default: a GPU if there is one.
        normalisation: of the pixels; default: the family's.

    Raises:
        ValueError: the image size is no multiple of the patch size, or the model is of no family.
        SystemicFault: a GPU has no memory for one image.
    """

    def __init__(
        self,
        model: Any,
        settings: TargetSettings,
        *,
        trained: bool = True,
        revision: str | None = None,
        device: str | None = None,
        normalisation: Normalisation | None = None,
    ) -> None:
        self.settings = settings
        self.trained = trained
        self.revision = revision
        self.family = family_of(model.config.model_type)
        self.normalisation = normalisation or self.family.normalisation
        self.layout = layout(model.config, settings.image_size)
        self.weights_hash = weights_hash(model.state_dict())
        self._model = model.eval().requires_grad_(False)
        # Not Module.to: DINOv3's frequencies are a buffer, and rounded to bfloat16 they would turn other angles.
        for parameter in self._model.parameters():
            parameter.data = parameter.data.to(TORCH_DTYPES[settings.dtype])
        self._model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._device: torch.device = self._model.device  # with its index: encode may be called by any thread
        self._tuned = attention.install(self._model)
        if self._tuned:
            linear.pack(self._model)
        self._mean, self._std = (
            torch.tensor(values, device=self._device)[:, None, None]
            for values in (self.normalisation.mean, self.normalisation.std)
        )
        self._passes = Passes(self._targets, self._device)
        self._fit()

    @property
    def label(self) -> str:
        """What the weights are, for reports and previews."""
        return f"{self.settings.encoder} (revision {self.revision})" if self.trained else UNTRAINED

    @property
    def device(self) -> str:
        """Where it runs: cpu, or the name of the GPU; and attention or size of a pass where they are not the usual."""
        if self._tuned:
            return f"{self._device.type}, attention {attention.NAME}"
        if self._device.type != "cuda":
            return self._device.type
        name = torch.cuda.get_device_name(self._device)
        return name if self.images_per_pass == GPU_PASS else f"{name}, passes of {self.images_per_pass}"

    @property
    def images_per_pass(self) -> int:
        """Images per forward pass; a batch that is a multiple of it wastes nothing."""
        return self._passes.size

    @property
    def description(self) -> dict[str, Any]:
        """What the numbers are made with, for the metadata of the rows; ``fingerprint`` is what is not in settings."""
        config = self._model.config
        usual = self.normalisation == self.family.normalisation
        return {
            "encoder": self.settings.encoder,
            "family": self.family.title,
            "revision": self.revision,
            "weights": self.weights_hash,
            "fingerprint": self.weights_hash if usual else digest_of([self.weights_hash, str(self.normalisation)]),
            "trained": self.trained,
            "label": self.label,
            "patch_size": config.patch_size,
            "image_size": self.settings.image_size,
            "layers": config.num_hidden_layers,
            "width": self.layout.width,
            "registers": self.layout.registers,
            "dtype": self.settings.dtype,
            "preprocessing": images.describe(self.settings, self.normalisation),
        }

    @torch.inference_mode()
    def encode(self, pixels: Tensor | NDArray[np.uint8] | NDArray[np.float32]) -> Tensor:
        """Targets of images; those of one image do not depend on the others in the batch.

        Args:
            pixels: uint8 [B, S, S, 3] or [B, S, S, 4] of ``images.to_uint8``, S being ``settings.image_size``; or the
                same normalised, float32 [B, 3, S, S] of ``images.to_pixels``, four times the bytes.

        Returns:
            float32 [B, T, C] on the CPU, page-locked if it comes from a GPU; T and C as in ``layout``.

        Raises:
            ValueError: the shape is another.
        """
        pixels = torch.as_tensor(pixels)
        side = self.settings.image_size
        raw = pixels.dtype == torch.uint8
        shapes = [(side, side, 3), (side, side, 4)] if raw else [(3, side, side)]
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) not in shapes:
            wanted = " or ".join(f"[B, {', '.join(map(str, shape))}]" for shape in shapes)
            raise ValueError(f"pixels {tuple(pixels.shape)} of {pixels.dtype} are not {wanted}")
        return self._passes(pixels, (self.layout.count, self.layout.width))

    @torch.inference_mode()
    def _fit(self) -> None:
        side = self.settings.image_size
        try:
            self._passes.fit(torch.zeros(side, side, 4, dtype=torch.uint8), (self.layout.count, self.layout.width))
        except torch.OutOfMemoryError as error:
            raise SystemicFault(
                f"the encoder does not fit the GPU's memory with one image of {side} pixels: use a GPU that is free or "
                f"larger, --targets.dtype bfloat16, or --compute.encoder_gpus 1 where several share it ({error})"
            ) from error

    def _targets(self, pixels: Tensor) -> Tensor:
        """Pixels of ``encode`` on the device to targets there."""
        return targets_from_prenorm(self._prenorm(self._normalised(pixels) if pixels.dtype == torch.uint8 else pixels))

    @torch.inference_mode()
    def normed_cls(self, pixels: Tensor) -> Tensor:
        """CLS after the encoder's own final norm: what DINOv2's authors compare images by (docs/method.md 8.3).

        Args:
            pixels: float32 [B, 3, S, S] of ``images.to_pixels``.

        Returns:
            float32 [B, C] on the CPU.
        """
        return self.family.final_norm(self._model, self._prenorm(pixels.to(self._device))[:, 0]).float().cpu()

    def _normalised(self, pixels: Tensor) -> Tensor:
        """``images.normalise`` on the device, bit for bit: uint8 [B, S, S, 3 or 4] to float32 [B, 3, S, S]."""
        unit = pixels.permute(0, 3, 1, 2).float() / self._std.new_tensor(255)  # by a number, a GPU would multiply
        colours = unit[:, :3] * unit[:, 3:] if unit.shape[1] == 4 else unit
        return ((colours - self._mean) / self._std).contiguous()

    def _prenorm(self, pixels: Tensor) -> Tensor:
        return self.family.prenorm(self._model, pixels.to(TORCH_DTYPES[self.settings.dtype]))

    def save(self, folder: Path) -> None:
        """Save weights and configuration for ``load_encoder``; random weights stay marked as such."""
        if not self.trained:
            setattr(self._model.config, UNTRAINED_MARK, True)
        self._model.save_pretrained(folder)
        preprocessing = {"image_mean": self.normalisation.mean, "image_std": self.normalisation.std}
        (folder / PREPROCESSING).write_text(json.dumps(preprocessing))


def layout(config: Any, image_size: int) -> TokenLayout:
    """The tokens of images of a size.

    Raises:
        ValueError: the image size is no multiple of the patch size.
    """
    registers = getattr(config, "num_register_tokens", 0)
    return layout_from(config.patch_size, image_size, registers, config.hidden_size)


def layout_from(patch: Any, image_size: int, registers: int, width: int) -> TokenLayout:
    """See ``layout``."""
    if not isinstance(patch, int):
        raise ValueError(f"patches of {patch} are not square")
    side, rest = divmod(image_size, patch)
    if rest:
        raise ValueError(
            f"targets.image_size = {image_size} is no multiple of the encoder's patch of {patch}: "
            f"set it to {side * patch or patch} or {(side + 1) * patch}"
        )
    return TokenLayout(registers, (side, side), width)
