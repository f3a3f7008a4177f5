"""Temporary files and folders that are locked while their owner lives, and removed by the next one once it does not.

A killed process removes nothing; the kernel lets go of its locks. What nobody holds is a leftover.
"""

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUFFIX = ".tmp"


def hold(path: Path) -> int | None:
    """Lock a file or folder; it is held until the descriptor is closed. None: somebody holds it, or it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:  # gone, or another user's
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.lstat().st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def leftovers(folder: Path, pattern: str) -> Iterator[Path]:
    """Files and folders of this pattern that nobody holds; each is held while the caller looks at it."""
    for path in folder.glob(pattern):
        descriptor = hold(path)
        if descriptor is not None:
            try:
                yield path
            finally:
                os.close(descriptor)


def sweep(folder: Path, pattern: str) -> None:
    """Remove what killed processes left."""
    for path in leftovers(folder, pattern):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def temporary_file(folder: Path, stem: str) -> Iterator[Path]:
    """An empty file of this process; gone afterwards unless it was renamed."""
    while True:
        path = folder / f"{stem}.{uuid.uuid4().hex}{SUFFIX}"
        path.touch(exist_ok=False)
        descriptor = hold(path)  # None: a sweep came between
        if descriptor is not None:
            break
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


class TemporaryFolder:
    """A private folder of this process.

    Args:
        folder: where it is made; leftovers of its kind are removed there first.
        kind: how its name begins.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        sweep(folder, f"{kind}-*")
        while True:
            self.path = folder / f"{kind}-{uuid.uuid4().hex[:12]}"
            self.path.mkdir(mode=0o700)
            descriptor = hold(self.path)
            if descriptor is not None:
                break
        self._lock = descriptor

    def remove(self) -> None:
        """Delete it and all in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.close(self._lock)
