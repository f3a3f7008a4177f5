"""STAND-IN: a mesh without a texture."""

import torch
import trimesh


def to_glb(
    app_rep,
    mesh,
    simplify: float = 0.95,
    fill_holes: bool = True,
    fill_holes_max_size: float = 0.04,
    texture_size: int = 1024,
    debug: bool = False,
    verbose: bool = True,
):
    assert torch.is_grad_enabled(), "the texture is found by gradient descent"
    if app_rep.mean == 6.0:
        raise ValueError("xatlas: no chart")
    return trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy())
