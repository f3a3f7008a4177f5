"""images: images of tars or a folder, with captions, split and rank, in the place of renders. Key: (image id, 000)."""

import logging
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as a file, here or copied by `ray submit`: its folder is not where packages are looked for
    sys.path.pop(0)

from gap3d import fingerprints, images, takedown
from gap3d.denials import DenyList, read_denials
from gap3d.images import STAGE, Source
from gap3d.manifest import LedgerRow
from gap3d.records import Outcome, Status, SystemicFault
from gap3d.schemas import IMAGES
from gap3d.settings import Settings
from gap3d.shard_writer import ShardWriter
from gap3d.store import Store
from pipelines.cluster import open_pool
from pipelines.command import open_store, stage_main
from pipelines.progress import progress
from pipelines.report import Report, ShardReport
from pipelines.worker import Broken, Resources

log = logging.getLogger(__name__)

FILES_AT_ONCE = 256  # image files that a worker takes at once; tars it takes one by one
DEADLINE_S = 3600.0  # a tar of any size is read in less
OF_A_ROW = {"rows", "row", "denied"}  # inputs that say nothing of how a tar or file was read
COMMITS = {"flush_rows": 1 << 30}  # by time alone: rows are small, and come by the thousand


def folder_of(settings: Settings) -> Path:
    """The folder of the tars or images, or the one tar.

    Raises:
        ValueError: it is not there.
    """
    if settings.images.kind == "none":
        raise ValueError("images.kind is none: name a source of images (--images.kind tars --images.path DIR)")
    path = settings.images.path or settings.image_text.folder or open_store(settings).folder / "tars"
    if not path.exists():
        raise ValueError(f"images.path = {path} is not there: name the folder of the {settings.images.kind}")
    return path


def root_of(settings: Settings) -> Path:
    """The folder that places are relative to."""
    path = folder_of(settings)
    return path.parent if path.is_file() else path


class Reader:
    """The worker: reads tars and image files."""

    def __init__(self, settings: Settings, root: Path) -> None:
        self.settings = settings
        self.root = root

    def process(self, payload: Sequence[Source]) -> list[Outcome]:
        """Rows of some tars or image files; each says in its inputs what it was made from."""
        found = []
        section, limits = self.settings.images, self.settings.limits
        for source in payload:
            begun = time.perf_counter()
            if section.kind == "tars":
                made = list(images.read_tar(self.root, source, section, limits))
            else:
                made = [images.read_file(self.root, source, section, limits)]
            inputs = {**reading(source, self.settings), "rows": str(len(made))}
            seconds = (time.perf_counter() - begun) / max(1, len(made))
            found += [replace(each, inputs=inputs, seconds=seconds) for each in made]
        return found

    def probe(self) -> None:
        """The folder is there."""
        folder_of(self.settings)

    def close(self) -> None:
        """Nothing is held."""


def reading(source: Source, settings: Settings) -> dict[str, str]:
    """The parts of its rows' fingerprints that tell whether a tar or file has to be read again."""
    found = {
        "place": images.shown(source.place),
        "stamp": source.stamp,
        "captions_from": " ".join(settings.images.captions_from),
        "captioned": str(settings.catalog.captioned),
        "code": fingerprints.code_version(STAGE),
    }
    if source.captions is not None:
        found["captions"] = images.digest_of_captions(source.captions)
    return found


def listed(settings: Settings, shards: Sequence[str]) -> dict[str, list[Source]]:
    """The tars or image files of each shard.

    Raises:
        ValueError: there is none at all.
    """
    root, section, count = root_of(settings), settings.images, len(open_store(settings).shards)
    table = images.read_table(section, root)
    found: dict[str, list[Source]] = {shard: [] for shard in shards}
    places = list(images.walk(folder_of(settings), section))
    if not places:  # more likely a disk that is not mounted than a wish to forget every image
        raise ValueError(f"{folder_of(settings)} holds no {'tar' if section.kind == 'tars' else 'jpg, png or webp'}")
    for place in places:
        shard = fingerprints.shard_of(images.shown(place), count)
        if shard in found:
            captions = tuple(table[place]) if place in table else None
            found[shard].append(Source(place, images.stamp_of(root, place, section), captions))
    return found


