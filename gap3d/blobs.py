"""Files by content: each user file is copied in once, under its sha256, and never linked."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from gap3d.parts import TEMPORARY, fsync_path

CHUNK = 1 << 20


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Blobs:
    """Content-addressed files below ``<store>/blobs``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, sha256: str) -> Path:
        """Where the bytes with this digest lie."""
        return self.root / sha256[:2] / sha256

    def add(self, source: Path) -> tuple[str, int]:
        """Copy a file in; returns (sha256, bytes). The digest is that of the bytes copied."""
        self.root.mkdir(parents=True, exist_ok=True)
        temporary = self.root / f".{os.getpid()}-{uuid.uuid4().hex}{TEMPORARY}"
        state, size = hashlib.sha256(), 0
        try:
            with source.open("rb") as reader, temporary.open("wb") as writer:
                while chunk := reader.read(CHUNK):
                    state.update(chunk)
                    size += len(chunk)
                    writer.write(chunk)
                writer.flush()
                final = self.path(state.hexdigest())
                if not final.exists():
                    os.fsync(writer.fileno())
            if not final.exists():
                temporary.chmod(0o444)
                final.parent.mkdir(exist_ok=True)
                temporary.replace(final)
                fsync_path(final.parent)
        finally:
            temporary.unlink(missing_ok=True)
        return state.hexdigest(), size

    def unpack(self, files: Mapping[str, str], tree: Path) -> None:
        """Lay files out as a read-only tree of their own.

        Args:
            files: sha256 by path relative to the tree.
            tree: a folder that does not exist yet.

        Raises:
            FileNotFoundError: a blob is gone from the store.
        """
        for path, sha256 in files.items():
            target = tree / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.path(sha256), target)
            target.chmod(0o444)

    def all(self) -> Iterator[Path]:
        """Every blob."""
        return (path for folder in self.root.glob("??") for path in folder.iterdir())

    def leftovers(self) -> list[Path]:
        """Copies whose process is gone."""
        found = []
        for path in self.root.glob(f".*{TEMPORARY}"):
            pid = path.name[1:].partition("-")[0]
            if not Path(f"/proc/{pid}").exists():
                found.append(path)
        return found
