"""Takedowns: what the deny-list names is erased from everything that the store and its exports hold, and looked for.

The catalog's own record of a denial stays: key, identifier, licence and sha256, so that the object is not taken again.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pyarrow.parquet as pq

from gap3d import gc, manifest
from gap3d.archives import trees
from gap3d.blobs import sha256_of
from gap3d.catalog import object_id_of
from gap3d.denials import HASH, Denial, matches
from gap3d.exports import pieces
from gap3d.lease import lease
from gap3d.manifest import Manifest
from gap3d.parts import write_atomically
from gap3d.schemas import program_of
from gap3d.settings import ComputeSettings
from gap3d.store import Store

EXPORTS = "exports.json"  # of a collection: folders that its renders were written to
RECORD = "denied.json"  # of a collection: the deny-list that its catalog was made with
SOURCES = (
    "folder",
    "github",
    "samples",
    "sketchfab",
    "smithsonian",
    "thingiverse",
    "unknown",
)  # that an identifier is of
DENIED = "denied: "  # how the reason of such a row begins
LISTED = ("key", "identifier", "sha256", "licence")
COLUMNS = {"catalog": LISTED, "images": LISTED, "downloads": ("key", "files")}
BATCH = "batch.json"
TEXTS = ("*.csv", "*.html", "*.json")


@dataclass
class Erased:
    """What was erased.

    Attributes:
        objects: those that the deny-list names, with the reason.
        parts: rewritten or removed, as stage/shard/part.
        files: blobs, reports and exports that were removed.
        contents: (path, sha256) of their own files.
        exports: folders that have lost files, which held other objects too.
    """

    objects: Mapping[str, str]
    parts: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    contents: set[tuple[str, str]] = field(default_factory=set)
    exports: list[Path] = field(default_factory=list)


def denied(store: Store) -> dict[str, str]:
    """Reason by object_id, of everything that the committed catalog left out as denied, or held before and denies now.

    An object that its source does not list any more has no row in the catalog, and may have bytes everywhere. Of a
    collection of images, its images stand for the catalog.
    """
    found: dict[str, str] = {}
    for shard in store.shards:
        images = store.manifest("images", shard).rows.values()
        found |= {row.key.partition("/")[0]: row.reason for row in images if row.reason.startswith(DENIED)}
        table = store.left_out(store.manifest("catalog", shard)).select(["key", "reason"])
        rows = zip(*(table.column(name).to_pylist() for name in ("key", "reason")), strict=True)
        found |= {key: reason for key, reason in rows if reason.startswith(DENIED)}
    path = store.folder / RECORD
    denials = [Denial(**entry) for entry in json.loads(path.read_text())] if path.exists() else []
    return forgotten(store, denials) | found if denials else found


def note_denials(store: Store, denials: Sequence[Denial]) -> None:
    """Remember the deny-list that the catalog was made with."""
    path = store.folder / RECORD
    if denials or path.exists():
        write_atomically(path, json.dumps([asdict(denial) for denial in denials], indent=1).encode())


def forgotten(store: Store, denials: Sequence[Denial]) -> dict[str, str]:
    """Reason by object_id, of denied objects without a row in the catalog that a part or an export still holds."""
    reasons = {denial.object: denial.reason for denial in denials if denial.object}
    licences = [denial for denial in denials if denial.licence]
    named = {name: reason for name, reason in reasons.items() if HASH.fullmatch(name)}
    named |= {object_id_of(source, name): reason for name, reason in reasons.items() for source in SOURCES}
    present: set[str] = set()
    listed: set[str] = set()
    for folder, held in shard_folders(store):
        if held.stage in ("catalog", "images"):
            listed |= {key for key, row in held.rows.items() if row.part}
        for path in parts_of(folder, held):
            names = pq.read_schema(path).names
            if "duplicate_of" in names:  # what an earlier catalog left out: there are no bytes of it
                continue
            columns = [name for name in COLUMNS.get(held.stage, ("key",)) if name in names]
            for row in pq.read_table(path, columns=columns).to_pylist():
                key = row["key"].partition("/")[0]
                present.add(key)
                hashes = [row.get("sha256", ""), *(file["sha256"] for file in (row.get("files") or [])[:1])]
                hit = [reasons[name] for name in (row.get("identifier"), *hashes) if name in reasons]
                hit += [d.reason for d in licences if "licence" in row and matches(row["licence"] or "", [d.licence])]
                if hit:
                    named.setdefault(key, hit[0])
    for folder in exports(store):
        present |= {key for key in named if (folder / key / pieces.MARKER).exists()}
        present |= {
            key for record in pieces.records(folder) for piece in record.pieces.values() for key in piece.objects
        }
    return {key: f"{DENIED}{reason}" for key, reason in named.items() if key in present - listed}


def shard_folders(store: Store) -> Iterator[tuple[Path, Manifest]]:
    """Every shard of every stage that something was committed to."""
    for held in gc.shards(store):
        yield store.shard(held.stage, held.shard), held


def parts_of(folder: Path, held: Manifest) -> list[Path]:
    """The parts on the disk, live or not, less the catalog's own record of what it left out."""
    found = sorted(folder.glob("*.parquet"))
    return [path for path in found if path.name != manifest.NAME and path.name not in held.left_out]


