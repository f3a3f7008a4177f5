"""Which files an object refers to: its companions (mtl, bin, textures, USD layers).

An object is its main file and what it refers to inside its source root, and nothing outside it.
References are found by reading bytes, never by running an importer, so hostile files are safe here.
"""

import gzip
import io
import json
import mmap
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import pyarrow as pa

from gap3d.records import Failure, Status

FILE_TYPES = ("abc", "blend", "dae", "fbx", "glb", "gltf", "obj", "ply", "stl", "usd", "usda", "usdz")

LAYER_SUFFIXES = (".usd", ".usda", ".usdc", ".usdz", ".mtlx")
TEXTURE_SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".tga",
    ".bmp",
    ".tif",
    ".tiff",
    ".exr",
    ".hdr",
    ".webp",
    ".gif",
    ".dds",
    ".psd",
)
READ_LIMIT = 1 << 30  # bytes of one file, decompressed, that are searched for references


@dataclass(frozen=True)
class Reference:
    """One path as written in a file. ``strict`` formats give it a meaning; elsewhere it is a hint."""

    text: str
    strict: bool


@dataclass(frozen=True)
class Closure:
    """What a main file needs, as sorted paths relative to the source root."""

    files: tuple[str, ...]  # the main file first
    missing: tuple[str, ...]  # referred to, inside the root, and not there
    watched: tuple[str, ...] = ()  # where the missing ones were looked for: one that appears there is a companion


def file_type_of(path: str) -> str:
    """The file type by name: ``a/b.gltf.glb`` is glb."""
    return PurePosixPath(path).suffix.lower().lstrip(".")


def closure(root: Path, main: str, *, limit: int = 4096) -> Closure:
    """Follow references from ``main`` (relative to ``root``) to all files it needs.

    Raises:
        Failure: ``forbidden_reference`` where a reference leaves the root or ``main`` is no plain path below it,
            ``missing`` where the main file is not there, ``too_large`` past ``limit`` files.
    """
    base = root.resolve()
    if "\0" in main or normalise(PurePosixPath(main)) != main:  # through a link, ``l/..`` is not where it seems
        raise Failure(Status.FORBIDDEN_REFERENCE, f"{main[:200]!r} is no plain path below the source folder")
    todo, files, missing, watched = [main], [], set(), set()
    inside(base, main, main)
    if not is_file(base / main):
        raise Failure(Status.MISSING, f"no such file: {main}")
    seen = {main}
    while todo:
        current = todo.pop()
        files.append(current)
        if len(files) > limit:
            raise Failure(Status.TOO_LARGE, f"more than {limit} companion files")
        for reference in references(base / current):
            found, tried = locate(base, current, reference)
            todo += [path for path in found if path not in seen]
            seen |= set(found)
            if not found:
                missing.add(reference.text.replace("\\", "/"))
                watched |= set(tried)
    others = sorted(file for file in files if file != main)
    return Closure((main, *others), tuple(sorted(missing)), tuple(sorted(watched)))


def locate(base: Path, holder: str, reference: Reference) -> tuple[list[str], list[str]]:
    """Files under ``base`` that a reference in file ``holder`` names, and the places that were looked at."""
    tried: list[str] = []
    text = reference.text.replace("\\", "/")
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", text)
    absolute = text.startswith("/") or (scheme is not None)
    if absolute and reference.strict:
        raise Failure(Status.FORBIDDEN_REFERENCE, f"{holder} refers to {text[:200]}")
    folder = PurePosixPath(holder).parent
    candidates = [] if absolute or re.match(r"[A-Za-z]:", text) else [text]
    # Exporters write the path on the artist's machine; the texture usually lies beside the file.
    candidates.append(PurePosixPath(text).name)
    for candidate in candidates:
        path = normalise(folder / candidate)
        if path is None:
            if reference.strict:
                raise Failure(Status.FORBIDDEN_REFERENCE, f"{holder} refers to {text[:200]}")
            continue
        if "\0" in path or len(path) >= 1024:
            continue
        tried.append(path)
        if "<UDIM>" in path:
            stem, tail = PurePosixPath(path).name.split("<UDIM>", 1)
            pattern = re.compile(re.escape(stem) + r"\d{4}" + re.escape(tail) + "$")
            listed = [p for p in entries(base / PurePosixPath(path).parent) if pattern.match(p.name) and is_file(p)]
            tiles = sorted(p.relative_to(base).as_posix() for p in listed)
            for tile in tiles:
                inside(base, tile, text)
            if tiles:
                return tiles, tried
        elif is_file(base / path):
            inside(base, path, text)
            return [path], tried
    return [], tried


