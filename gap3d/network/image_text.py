"""Image-text tars of the hub: which there are at a commit, and how one comes into a folder."""

import json
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests
import urllib3
from huggingface_hub import constants, hf_hub_url
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import get_token_to_send

from gap3d.blobs import sha256_of
from gap3d.fingerprints import digest_of
from gap3d.network.http import Transfer, Web, host_of, judge, words_of
from gap3d.network.hub import LOGIN
from gap3d.network.origins import harmless
from gap3d.network.politeness import Trouble, Turn
from gap3d.parts import fsync_path
from gap3d.records import Failure, Status, SystemicFault
from gap3d.tars import git_digest
from gap3d.temporary import hold

LONGEST = 200  # bytes of a file name, which may have 255
PAGE_BYTES = 64 * 1024**2  # of a listing: a thousand files take half a MiB
DIGEST = r"[0-9a-f]{40}|[0-9a-f]{64}"


@dataclass(frozen=True, kw_only=True)
class Tar:
    """A tar as the hub lists it.

    Attributes:
        repository: the dataset repository.
        revision: the commit.
        path: in the repository.
        bytes: its size.
        sha256: of its bytes; empty for a small one that lies in git itself.
        blob: git's name of what it holds: a pointer, or the bytes.
    """

    repository: str
    revision: str
    path: str
    bytes: int
    sha256: str
    blob: str

    @property
    def key(self) -> str:
        """The same at every commit."""
        return f"{self.repository}/{self.path}"

    @property
    def name(self) -> str:
        """Its name in a flat folder that other repositories share."""
        name = self.key.replace("/", "--")
        return name if len(name.encode()) <= LONGEST else f"{digest_of(self.key)}--{Path(self.path).name[-100:]}"

    def copy_in(self, folder: Path) -> Path:
        """Where it grows until it is whole."""
        return folder / f".{self.name}.{self.blob[:12]}.part"

    def is_at(self, path: Path) -> bool:
        """Whether a file is this tar, by its bytes."""
        if path.stat().st_size != self.bytes:
            return False
        return sha256_of(path) == self.sha256 if self.sha256 else git_digest(path) == self.blob


def fits(path: str, patterns: Iterable[str]) -> bool:
    """Whether a path is asked for."""
    return any(fnmatchcase(path, pattern) for pattern in patterns)