@dataclass
class ShardRun:
    """One shard in progress.

    Attributes:
        keys: of the rows that it is to have, as far as they are known.
        left: items without an answer.
    """

    writer: ShardWriter
    leases: ExitStack
    keys: set[str] = field(default_factory=set)
    left: int = 0
    seconds: float = 0.0

    def take(self, outcome: Outcome, settings: Settings, denied: DenyList) -> None:
        """Write a row, unless it stands there."""
        outcome = dressed(outcome, settings, denied)
        content = fingerprints.digest_of([outcome.status, outcome.reason, outcome.data])
        inputs = {**(outcome.inputs or {}), "row": content}
        self.keys.add(outcome.key)
        self.seconds += outcome.seconds
        known = self.writer.rows.get(outcome.key)
        reason = "new" if known is None else known.needs(inputs, settings.limits)
        if reason:
            earlier = known.attempts if known is not None and reason.startswith("attempt") else 0
            self.writer.add(replace(outcome, attempts=outcome.attempts + earlier), inputs)


def standing(
    store: Store, writer: ShardWriter, shard: str, sources: Sequence[Source], settings: Settings, denied: DenyList
) -> tuple[list[Source], list[Outcome]]:
    """(tars or files that have to be read, rows of the others as they are in force).

    A tar's rows say how many there are of it: a run that was killed between two commits leaves fewer.
    """
    data = store.read(store.manifest(STAGE, shard))
    by_place: dict[str, list[LedgerRow]] = defaultdict(list)
    for row in writer.rows.values():
        by_place[row.inputs["place"]].append(row)
    due, kept = [], []
    for source in sources:
        wanted = reading(source, settings)
        known = by_place[wanted["place"]]
        whole = bool(known) and all(row.inputs["rows"] == str(len(known)) for row in known)
        same = all({name: row.inputs[name] for name in set(row.inputs) - OF_A_ROW} == wanted for row in known)
        same &= all(denied.says(row.inputs["denied"]) for row in known if "denied" in row.inputs)
        if source.stamp and same and whole and not any(row.needs(None, settings.limits) for row in known):
            kept += [in_force(row, data.get(row.key)) for row in known]
            continue
        untouched = bool(source.stamp) and settings.images.kind == "folder"
        hashes = [data[row.key]["sha256"] for row in known if row.key in data and row.inputs["stamp"] == source.stamp]
        due.append(replace(source, sha256=hashes[0]) if untouched and hashes else source)
    return due, kept


def in_force(row: LedgerRow, data: Mapping[str, Any] | None) -> Outcome:
    """A row as it is committed."""
    known = {name: value for name, value in data.items() if name != "key"} if data else None
    return Outcome(
        stage=STAGE,
        key=row.key,
        status=row.status,
        reason=row.reason,
        data=known,
        inputs={name: value for name, value in row.inputs.items() if name != "row"},
    )


def run(settings: Settings, shards: Sequence[str]) -> Report:
    """Bring these shards up to date; tars and files that are as they were are not read."""
    started = time.monotonic()
    store = open_store(settings)
    section = settings.images
    store.save_settings(STAGE, fingerprints.settings_digest(section), section.model_dump(mode="json"))
    sources = listed(settings, shards)
    denied = DenyList(read_denials(settings.catalog.denied) if settings.catalog.denied else [])
    takedown.note_denials(store, denied.denials)
    reports: dict[str, ShardReport] = {}
    with ExitStack() as stack:
        runs: dict[str, ShardRun] = {}
        items: list[tuple[str, list[Source]]] = []
        for shard in shards:
            leases = stack.enter_context(ExitStack())
            writer = leases.enter_context(
                store.writer(STAGE, shard, IMAGES, settings.compute.model_copy(update=COMMITS), settings.limits)
            )
            active = runs[shard] = ShardRun(writer, leases)
            due, kept = standing(store, writer, shard, sources[shard], settings, denied)
            for outcome in kept:
                active.take(outcome, settings, denied)
            size = 1 if section.kind == "tars" else FILES_AT_ONCE
            batches = [due[start : start + size] for start in range(0, len(due), size)]
            items += [(shard, batch) for batch in batches]
            active.left = len(batches)
            if not batches:
                reports[shard] = finish(active, shard)
        for shard, outcomes in read(items, settings):
            active = runs[shard]
            for outcome in outcomes:
                active.take(outcome, settings, denied)
            active.left -= 1
            if not active.left:
                reports[shard] = finish(active, shard)
    if set(shards) == set(store.shards):
        tell_idle(store, denied)
    for report in reports.values():
        report.prove()
    return Report(shards=tuple(reports[shard] for shard in shards), wall_s=time.monotonic() - started)


