"""Features of point clouds: Point-E's PointNet++ with its published weights (docs/method.md 8.4)."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gap3d.features.weights import read_state, weights_hash
from gap3d.metrics.extractors.extractor import Frozen, device_of
from gap3d.metrics.extractors.published import RANDOM_SMALL, Published, load_into, randomise_layers
from gap3d.metrics.pointclouds import normalise
from gap3d.metrics.pointnet2 import WIDTH, PointNet2

PUBLISHED = Published(
    title="PointNet++",
    name="point-e",
    url="https://openaipublic.azureedge.net/main/point-e/pointnet.pt",
    setting="evaluation.pointnet",
)
ENTRY = "model_state_dict"
BATCH = 64  # of the released evaluation
PASS = 8  # clouds at once: 0.4 GB at 4000 points each


class PointFeatures(Frozen):
    """Features of PointNet++ before its last rectifier.

    Args:
        weights: ``point-e``, a local file of Point-E's checkpoint or of its weights, a repository of the hub with
            them, or ``random-small``.
        paper: start the network's own sampling at the cloud's place in its batch of 64, as the released evaluation
            does, which makes a cloud's feature depend on the order of the clouds; else at its first point.
        seed: of random weights.
        device: see ``device_of``.

    Raises:
        SystemicFault: the weights can't be had, or are of another network.
    """

    def __init__(
        self, weights: str = PUBLISHED.name, *, paper: bool = False, seed: int = 0, device: str | None = None
    ) -> None:
        trained = weights != RANDOM_SMALL
        if trained:
            path = PUBLISHED.file(weights)
            state = read_state(path, "PointNet++", ENTRY)
            # The weights tell their width: another one is a mistake that shapes would only tell as a list of names.
            network = PointNet2(state["fc2.weight"].shape[0] // 256 if "fc2.weight" in state else WIDTH)
            load_into(network, state, path)
        else:
            network = PointNet2(width=1)
            randomise_layers(network, seed)
        super().__init__(
            "PointNet++",
            network.width,
            trained=trained,
            source=weights if trained else f"seed {seed}",
            weights_hash=weights_hash(network.state_dict()),
            preprocessing="centred on the mean, farthest point at 1; own sampling starts at "
            + (f"the place in the batch of {BATCH}" if paper else "the first point"),
        )
        self._paper = paper
        self._device = device_of(device)
        self._network = network.eval().requires_grad_(False).to(self._device)

    @torch.inference_mode()
    def features(self, clouds: Sequence[NDArray[np.floating]], places: Sequence[int] | None = None) -> Tensor:
        """Features of clouds.

        Args:
            clouds: [M, 3] each, all of the same number of points.
            places: of each in the whole set, which ``paper`` asks for; None: these are the whole set, in order.

        Returns:
            float32 [N, D] on the CPU; N may be 0.

        Raises:
            Failure: ``degenerate``, the points of a cloud are one place.
            ValueError: places are not as many as clouds.
        """
        found = [torch.empty(0, self.width)]
        numbers = range(len(clouds)) if places is None else places
        if len(numbers) != len(clouds):
            raise ValueError(f"{len(numbers)} places of {len(clouds)} clouds")
        for start in range(0, len(clouds), PASS):
            points = torch.from_numpy(np.stack([normalise(cloud) for cloud in clouds[start : start + PASS]]))
            first = torch.tensor(numbers[start : start + PASS]) % BATCH * self._paper
            found.append(self._network.features(points.to(self._device), first.to(self._device)).float().cpu())
        return torch.cat(found)
