"""What an extractor of features is to those who use it: who made its weights, and how a picture is shown to it."""

import functools
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from gap3d.features.encoder import UNTRAINED
from gap3d.features.images import without_alpha

PASS = 16  # pictures at once
log = logging.getLogger(__name__)


def device_of(device: str | None) -> torch.device:
    """The device that is named; else a GPU, if there is one."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


@functools.cache
def warn_untrained(name: str) -> None:
    """Say it loudly, and once in a process: a run both knows an extractor and loads it."""
    log.warning("%s: features of %s mean nothing; use them to try the evaluation", UNTRAINED, name)


class Frozen:
    """A frozen network, and where it comes from.

    Args:
        name: for tables.
        width: channels of a feature.
        trained: False if the weights are random: numbers mean nothing then, and a warning is logged.
        source: where the weights come from.
        weights_hash: of the weights, see ``features.weights.weights_hash``.
        preprocessing: what is done before the network, in words.
    """

    def __init__(
        self, name: str, width: int, *, trained: bool, source: str, weights_hash: str, preprocessing: str
    ) -> None:
        self.name = name
        self.width = width
        self.trained = trained
        self.source = source
        self.weights_hash = weights_hash
        self.preprocessing = preprocessing
        if not trained:
            warn_untrained(name)

    @property
    def label(self) -> str:
        """What the weights are, for reports."""
        return self.source if self.trained else f"{UNTRAINED} ({self.source})"

    @property
    def description(self) -> dict[str, Any]:
        """All that is needed to repeat the numbers, for their JSON."""
        return {
            "extractor": self.name,
            "width": self.width,
            "source": self.source,
            "weights": self.weights_hash,
            "trained": self.trained,
            "label": self.label,
            "preprocessing": self.preprocessing,
        }


class PictureFeatures(Frozen, ABC):
    """One feature of a picture."""

    @abstractmethod
    def pixels(self, image: Image.Image) -> Tensor:
        """What the network sees of an RGB picture: float32 [3, S, S]."""

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor:
        """Features [B, D] of pixels [B, 3, S, S]."""

    @torch.inference_mode()
    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """Features of pictures, a few at a time.

        Args:
            images: RGB, or RGBA with straight alpha, which is composited on black.

        Returns:
            float32 [N, D] on the CPU; N may be 0.
        """
        found = [torch.empty(0, self.width)]
        for start in range(0, len(images), PASS):
            some = [self.pixels(without_alpha(image, "black")) for image in images[start : start + PASS]]
            found.append(self.forward(torch.stack(some)).float().cpu())
        return torch.cat(found)
