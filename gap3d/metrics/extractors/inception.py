"""Features of Inception-v3: torchvision's ImageNet weights, 2048 pooled channels (docs/method.md 8.3)."""

from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gap3d.features.images import IMAGENET, Normalisation, normalise
from gap3d.features.weights import read_state, weights_hash
from gap3d.metrics.extractors.extractor import PictureFeatures, device_of
from gap3d.metrics.extractors.inception_v3 import UNUSED, InceptionV3
from gap3d.metrics.extractors.published import RANDOM_SMALL, Published, load_into, randomise_layers
from gap3d.records import Failure, Status
from gap3d.settings import Limits

RESIZED, SIDE = 342, 299
SLIM = 8  # divisor of the small one's channels
PUBLISHED = Published(
    title="Inception-v3",
    name="torchvision",
    url="https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth",
    setting="evaluation.inception",
    digest="0cc3c7bd",
)
Mode = Literal["paper", "clean"]
INPUTS: dict[Mode, Normalisation] = {
    # The released evaluation sets transform_input=False, and so shows the network ImageNet's statistics.
    "paper": IMAGENET,
    # What the weights were trained on; torchvision's transform_input=True turns the one into the other.
    "clean": Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


class InceptionFeatures(PictureFeatures):
    """Pooled features of Inception-v3.

    Args:
        weights: ``torchvision``, a local file of the same weights, a repository of the hub with them, or
            ``random-small``.
        mode: ``paper`` gives the pixels other statistics than the weights were trained on, as the released evaluation
            does, and its numbers can be compared; ``clean`` gives the right ones.
        seed: of random weights.
        device: see ``device_of``.

    Raises:
        SystemicFault: the weights can't be had, or are of another network.
    """

    def __init__(
        self, weights: str = PUBLISHED.name, mode: Mode = "paper", *, seed: int = 0, device: str | None = None
    ) -> None:
        trained = weights != RANDOM_SMALL
        network = InceptionV3(slim=1 if trained else SLIM)
        if trained:
            path = PUBLISHED.file(weights)
            load_into(network, read_state(path, "Inception-v3"), path, UNUSED)
        else:
            randomise_layers(network, seed)
        super().__init__(
            "Inception-v3",
            network.width,
            trained=trained,
            source=weights if trained else f"seed {seed}",
            weights_hash=weights_hash(network.state_dict()),
            preprocessing=f"shorter side to {RESIZED}, bilinear (Pillow), centre {SIDE}, {mode}: {INPUTS[mode]}",
        )
        self._normalisation = INPUTS[mode]
        self._device = device_of(device)
        self._network = network.eval().requires_grad_(False).to(self._device)

    def pixels(self, image: Image.Image) -> Tensor:
        """See ``PictureFeatures``: the transforms of torchvision's weights.

        Raises:
            Failure: ``too_large`` if a long strip would grow beyond the limit.
        """
        shorter = min(image.size)
        width, height = (RESIZED if side == shorter else int(RESIZED * side / shorter) for side in image.size)
        if width * height > (limit := Limits().pixels):
            old = " x ".join(map(str, image.size))
            raise Failure(Status.TOO_LARGE, f"{old} pixels would grow to {width} x {height}, beyond {limit}")
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (round((side - SIDE) / 2) for side in (width, height))
        cut = resized.crop((left, top, left + SIDE, top + SIDE))
        return torch.from_numpy(normalise(np.array(cut), self._normalisation))

    def forward(self, pixels: Tensor) -> Tensor:
        """See ``PictureFeatures``."""
        return self._network(pixels.to(self._device))
