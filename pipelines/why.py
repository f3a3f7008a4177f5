"""why: an object's way through the stages: statuses, reasons, and what a run now would compute again."""

import difflib
import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

from gap3d.catalog import object_id_of
from gap3d.manifest import LedgerRow
from gap3d.schemas import IMAGE_STAGES, STAGES
from gap3d.settings import Settings
from gap3d.store import ALL, Store
from pipelines import downloads, images, rendering, targets
from pipelines.command import open_store, parse, parser, require_catalog, say, sentences
from pipelines.job import Job, NotReady


def find(store: Store, name: str, source: str) -> tuple[str, str] | None:
    """(object_id, shard) of an object, by its id, six or more characters of it, its path, or the end of its path."""
    for stage, shard in product(("catalog", images.STAGE), store.shards):
        held = store.manifest(stage, shard)
        named = store.read(held, ["identifier"])
        for row in held.rows:
            key, identifier = row.partition("/")[0], named.get(row, {}).get("identifier", "")
            if key == object_id_of(source, name) or identifier == name or identifier.endswith(f"/{name}"):
                return key, shard
            if len(name) >= 6 and key.startswith(name):
                return key, shard
    return None


def not_found(store: Store, name: str) -> str:
    """A sentence that names a few objects or images whose identifiers are like this one, else what they look like."""
    held = (store.manifest(stage, shard) for stage, shard in product(("catalog", images.STAGE), store.shards))
    named = sorted(row["identifier"] for rows in held for row in store.read(rows, ["identifier"]).values())
    like = [known for known in named if name.casefold() in known.casefold()]
    if not like and len(named) <= 10_000:  # seconds beyond
        like = difflib.get_close_matches(name, named)
    told = f"like it are {', '.join(like[:5])}" if like else f"they are named like {', '.join(named[:3])}"
    return f"no object or image {name!r} in collection {store.collection} ({store.root}); {told}"


def left_out(store: Store, name: str) -> list[str]:
    """Lines about an object that the selection left out, by its id or the whole identifier; none where it did not."""
    for shard in store.shards:
        found = store.left_out(store.manifest("catalog", shard), name=name).to_pylist()
        for row in found:
            return [
                f"object_id  {row['key']}",
                f"identifier {row['identifier']}",
                f"{'catalog':>9}  {row['status']:<14} {row['reason']}: no later stage has a row of it",
            ]
    return []


def rows_of(store: Store, object_id: str, shard: str) -> Iterator[tuple[str, str, LedgerRow | None]]:
    """(stage, key, row) of an object, stage by stage; None where a stage has no row of it yet."""
    stages = STAGES if store.manifest("catalog", shard).complete else IMAGE_STAGES
    for stage in stages:
        held = store.manifest(stage, ALL if stage == "dataset" else shard)
        found = [row for key, row in held.rows.items() if key.partition("/")[0] == object_id]
        if not found:
            yield stage, object_id, None
        for row in sorted(found, key=lambda row: row.key):
            yield stage, row.key, row


def expected_inputs(settings: Settings, shard: str) -> dict[tuple[str, str], Mapping[str, str] | None]:
    """The fingerprint parts that each row would have if a run started now."""
    of_objects: list[Callable[[], Job]] = [
        lambda: downloads.make_job(settings),
        lambda: rendering.make_job(settings),
    ]
    jobs = [*(of_objects if settings.pictures == "renders" else []), lambda: targets.make_job(settings)]
    found: dict[tuple[str, str], Mapping[str, str] | None] = {}
    for make in jobs:
        try:
            found |= {(row.stage, row.key): row.inputs for row in make().rows(shard)}
        except NotReady:
            break
    return found


def changed_settings(store: Store, stage: str, before: str, now: str) -> list[str]:
    """Which settings differ between two digests, as ``name: old -> new``."""
    old, new = store.settings(stage, before), store.settings(stage, now)
    return [
        f"{name}: {old.get(name)!r} -> {new.get(name)!r}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


def explain(
    store: Store, settings: Settings, stage: str, row: LedgerRow, inputs: Mapping[str, str] | None
) -> list[str]:
    """Lines about one row."""
    where = ", ".join(filter(None, (row.host, row.device, "NOT sandboxed" if row.sandboxed is False else "")))
    seconds = f"{row.seconds:.2f} s on {where}" if row.seconds else ""
    lines = [
        f"{stage:>9}  {row.status:<14} {row.finished_at}  {seconds}  attempt {row.attempts}  digest {row.digest[:12]}"
    ]
    if row.reason:
        passed = f" (passed on from {row.origin})" if row.origin else ""
        lines.append(f"{'':>11}{row.reason}{passed}")
    need = row.needs(inputs, settings.limits)
    if need:
        lines.append(f"{'':>11}a run now computes it again: {need}")
        for name in sorted({*(inputs or {}), *row.inputs}):
            before, now = row.inputs.get(name, "-"), (inputs or {}).get(name, "-")
            if inputs is None or before == now:
                continue
            lines.append(f"{'':>13}{name}: {before} -> {now}")
            if name == "settings":
                lines += [f"{'':>15}{change}" for change in changed_settings(store, stage, before, now)]
    else:
        lines.append(f"{'':>11}up to date")
    if row.log_tail:
        lines += [f"{'':>11}| {line}" for line in row.log_tail.strip().splitlines()[-6:]]
    return lines


def describe(entry: Mapping[str, Any], shard: str) -> list[str]:
    """What an object or image is."""
    lines = [f"identifier {entry['identifier']}", f"captions   {json.dumps(entry['captions'], ensure_ascii=False)}"]
    lines.append(f"split      {entry['split']}, shard {shard}")
    return lines


def main() -> None:
    """The program."""
    made = parser(__doc__ or "")
    made.add_argument("object", help="an object_id, the start of one, or a path relative to the source folder")
    known, settings = parse(made)
    with sentences(made):
        store = open_store(settings)
        rendered = settings.pictures == "renders"
        place = find(store, known.object, settings.source.kind if rendered else settings.images.kind)
        if place is None and (lines := left_out(store, known.object)):
            say(*lines)
            return
        if place is None:
            require_catalog(store)
            made.exit(1, f"{not_found(store, known.object)}\n")
        object_id, shard = place
        say(f"object_id  {object_id}")
        first, row_key = ("catalog", object_id) if rendered else (images.STAGE, f"{object_id}/000")
        entry = store.read(store.manifest(first, shard), keys=[row_key]).get(row_key)
        if entry:
            say(*describe(entry, shard))
        inputs = expected_inputs(settings, shard)
        for stage, key, row in rows_of(store, object_id, shard):
            if row is None:
                say(f"{stage:>9}  no row yet")
            else:
                known_inputs = inputs.get((stage, key), row.inputs)
                say(*explain(store, settings, stage, row, known_inputs))
        if rendered and entry and settings.source.path and settings.source.kind == "folder":
            file = str(settings.source.path / entry["identifier"])
            say(f"repeat     {shlex.join(['python', '-m', 'render', '--', file])}")


if __name__ == "__main__":
    main()
