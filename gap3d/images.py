"""Images that exist already: WebDataset tars or a folder, each image with its captions. Nothing is decoded here."""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gap3d import catalog, tars
from gap3d.captions import EXTENSIONS, captions_in, licence_in
from gap3d.records import Failure, Outcome, Status, SystemicFault
from gap3d.settings import CatalogSettings, ImageSettings, Limits

log = logging.getLogger(__name__)

STAGE = "images"
FORMATS = {"jpg": "jpg", "jpeg": "jpg", "png": "png", "webp": "webp"}  # by extension
CHUNK = 1 << 22
TABLE = "captions.csv"
RENAME = "the file name is not valid UTF-8: rename the file"
REPAIR = "check that it can be read"
IRREGULAR = "a pipe, socket or device, and no file"


@dataclass(frozen=True)
class Place:
    """Where the bytes of an image lie.

    Attributes:
        file: path below the source's folder.
        offset: in the file.
        size: in bytes.
        sha256: of the bytes.
    """

    file: str
    offset: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """A tar or an image file: what is read at once, and not again while its stamp and its captions stay.

    Attributes:
        place: path below the source's folder.
        stamp: sizes and times of all that is read of it.
        captions: what the table of captions says of an image file; None where it says nothing.
        sha256: of the image file, where that is known and the file is as it was.
    """

    place: str
    stamp: str
    captions: tuple[str, ...] | None = None
    sha256: str = ""


def key_of(kind: str, identifier: str) -> str:
    """The key of an image: a hash of where it comes from, and view 000, for the image is all there is of it."""
    return f"{catalog.object_id_of(kind, identifier)}/000"


def walk(root: Path, settings: ImageSettings) -> Iterator[str]:
    """Paths of tars, or of images, below a folder, in a stable order; a root that is one tar is all there is."""
    if root.is_file():
        yield root.name
        return
    wanted = {"tar"} if settings.kind == "tars" else set(FORMATS)
    for folder, folders, names in os.walk(root, onerror=catalog.unreadable):
        folders.sort()
        for name in sorted(names):
            if name.rpartition(".")[2].lower() in wanted and not name.startswith("."):
                yield (Path(folder) / name).relative_to(root).as_posix()


def siblings(place: str, settings: ImageSettings) -> list[str]:
    """Paths of the files that may hold an image file's captions."""
    return [str(Path(place).with_suffix(f".{extension}")) for extension in settings.captions_from]


def stamp_of(root: Path, place: str, settings: ImageSettings) -> str:
    """Sizes and times of what is read of a tar or an image file; empty where it is gone or can't be looked at."""
    paths = [place, *(siblings(place, settings) if settings.kind == "folder" else [])]
    try:
        stamps = [tars.stamp_of(root / path) for path in paths]
    except OSError:
        return ""
    return "; ".join(stamps) if stamps[0] else ""


def read_tar(root: Path, source: Source, settings: ImageSettings, limits: Limits) -> Iterator[Outcome]:
    """One row for each sample of a tar, and one for the tar itself where it can't be read (to its end)."""
    seen: dict[str, int] = {}
    path = root / source.place
    if shown(source.place) != source.place:
        yield failed(settings.kind, source.place, Status.UNSUPPORTED, RENAME)
        return
    try:
        if not regular(path):
            raise Failure(Status.UNSUPPORTED, IRREGULAR)
        with path.open("rb") as file:
            for sample in tars.samples(path):
                stem = shown(sample.stem)  # as it is named: different bytes may be shown alike
                seen[stem] = count = seen.get(stem, 0) + 1
                # A stem has no dot after its folder: no other sample can be called like a second one.
                name = f"{source.place}#{stem}" + (f".{count}" if count > 1 else "")
                members = {kind: (file.fileno(), span) for kind, span in sample.members.items()}
                yield outcome_of(name, source, members, settings, limits)
    except Failure as failure:
        words = failure.reason + (f"; {sum(seen.values())} samples before that" if seen else "")
        yield failed(settings.kind, source.place, failure.status, words)
    except OSError as error:
        yield failed(settings.kind, source.place, Status.MISSING, f"{error.strerror}: {REPAIR}")


def outcome_of(
    name: str,
    source: Source,
    members: Mapping[str, tuple[int, tars.Span]],
    settings: ImageSettings,
    limits: Limits,
) -> Outcome:
    """The row of one sample.

    Args:
        name: its identifier.
        source: the tar or the image file.
        members: an open file and the span in it, by extension.
        settings: where captions are looked for.
        limits: bytes of an image.
    """
    try:
        kind = next((kind for kind in FORMATS if kind in members), None)
        if kind is None:
            raise Failure(Status.MISSING, f"no image (jpg, png or webp), only {', '.join(sorted(members))}")
        texts = {kind: read_small(*members[kind]) for kind in EXTENSIONS if kind in members}
        found = (captions_in(texts[kind], kind) for kind in settings.captions_from if kind in texts)
        captions = source.captions if source.captions is not None else next((each for each in found if each), [])
        file, span = members[kind]
        if span.size > limits.object_bytes:
            raise Failure(Status.TOO_LARGE, f"{span.size} bytes, at most {limits.object_bytes} are taken")
        data = {
            "source": settings.kind,
            "identifier": name,
            "place": source.place,
            "offset": span.offset,
            "bytes": span.size,
            "format": FORMATS[kind],
            "sha256": source.sha256 or digest_of(file, span),
            "captions": list(captions),
            "licence": licence_in(texts["json"]) if "json" in texts else "",
            "group": source.place,
        }
    except Failure as failure:
        return failed(settings.kind, name, failure.status, failure.reason)
    return Outcome(stage=STAGE, key=key_of(settings.kind, name), data=data)


