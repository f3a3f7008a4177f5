"""The folder in which one Blender may write: its home, its temporary files, its results."""

import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

PREFIX = "gap3d-blender-"
MOST_FILES = 10_000
SETTLED_SECONDS = 60.0
"""A folder this young may belong to a Blender that has not locked it yet."""


def sweep(root: Path) -> None:
    """Remove the folders whose owners were killed: those that nobody holds a lock on."""
    for folder in root.glob(PREFIX + "*"):
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # another user's, or gone meanwhile
            continue
        try:
            if time.time() - os.fstat(descriptor).st_ctime > SETTLED_SECONDS:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:  # its owner lives
            continue
        finally:
            os.close(descriptor)


class Scratch:
    """A private folder (mode 0700), locked as long as its owner lives, removed by ``remove``.

    The child may write in ``box`` alone; beside it lies a file that the child must not be able to read, ``canary``.
    The results folder is held open by a descriptor, so that whatever the child does to its name, the parent reads in
    the folder it made.
    """

    def __init__(self, root: Path | None = None) -> None:
        base = Path(root) if root is not None else Path(tempfile.gettempdir())
        base.mkdir(parents=True, exist_ok=True)
        sweep(base)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base)).resolve()
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.box = self.path / "box"
        for name in ("home", "tmp", "blender", "out"):
            (self.box / name).mkdir(parents=True)
        self.canary = self.path / "canary"
        self.canary.touch()
        self.out = self.box / "out"
        self.out_descriptor = os.open(self.out, os.O_RDONLY | os.O_DIRECTORY)

    def environment(self) -> dict[str, str]:
        """The variables that keep a process, and Blender in it, writing here."""
        return {
            "HOME": str(self.box / "home"),
            "TMPDIR": str(self.box / "tmp"),
            "XDG_CACHE_HOME": str(self.box / "home"),
            "BLENDER_USER_RESOURCES": str(self.box / "blender"),
            "BLENDER_USER_CONFIG": str(self.box / "blender"),
            "BLENDER_USER_SCRIPTS": str(self.box / "blender"),
            "BLENDER_USER_EXTENSIONS": str(self.box / "blender"),
            "BLENDER_USER_DATAFILES": str(self.box / "blender"),
        }

    def bytes(self) -> int:
        """What the box takes of the disk; more files than any Blender of ours makes count as too much of it."""
        total = count = 0
        folders = [str(self.box)]
        while folders:
            with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
                for entry in entries:
                    count += 1
                    if count > MOST_FILES:
                        return sys.maxsize
                    with contextlib.suppress(OSError):
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(entry.path)
        return total

    def remove(self) -> None:
        """Delete the folder and all in it."""
        os.close(self.out_descriptor)
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
