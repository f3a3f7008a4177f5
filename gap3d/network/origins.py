"""Where Objaverse-XL's file identifiers point to."""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from gap3d.records import Failure, Status

GITHUB = re.compile(r"(https://github\.com/[^/\s]+/[^/\s]+)/blob/([0-9a-f]{40}|[0-9a-f]{64})/(.+)", re.DOTALL)
SKETCHFAB = re.compile(r"https?://(?:www\.)?sketchfab\.com/3d-models/(?:[^/?#]*-)?([0-9a-f]{32})/?")
THINGIVERSE = re.compile(r"https?://www\.thingiverse\.com/.*[?&]fileId=(\d+)")
NAME_BYTES, PATH_BYTES = 255, 2048  # of one name, as Linux has it; of a path, with room for the folder it lies in
ADDRESS = re.compile(r"https?://[^/\s]+/\S+")


@dataclass(frozen=True)
class GitFile:
    """A file of a repository at a commit.

    Attributes:
        repository: its address.
        commit: the full commit id.
        path: as git has it; nothing in an identifier is percent-encoded.
    """

    repository: str
    commit: str
    path: str


def github(identifier: str) -> GitFile:
    """``https://github.com/ORG/REPO/blob/COMMIT/path`` in its parts.

    Raises:
        Failure: ``missing``: it is of another form, or names what no checkout has.
    """
    repository, commit, path = parts(GITHUB, identifier)
    if not harmless(path):
        raise Failure(Status.MISSING, f"no checkout has a file of this name: {path[:200]!r}: correct the table")
    return GitFile(f"{repository}.git", commit, path)


def harmless(path: str) -> bool:
    """Whether git checks a path out, below the folder that it is to lie in, and a file system takes its names."""
    names = path.split("/")
    if "\0" in path or len(path.encode()) > PATH_BYTES or any(len(name.encode()) > NAME_BYTES for name in names):
        return False
    return not any(name in ("", ".", "..") or name.lower() == ".git" for name in names)


def sketchfab(identifier: str) -> str:
    """The uid in ``https://sketchfab.com/3d-models/UID``."""
    return parts(SKETCHFAB, identifier)[0]


def thingiverse(identifier: str) -> str:
    """Where the file of ``https://www.thingiverse.com/thing:ID/files?fileId=FILE`` is downloaded."""
    return f"https://www.thingiverse.com/download:{parts(THINGIVERSE, identifier)[0]}"


def smithsonian(identifier: str) -> str:
    """The identifier is the file's address."""
    parts(ADDRESS, identifier)
    try:
        urlsplit(identifier)
    except ValueError as error:
        raise Failure(Status.MISSING, f"no address: {error}: {identifier[:200]!r}: correct the table") from error
    return identifier


def parts(pattern: re.Pattern[str], identifier: str) -> tuple[str, ...]:
    """The groups of an identifier.

    Raises:
        Failure: ``missing``: it is not of the form that its source has.
    """
    match = pattern.fullmatch(identifier)
    if match is None:
        raise Failure(Status.MISSING, f"not an identifier of this source: {identifier[:200]!r}: correct the table")
    return match.groups()
