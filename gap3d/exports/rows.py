"""The rows that are exported: the good rows of the dataset's index, with their pictures and tokens."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import pyarrow.parquet as pq
import torch

from gap3d.dataset import read_part
from gap3d.manifest import Manifest
from gap3d.records import Status
from gap3d.store import ALL, Store
from gap3d.takedown import denied

PIXEL_BYTES = 4  # of a PNG or JPEG in which nothing could be compressed
OVERHEAD = 4096  # bytes of a row beside its picture, captions and tokens


def indexed(store: Store) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The index's good rows by (shard, split), in the order of their keys.

    Raises:
        ValueError: there is no index, or it still has objects that were denied.
    """
    held = store.manifest("dataset", ALL)
    if not held.complete:
        raise ValueError(f"collection {store.collection} has no dataset yet: run `python -m pipelines.line` first")
    rows = store.read(held).values()
    gone = {row["object_id"] for row in rows} & set(denied(store))
    if gone:
        raise ValueError(f"the dataset still has {len(gone)} denied objects: run `python -m pipelines.line` first")
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["key"]):
        found.setdefault((row["target_shard"], row["split"]), []).append(row)
    return dict(sorted(found.items()))


def rendered(store: Store, shard: str, rows: Sequence[Mapping[str, Any]]) -> Manifest:
    """The renders that rows of the index were made from.

    Raises:
        ValueError: one is not there.
    """
    if store.shard("images", shard).exists():
        raise ValueError(
            f"the pictures of collection {store.collection} lie in tars or a folder of yours already: "
            "its tokens go out with --to datasets --tokens --without-images"
        )
    held = store.manifest("renders", shard)
    for row in rows:
        if row["key"] not in held.rows or held.rows[row["key"]].status is not Status.OK:
            raise ValueError(f"renders of shard {shard} lack {row['key']}: run `python -m pipelines.line` first")
    return held


def require_current(store: Store, shard: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Prove that the tokens that the index names are there, and are those of the renders that are there now.

    Raises:
        ValueError: a stage has to run first.
    """
    targets, renders = store.manifest("targets", shard).rows, store.manifest("renders", shard).rows
    for row in rows:
        known = targets.get(row["key"])
        if known is None or known.digest != row["target"]:
            raise ValueError(f"the dataset is older than targets/{shard}: run `python -m pipelines.line` first")
        if row["key"] in renders and known.inputs.get("render") != renders[row["key"]].digest:
            raise ValueError(f"targets/{shard} are older than renders: run `python -m pipelines.line` first")


def sizes(store: Store, renders: Manifest | None, rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Bytes that a row's picture, of renders, and captions take at most, in any format; no picture is read."""
    shapes = store.read(renders, ["width", "height"], keys=[row["key"] for row in rows]) if renders else {}
    pixels = [shapes[row["key"]]["width"] * shapes[row["key"]]["height"] if renders else 0 for row in rows]
    texts = [sum(len(text.encode()) for text in row["captions"] or ()) for row in rows]
    return [PIXEL_BYTES * area + 2 * text + OVERHEAD for area, text in zip(pixels, texts, strict=True)]


def pictures(store: Store, renders: Manifest, rows: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """The PNG of each row, straight alpha."""
    found = store.read(renders, ["png"], keys=[row["key"] for row in rows])
    return [found[row["key"]]["png"] for row in rows]


def layout(store: Store, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the metadata of the rows' target parts says: tokens as ``tokens`` gives them, encoder, settings.

    Raises:
        ValueError: two parts say different things.
    """
    found: dict[str, dict[str, Any]] = {}
    for shard, part in sorted({(row["target_shard"], row["target_part"]) for row in rows}):
        metadata = json.loads(pq.read_schema(store.shard("targets", shard) / part).metadata[b"gap3d"])
        found[json.dumps(metadata, sort_keys=True)] = metadata
    if len(found) > 1:
        raise ValueError("the dataset's targets come from different encoders: run `python -m pipelines.line` first")
    for metadata in found.values():
        return {**metadata, "tokens": as_read(metadata["tokens"])}
    return {}


def as_read(described: Mapping[str, Any]) -> dict[str, Any]:
    """How tokens are laid out once they are read: int8 has been decoded to float16, and its scales are gone."""
    made = {name: about for name, about in described.items() if not name.endswith("_scale")}
    for name in ("registers", "patches"):
        if made[name]["dtype"] == "int8":
            made[name] = {key: value for key, value in made[name].items() if key != "decode"} | {"dtype": "float16"}
    return made


def tokens(store: Store, rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, torch.Tensor]]:
    """CLS float32 [C], registers [R, C] and patches [N, C] by key; of the parts only these rows are copied."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for (shard, part), group in by_part(rows):
        live = {row["target_row"] for row in group}
        for batch in read_part(store.shard("targets", shard) / part, live):
            for i, key in enumerate(batch.keys):
                found[key] = {"cls": batch.cls[i], "registers": batch.registers[i], "patches": batch.patches[i]}
    wrong = {row["key"] for row in rows} ^ set(found)
    if wrong:
        raise ValueError(f"the dataset is older than the targets ({min(wrong)}): run `python -m pipelines.line` first")
    return found


def by_part(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[tuple[str, str], list[Mapping[str, Any]]]]:
    """Rows of the index together with others of their target part."""

    def place(row: Mapping[str, Any]) -> tuple[str, str]:
        return row["target_shard"], row["target_part"]

    for where, group in groupby(sorted(rows, key=place), key=place):
        yield where, list(group)


def provenance(store: Store, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """By stage, under which settings and by which engine the rows were made, as their ledgers say."""
    found: dict[str, dict[str, None]] = {"views": {}, "renders": {}}
    for shard in sorted({row["target_shard"] for row in rows}):
        chosen = [row for row in rows if row["target_shard"] == shard]
        for stage, keys in (("views", {row["object_id"] for row in chosen}), ("renders", {r["key"] for r in chosen})):
            ledger = store.manifest(stage, shard).rows
            keys &= set(ledger)  # none of a collection of images
            for digest, engine in sorted({(ledger[k].inputs["settings"], ledger[k].inputs["engine"]) for k in keys}):
                words = [f"{name} {value}" for name, value in store.settings(stage, digest).items()]
                found[stage]["; ".join([", ".join(words), engine])] = None
    return {stage: " or ".join(texts) for stage, texts in found.items() if texts}