def is_file(path: Path) -> bool:
    """Path.is_file, with names that the file system refuses taken as absent."""
    try:
        return path.is_file()
    except OSError:
        return False


def entries(folder: Path) -> list[Path]:
    """What lies in a folder; nothing where there is none, or none can have such a name."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def normalise(path: PurePosixPath) -> str | None:
    """``a/../b`` as ``b``; None where the path climbs above the root."""
    parts: list[str] = []
    for part in path.parts:
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def inside(base: Path, path: str, text: str) -> None:
    """Refuse a path whose links lead out of the root."""
    try:
        ends = (base / path).resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: a circle of links
        raise Failure(Status.MISSING, f"{text[:200]}: {error}") from error
    if not ends.is_relative_to(base):
        raise Failure(Status.FORBIDDEN_REFERENCE, f"{text[:200]} is a link that leads outside the source folder")


def references(path: Path) -> Iterator[Reference]:
    """References written in one file, in order of appearance."""
    if path.stat().st_size == 0:
        return
    suffix = path.suffix.lower()
    reader = READERS.get(suffix)
    if reader is None:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for reference in reader(data):  # JSON can spell half a character, which no file name and no UTF-8 has
            yield Reference(reference.text.encode("utf-8", "replace").decode(), reference.strict)


def of_obj(data: mmap.mmap) -> Iterator[Reference]:
    """``mtllib`` lines; several names may stand in one line, and names may hold spaces."""
    for match in re.finditer(rb"^[ \t]*mtllib[ \t]+([^\r\n]+)", data, re.MULTILINE):
        line = decode(match[1]).strip()
        yield Reference(line, strict=True)
        if " " in line and not line.lower().endswith(".mtl"):
            yield from (Reference(name, strict=True) for name in line.split())


def of_mtl(data: mmap.mmap) -> Iterator[Reference]:
    """Texture maps: the rest of the line after options such as ``-bm 0.5`` or ``-s 1 1 1``."""
    keys = rb"^[ \t]*(?:map_\w+|bump|disp|decal|refl|norm)[ \t]+([^\r\n]+)"
    for match in re.finditer(keys, data, re.MULTILINE | re.IGNORECASE):
        text = re.sub(
            r"^(?:-\w+(?:[ \t]+(?:on|off|-?[\d.]+(?:e-?\d+)?|sphere|cube_\w+|[rgbmlz]))*[ \t]+)*", "", decode(match[1])
        )
        if text.strip():
            # An absolute path here is mostly a leftover of the artist's machine, so not strict.
            yield Reference(text.strip(), strict=text.lstrip().startswith(".."))


def of_gltf(data: mmap.mmap) -> Iterator[Reference]:
    """``uri`` of buffers and images, in .gltf and in the JSON chunk of .glb."""
    text = data[:READ_LIMIT]
    if text[:4] == b"glTF":
        if len(text) < 20:
            return
        (length,) = struct.unpack_from("<I", text, 12)
        text = text[20 : 20 + length]
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return  # the importer will say what is wrong with it
    for group in ("buffers", "images"):
        entries = document.get(group) if isinstance(document, dict) else None
        for entry in entries if isinstance(entries, list) else []:
            uri = entry.get("uri") if isinstance(entry, dict) else None
            if isinstance(uri, str) and uri and not uri.startswith("data:"):
                yield Reference(unquote(uri), strict=True)


def of_usd(data: mmap.mmap) -> Iterator[Reference]:
    """Asset paths: ``@...@`` in text layers, path-like tokens in binary (crate) layers."""
    if data[:8] == b"PXR-USDC":
        for token in crate_tokens(data):
            if token.lower().endswith(LAYER_SUFFIXES + TEXTURE_SUFFIXES):
                yield Reference(token, strict=True)
    elif data[:2] != b"PK":  # usdz carries its companions
        for match in re.finditer(rb"@@@([^@\n]+)@@@|@([^@\n]{1,1024})@", data):
            text = decode(match[1] or match[2]).split("[")[0].strip()
            if text:
                yield Reference(text, strict=True)


def crate_tokens(data: mmap.mmap) -> Iterator[str]:
    """Token table of a USD crate file: an LZ4 block behind a one-byte chunk count."""
    try:
        (toc,) = struct.unpack_from("<q", data, 16)
        (sections,) = struct.unpack_from("<Q", data, toc)
        for index in range(min(sections, 64)):
            name, start, _ = struct.unpack_from("<16sqq", data, toc + 8 + 32 * index)
            if name.rstrip(b"\0") != b"TOKENS":
                continue
            _, size, packed = struct.unpack_from("<QQQ", data, start)
            block = data[start + 24 : start + 24 + packed]
            if size > READ_LIMIT or block[:1] != b"\0":
                return
            table = pa.Codec("lz4_raw").decompress(block[1:], decompressed_size=size).to_pybytes()
            yield from (decode(token) for token in table.split(b"\0"))
    except (struct.error, pa.ArrowInvalid, OSError, ValueError, IndexError):
        return  # damaged: the importer will say what is wrong with it


def of_mtlx(data: mmap.mmap) -> Iterator[Reference]:
    """MaterialX: file names and includes."""
    pattern = rb'(?:type="filename"[^>]*?value|value|href)="([^"\r\n]{1,1024})"'
    for match in re.finditer(pattern, data):
        text = decode(match[1])
        if text.lower().endswith((*TEXTURE_SUFFIXES, ".mtlx")):
            yield Reference(text, strict=True)


def of_dae(data: mmap.mmap) -> Iterator[Reference]:
    """COLLADA ``init_from``, in any XML encoding."""
    text = data[:READ_LIMIT]
    decoded = text.decode("utf-16", "replace") if text[:2] in (b"\xff\xfe", b"\xfe\xff") else decode(text)
    for match in re.finditer(r"<init_from[^<>]{0,256}>\s*(?:<ref>)?([^<]{1,1024})", decoded):
        path = unquote(match[1].strip()).removeprefix("file://")
        if path.lower().endswith(TEXTURE_SUFFIXES):  # else the id of an image element
            yield Reference(path, strict=path.startswith(".."))


def of_fbx(data: mmap.mmap) -> Iterator[Reference]:
    """``FileName`` and ``RelativeFilename`` of textures, binary or ASCII; hints, for artists' paths are kept there."""
    for match in re.finditer(rb"(?:RelativeFilename|FileName|Filename)(?=:|S)", data):
        tail = data[match.end() : match.end() + 1100]
        if tail[:1] == b"S" and len(tail) > 5:
            (length,) = struct.unpack_from("<I", tail, 1)
            text = decode(tail[5 : 5 + length]) if length <= 1024 else ""
        else:
            quoted = re.match(rb':\s*"([^"\r\n]*)"', tail)
            text = decode(quoted[1]) if quoted else ""
        if text.lower().endswith(TEXTURE_SUFFIXES):
            yield Reference(text, strict=False)


