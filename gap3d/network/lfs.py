"""git-lfs pointers: small files that stand for large ones, which lie elsewhere."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from gap3d.blobs import sha256_of
from gap3d.network.git import Git, Refused
from gap3d.network.politeness import Trouble, Turn
from gap3d.records import Failure, Status

BEGINNING = b"version https://git-lfs.github.com/spec/"
POINTER_BYTES = 1024  # of the largest pointer, by its specification
PASSING = re.compile(
    r"timeout|timed out|refused|reset|no such host|EOF|lookup|unreachable|\b(?:429|5\d\d)\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Pointer:
    """What a pointer says."""

    sha256: str
    bytes: int


def pointer_in(path: Path) -> Pointer | None:
    """The pointer that a file is; None where it is none."""
    with path.open("rb") as file:
        text = file.read(POINTER_BYTES + 1)
    if not text.startswith(BEGINNING):
        return None
    sha256 = re.search(rb"^oid sha256:([0-9a-f]{64})\r?$", text, re.MULTILINE)
    size = re.search(rb"^size (\d+)\r?$", text, re.MULTILINE)
    return Pointer(sha256[1].decode(), int(size[1])) if sha256 and size else Pointer("", 0)


def state() -> str:
    """Whether git-lfs can be asked."""
    return "installed" if shutil.which("git-lfs") else "absent"


def resolve(git: Git, path: Path, pointer: Pointer, most: int, turn: Turn) -> None:
    """Put the file in its pointer's place.

    Raises:
        Failure: ``lfs_pointer``: it is not to be had; ``unreachable``; ``too_large``: it has more than ``most`` bytes.
    """
    if pointer.bytes > most:
        raise Failure(
            Status.TOO_LARGE, f"{pointer.bytes} bytes in git-lfs, at most {most} are taken (limits.object_bytes)"
        )
    if state() == "absent":
        raise Failure(Status.LFS_POINTER, "a git-lfs pointer, not the model: install git-lfs, then run again")
    copy = git.folder / "large"
    try:
        git.run(
            *("lfs", "smudge", "--", path.relative_to(git.tree).as_posix()),
            turn=turn,
            given=path.read_bytes(),
            output=copy,
            GIT_LFS_SKIP_SMUDGE="0",
        )
    except (Trouble, Refused, Failure) as error:
        turn.keep()
        if isinstance(error, Failure) and error.status is Status.TOO_LARGE:
            raise
        status = Status.UNREACHABLE if PASSING.search(str(error)) else Status.LFS_POINTER
        raise Failure(status, f"a git-lfs pointer, not the model: {error}") from error
    if sha256_of(copy) != pointer.sha256:
        raise Failure(Status.LFS_POINTER, "a git-lfs pointer, not the model: git-lfs brought other bytes")
    copy.replace(path)
