"""The worker of downloads from the network: a repository once for all its objects, and single files by HTTP."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gap3d.bundles import bundle
from gap3d.network import hub, lfs, origins
from gap3d.network.http import Denied, Web, host_of
from gap3d.network.hub import Hub
from gap3d.network.politeness import Desk, Politeness, Quiet, Turn
from gap3d.network.repository import Repository
from gap3d.records import Failure, Outcome, Status, SystemicFault
from gap3d.references import Closure, closure
from gap3d.remote import blobs_at
from gap3d.settings import Settings
from gap3d.temporary import TemporaryFolder

STAGE = "downloads"
SCRATCH, KEPT = ".fetching", ".sources"  # folders of the store; no collection can have such a name
KIND = "fetch"
OTHERWISE = "its host has other bytes than the table says: nothing to be done, but to correct the table's sha256"
NO_LOGIN = "it is not public"

CONDITIONS: Mapping[str, Callable[[], str]] = {"git_lfs": lfs.state, "hub_token": hub.token_state}
"""What a row that failed for want of it is tried again with."""


class Fetcher:
    """Fetches what rows of a catalog name.

    Args:
        settings: limits, and how the internet is asked.
        store: root of the store.
        blobs: where files by content lie.
        endpoint: the hub's address; empty takes the public one.
        desk: hands out the turns at hosts.
    """

    def __init__(self, settings: Settings, store: Path, blobs: str, endpoint: str, desk: Desk) -> None:
        self.settings, self.limits, self.network = settings, settings.limits, settings.network
        self.scratch = store / SCRATCH
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.blobs = blobs_at(blobs)
        self.politeness = Politeness(desk, settings.network)
        self.web = Web(self.politeness)
        self.hub = Hub(self.web, store / KEPT, settings.source.sketchfab_revision, endpoint)

    def process(self, payload: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        """Rows of one fetch group: each is the catalog's row with its key and the parts of its fingerprint."""
        if payload[0]["source"].lower() != "github":
            return [self.outcome(row, partial(self.single, row)) for row in payload]
        found: list[Outcome] = []
        parts: dict[tuple[str, str], list[tuple[Mapping[str, Any], str]]] = {}
        for row in payload:
            try:
                place = origins.github(row["identifier"])
                parts.setdefault((place.repository, place.commit), []).append((row, place.path))
            except Failure as failure:
                found.append(failed(row, failure, 0.0))
        for (address, commit), rows in parts.items():
            found += self.repository(address, commit, rows)
        return found

    def repository(self, address: str, commit: str, rows: list[tuple[Mapping[str, Any], str]]) -> list[Outcome]:
        """Objects of one commit."""
        begun = time.monotonic()
        folder = TemporaryFolder(self.scratch, KIND)
        try:
            repository = Repository(address, commit, folder.path, self.network, self.limits)
            asked = repository.asked(Turn(lambda: None, math.inf, math.inf))
            host = host_of(asked) or "files"
            self.web.asked[host] = asked
            mains = sorted({path for _, path in rows})
            objects = self.politeness.persist(
                host, self.network.repository_s, lambda turn: repository.objects(mains, turn)
            )
            each = (time.monotonic() - begun) / len(rows)
            return [self.outcome(row, partial(self.taken, repository, objects[path], row), each) for row, path in rows]
        except Failure as failure:
            each = (time.monotonic() - begun) / len(rows)
            return [failed(row, failure, each) for row, _ in rows]
        finally:
            folder.remove()

    def taken(self, repository: Repository, found: Closure | Failure, row: Mapping[str, Any]) -> dict[str, Any]:
        """A checked-out object as a row."""
        if isinstance(found, Failure):
            raise found
        return bundle(repository.tree, found, row, self.blobs, self.limits, OTHERWISE)

    def single(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A file of its own as a row."""
        folder = TemporaryFolder(self.scratch, KIND)
        try:
            main = f"model.{row['file_type']}"
            copy = folder.path / main
            copy.touch()
            proven = self.fetch(row, copy)
            try:
                return bundle(folder.path, closure(folder.path, main), row, self.blobs, self.limits, OTHERWISE)
            except Failure as failure:
                if failure.status is Status.HASH_MISMATCH and not proven:
                    raise Failure(
                        Status.UNREACHABLE, "other bytes, of which the host did not say how many they are: cut?"
                    ) from failure
                raise
        finally:
            folder.remove()

    def fetch(self, row: Mapping[str, Any], copy: Path) -> bool:
        """Write the bytes that an identifier names; see Web.fetch."""
        source, identifier, most = row["source"].lower(), row["identifier"], self.limits.object_bytes
        if source == "sketchfab":
            return self.hub.fetch(self.hub.path_of(origins.sketchfab(identifier)), copy, most)
        address = (origins.thingiverse if source == "thingiverse" else origins.smithsonian)(identifier)
        return self.web.fetch(self.web.mirrored(address), copy, most, {}, NO_LOGIN)

    def outcome(self, row: Mapping[str, Any], call: Callable[[], dict[str, Any]], seconds: float = 0.0) -> Outcome:
        """What became of a row."""
        begun = time.monotonic() - seconds
        try:
            data = call()
        except Failure as failure:
            return failed(row, failure, time.monotonic() - begun)
        return Outcome(
            stage=STAGE, key=row["key"], data=data, seconds=time.monotonic() - begun, inputs=dict(row["inputs"])
        )

    def probe(self) -> None:
        """Some host answers; one that wants quiet did.

        Raises:
            SystemicFault: none does: the network is down.
        """
        asked = {host: address for host, address in self.web.asked.items() if address.startswith("http")}
        if not asked or len(asked) < len(self.web.asked):
            return  # nothing was asked, or a repository in a folder of this machine
        for host, address in asked.items():
            try:
                with self.politeness.turn(host, self.network.object_s):
                    if self.web.answers(address):
                        return
            except Quiet:
                return
        raise SystemicFault(f"no answer from {', '.join(sorted(asked))}: check the network, then run again")

    def close(self) -> None:
        """Let go of the connections."""
        self.web.close()


def failed(row: Mapping[str, Any], failure: Failure, seconds: float) -> Outcome:
    """The row of a known fault, with the conditions under which it is worth another try."""
    missed = {
        "git_lfs": failure.status is Status.LFS_POINTER,
        "hub_token": isinstance(failure, Denied) and row["source"].lower() == "sketchfab",
    }
    return Outcome(
        stage=STAGE,
        key=row["key"],
        status=failure.status,
        reason=failure.reason,
        seconds=seconds,
        attempts=0 if isinstance(failure, Quiet) else 1,
        inputs={**row["inputs"], **{name: CONDITIONS[name]() for name, yes in missed.items() if yes}},
    )
