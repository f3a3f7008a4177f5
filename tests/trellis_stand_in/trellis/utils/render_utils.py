"""STAND-IN: TRELLIS's cameras as its source defines them; Gaussians are drawn as single pixels."""

import numpy as np
import torch


def extrinsics_look_at(eye):
    """World to camera of OpenCV: x right, y down, z forward; looks at the origin, Z is up."""
    z = -eye / eye.norm()
    x = torch.linalg.cross(torch.tensor([0.0, 0.0, -1.0]), z)
    x = x / x.norm()
    rotation = torch.stack([x, torch.linalg.cross(z, x), z])
    matrix = torch.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, -rotation @ eye
    return matrix


def yaw_pitch_r_fov_to_extrinsics_intrinsics(yaws, pitchs, rs, fovs):
    assert isinstance(yaws, list) and isinstance(pitchs, list)
    extrinsics, intrinsics = [], []
    for yaw, pitch in zip(yaws, pitchs, strict=True):
        yaw, pitch, fov = torch.tensor(float(yaw)), torch.tensor(float(pitch)), torch.deg2rad(torch.tensor(float(fovs)))
        eye = torch.stack([yaw.sin() * pitch.cos(), yaw.cos() * pitch.cos(), pitch.sin()]) * rs
        focal = 0.5 / (fov / 2).tan()
        extrinsics.append(extrinsics_look_at(eye))
        intrinsics.append(torch.tensor([[focal, 0, 0.5], [0, focal, 0.5], [0, 0, 1]]))
    return extrinsics, intrinsics


def render_frames(sample, extrinsics, intrinsics, options={}, colors_overwrite=None, verbose=True, **kwargs):  # noqa: B006
    assert set(options) == {"resolution", "bg_color", "ssaa"} and options["bg_color"] == (0, 0, 0)
    frames = []
    for extrinsic, intrinsic in zip(extrinsics, intrinsics, strict=True):
        local = sample.get_xyz @ extrinsic[:3, :3].T + extrinsic[:3, 3]
        seen = (local / local[:, 2:]) @ intrinsic.T
        pixel = (seen[:, :2] * options["resolution"]).long().clamp(0, options["resolution"] - 1)
        frame = np.zeros((options["resolution"], options["resolution"], 3), np.uint8)
        frame[pixel[:, 1], pixel[:, 0]] = (255, 255, 10 * options["ssaa"])
        frames.append(frame)
    return {"color": frames, "depth": [None] * len(frames)}
