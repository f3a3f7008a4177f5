"""image_text: the hub's tars of image-text pairs, checked, in one flat folder. Key: repository/path of the tar."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as a file, here or copied by `ray submit`: its folder is not where packages are looked for
    sys.path.pop(0)

from gap3d import fingerprints
from gap3d.blobs import sha256_of
from gap3d.manifest import Manifest
from gap3d.network.http import Web
from gap3d.network.image_text import ImageText, Tar
from gap3d.network.politeness import Desk, Politeness, Quiet, Turns
from gap3d.records import Failure, Outcome, Status, SystemicFault
from gap3d.schemas import IMAGE_TEXT
from gap3d.settings import Limits, Settings
from gap3d.store import ALL, Store
from gap3d.tars import counted, damage, log_strangers, require_room, stamp_of
from gap3d.temporary import leftovers
from pipelines.cluster import Resources, Shared, Worker
from pipelines.command import open_store, stage_main
from pipelines.job import Item, Job, Row
from pipelines.job import run as run_job
from pipelines.report import Report

STAGE = "image_text"
SMALLER = "take fewer tars (image_text.count, image_text.most_bytes)"


class TarFetcher:
    """The worker: brings tars into a folder.

    Args:
        settings: limits, and how the internet is asked.
        folder: where the tars lie.
        endpoint: the hub's address; empty takes the public one.
        desk: hands out the turns at hosts.
    """

    def __init__(self, settings: Settings, folder: Path, endpoint: str, desk: Desk) -> None:
        self.limits: Limits = settings.limits
        self.folder = folder
        self.web = Web(Politeness(desk, settings.network))
        self.hub = ImageText(self.web, endpoint)

    def process(self, payload: Mapping[str, Any]) -> list[Outcome]:
        """One tar."""
        tar, begun = Tar(**payload), time.monotonic()
        try:
            data = self.bring(tar)
        except Failure as failure:
            return [
                Outcome(
                    stage=STAGE,
                    key=tar.key,
                    status=failure.status,
                    reason=failure.reason,
                    attempts=0 if isinstance(failure, Quiet) else 1,
                    seconds=time.monotonic() - begun,
                )
            ]
        return [Outcome(stage=STAGE, key=tar.key, data=data, seconds=time.monotonic() - begun)]

    def bring(self, tar: Tar) -> dict[str, Any]:
        """The row's columns of a tar that is there afterwards, and right."""
        if tar.bytes > self.limits.repository_bytes:
            raise Failure(
                Status.TOO_LARGE, f"{tar.bytes} bytes, at most limits.repository_bytes = {self.limits.repository_bytes}"
            )
        path = self.folder / tar.name
        if path.exists() and not tar.is_at(path):
            path.unlink()  # of another commit, or damaged: whoever reads the folder must not take it
        if not path.exists():
            self.hub.fetch(tar, self.folder)
        samples, lacking = counted(path)
        return {
            "repository": tar.repository,
            "revision": tar.revision,
            "path": tar.path,
            "name": tar.name,
            "bytes": tar.bytes,
            "sha256": tar.sha256 or sha256_of(path),
            "samples": samples,
            "lacking": lacking,
            "stamp": stamp_of(path),
        }

    def probe(self) -> None:
        """The hub answers at all."""
        if not self.web.answers(self.hub.endpoint):
            raise SystemicFault(f"no answer from {self.hub.endpoint}: check the network, then run again")

    def close(self) -> None:
        """Let go of the connections."""
        self.web.close()


def folder_of(settings: Settings) -> Path:
    """Where the tars lie."""
    return settings.image_text.folder or open_store(settings).folder / "tars"


def listed(settings: Settings) -> list[Tar]:
    """Every tar that the settings name, in order.

    Raises:
        ValueError: there is no repository, or two tars would have one name.
    """
    section = settings.image_text
    if not section.repositories:
        raise ValueError("image_text.repositories names no dataset of the hub: see --preset blip3o")
    web = Web(Politeness(Turns(), settings.network))
    hub = ImageText(web, os.environ.get("HF_ENDPOINT", ""))
    try:
        tars = [
            tar
            for name, revision in section.repositories.items()
            for tar in hub.listed(name, revision, section.patterns)
        ]
    finally:
        web.close()
    names = {tar.name: tar.key for tar in tars}
    for tar in tars:
        if names[tar.name] != tar.key:
            raise ValueError(f"{tar.key} and {names[tar.name]} would have one name: narrow image_text.patterns")
    return tars


