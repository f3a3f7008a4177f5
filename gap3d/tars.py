"""WebDataset tars: samples are members that lie side by side and differ in their extension only."""

import hashlib
import logging
import re
import sys
import tarfile
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from gap3d import temporary
from gap3d.blobs import sha256_of
from gap3d.members import DAMAGED, Stream, end_mark, headers
from gap3d.parts import TEMPORARY, fsync_path
from gap3d.records import Failure, Status, SystemicFault
from gap3d.store import free_bytes

log = logging.getLogger(__name__)

NEEDED = frozenset({"jpg", "txt"})  # what the loader of the released training code takes of a sample
META = re.compile(r"__[^/]*__($|/)")  # what webdataset skips
RESERVE = 1 << 30  # bytes of a disk that are left alone


@dataclass(frozen=True)
class Span:
    """Where a member's bytes lie in its tar."""

    offset: int
    size: int


@dataclass(frozen=True)
class Sample:
    """Members that lie side by side and differ in their extension only.

    Attributes:
        stem: their common name, with its folder.
        members: where the bytes of each lie, by extension in lower case.
    """

    stem: str
    members: dict[str, Span] = field(default_factory=dict)


def stamp_of(path: Path) -> str:
    """Size and time of a file: an equal stamp means that it is not read again; empty where there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return ""
    return f"{stat.st_size} {stat.st_mtime_ns}"


def git_digest(path: Path) -> str:
    """The name that git gives to a file's bytes."""
    state = hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            state.update(chunk)
    return state.hexdigest()


def counted(path: Path) -> tuple[int, int]:
    """Samples with an image and a text, and samples that lack one of them; no image is decoded.

    Raises:
        Failure: ``unsupported``: it is no tar, or cut off.
    """
    from webdataset.tariterators import base_plus_ext  # takes torch with it

    whole = lacking = 0
    try:
        with tarfile.open(path, "r:") as file:
            pairs = (base_plus_ext(name) for name in names(file))
            for key, group in groupby(pairs, key=lambda pair: pair[0]):
                if key is None:  # a file without an extension
                    continue
                if {extension for _, extension in group} >= NEEDED:
                    whole += 1
                else:
                    lacking += 1
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:  # the last two by lengths beyond all files
        raise Failure(Status.UNSUPPORTED, f"no tar that can be read: {error}") from error
    return whole, lacking


def samples(path: Path) -> Iterator[Sample]:
    """The samples of a tar in their order, as webdataset groups them; headers are read, and no member.

    A name without an extension is no part of a sample. One that comes a second time begins another sample.

    Raises:
        Failure: ``unsupported``: it is no plain tar, or cut off; what came before it is good.
    """
    from webdataset.tariterators import base_plus_ext  # takes torch with it

    open_one: Sample | None = None
    try:
        with path.open("rb") as plain:
            stream = Stream(plain, path, sys.maxsize)
            with tarfile.TarFile(fileobj=stream) as file:  # type: ignore[arg-type]
                for info in headers(file):
                    stem, extension = base_plus_ext(info.name)
                    if not info.isreg() or stem is None or META.match(info.name):
                        continue
                    extension = extension.lower()
                    if open_one is None or stem != open_one.stem or extension in open_one.members:
                        if open_one is not None:
                            yield open_one
                        open_one = Sample(stem)
                    # What is sparse lies in pieces: without a span, it is there and can't be read.
                    open_one.members[extension] = Span(info.offset_data, -1 if info.issparse() else info.size)
            if open_one is not None:
                last, open_one = open_one, None
                yield last
            end_mark(stream)
    except (*DAMAGED, UnicodeDecodeError, ValueError) as error:
        if open_one is not None:
            yield open_one
        raise Failure(Status.UNSUPPORTED, f"no plain tar that can be read: {error}") from error


def names(file: Any) -> Iterable[str]:
    """Names of a tar's files."""
    return (info.name for info in headers(file) if info.isreg())


def write(path: Path, samples: Iterable[Mapping[str, Any]]) -> str:
    """A tar that appears whole or not at all; equal samples give equal bytes.

    Args:
        path: the tar.
        samples: ``__key__`` and bytes by extension.

    Returns:
        Its sha256.
    """
    from webdataset.writer import TarWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.sweep(path.parent, f".{path.name}.*{TEMPORARY}")
    with temporary.temporary_file(path.parent, f".{path.name}") as draft:
        with draft.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as writer:
            for sample in samples:
                writer.write(sample)
        fsync_path(draft)
        sha256 = sha256_of(draft)
        draft.chmod(0o444)
        draft.replace(path)
    fsync_path(path.parent)
    return sha256


def require_room(folder: Path, needed: int, smaller: str) -> None:
    """Prove that a disk can take so many bytes.

    Args:
        folder: where they are written.
        needed: bytes to come.
        smaller: how to ask for less.

    Raises:
        SystemicFault: it can't; the message says how much is missing.
    """
    free = free_bytes(folder) - RESERVE
    if needed > free:
        raise SystemicFault(
            f"{needed / 1e9:.1f} GB are to be written to {folder}, where {max(free, 0) / 1e9:.1f} GB are free: "
            f"make room for {(needed - free) / 1e9:.1f} GB more, or {smaller}"
        )


def log_strangers(folder: Path, known: Container[str]) -> None:
    """Say which tars of a folder belong to no row: whoever reads the folder takes them too."""
    strangers = sorted(path.name for path in folder.glob("*.tar") if path.name not in known)
    if strangers:
        log.warning(
            "%s has %d tars that are not among the rows, such as %s: move them away unless they are wanted",
            *(folder, len(strangers), strangers[0]),
        )


def damage(folder: Path, expected: Mapping[str, str]) -> list[str]:
    """What is wrong with tars, read whole.

    Args:
        folder: where they lie.
        expected: sha256 by file name.
    """
    faults = []
    for name, sha256 in sorted(expected.items()):
        path = folder / name
        if not path.is_file():
            faults.append(f"{path} is gone")
        elif sha256_of(path) != sha256:
            faults.append(f"{path} is not what was written: remove it")
    return faults
