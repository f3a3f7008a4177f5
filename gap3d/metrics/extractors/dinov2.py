"""Features of DINOv2 without registers: CLS after the final norm (docs/method.md 8.3)."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gap3d.features.encoders import load_encoder
from gap3d.features.images import normalise, resize_and_crop
from gap3d.metrics.extractors.extractor import PictureFeatures
from gap3d.records import SystemicFault
from gap3d.settings import Limits, TargetSettings

DINOV2_LARGE = "facebook/dinov2-large"
SETTING = "evaluation.dinov2"


class Dinov2Features(PictureFeatures):
    """CLS tokens of any encoder that ``targets.encoder`` can name.

    Args:
        weights: a hub id, a local folder, a file of the authors' weights, or ``random-small``.
        revision: of the hub.
        image_size: pixels per side that the encoder sees.
        seed: of random weights.
        device: see ``features.encoder.Encoder``.

    Raises:
        SystemicFault: see ``load_encoder``.
    """

    def __init__(
        self,
        weights: str = DINOV2_LARGE,
        *,
        revision: str | None = None,
        image_size: int = 518,
        seed: int = 0,
        device: str | None = None,
    ) -> None:
        settings = TargetSettings(encoder=weights, revision=revision, image_size=image_size, seed=seed)
        try:
            self._encoder = load_encoder(settings, device=device)
        except SystemicFault as fault:
            raise SystemicFault(str(fault).replace("targets.encoder", SETTING)) from fault
        super().__init__(
            self._encoder.family.title,
            self._encoder.layout.width,
            trained=self._encoder.trained,
            source=f"{weights} (revision {self._encoder.revision})",
            weights_hash=self._encoder.weights_hash,
            preprocessing=f"{self._encoder.description['preprocessing']}",
        )
        self._side = image_size

    def pixels(self, image: Image.Image) -> Tensor:
        """See ``PictureFeatures``."""
        framed = resize_and_crop(image, self._side, Limits().pixels)
        return torch.from_numpy(normalise(np.array(framed), self._encoder.normalisation))

    def forward(self, pixels: Tensor) -> Tensor:
        """See ``PictureFeatures``."""
        return self._encoder.normed_cls(pixels)
