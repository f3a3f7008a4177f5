"""File-type writers: each returns the bytes of the files that make up one object, the main file first."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gap3d.samples.model import Material, Surface

Files = dict[str, bytes]


def write(stem: str, suffix: str, surfaces: Sequence[Surface]) -> Files:
    """The files of one object, by name."""
    writer = {"glb": _glb, "gltf": _gltf, "obj": _obj, "ply": _ply, "stl": _stl, "usda": _usda}[suffix]
    return writer(stem, surfaces)


def _png(image: Image.Image) -> bytes:
    """PNG bytes without any metadata."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=False, compress_level=6)
    return buffer.getvalue()


def _textures(stem: str, surfaces: Sequence[Surface]) -> dict[Material, tuple[str, bytes]]:
    """A file name and PNG bytes for every textured material."""
    return {
        s.material: (f"{stem}_{s.material.name}.png", _png(s.material.texture()))
        for s in surfaces
        if s.material.texture
    }


def _y_up(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """From z up to y up, as glTF and OBJ have it."""
    return np.ascontiguousarray(np.stack([values[:, 0], values[:, 2], -values[:, 1]], 1) + np.float32(0))


def _flipped(uv: NDArray[np.float32]) -> NDArray[np.float32]:
    """Texture coordinates from the top, as glTF has them."""
    return np.stack([uv[:, 0], 1 - uv[:, 1]], 1).astype(np.float32)


def _document(surfaces: Sequence[Surface]) -> tuple[dict[str, Any], bytearray]:
    """A glTF document without textures, and its one buffer."""
    data, views, accessors, primitives, materials = bytearray(), [], [], [], []

    def accessor(array: NDArray[Any], kind: str, component: int, target: int, limits: bool = False) -> int:
        while len(data) % 4:
            data.append(0)
        views.append({"buffer": 0, "byteOffset": len(data), "byteLength": array.nbytes, "target": target})
        data.extend(array.tobytes())
        entry = {"bufferView": len(views) - 1, "componentType": component, "count": len(array), "type": kind}
        if limits:
            entry |= {"min": array.min(axis=0).tolist(), "max": array.max(axis=0).tolist()}
        accessors.append(entry)
        return len(accessors) - 1

    for number, s in enumerate(surfaces):
        attributes = {
            "POSITION": accessor(_y_up(s.vertices), "VEC3", 5126, 34962, limits=True),
            "NORMAL": accessor(_y_up(s.normals), "VEC3", 5126, 34962),
        }
        if s.material.texture:
            attributes["TEXCOORD_0"] = accessor(_flipped(s.uv), "VEC2", 5126, 34962)
        indices = accessor(s.faces.ravel(), "SCALAR", 5125, 34963)
        primitives.append({"attributes": attributes, "indices": indices, "material": number})
        m = s.material
        surface: dict[str, Any] = {"metallicFactor": m.metallic, "roughnessFactor": m.roughness}
        surface["baseColorFactor"] = [1.0, 1.0, 1.0, 1.0] if m.texture else [*m.linear, 1.0]
        entry = {"name": m.name, "pbrMetallicRoughness": surface, "doubleSided": True}
        if m.glow:
            entry["emissiveFactor"] = [round(c * m.glow, 5) for c in m.linear]
        materials.append(entry)
    return {
        "asset": {"version": "2.0", "generator": "gap3d.samples"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "object"}],
        "meshes": [{"primitives": primitives}],
        "materials": materials,
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(data)}],
    }, data


def _add_textures(
    document: dict[str, Any], surfaces: Sequence[Surface], images: dict[Material, dict[str, Any]]
) -> None:
    """Refer to images from the document's materials."""
    if not images:
        return
    document["images"], document["samplers"] = list(images.values()), [{"magFilter": 9729, "minFilter": 9987}]
    document["textures"] = [{"source": i, "sampler": 0} for i in range(len(images))]
    for entry, s in zip(document["materials"], surfaces, strict=True):
        if s.material in images:
            entry["pbrMetallicRoughness"]["baseColorTexture"] = {"index": list(images).index(s.material)}


def _glb(stem: str, surfaces: Sequence[Surface]) -> Files:
    """glTF 2.0 in one binary file."""
    document, data = _document(surfaces)
    images = {}
    for material, (_, png) in _textures(stem, surfaces).items():
        data.extend(b"\0" * (-len(data) % 4))
        document["bufferViews"].append({"buffer": 0, "byteOffset": len(data), "byteLength": len(png)})
        data.extend(png)
        images[material] = {"bufferView": len(document["bufferViews"]) - 1, "mimeType": "image/png"}
    _add_textures(document, surfaces, images)
    data.extend(b"\0" * (-len(data) % 4))
    document["buffers"][0]["byteLength"] = len(data)
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + len(data))
    body = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(data), b"BIN\0") + bytes(data)
    return {f"{stem}.glb": head + body}


def _gltf(stem: str, surfaces: Sequence[Surface]) -> Files:
    """glTF 2.0 as JSON with a .bin and PNG files beside it."""
    document, data = _document(surfaces)
    textures = _textures(stem, surfaces)
    _add_textures(document, surfaces, {material: {"uri": name} for material, (name, _) in textures.items()})
    document["buffers"][0]["uri"] = f"{stem}.bin"
    text = json.dumps(document, indent=1).encode() + b"\n"
    return {f"{stem}.gltf": text, f"{stem}.bin": bytes(data), **dict(textures.values())}


def _rows(values: NDArray[Any], form: str) -> str:
    """One formatted line per row."""
    return (form * len(values)) % tuple(values.ravel().tolist())


