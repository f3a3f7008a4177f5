"""Small 3D files made on the spot, and what a render of them is read with."""

import base64
import json
import struct
import subprocess
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from gap3d.settings import RenderSettings
from render.job import Model

ROOT = Path(__file__).resolve().parents[1]
CUBE_CORNERS = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
CUBE_QUADS = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
QUICK = RenderSettings(resolution=64, samples=4, threshold=0, denoise=False, prefilter="none")
Box = tuple[tuple[float, float, float], tuple[float, float, float]]


def ply_of_boxes(path: Path, *boxes: Box) -> Model:
    """A PLY (Z up, no axis conversion) of boxes given by lowest corner and size."""
    vertices = np.concatenate([np.array(low) + CUBE_CORNERS * size for low, size in boxes])
    faces = [[8 * n + corner for corner in quad] for n in range(len(boxes)) for quad in CUBE_QUADS]
    header = f"ply\nformat ascii 1.0\nelement vertex {len(vertices)}\nproperty float x\nproperty float y\n"
    header += f"property float z\nelement face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    rows = [" ".join(map(str, vertex)) for vertex in vertices] + [f"4 {' '.join(map(str, face))}" for face in faces]
    path.write_text(header + "\n".join(rows) + "\n")
    return Model(path.parent, path.name, "ply")


class Gltf:
    """A glTF in one file: unit cubes [0, 1]^3 at its nodes, and whatever else is put into ``document``."""

    def __init__(self) -> None:
        self.data = b""
        self.document: dict[str, Any] = {"asset": {"version": "2.0"}, "scene": 0, "accessors": [], "bufferViews": []}
        triangles = [corner for a, b, c, d in CUBE_QUADS for corner in (a, b, c, a, c, d)]
        self.cube = {"POSITION": self.add("f", CUBE_CORNERS.tolist(), "VEC3")}
        self.document["meshes"] = [
            {"primitives": [{"attributes": self.cube, "indices": self.add("H", [[n] for n in triangles], "SCALAR")}]}
        ]

    def add(self, code: str, rows: Sequence[Sequence[float]], kind: str) -> int:
        """Append an accessor of floats (f), bytes (B) or shorts (H); its number."""
        flat = [value for row in rows for value in row]
        packed = struct.pack(f"<{len(flat)}{code}", *flat)
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(packed)}
        self.data += packed + b"\0" * (-len(packed) % 4)
        self.document["bufferViews"].append(view)
        accessor = {"bufferView": len(self.document["bufferViews"]) - 1, "count": len(rows), "type": kind}
        accessor["componentType"] = {"f": 5126, "B": 5121, "H": 5123}[code]
        if code == "f":
            accessor |= {"min": list(map(min, zip(*rows, strict=True))), "max": list(map(max, zip(*rows, strict=True)))}
        self.document["accessors"].append(accessor)
        return len(self.document["accessors"]) - 1

    def write(self, path: Path, nodes: list[dict[str, Any]], roots: list[int]) -> Model:
        """Write it as .gltf with its buffer inside."""
        uri = "data:application/octet-stream;base64," + base64.b64encode(self.data).decode()
        buffers = [{"byteLength": len(self.data), "uri": uri}]
        path.write_text(json.dumps(self.document | {"nodes": nodes, "scenes": [{"nodes": roots}], "buffers": buffers}))
        return Model(path.parent, path.name, "gltf")


def pixels(png: bytes) -> np.ndarray:
    """RGBA, uint8 [H, W, 4]."""
    return np.asarray(PIL.Image.open(BytesIO(png)))


def run_blender(program: str, **values: Any) -> str:
    """Run a program in a Blender of its own, with the values as its globals; what it wrote to standard output."""
    source = "".join(f"{name} = {value!r}\n" for name, value in values.items()) + program
    found = subprocess.run(
        [sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-4000:]
    return found.stdout
