"""STAND-IN: the mesh renderer, of a sphere in closed form."""

import torch

from trellis.representations import RADIUS


class MeshRenderer:
    def __init__(self, rendering_options={}, device="cuda"):  # noqa: B006
        self.rendering_options = {"resolution": None, "near": None, "far": None, "ssaa": 1, **rendering_options}

    def render(self, mesh, extrinsics, intrinsics, return_types=["mask", "normal", "depth"]):  # noqa: B006
        assert self.rendering_options["near"] == 1 and self.rendering_options["ssaa"] == 4
        size = self.rendering_options["resolution"]
        steps = (torch.arange(size) + 0.5) / size
        x = (steps[None] - intrinsics[0, 2]) / intrinsics[0, 0]
        y = (steps[:, None] - intrinsics[1, 2]) / intrinsics[1, 1]
        rays = torch.stack([x.expand(size, size), y.expand(size, size), torch.ones(size, size)], -1)
        centre = extrinsics[:3, 3]  # the origin, seen by the camera
        a, b, c = (rays**2).sum(-1), (rays @ centre), centre @ centre - RADIUS**2
        root = b**2 - a * c
        depth = torch.where(root > 0, (b - root.clamp(min=0).sqrt()) / a, torch.zeros(()))
        return {"mask": (root > 0).float(), "depth": depth}
