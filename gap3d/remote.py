"""Files by content at an fsspec URL: object storage, or a folder that another machine serves.

Object stores show a file when all of it is there. Elsewhere it is written under another name, then moved.
"""

import errno
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec

from gap3d.blobs import Blobs, Entry, OtherBytes, sha256_of
from gap3d.parts import TEMPORARY

OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "az"}
DATES = ("LastModified", "last_modified", "mtime", "modified", "updated")  # as the file systems of fsspec call it
RENEW_S = 12 * 3600.0  # a file that is wanted again is written again at this age, so that gc sees that it is wanted
LEFT_S = 24 * 3600.0  # a temporary file of this age is nobody's


class RemoteBlobs(Blobs):
    """Content-addressed files at a URL.

    Args:
        url: of any file system that fsspec knows (``s3://bucket/blobs``); secrets come from the environment, as that
            file system reads them. It belongs to one store: gc removes what that store does not list.
    """

    def __init__(self, url: str) -> None:
        self.place = url
        self.fs, self.top = fsspec.core.url_to_fs(url)
        protocols = (self.fs.protocol,) if isinstance(self.fs.protocol, str) else self.fs.protocol
        self.whole = bool(OBJECT_STORES & set(protocols))

    def remote(self, sha256: str) -> str:
        """Where the bytes with this digest lie."""
        return f"{self.top}/{sha256[:2]}/{sha256}"

    @cached_property
    def listed(self) -> Mapping[str, Entry]:
        """All files, by name, as they were when this was first asked: one listing, not a question for each file."""
        return {entry.name: entry for entry in self.entries()}

    def holds(self, sha256: str) -> bool:
        """Whether the file was there when the first one was asked for."""
        return sha256 in self.listed

    def add(self, source: Path, expected: str = "") -> tuple[str, int]:
        """Copy a file in; see ``Blobs.add``."""
        sha256, size = sha256_of(source), source.stat().st_size
        if expected and sha256 != expected:
            raise OtherBytes(sha256)
        final = self.remote(sha256)
        known = self.info(final)
        if known and known["size"] == size and time.time() - modified(known) < RENEW_S:
            return sha256, size
        with raise_as_os_error():
            if self.whole:
                self.fs.put_file(str(source), final)
            else:
                self.fs.makedirs(final.rpartition("/")[0], exist_ok=True)
                copy = f"{self.top}/.copy.{uuid.uuid4().hex}{TEMPORARY}"
                self.fs.put_file(str(source), copy)
                self.fs.mv(copy, final)
        written = self.info(final)
        if not written or written["size"] != size:
            raise OSError(errno.EIO, "the file did not arrive whole", f"{self.place}/{sha256[:2]}/{sha256}")
        return sha256, size

    def info(self, path: str) -> dict[str, Any] | None:
        """Size and date of a file; None where there is none."""
        with raise_as_os_error():
            self.fs.invalidate_cache()
            try:
                return self.fs.info(path)
            except FileNotFoundError:
                return None

    def fetch(self, sha256: str, target: Path) -> None:
        """Copy a file out; see ``Blobs.fetch``."""
        with raise_as_os_error():
            self.fs.get_file(self.remote(sha256), str(target))

    def remove(self, sha256: str) -> None:
        """Remove a file; nothing happens where there is none."""
        if self.info(self.remote(sha256)):
            with raise_as_os_error():
                self.fs.rm_file(self.remote(sha256))

    def entries(self) -> Iterator[Entry]:
        """Every file."""
        for info in self.listing():
            name = info["name"].rpartition("/")[2]
            if not name.endswith(TEMPORARY):
                yield Entry(name, f"{self.place}/{name[:2]}/{name}", info["size"], modified(info))

    def listing(self) -> list[dict[str, Any]]:
        """Sizes and dates of all files."""
        with raise_as_os_error():
            self.fs.invalidate_cache()
            return list(self.fs.find(self.top, detail=True).values()) if self.fs.exists(self.top) else []

    def leftovers(self) -> list[Path]:
        """None that can be told from a copy in progress; ``sweep`` takes the old ones."""
        return []

    def sweep(self) -> None:
        """Remove the copies that nobody finished."""
        if not self.whole:
            for info in self.listing():
                if info["name"].endswith(TEMPORARY) and time.time() - modified(info) > LEFT_S:
                    self.fs.rm_file(info["name"])


@contextmanager
def raise_as_os_error() -> Iterator[None]:
    """What a file system's own library raises, as a fault of the machine: it is no object's."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise OSError(errno.EIO, f"the place of the raw files does not answer: {words[:300]}") from error


def blobs_at(place: str) -> Blobs:
    """Files by content in a folder or at a URL.

    Raises:
        ValueError: no file system for such a URL is installed.
    """
    if "://" not in place:
        return Blobs(Path(place).expanduser().absolute())
    try:
        return RemoteBlobs(place.rstrip("/"))
    except ImportError as error:
        scheme = place.partition("://")[0]
        raise ValueError(f"blobs = {scheme}://... needs another package: {error}") from error


def modified(info: Mapping[str, Any]) -> float:
    """When a file was written, in seconds of the epoch; now where the file system does not say."""
    found = next((info[name] for name in DATES if info.get(name) is not None), time.time())
    return found.timestamp() if isinstance(found, datetime) else float(found)