def admitted(tars: Sequence[Tar], settings: Settings) -> dict[str, str]:
    """By key why a tar is not taken; empty where it is."""
    section = settings.image_text
    taken, total, found = dict.fromkeys(section.repositories, 0), 0, {}
    for tar in tars:
        reason = ""
        if section.count is not None and taken[tar.repository] >= section.count:
            reason = f"the first {section.count} tars of {tar.repository} are taken (image_text.count)"
        elif section.most_bytes is not None and total + tar.bytes > section.most_bytes:
            reason = f"with it the tars would have more than image_text.most_bytes = {section.most_bytes}"
        else:
            taken[tar.repository] += 1
            total += tar.bytes
        found[tar.key] = reason
    return found


def make_job(settings: Settings, tars: Sequence[Tar]) -> Job:
    """What this stage computes."""
    store, folder = open_store(settings), folder_of(settings)
    version = fingerprints.code_version(STAGE)

    def rows(_shard: str) -> list[Row]:
        mine = store.manifest(STAGE, ALL)
        present, refused = store.read(mine, ["name", "stamp"]), admitted(tars, settings)
        made = []
        for tar in tars:
            inputs = {"revision": tar.revision, "content": tar.sha256 or tar.blob, "code": version}
            if refused[tar.key]:
                outcome = Outcome(stage=STAGE, key=tar.key, status=Status.NOT_ADMITTED, reason=refused[tar.key])
                made.append(Row(stage=STAGE, key=tar.key, inputs={**inputs, "admitted": "no"}, decided=outcome))
                continue
            known, held = mine.rows.get(tar.key), present.get(tar.key)
            # What the hub could not give a moment ago it may give now: asked for again by every run.
            absent = known is not None and known.status in (Status.MISSING, Status.HASH_MISMATCH)
            stands = not absent and (held is None or stamp_of(folder / held["name"]) == held["stamp"])
            made.append(Row(stage=STAGE, key=tar.key, inputs=inputs, stands=stands, payload=asdict(tar)))
        return made

    def items(shard: str, todo: list[Row], _held: Mapping[str, Manifest]) -> list[Item]:
        wanted = {row.key for row in todo}
        require_room(folder, sum(lacking(tar, folder) for tar in tars if tar.key in wanted), SMALLER)
        return [Item(shard=shard, rows=(row,), payload=row.payload) for row in todo]

    network = settings.network
    return Job(
        stages=(STAGE,),
        schema={STAGE: IMAGE_TEXT},
        rows=rows,
        items=items,
        factory=partial(fetcher, settings, folder, os.environ.get("HF_ENDPOINT", "")),
        resources=Resources(min(settings.compute.workers, network.per_host)),  # more would only stand in line
        bytes_of=lambda outcome: (outcome.data or {}).get("bytes", 0),
        deadline_s=4 * network.repository_s + 300,  # twice where what was there is damaged, and as long in line
    )


def lacking(tar: Tar, folder: Path) -> int:
    """Bytes of a tar that are not in the folder yet."""
    copies = (folder / tar.name, tar.copy_in(folder))
    return tar.bytes - min(tar.bytes, max(copy.stat().st_size if copy.exists() else 0 for copy in copies))


def fetcher(settings: Settings, folder: Path, endpoint: str) -> Worker:
    """A worker, in the process that it will work in."""
    desk: Any = Shared(Turns) if settings.compute.workers else Turns()
    return TarFetcher(settings, folder, endpoint, desk)


def run(settings: Settings, _shards: Sequence[str] = ()) -> Report:
    """Bring the tars up to date; what is there is not downloaded again."""
    store, tars = open_store(settings), listed(settings)
    report = run_job(make_job(settings, tars), store, settings, [ALL])
    for path in leftovers(folder_of(settings), ".*.part"):  # begun at a commit that is not asked for any more
        if path not in {tar.copy_in(path.parent) for tar in tars}:
            path.unlink()
    log_strangers(
        folder_of(settings), {row["name"] for row in store.read(store.manifest(STAGE, ALL), ["name"]).values()}
    )
    return report


def damaged(settings: Settings, store: Store) -> list[str]:
    """What is wrong with the tars of a collection; reads every byte."""
    rows = store.read(store.manifest(STAGE, ALL), ["name", "sha256"]).values()
    return damage(folder_of(settings), {row["name"]: row["sha256"] for row in rows})


if __name__ == "__main__":
    stage_main(STAGE, __doc__, run, sharded=False)