def holders(folder: Path, held: Manifest, objects: Mapping[str, str]) -> list[Path]:
    """The parts on the disk, live or not, that hold a row of one of the objects."""
    return [path for path in parts_of(folder, held) if holds(path, objects)]


def holds(path: Path, objects: Mapping[str, str]) -> bool:
    """Whether a part has a row of one of the objects."""
    keys = pq.read_table(path, columns=["key"]).column("key").to_pylist()
    return any(key.partition("/")[0] in objects for key in keys)


def rewrite(store: Store, objects: Mapping[str, str], compute: ComputeSettings) -> Erased:
    """Move the rows of others out of every live part that holds a denied object; the part itself is retired by it.

    Raises:
        ValueError: a stage still has rows of such an object: it has to run first; or a part is of no stage that this
            version knows.
    """
    done = Erased(objects)
    for folder, seen in shard_folders(store):
        with lease(folder, compute.lease_wait_s):
            held = store.manifest(seen.stage, seen.shard)
            live = {key.partition("/")[0] for key, row in held.rows.items() if row.part} & set(objects)
            if live:
                program = program_of(held.stage)
                todo = f"run `{program}`, then gc again" if program else f"no program here knows it: remove {folder}"
                raise ValueError(
                    f"{held.stage} of shard {held.shard} still has {len(live)} denied objects, e.g. {min(live)}: {todo}"
                )
            parts = [path.name for path in holders(folder, held, objects) if path.name in held.parts]
            if parts:
                gc.rewrite(folder, held, parts, compute.part_bytes)
                done.parts += [f"{held.stage}/{held.shard}/{part}" for part in parts]
    return done


def remove(store: Store, done: Erased, wait_s: float) -> None:
    """Remove, without grace, every file of a denied object, then the dead parts that hold it, reports and exports."""
    done.contents |= contents_of(store, done.objects)
    used = gc.used_blobs(store)
    gone = {(path, sha256) for path, sha256 in done.contents if sha256 not in used}
    digests = {sha256 for _, sha256 in gone}
    for entry in list(store.blobs.entries()) if digests else []:
        if entry.name in digests:
            store.blobs.remove(entry.name)
            done.files.append(entry.place)
    for copy in unpacked_copies(store, gone):
        copy.unlink()
        done.files.append(str(copy))
    for folder, seen in shard_folders(store):  # the parts last: they alone say which files a denied object has
        with lease(folder, wait_s):
            held = store.manifest(seen.stage, seen.shard)
            dead = [path for path in holders(folder, held, done.objects) if path.name not in held.parts]
            for path in dead:
                path.unlink()
                name = f"{held.stage}/{held.shard}/{path.name}"
                if name not in done.parts:
                    done.parts.append(name)
            if dead:
                names = {path.name for path in dead}
                kept = {part: when for part, when in held.retired.items() if part not in names}
                manifest.write(folder, replace(held, retired=kept))
    pages = [path for path in (store.folder / "reports").glob("**/*") if path.is_file()]
    if done.parts or any(key in path.read_text(errors="replace") for path in pages for key in done.objects):
        for path in pages:
            path.unlink()
            done.files.append(str(path))
    for place in saved_batches(store):
        if any(key in (place / BATCH).read_text(errors="replace") for key in done.objects):
            shutil.rmtree(place)
            done.files.append(str(place))
    for folder in exports(store):
        for place in (folder / key for key in done.objects):
            if (place / pieces.MARKER).exists():
                shutil.rmtree(place)
                done.files.append(str(place))
        if (folder / pieces.HIDDEN).is_dir():
            with lease(folder / pieces.HIDDEN, wait_s):
                erased, shared = pieces.erase(folder, done.objects)
            done.files += erased
            done.exports += [folder] if shared else []