def of_blend(data: mmap.mmap) -> Iterator[Reference]:
    """Paths relative to the .blend (``//textures/a.png``), in plain, gzip and zstd files."""
    for text in set(re.findall(rb"//([^\0\r\n]{1,1000})\0", blend_bytes(data))):
        path = decode(text)
        if path.lower().endswith((*TEXTURE_SUFFIXES, ".blend")):
            yield Reference(path, strict=False)


def blend_bytes(data: mmap.mmap) -> bytes:
    """A .blend file without its compression, up to READ_LIMIT."""
    try:
        if data[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=io.BytesIO(data[:])) as stream:
                return stream.read(READ_LIMIT)
        if data[:4] == b"\x28\xb5\x2f\xfd":
            with pa.CompressedInputStream(pa.BufferReader(data[:]), "zstd") as stream:
                return bytes(stream.read(READ_LIMIT))
    except (OSError, EOFError, zlib.error):
        return b""
    return data[:READ_LIMIT]


def decode(text: bytes) -> str:
    """UTF-8 where it is, else Latin-1: file names come in both."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")


READERS: dict[str, Callable[[mmap.mmap], Iterator[Reference]]] = {
    ".obj": of_obj,
    ".mtl": of_mtl,
    ".gltf": of_gltf,
    ".glb": of_gltf,
    ".usd": of_usd,
    ".usda": of_usd,
    ".usdc": of_usd,
    ".mtlx": of_mtlx,
    ".dae": of_dae,
    ".fbx": of_fbx,
    ".blend": of_blend,
}