class ImageText:
    """Asks the hub.

    Args:
        web: sends the requests.
        endpoint: the hub's address; empty takes the public one.
    """

    def __init__(self, web: Web, endpoint: str) -> None:
        self.web = web
        self.endpoint = endpoint.rstrip("/") or constants.ENDPOINT
        self.host = host_of(self.endpoint)

    def listed(self, repository: str, revision: str, patterns: Iterable[str]) -> list[Tar]:
        """The tars of a repository by path.

        Raises:
            ValueError: there is no such repository, revision or tar.
            SystemicFault: the hub can't be reached.
        """
        api = f"{self.endpoint}/api/datasets/{repository}"
        try:
            (about,) = self.pages(f"{api}/revision/{quote(revision, safe='')}?expand=sha")
            commit = str(about["sha"])
            pages = self.pages(f"{api}/tree/{commit}?recursive=true")
            files = [RepoFile(**entry) for page in pages for entry in page if entry["type"] == "file"]
            found = [self.tar(repository, commit, file) for file in files if fits(file.path, patterns)]
            if len({tar.path for tar in found}) < len(found):
                raise ValueError("it lists a file twice")
        except (KeyError, TypeError, ValueError) as error:
            raise SystemicFault(f"{self.endpoint} does not answer as the hub does: {error!r}") from error
        except Failure as failure:
            text = f"{repository} at revision {revision}: {failure.reason}"
            if failure.status is Status.UNREACHABLE:
                raise SystemicFault(f"the hub can't be asked for {text}") from failure
            raise ValueError(f"image_text.repositories: {text}") from failure
        if not found:
            raise ValueError(
                f"image_text.patterns: {repository} at {commit} has {len(files)} files, and none that fits "
                f"{', '.join(patterns)}"
            )
        return sorted(found, key=lambda tar: tar.path)

    @staticmethod
    def tar(repository: str, commit: str, file: RepoFile) -> Tar:
        """What the hub's listing says of a file.

        Raises:
            ValueError: no file can be so.
        """
        size, sha256 = (file.lfs.size, file.lfs.sha256) if file.lfs else (file.size, "")
        sensible = harmless(file.path) and isinstance(size, int) and size >= 0 and re.fullmatch(DIGEST, file.blob_id)
        if not sensible or (file.lfs and not re.fullmatch(DIGEST, sha256)):
            raise ValueError(f"{file.path[:200]!r} has {size!r} bytes, oid {file.blob_id!r}, sha256 {sha256!r}"[:500])
        return Tar(repository=repository, revision=commit, path=file.path, bytes=size, sha256=sha256, blob=file.blob_id)

    def pages(self, address: str) -> list[Any]:
        """The JSON at an address, and at those that it names as next.

        Raises:
            ValueError: they have no end.
        """
        found: list[Any] = []
        seen: set[str] = set()
        ends = time.monotonic() + self.web.network.repository_s
        while address:
            if address in seen or time.monotonic() > ends:
                raise ValueError(f"a listing without an end: {len(found)} pages came (network.repository_s)")
            seen.add(address)
            answer, address = self.web.politeness.persist(
                self.host, self.web.network.object_s, partial(self.page, address)
            )
            found.append(answer)
        return found

    def page(self, address: str, turn: Turn) -> tuple[Any, str]:
        """The JSON at an address, and the next address."""
        try:
            with self.web.answer(address, self.headers() if host_of(address) == self.host else {}, turn) as response:
                judge(response, LOGIN)
                content = json.loads(self.web.read_body(response, PAGE_BYTES, turn))
                return content, response.links.get("next", {}).get("url", "")
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Trouble(f"no JSON: {error}"[:300]) from error
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise Trouble(words_of(error)) from error

    def headers(self) -> dict[str, str]:
        """Who is asking, where the environment or a login says so."""
        token = get_token_to_send(None)
        return {"Accept-Encoding": "identity", **({"Authorization": f"Bearer {token}"} if token else {})}

    def fetch(self, tar: Tar, folder: Path) -> None:
        """Bring a tar into a folder, where it appears whole; what a killed run has of it is gone on with.

        Raises:
            Failure: ``missing``, ``unreachable`` or ``hash_mismatch``.
            SystemicFault: another run brings the same tar.
        """
        folder.mkdir(parents=True, exist_ok=True)
        copy = tar.copy_in(folder)
        copy.touch()
        lock = hold(copy)
        if lock is None:
            raise SystemicFault(f"{copy} is being written by another run: wait for it to end, or stop it")
        try:
            resumed = copy.stat().st_size > 0
            self.complete(tar, copy)
            whole = tar.is_at(copy)
            if resumed and not whole:  # what was there may have been damaged by a power cut
                os.truncate(copy, 0)
                self.complete(tar, copy)
                whole = tar.is_at(copy)
            if not whole:
                copy.unlink()
                raise Failure(
                    Status.HASH_MISMATCH,
                    "the bytes that came are not those that the hub lists: asked for again by every run",
                )
            fsync_path(copy)
            copy.chmod(0o444)
            copy.replace(folder / tar.name)
            fsync_path(folder)
        finally:
            os.close(lock)

    def complete(self, tar: Tar, copy: Path) -> None:
        """Bring the bytes that a copy lacks."""
        address = hf_hub_url(
            tar.repository, tar.path, repo_type="dataset", revision=tar.revision, endpoint=self.endpoint
        )
        self.web.asked[self.host] = address
        self.web.politeness.persist(self.host, self.web.network.repository_s, partial(self.go_on, tar, copy, address))

    def go_on(self, tar: Tar, copy: Path, address: str, turn: Turn) -> None:
        """One try; begins where the last one ended, in this run or in an earlier one: a commit never changes."""
        have = copy.stat().st_size
        if have == tar.bytes:
            return
        if have > tar.bytes:
            os.truncate(copy, have := 0)
        headers = self.headers() | ({"Range": f"bytes={have}-"} if have else {})
        transfer = Transfer(copy, tar.bytes)
        try:
            with self.web.answer(address, headers, turn) as response:
                if response.status_code == 416:
                    os.truncate(copy, 0)
                judge(response, LOGIN)
                self.web.receive(response, transfer, have, turn)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise Trouble(f"{words_of(error)}; {copy.stat().st_size} of {tar.bytes} bytes are here") from error
        except Failure as failure:
            if failure.status is not Status.TOO_LARGE:
                raise
            os.truncate(copy, 0)
            raise Failure(Status.HASH_MISMATCH, f"the hub lists {tar.bytes} bytes, and more came") from failure
        if not transfer.proven and copy.stat().st_size < tar.bytes:
            raise Trouble(f"the connection was cut after {copy.stat().st_size} of {tar.bytes} bytes")