def saved_batches(store: Store) -> list[Path]:
    """What trainings that were stopped by a number that is none saved of the batch they saw (gap3d.training.broken)."""
    return sorted(path.parent for path in store.folder.glob(f"aligner/*/failed/*/{BATCH}"))


def learned(store: Store) -> list[Path]:
    """Trainings of the collection that have checkpoints: nothing is erased from weights."""
    return sorted({path.parents[1] for path in store.folder.glob("aligner/*/checkpoints/step-*")})


def contents_of(store: Store, objects: Mapping[str, str]) -> set[tuple[str, str]]:
    """(path, sha256) of the files of these objects, as downloads listed them and as the catalog names them."""
    found: set[tuple[str, str]] = set()
    for folder, held in shard_folders(store):
        if held.stage == "downloads":
            for path in holders(folder, held, objects):
                rows = pq.read_table(path, columns=["key", "files"]).to_pylist()
                found |= {(f["path"], f["sha256"]) for row in rows if row["key"] in objects for f in row["files"]}
        elif held.stage == "catalog":
            tables = [store.left_out(held), *(pq.read_table(path) for path in holders(folder, held, objects))]
            for table in tables:
                rows = table.select(["key", "identifier", "sha256"]).to_pylist()
                found |= {(row["identifier"], row["sha256"]) for row in rows if row["key"] in objects}
    return found


def unpacked_copies(store: Store, contents: set[tuple[str, str]]) -> Iterator[Path]:
    """The copies of these files, (path, sha256), that lie in archives which were unpacked into the store."""
    for folder in trees(store.root):
        for path, sha256 in sorted(contents):
            copy = folder / path
            if ".." not in copy.parts and copy.is_file() and sha256_of(copy) == sha256:
                yield copy


def others(store: Store, done: Erased) -> list[str]:
    """Other collections of the store that hold one of the objects, or one of their files."""
    digests, found = {sha256 for _, sha256 in done.contents}, []
    for name in Store.collections(store.root):
        if name == store.collection:
            continue
        other = store.other(name)
        parts = [path for folder, held in shard_folders(other) for path in holders(folder, held, done.objects)]
        if parts or gc.listed_blobs(other) & digests:
            found.append(name)
    return found


def exports(store: Store) -> list[Path]:
    """Folders that the collection was exported to."""
    path = store.folder / EXPORTS
    return [Path(name) for name in json.loads(path.read_text())] if path.exists() else []


def note_export(store: Store, folder: Path) -> None:
    """Remember where an export lies, so that a takedown reaches it."""
    known = {*map(str, exports(store)), str(folder.expanduser().absolute())}
    write_atomically(store.folder / EXPORTS, json.dumps(sorted(known), indent=1).encode())


def traces(store: Store, objects: Mapping[str, str], contents: set[tuple[str, str]] | None = None) -> list[str]:
    """Where something of a denied object still is: every part is read, every text, every export looked at.

    Args:
        store: the collection.
        objects: the denied ones.
        contents: (path, sha256) of their files, where the parts that listed them are gone already.
    """
    found = []
    for folder, held in shard_folders(store):
        with_bytes = [key for key, row in held.rows.items() if row.part]
        found += [f"{held.stage}/{held.shard}: row {key}" for key in with_bytes if key.partition("/")[0] in objects]
        found += [str(path.relative_to(store.folder)) for path in holders(folder, held, objects)]
    for pattern in TEXTS:
        for path in store.folder.rglob(pattern):
            text = "" if path == store.folder / RECORD else path.read_text(errors="replace")
            found += [f"{path.relative_to(store.folder)}: {key}" for key in objects if key in text]
    for folder in exports(store):
        found += [str(folder / key) for key in objects if (folder / key).exists()]
        found += pieces.traces(folder, objects)
    used = gc.used_blobs(store)
    left = {(path, sha256) for path, sha256 in contents or contents_of(store, objects) if sha256 not in used}
    digests = {sha256 for _, sha256 in left}
    found += [entry.place for entry in store.blobs.entries() if entry.name in digests] if digests else []
    return [*found, *map(str, unpacked_copies(store, left))]
