"""Files by content: each user file is copied in once, under its sha256, and never linked."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gap3d import temporary
from gap3d.parts import TEMPORARY, fsync_path

CHUNK = 1 << 20


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def renew(path: Path) -> bool:
    """Say that a file is wanted now, so that gc leaves it for its grace; False where there is none."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


class OtherBytes(Exception):
    """A file is not what it was said to be; it is not taken in."""


@dataclass(frozen=True)
class Entry:
    """A file that is held.

    Attributes:
        name: its sha256.
        place: where it lies, for a person.
        bytes: its size.
        modified: when it was last wanted, in seconds of the epoch.
    """

    name: str
    place: str
    bytes: int
    modified: float


class Blobs:
    """Content-addressed files below a folder, ``<store>/blobs`` unless the settings say otherwise."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.place = str(root)

    def path(self, sha256: str) -> Path:
        """Where the bytes with this digest lie."""
        return self.root / sha256[:2] / sha256

    def holds(self, sha256: str) -> bool:
        """Whether the file is there."""
        return self.path(sha256).exists()

    def add(self, source: Path, expected: str = "") -> tuple[str, int]:
        """Copy a file in; returns (sha256, bytes). The digest is that of the bytes copied.

        Raises:
            OtherBytes: it is not the digest that was expected.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        state, size = hashlib.sha256(), 0
        with temporary.temporary_file(self.root, ".copy") as copy:
            with source.open("rb") as reader, copy.open("wb") as writer:
                while chunk := reader.read(CHUNK):
                    state.update(chunk)
                    size += len(chunk)
                    writer.write(chunk)
                if expected and state.hexdigest() != expected:
                    raise OtherBytes(state.hexdigest())
                writer.flush()
                final = self.path(state.hexdigest())
                known = final.exists() and final.stat().st_size == size and renew(final)
                if not known:
                    os.fsync(writer.fileno())
            if not known:
                copy.chmod(0o444)
                final.parent.mkdir(exist_ok=True)
                copy.replace(final)
                fsync_path(final.parent)
        return state.hexdigest(), size

    def unpack(self, files: Mapping[str, str], tree: Path) -> None:
        """Lay files out as a read-only tree of their own.

        Args:
            files: sha256 by path relative to the tree.
            tree: a folder that does not exist yet.

        Raises:
            FileNotFoundError: a blob is gone from the store, or was damaged there.
            ValueError: a path leads out of the tree.
        """
        for path, sha256 in files.items():
            if ".." in PurePosixPath(path).parts or PurePosixPath(path).is_absolute():
                raise ValueError(f"{path[:200]!r} leads out of the tree of an object: run downloads again")
            target = tree / path
            target.parent.mkdir(parents=True, exist_ok=True)
            self.fetch(sha256, target)
            if sha256_of(target) != sha256:
                self.remove(sha256)  # damaged where it lies: the next run of downloads brings it again
                raise FileNotFoundError(errno.ENOENT, "damaged, and removed", f"{self.place}/{sha256[:2]}/{sha256}")
            target.chmod(0o444)

    def fetch(self, sha256: str, target: Path) -> None:
        """Copy a file out, as it is.

        Raises:
            FileNotFoundError: it is gone.
        """
        shutil.copyfile(self.path(sha256), target)

    def remove(self, sha256: str) -> None:
        """Remove a file; nothing happens where there is none."""
        self.path(sha256).unlink(missing_ok=True)

    def entries(self) -> Iterator[Entry]:
        """Every file."""
        for path in self.all():
            stat = path.stat()
            yield Entry(path.name, str(path), stat.st_size, stat.st_mtime)

    def all(self) -> Iterator[Path]:
        """Every blob."""
        return (path for folder in self.root.glob("??") for path in folder.iterdir())

    def leftovers(self) -> list[Path]:
        """Copies whose process is gone."""
        return list(temporary.leftovers(self.root, f".*{TEMPORARY}"))

    def sweep(self) -> None:
        """Remove the copies whose process is gone."""
        temporary.sweep(self.root, f".*{TEMPORARY}")
