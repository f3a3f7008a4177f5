"""What goes into a Blender and what comes out of it, and how a message is framed; nothing here needs Blender.

A message is a 4-byte big-endian length and so many bytes of UTF-8 JSON. Arrays and images never travel in messages:
they are files in a scratch folder, named by the parent.
"""

import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gap3d.records import Status

HEADER = struct.Struct(">I")
MESSAGE_BYTES = 1024**2
"""Longest message that either side accepts."""
REASON_CHARACTERS = 300

FILE_TYPES = ("obj", "glb", "gltf", "usdz", "usd", "usda", "fbx", "stl", "dae", "ply", "abc", "blend")
UP_AXES = ("X", "-X", "Y", "-Y", "Z", "-Z")

VERTICES_FILE = "vertices.npy"
FACES_FILE = "faces.npy"
IMAGE_FILE = "image.png"
DEPTH_FILE = "depth.npy"


@dataclass(frozen=True)
class Model:
    """One object as it lies on disk: all that its import may read.

    Args:
        tree: folder with the main file and its companions in place.
        main: the main file, relative to the tree.
        file_type: one of the twelve types, lower case, without a dot.
        up_axis: the axis (of Blender's frame, as imported) that really points up: X, -X, Y, -Y, Z or -Z.
            None trusts the importer, which always gives Z.
    """

    tree: Path
    main: str
    file_type: str
    up_axis: str | None = None

    def __post_init__(self) -> None:
        if self.up_axis is not None and self.up_axis not in UP_AXES:
            raise ValueError(f"up_axis {self.up_axis!r} is none of {', '.join(UP_AXES)}")
        if Path(self.main).is_absolute() or ".." in Path(self.main).parts:
            raise ValueError(f"main file {self.main!r} must be inside its tree")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of an imported object beside its arrays (docs/method.md 2.1).

    ``scale`` and ``offset`` are the normalisation: normalised = scale * (world, turned to up_axis) + offset.
    ``points`` counts the vertices and point-cloud points of objects without faces. ``costs`` are seconds by part.
    """

    scale: float
    offset: tuple[float, float, float]
    objects: int
    triangles: int
    animated: bool
    points: int
    missing_textures: tuple[str, ...]
    costs: dict[str, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Mesh(Facts):
    """The evaluated, triangulated, normalised geometry of one object, instances included, and its facts.

    Args:
        vertices: float32 [V, 3], inside [-0.5, 0.5]^3, Z up.
        faces: int32 [F, 3], indices into vertices, rising: without a winding.
    """

    vertices: np.ndarray
    faces: np.ndarray


@dataclass(frozen=True, eq=False)
class View:
    """A camera.

    Args:
        camera_to_world: float [4, 4], rigid; the camera looks along its -Z with +Y up (Blender's convention).
        fov: full field of view of the square image, degrees.
    """

    camera_to_world: np.ndarray
    fov: float

    def __post_init__(self) -> None:
        pose = np.asarray(self.camera_to_world, dtype=np.float64)
        if pose.shape != (4, 4) or not np.isfinite(pose).all():
            raise ValueError(f"camera_to_world must be a finite [4, 4] matrix, not {pose.shape}")
        if not np.allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-4) or np.linalg.det(pose[:3, :3]) < 0:
            raise ValueError("camera_to_world must be a rotation and a translation")
        if not 0 < self.fov < 180:
            raise ValueError(f"fov {self.fov} must lie between 0 and 180 degrees")


@dataclass(frozen=True, eq=False)
class Image:
    """One rendered view: an 8-bit RGBA PNG, sRGB, straight alpha; size in pixels, costs in seconds.

    Args:
        device: what Cycles really rendered on, such as "CPU" or "OPTIX NVIDIA L40S".
        depth: planar z in front of the camera, float32 [H, W], +inf where the background is seen; None unless asked.
    """

    png: bytes
    width: int
    height: int
    costs: dict[str, float]
    device: str = ""
    depth: np.ndarray | None = None


@dataclass(frozen=True)
class Hello:
    """What a child says of itself at its start.

    Args:
        version: of Blender.
        device: what Cycles was proven to render on.
        no_device: why the device that was asked for cannot be used; "" if it can.
        unconfined: why the kernel does not hold it; "" if it does.
    """

    version: str
    device: str = ""
    no_device: str = ""
    unconfined: str = "it says nothing of that"


@dataclass(frozen=True)
class Reply:
    """The answer to one request: ``body`` is the result when ``status`` is ok, ``reason`` says why not."""

    status: Status
    reason: str = ""
    body: dict[str, Any] = field(default_factory=dict)


class Garbled(Exception):
    """The other side said or wrote something that a Blender of ours never does."""


def encode(message: Mapping[str, Any]) -> bytes:
    """Frame one message. Raises ValueError above MESSAGE_BYTES."""
    body = json.dumps(message).encode()
    if len(body) > MESSAGE_BYTES:
        raise ValueError(f"message of {len(body)} bytes, at most {MESSAGE_BYTES} are accepted")
    return HEADER.pack(len(body)) + body


def frame_length(header: bytes) -> int:
    """Length of the body that a 4-byte header announces. Raises Garbled above MESSAGE_BYTES."""
    (length,) = HEADER.unpack(header)
    if length > MESSAGE_BYTES:
        raise Garbled(f"a frame of {length} bytes is announced, at most {MESSAGE_BYTES} are accepted")
    return length


def printable(text: str) -> str:
    """The text with a mark in place of whatever a terminal would take for an order; lines and tabs stay."""
    return "".join(character if character.isprintable() or character in "\n\t" else "\ufffd" for character in text)


def last_words(text: str, hidden: Sequence[str] = ()) -> str:
    """One short line out of an engine's error text: the cause, without its traceback and without machine paths.

    Args:
        text: an exception's text or the tail of a log.
        hidden: folders of this machine, cut wherever they occur.
    """
    for folder in sorted(filter(None, hidden), key=len, reverse=True):
        text = text.replace(folder + "/", "").replace(folder, ".")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("Location:")]
    if "Traceback (most recent call last):" in text:
        lines = lines[-1:]
    line = re.sub(r"^(?:(?:Error|Python): )+", "", " ".join(lines))
    line = "".join(character if character.isprintable() else " " for character in line)
    return line if len(line) <= REASON_CHARACTERS else line[: REASON_CHARACTERS - 3] + "..."