def _obj(stem: str, surfaces: Sequence[Surface]) -> Files:
    """Wavefront OBJ with a material library and PNG files."""
    textures = _textures(stem, surfaces)
    mesh, library, base = [f"mtllib {stem}.mtl\no {stem}\n"], [], 1
    for s in surfaces:
        m = s.material
        mesh.append(_rows(_y_up(s.vertices), "v %.5f %.5f %.5f\n") + _rows(_y_up(s.normals), "vn %.3f %.3f %.3f\n"))
        mesh.append(_rows(s.uv, "vt %.5f %.5f\n") + f"usemtl {m.name}\ns 1\n")
        mesh.append(_rows(np.repeat(s.faces.astype(np.int64) + base, 3, axis=1), "f %d/%d/%d %d/%d/%d %d/%d/%d\n"))
        base += len(s.vertices)
        red, green, blue = (1.0, 1.0, 1.0) if m.texture else m.linear
        library.append(
            f"newmtl {m.name}\nKd {red} {green} {blue}\nKs 0.3 0.3 0.3\nNs {1000 * (1 - m.roughness) ** 2:.1f}\n"
        )
        if m.glow:
            library.append("Ke {} {} {}\n".format(*(round(c * m.glow, 5) for c in m.linear)))
        if m.texture:
            library.append(f"map_Kd {textures[m][0]}\n")
        library.append("illum 2\n")
    return {f"{stem}.obj": "".join(mesh).encode(), f"{stem}.mtl": "".join(library).encode(), **dict(textures.values())}


def _ply(stem: str, surfaces: Sequence[Surface]) -> Files:
    """Binary PLY with normals and vertex colours."""
    row = np.dtype([("place", "<f4", 3), ("normal", "<f4", 3), ("color", "u1", 4)])
    count, offset, vertices, faces = sum(len(s.vertices) for s in surfaces), 0, [], []
    for s in surfaces:
        block = np.zeros(len(s.vertices), row)
        block["place"], block["normal"], block["color"] = s.vertices, s.normals, (*s.material.rgb, 255)
        triangles = np.zeros(len(s.faces), np.dtype([("n", "u1"), ("index", "<i4", 3)]))
        triangles["n"], triangles["index"] = 3, s.faces.astype(np.int64) + offset
        vertices.append(block.tobytes())
        faces.append(triangles.tobytes())
        offset += len(s.vertices)
    names = [f"property float {n}\n" for n in ("x", "y", "z", "nx", "ny", "nz")]
    names += [f"property uchar {n}\n" for n in ("red", "green", "blue", "alpha")]
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex {count}\n{''.join(names)}"
    head += f"element face {sum(len(s.faces) for s in surfaces)}\nproperty list uchar int vertex_indices\nend_header\n"
    return {f"{stem}.ply": head.encode() + b"".join(vertices) + b"".join(faces)}


def _stl(stem: str, surfaces: Sequence[Surface]) -> Files:
    """Binary STL: triangles only."""
    corners = np.concatenate([s.vertices[s.faces] for s in surfaces])
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-20)
    table = np.zeros(len(corners), np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("extra", "<u2")]))
    table["normal"], table["corners"] = normal, corners
    return {f"{stem}.stl": b"binary stl".ljust(80) + struct.pack("<I", len(corners)) + table.tobytes()}


def _tuples(values: NDArray[np.float32], places: int) -> str:
    """A USD array of tuples."""
    form = "(" + ", ".join([f"%.{places}g"] * values.shape[1]) + ")"
    return "[" + ", ".join([form] * len(values)) % tuple(values.ravel().tolist()) + "]"


def _usda(stem: str, surfaces: Sequence[Surface]) -> Files:
    """USD as text, with a preview-surface material per mesh."""
    lines = ['#usda 1.0\n(\n    defaultPrim = "object"\n    metersPerUnit = 1\n    upAxis = "Z"\n)\n']
    lines.append('def Xform "object"\n{\n    def Scope "looks"\n    {\n')
    for s in surfaces:
        m, place = s.material, f"/object/looks/{s.material.name}/shader.outputs:surface"
        glow = tuple(round(c * m.glow, 5) for c in m.linear)
        lines.append(
            f'        def Material "{m.name}"\n        {{\n            token outputs:surface.connect = <{place}>\n'
            '            def Shader "shader"\n            {\n'
            '                uniform token info:id = "UsdPreviewSurface"\n'
            f"                color3f inputs:diffuseColor = {m.linear}\n"
            f"                color3f inputs:emissiveColor = {glow}\n"
            f"                float inputs:roughness = {m.roughness}\n"
            f"                float inputs:metallic = {m.metallic}\n"
            "                token outputs:surface\n            }\n        }\n"
        )
    lines.append("    }\n")
    for s in surfaces:
        lines.append(
            f'    def Mesh "{s.material.name}" (\n        prepend apiSchemas = ["MaterialBindingAPI"]\n    )\n    {{\n'
            '        uniform token subdivisionScheme = "none"\n        uniform bool doubleSided = 1\n'
            f"        rel material:binding = </object/looks/{s.material.name}>\n"
            f"        color3f[] primvars:displayColor = [{s.material.linear}]\n"
            f"        int[] faceVertexCounts = {[3] * len(s.faces)}\n"
            f"        int[] faceVertexIndices = {s.faces.ravel().tolist()}\n"
            f"        point3f[] points = {_tuples(s.vertices, 6)}\n"
            f"        normal3f[] normals = {_tuples(s.normals, 4)} (\n"
            '            interpolation = "vertex"\n        )\n    }\n'
        )
    lines.append("}\n")
    return {f"{stem}.usda": "".join(lines).encode()}