def tell_idle(store: Store, denied: DenyList) -> None:
    """Name a line of the deny-list that denies nothing."""
    held = [store.manifest(STAGE, shard).rows.values() for shard in store.shards] if denied.denials else []
    met = {row.inputs.get("denied") for rows in held for row in rows}
    if idle := [denial.line for denial in denied.denials if denial.line not in met]:
        log.warning(
            "%d of %d lines of the deny-list name no image that is listed, e.g. %s: a typing error denies nothing",
            *(len(idle), len(denied.denials), idle[0]),
        )


def read(items: Sequence[tuple[str, list[Source]]], settings: Settings) -> Iterator[tuple[str, list[Outcome]]]:
    """Items with what was read of them, by the workers that the settings ask for; one tar alone needs no Ray."""
    if not items:
        return
    compute = settings.compute if len(items) > 1 else settings.compute.model_copy(update={"workers": 0})
    pool = open_pool(partial(Reader, settings, root_of(settings)), Resources(compute.workers), compute, DEADLINE_S)
    try:
        total = sum(len(batch) for _, batch in items)
        with progress(total=total, desc=STAGE, unit="tar" if settings.images.kind == "tars" else "file") as bar:
            for (shard, batch), answer in pool.run(items, lambda item: item[1]):
                if isinstance(answer, Broken):
                    answer = [broken(each, answer, settings) for each in batch]
                yield shard, answer
                bar.update(len(batch))
    finally:
        pool.close()


def broken(source: Source, answer: Broken, settings: Settings) -> Outcome:
    """The row of a tar or file that cost its worker, or that a fault of this program kept from being read."""
    status = Status.CRASHED if answer.died else Status.INTERNAL_ERROR
    made = images.failed(settings.images.kind, source.place, status, answer.reason)
    return replace(made, log_tail=answer.traceback, inputs={**reading(source, settings), "rows": "1"})


def dressed(outcome: Outcome, settings: Settings, denied: DenyList) -> Outcome:
    """A row with its split and rank; what is denied is left out, and without a caption where the settings say so."""
    if outcome.data is None:
        return outcome
    names = (outcome.key.partition("/")[0], outcome.data["identifier"], outcome.data["sha256"])
    if denial := denied.of(names, outcome.data["licence"]):
        inputs = {**(outcome.inputs or {}), "denied": denial.line}
        reason = f"{takedown.DENIED}{denial.reason}"
        return replace(outcome, status=Status.EXCLUDED, reason=reason, data=None, inputs=inputs)
    if settings.catalog.captioned and not outcome.data["captions"]:
        reason = f"{outcome.data['identifier']}: no caption, and catalog.captioned leaves such images out"
        return replace(outcome, status=Status.NOT_ADMITTED, reason=reason, data=None)
    return replace(outcome, data=images.placed(outcome.data, outcome.key, settings.catalog))


def finish(active: ShardRun, shard: str) -> ShardReport:
    """Commit a shard."""
    held = active.writer.finish(active.keys)
    active.leases.close()
    return ShardReport(
        stage=STAGE,
        shard=shard,
        expected=len(active.keys),
        found=held.count,
        computed=active.writer.added,
        by_status=held.by_status(),
        digest=held.digest,
        seconds=active.seconds,
    )


def pictures(store: Store, settings: Settings, shard: str, keys: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """(key, encoded image) of good rows of a shard; those whose tar or file is not as it was are left out."""
    root = root_of(settings)
    rows = store.read(store.manifest(STAGE, shard), ["place", "offset", "bytes", "sha256"], keys)
    for key, row in rows.items():
        place = images.Place(row["place"], row["offset"], row["bytes"], row["sha256"])
        try:
            yield key, images.read_bytes(root, place)
        except (SystemicFault, OSError) as error:
            log.warning("%s: %s", key, error)


def damaged(settings: Settings, store: Store) -> list[str]:
    """What is wrong with the images that the rows name; reads every byte of them."""
    if settings.images.kind == "none":
        return []
    root, faults = root_of(settings), []
    for shard in store.shards:
        rows = store.read(store.manifest(STAGE, shard), ["identifier", "place", "offset", "bytes", "sha256"])
        for row in rows.values():
            place = images.Place(row["place"], row["offset"], row["bytes"], row["sha256"])
            try:
                images.read_bytes(root, place)
            except (SystemicFault, OSError) as error:
                faults.append(f"{row['identifier']}: {error}")
    return faults


if __name__ == "__main__":
    stage_main(STAGE, __doc__ or "", run)
