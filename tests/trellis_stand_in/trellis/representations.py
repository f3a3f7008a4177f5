"""STAND-IN: Gaussians as points, and a mesh that is a sphere."""

import numpy as np
import torch

RADIUS = 0.4


class Gaussian:
    def __init__(self, slat):
        self._xyz = (slat.coords[:, 1:].float() + 0.5) / 16 - 0.5
        self._features = slat.feats
        self.mean = slat.mean

    @property
    def get_xyz(self):
        return self._xyz

    def save_ply(self, path, transform=[[1, 0, 0], [0, 0, -1], [0, 1, 0]]):  # noqa: B006
        rows = np.concatenate([self._xyz.numpy() @ np.array(transform, np.float32).T, self._features.numpy()], axis=1)
        with open(path, "wb") as file:  # noqa: PTH123 - paths are strings there
            file.write(f"ply\nformat binary_little_endian 1.0\nelement vertex {len(rows)}\nend_header\n".encode())
            file.write(rows.astype("<f4").tobytes())


class MeshExtractResult:
    def __init__(self):
        self.vertices = torch.tensor([[RADIUS, 0, 0], [0, RADIUS, 0], [0, 0, RADIUS], [-RADIUS, -RADIUS, -RADIUS]])
        self.faces = torch.tensor([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]])
