"""Where Objaverse-XL's file identifiers point to."""

import re
from dataclasses import dataclass

from gap3d.records import Failure, Status

GITHUB = re.compile(r"(https://github\.com/[^/\s]+/[^/\s]+)/blob/([0-9a-f]{40}|[0-9a-f]{64})/(.+)", re.DOTALL)
SKETCHFAB = re.compile(r"https?://(?:www\.)?sketchfab\.com/3d-models/(?:[^/?#]*-)?([0-9a-f]{32})/?")
THINGIVERSE = re.compile(r"https?://www\.thingiverse\.com/.*[?&]fileId=(\d+)")
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
    """``https://github.com/ORG/REPO/blob/COMMIT/path`` in its parts."""
    repository, commit, path = parts(GITHUB, identifier)
    return GitFile(f"{repository}.git", commit, path)


def sketchfab(identifier: str) -> str:
    """The uid in ``https://sketchfab.com/3d-models/UID``."""
    return parts(SKETCHFAB, identifier)[0]


def thingiverse(identifier: str) -> str:
    """Where the file of ``https://www.thingiverse.com/thing:ID/files?fileId=FILE`` is downloaded."""
    return f"https://www.thingiverse.com/download:{parts(THINGIVERSE, identifier)[0]}"


def smithsonian(identifier: str) -> str:
    """The identifier is the file's address."""
    parts(ADDRESS, identifier)
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