def failed(kind: str, name: str, status: Status, reason: str) -> Outcome:
    """The row of what is no image that can be taken."""
    key = key_of(kind, name if shown(name) == name else f"\0{os.fsencode(name).hex()}")
    return Outcome(stage=STAGE, key=key, status=status, reason=f"{shown(name)}: {shown(reason)}")


def regular(path: Path) -> bool:
    """Whether nothing but a file is there, or nothing at all: opening a pipe would wait for its writer for ever."""
    return path.is_file() or not path.exists()


def shown(name: str) -> str:
    """A name as text, whatever its bytes are."""
    return name.encode("utf-8", "backslashreplace").decode()


def read_small(file: int, span: tars.Span) -> bytes:
    """A small member's bytes; none of one that is too long for a caption, or not all there."""
    if not 0 <= span.size <= catalog.CAPTION_BYTES:
        return b""
    content = os.pread(file, span.size, span.offset)
    return content if len(content) == span.size else b""


def digest_of(file: int, span: tars.Span) -> str:
    """sha256 of an image's bytes.

    Raises:
        Failure: ``unsupported``: they are not all there.
    """
    state, left = hashlib.sha256(), span.size
    while left > 0:
        chunk = os.pread(file, min(CHUNK, left), span.offset + span.size - left)
        if not chunk:
            break
        state.update(chunk)
        left -= len(chunk)
    if left:
        raise Failure(Status.UNSUPPORTED, "cut off: its tar ends, or it lies there in pieces")
    return state.hexdigest()


def read_file(root: Path, source: Source, settings: ImageSettings, limits: Limits) -> Outcome:
    """The row of an image file."""
    name = source.place
    if shown(name) != name:
        return failed(settings.kind, name, Status.UNSUPPORTED, RENAME)
    opened: dict[str, tuple[int, tars.Span]] = {}
    try:
        if not regular(root / name):
            return failed(settings.kind, name, Status.UNSUPPORTED, IRREGULAR)
        for path in [name, *siblings(name, settings)]:
            extension = path.rpartition(".")[2].lower()
            if path != name and not (root / path).is_file():
                continue
            handle = os.open(root / path, os.O_RDONLY)
            opened[extension] = handle, tars.Span(0, os.fstat(handle).st_size)
        return outcome_of(name, source, opened, settings, limits)
    except OSError as error:
        return failed(settings.kind, name, Status.MISSING, f"{error.strerror}: {REPAIR}")
    finally:
        for handle, _ in opened.values():
            os.close(handle)


def placed(data: Mapping[str, Any], key: str, settings: CatalogSettings) -> dict[str, Any]:
    """A row's columns with its split and rank.

    The split goes by the image's bytes: the same picture twice is on one side. Neither depends on what else there is.
    """
    object_id, _, view = key.partition("/")
    return {
        **data,
        "object_id": object_id,
        "view": int(view),
        "split": catalog.split_of(data["sha256"], settings),
        "rank": catalog.rank_of(object_id, settings.seed),
    }


def read_bytes(root: Path, place: Place) -> bytes:
    """An image's bytes, proven to be those that the stage saw.

    Raises:
        SystemicFault: they are not: the file changed.
    """
    content = b""
    with contextlib.suppress(FileNotFoundError), (root / place.file).open("rb") as file:
        content = os.pread(file.fileno(), place.size, place.offset)
    if hashlib.sha256(content).hexdigest() != place.sha256:
        raise SystemicFault(
            f"{root / place.file} changed since it was read: run `python -m pipelines.images` first; where that finds "
            "nothing to do, its size and time are as they were: `touch` it"
        )
    return content


def read_table(settings: ImageSettings, root: Path) -> dict[str, list[str]]:
    """Captions by path from the table of a folder of images; none where there is no table.

    Raises:
        ValueError: it is not there though the settings name it, or is no such table.
    """
    table = settings.captions or root / TABLE
    if settings.kind != "folder" or not (settings.captions or table.is_file()):
        return {}
    if not table.is_file():
        raise ValueError(f"images.captions = {table} is no file")
    return catalog.read_captions(table)


def digest_of_captions(captions: tuple[str, ...] | None) -> str:
    """What stands for a table's captions in a fingerprint."""
    return hashlib.sha256(json.dumps(captions).encode()).hexdigest()[:16]
