"""Patch tokens of many images as colours of one palette, in two passes: one fits it, one paints with it."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gap3d.atlas.pca import Colours, Components, Covariance

FITTED_TOKENS = 100_000  # that the components, and the scale of colours, are taken from


@dataclass(frozen=True)
class Painting:
    """One image's patch tokens.

    Attributes:
        tokens: uint8 [rows, columns, 3], in the components of all tokens.
        object_tokens: uint8 [rows, columns, 4], in the components of the tokens that objects cover, the others
            transparent; None where there is no silhouette.
        units: int8 [N, K]: the first components of each token as a unit vector, times 127.
    """

    tokens: NDArray[np.uint8]
    object_tokens: NDArray[np.uint8] | None
    units: NDArray[np.int8]


class Palette:
    """Components and colours; of many images every so many tokens are taken, others in each image.

    Args:
        grid: rows and columns of patch tokens.
        images: about how many will come.

    Attributes:
        components: of all tokens; None before ``settle``, and where there were no tokens.
        object_components: of the tokens that objects cover.
    """

    def __init__(self, grid: tuple[int, int], images: int) -> None:
        self.grid = grid
        self.components: Components | None = None
        self.object_components: Components | None = None
        self._step = max(1, images * grid[0] * grid[1] // FITTED_TOKENS)
        self._all, self._objects = Covariance(), Covariance()
        self._numbers: dict[str, int] = {}
        self._scale: list[NDArray[np.float32]] = []
        self._object_scale: list[NDArray[np.float32]] = []
        self._painted: dict[str, NDArray[np.float32]] = {}
        self._covered: dict[str, tuple[NDArray[np.float32], NDArray[np.bool_]]] = {}

    def fit(self, key: str, tokens: Tensor, mask: NDArray[np.bool_] | None) -> None:
        """First pass: take an image's patch tokens [N, C] and, where there is one, its silhouette [rows, columns]."""
        taken = slice(len(self._numbers) % self._step, None, self._step)
        some = tokens[taken].float()
        if not torch.isfinite(some.sum()):
            return
        self._numbers[key] = len(self._numbers)
        self._all.add(some)
        if mask is not None:
            self._objects.add(some[torch.from_numpy(mask.ravel()[taken])])

    def settle(self, most: int) -> None:
        """Between the passes: at most so many components."""
        if self._all.count:
            self.components = self._all.components(most)
        if self._objects.count > 3:
            self.object_components = self._objects.components(3)

    @property
    def dimensions(self) -> float | None:
        """How many the tokens fill."""
        return self._all.effective if self._all.count else None

    def project(self, key: str, tokens: Tensor, mask: NDArray[np.bool_] | None, *, paint: bool) -> None:
        """Second pass: the same images again; those to be painted are kept, the others only settle the scale."""
        if self.components is None or key not in self._numbers:
            return
        taken = slice(self._numbers[key] % self._step, None, self._step)
        wanted = tokens if paint else tokens[taken]
        inner = taken if paint else slice(None)
        projected = self.components.project(wanted).numpy()
        if not np.isfinite(projected).all():
            return
        self._scale.append(projected[inner, :3])
        if paint:
            self._painted[key] = projected
        if self.object_components is not None and mask is not None and mask.any():
            own = self.object_components.project(wanted).numpy()
            self._object_scale.append(own[inner][mask.ravel()[taken]])
            if paint:
                self._covered[key] = own, mask

    def paintings(self) -> dict[str, Painting]:
        """By key."""
        colours = Colours.of(np.concatenate(self._scale)) if self._scale else None
        own_colours = Colours.of(np.concatenate(self._object_scale)) if self._covered else None
        made = {}
        for key, projected in self._painted.items():
            units = projected / np.maximum(np.linalg.norm(projected, axis=1, keepdims=True), 1e-12)
            cut = None
            if key in self._covered and own_colours is not None:
                own, mask = self._covered[key]
                rgb = own_colours.paint(own).reshape(*self.grid, 3)
                cut = np.dstack([rgb, np.where(mask, 255, 0).astype(np.uint8)])
            assert colours is not None
            rgb = colours.paint(projected).reshape(*self.grid, 3)
            made[key] = Painting(rgb, cut, np.rint(units * 127).astype(np.int8))
        return made
