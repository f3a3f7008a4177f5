"""TRELLIS's folder layout: ``renders_cond/<sha256>/000.png``, transforms.json, and metadata.csv (docs/method.md 1.1).

Its training takes condition pictures from ``renders_cond``, its feature extraction and the evaluation multiviews from
``renders``; the name of a folder is the sha256 of the object's main file. Exports of two collections of the same
objects, one for each, go into one folder and share its table.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gap3d import fingerprints
from gap3d.catalog import CAPTION_BYTES
from gap3d.exports import folders
from gap3d.exports.pieces import MARKER, Piece, Record
from gap3d.exports.rows import rendered
from gap3d.parts import write_atomically
from gap3d.records import Status
from gap3d.store import Store

Kind = Literal["renders_cond", "renders"]
VERSION = 1  # raise it where equal rows give other bytes
COLUMNS = (
    *("sha256", "file_identifier", "aesthetic_score", "captions", "rendered", "cond_rendered"),  # what TRELLIS reads
    "object_id",  # by which a takedown finds its lines
)
FLAGS = {"rendered": "renders", "cond_rendered": "renders_cond"}


def kind_of(protocol: str) -> Kind:
    """Where TRELLIS looks for the pictures of a view protocol: multiviews in renders, else renders_cond."""
    return "renders" if protocol in ("sphere", "fixed") else "renders_cond"


@dataclass(frozen=True)
class Plan:
    """The folders of a shard of the store.

    Attributes:
        record: them as pieces.
        keys: of the renders of each.
        lines: of metadata.csv, less their flags.
        shared: number of objects whose bytes another one has, which has the folder.
    """

    record: Record
    keys: dict[str, list[str]]
    lines: list[dict[str, Any]]
    shared: int


def planned(store: Store, shard: str, kind: Kind, taken: dict[str, str]) -> Plan:
    """The folders of a shard of the store.

    Args:
        store: the collection.
        shard: of the store.
        kind: the folder that they lie in.
        taken: object_id by sha256, of earlier shards; of objects with equal bytes the first has the folder.

    Raises:
        ValueError: a stage has to run first.
    """
    renders, catalog = rendered(store, shard, []), store.read(store.manifest("catalog", shard))
    downloads = store.read(store.manifest("downloads", shard), ["files"])
    by_object: dict[str, list[str]] = {}
    for key, row in sorted(renders.rows.items()):
        if row.status is Status.OK:
            by_object.setdefault(key.partition("/")[0], []).append(key)
    if not set(by_object) <= set(downloads) & set(catalog):
        raise ValueError(f"renders of shard {shard} are older than the catalog: run `python -m pipelines.line` first")
    pieces, content, lines = {}, {}, []
    for object_id, keys in by_object.items():
        sha256, entry = downloads[object_id]["files"][0]["sha256"], catalog[object_id]
        if taken.setdefault(sha256, object_id) != object_id:
            continue
        path = f"{kind}/{sha256}"
        inputs = fingerprints.digest_of([kind, VERSION, [renders.rows[key].digest for key in keys]])
        pieces[path], content[path] = Piece(path, inputs, (object_id,)), keys
        score = entry["aesthetic_score"]
        line = {
            "sha256": sha256,
            "file_identifier": entry["identifier"],
            "aesthetic_score": "" if score is None else score,
            "captions": json.dumps(entry["captions"], ensure_ascii=False) if entry["captions"] else "",
            "object_id": object_id,
        }
        lines.append(line)
    return Plan(Record(kind, store.collection, shard, pieces), content, lines, len(by_object) - len(pieces))


def write(folder: Path, piece: Piece, store: Store, shard: str, keys: list[str]) -> int:
    """Write an object's folder; the number of its pictures."""
    found = store.read(store.manifest("renders", shard), keys=keys)
    folders.write(folder / piece.path, [found[key] for key in keys], object_id=piece.objects[0])
    return len(keys)


def write_metadata(folder: Path, lines: Iterable[Mapping[str, Any]]) -> int:
    """Bring metadata.csv up to date: a line for each object that has a folder; the number of lines.

    Args:
        folder: the export's.
        lines: of this collection; what the table says of other objects stays while they have a folder.
    """
    path, known = folder / "metadata.csv", {}
    if path.exists():
        csv.field_size_limit(CAPTION_BYTES)
        with path.open(newline="") as file:
            known = {line["sha256"]: dict(line) for line in csv.DictReader(file)}
    known |= {line["sha256"]: {**known.get(line["sha256"], {}), **line} for line in lines}
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
    table.writeheader()
    count = 0
    for sha256, line in sorted(known.items()):
        flags = {flag: (folder / kind / sha256 / MARKER).is_file() for flag, kind in FLAGS.items()}
        if any(flags.values()):
            table.writerow({**line, **flags})
            count += 1
    write_atomically(path, text.getvalue().encode())
    return count
