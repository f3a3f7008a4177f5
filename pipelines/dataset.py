"""dataset: the index of good rows, with captions, split, rank and where each target lies. Key: (object_id, view)."""

import csv
import io
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file, here or copied by `ray submit`: its folder is not where packages are looked for
    sys.path.pop(0)

from gap3d import fingerprints
from gap3d.parts import write_atomically
from gap3d.records import Outcome, Status
from gap3d.schemas import DATASET
from gap3d.settings import Settings
from gap3d.store import ALL, Store
from pipelines.command import open_store, stage_main
from pipelines.job import NotReady, require_complete
from pipelines.progress import progress
from pipelines.report import Report, ShardReport

STAGE = "dataset"
ABOUT = ("captions", "split", "rank", "licence", "source", "identifier")


def run(settings: Settings, _shards: Sequence[str] = ()) -> Report:
    """Bring the index up to date: the first ``dataset.count`` good rows by rank, of all shards."""
    started = time.monotonic()
    store = open_store(settings)
    section = settings.dataset
    digest = fingerprints.settings_digest(section)
    store.save_settings(STAGE, digest, section.model_dump(mode="json"))
    common = {"settings": digest, "code": fingerprints.code_version(STAGE)}
    computed = 0
    with store.writer(STAGE, ALL, DATASET, settings.compute, settings.limits) as writer:
        wanted = outcomes(store, section.count, settings.pictures)
        for outcome, target in progress(wanted, desc=STAGE, unit="row"):
            place = {name: outcome.data[name] for name in DATASET.exempt} if outcome.data else {}
            content = fingerprints.row_digest(outcome.status.value, outcome.data, DATASET.exempt)
            inputs = {"target": target, "row": content, "place": fingerprints.digest_of(place), **common}
            known = writer.rows.get(outcome.key)
            if known is None or known.needs(inputs, settings.limits):
                writer.add(outcome, inputs)
                computed += 1
        held = writer.finish({outcome.key for outcome, _ in wanted})
        write_attribution(store.folder / "attribution.csv", [outcome for outcome, _ in wanted])
    report = ShardReport(
        stage=STAGE,
        shard=ALL,
        expected=len(wanted),
        found=len(held.rows),
        computed=computed,
        by_status=held.by_status(),
        digest=held.digest,
    )
    report.prove()
    return Report(shards=(report,), wall_s=time.monotonic() - started)


def write_attribution(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Whose work the dataset holds, one line an object: object_id, source, licence, and the link or path to it."""
    names = ("object_id", "source", "licence", "identifier")
    lines = {tuple(str(outcome.data[name]) for name in names) for outcome in outcomes if outcome.data}
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(names)
    table.writerows(sorted(lines))
    if not path.exists() or path.read_bytes() != text.getvalue().encode():
        write_atomically(path, text.getvalue().encode())


def outcomes(store: Store, count: int | None, pictures: str = "renders") -> list[tuple[Outcome, str]]:
    """(row, digest of its target) of every target row, in rank order.

    Args:
        store: the collection.
        count: so many good rows at most.
        pictures: the stage that was encoded. What is known of objects is in the catalog, of images in their own rows.
    """
    about = "images" if pictures == "images" else "catalog"
    found: list[tuple[int, Outcome, str]] = []
    for shard in store.shards:
        targets = require_complete(store, "targets", shard, "targets")
        entries = store.read(store.manifest(about, shard), ABOUT)
        for key, row in targets.rows.items():
            object_id, _, view = key.partition("/")
            if row.status is not Status.OK:
                outcome = Outcome(
                    stage=STAGE, key=key, status=row.status, reason=row.reason, origin=row.origin or "targets"
                )
                found.append((-1, outcome, row.digest))
                continue
            entry: dict[str, Any] | None = entries.get(key if about == "images" else object_id)
            if entry is None:
                raise NotReady(
                    f"targets of shard {shard} are older than the {about}: run `python -m pipelines.line` first"
                )
            data = {
                "object_id": object_id,
                "view": int(view),
                **{name: entry[name] for name in ABOUT},
                "target": row.digest,
                "target_shard": shard,
                "target_part": row.part,
                "target_row": row.part_row,
            }
            found.append((entry["rank"], Outcome(stage=STAGE, key=key, data=data), row.digest))
    made: list[tuple[Outcome, str]] = []
    taken = 0
    for _, outcome, digest in sorted(found, key=lambda entry: (entry[0], entry[1].key)):
        if outcome.status is Status.OK:
            taken += 1
            if count is not None and taken > count:
                reason = f"the dataset takes the first {count} good rows by rank"
                outcome = Outcome(stage=STAGE, key=outcome.key, status=Status.NOT_ADMITTED, reason=reason)
        made.append((outcome, digest))
    return made


if __name__ == "__main__":
    stage_main(STAGE, __doc__, run, sharded=False)
