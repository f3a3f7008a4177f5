"""Takedowns: what the deny-list names is erased from everything that the store and its exports hold, and looked for.

The catalog's own record of a denial stays: key, identifier, licence and sha256, so that the object is not taken again.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow.parquet as pq

from gap3d import gc, manifest
from gap3d.lease import lease
from gap3d.manifest import Manifest
from gap3d.parts import write_atomically
from gap3d.store import Store

EXPORTS = "exports.json"  # of a collection: folders that its renders were written to
DENIED = "denied: "  # how the reason of such a row begins
TEXTS = ("*.csv", "*.html", "*.json")


@dataclass
class Erased:
    """What was erased.

    Attributes:
        objects: those that the deny-list names, with the reason.
        parts: rewritten or removed, as stage/shard/part.
        files: blobs, reports and exports that were removed.
    """

    objects: Mapping[str, str]
    parts: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


def denied(store: Store) -> dict[str, str]:
    """Reason by object_id, of everything that the committed catalog left out as denied."""
    found: dict[str, str] = {}
    for shard in store.shards:
        table = store.left_out(store.manifest("catalog", shard)).select(["key", "reason"])
        rows = zip(*(table.column(name).to_pylist() for name in ("key", "reason")), strict=True)
        found |= {key: reason for key, reason in rows if reason.startswith(DENIED)}
    return found


def shard_folders(store: Store) -> Iterator[tuple[Path, Manifest]]:
    """Every shard of every stage that something was committed to."""
    for path in sorted(store.folder.glob(f"*/*/{manifest.NAME}")):
        yield path.parent, manifest.read(path.parent, path.parent.parent.name, path.parent.name)


def holders(folder: Path, held: Manifest, objects: Mapping[str, str]) -> list[Path]:
    """The parts on the disk, live or not, that hold a row of one of the objects."""
    return [
        path
        for path in sorted(folder.glob("*.parquet"))
        if path.name != manifest.NAME and path.name not in held.left_out and holds(path, objects)
    ]


def holds(path: Path, objects: Mapping[str, str]) -> bool:
    """Whether a part has a row of one of the objects."""
    keys = pq.read_table(path, columns=["key"]).column("key").to_pylist()
    return any(key.partition("/")[0] in objects for key in keys)


def rewrite(store: Store, objects: Mapping[str, str], wait_s: float) -> Erased:
    """Move the rows of others out of every live part that holds a denied object; the part itself is retired by it.

    Raises:
        ValueError: a stage still has rows of such an object: it has to run first.
    """
    done = Erased(objects)
    for folder, seen in shard_folders(store):
        with lease(folder, wait_s):
            held = store.manifest(seen.stage, seen.shard)
            live = {key.partition("/")[0] for key in held.rows} & set(objects)
            if live:
                raise ValueError(
                    f"{held.stage} of shard {held.shard} still has {len(live)} denied objects, e.g. {min(live)}: "
                    "run `python -m pipelines.line`, then gc again"
                )
            parts = [path.name for path in holders(folder, held, objects) if path.name in held.parts]
            schema = gc.SCHEMAS.get(held.stage) or gc.targets_schema(folder, held)
            if parts and schema is not None:
                gc.rewrite(folder, held, parts, schema)
                done.parts += [f"{held.stage}/{held.shard}/{part}" for part in parts]
    return done


def remove(store: Store, done: Erased, wait_s: float) -> None:
    """Remove, without grace, every dead part that holds a denied object, its blobs, reports and exports."""
    digests: set[str] = set()
    for folder, seen in shard_folders(store):
        with lease(folder, wait_s):
            held = store.manifest(seen.stage, seen.shard)
            dead = [path for path in holders(folder, held, done.objects) if path.name not in held.parts]
            for path in dead:
                if held.stage == "downloads":
                    digests |= files_of(path, done.objects)
                path.unlink()
                name = f"{held.stage}/{held.shard}/{path.name}"
                if name not in done.parts:
                    done.parts.append(name)
            if dead:
                names = {path.name for path in dead}
                kept = {part: when for part, when in held.retired.items() if part not in names}
                manifest.write(folder, replace(held, retired=kept))
    used = gc.used_blobs(store)
    for entry in list(store.blobs.entries()) if digests - used else []:
        if entry.name in digests - used:
            store.blobs.remove(entry.name)
            done.files.append(entry.place)
    for path in list((store.folder / "reports").glob("**/*")) if done.parts else []:
        if path.is_file():
            path.unlink()
            done.files.append(str(path))
    for folder in exports(store):
        for place in (folder / key for key in done.objects):
            if (place / "transforms.json").exists():
                shutil.rmtree(place)
                done.files.append(str(place))


def files_of(part: Path, objects: Mapping[str, str]) -> set[str]:
    """sha256 of the files of these objects in a part of downloads."""
    rows = pq.read_table(part, columns=["key", "files"]).to_pylist()
    return {file["sha256"] for row in rows if row["key"] in objects for file in row["files"]}


def exports(store: Store) -> list[Path]:
    """Folders that the collection was exported to."""
    path = store.folder / EXPORTS
    return [Path(name) for name in json.loads(path.read_text())] if path.exists() else []


def note_export(store: Store, folder: Path) -> None:
    """Remember where an export lies, so that a takedown reaches it."""
    known = {*map(str, exports(store)), str(folder)}
    write_atomically(store.folder / EXPORTS, json.dumps(sorted(known), indent=1).encode())


def traces(store: Store, objects: Mapping[str, str]) -> list[str]:
    """Where something of a denied object still is: every part is read, every text, every export looked at."""
    found = []
    for folder, held in shard_folders(store):
        found += [f"{held.stage}/{held.shard}: row {key}" for key in held.rows if key.partition("/")[0] in objects]
        found += [str(path.relative_to(store.folder)) for path in holders(folder, held, objects)]
    for pattern in TEXTS:
        for path in store.folder.rglob(pattern):
            text = path.read_text(errors="replace")
            found += [f"{path.relative_to(store.folder)}: {key}" for key in objects if key in text]
    found += [str(folder / key) for folder in exports(store) for key in objects if (folder / key).exists()]
    return found
