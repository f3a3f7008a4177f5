"""The rows that are exported: the good rows of the dataset's index, with their pictures and tokens."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from gap3d import dataset_index, fingerprints
from gap3d.dataset_index import Row
from gap3d.exports.pieces import Piece, Record, pack
from gap3d.features.tokens import PACKED
from gap3d.manifest import Manifest
from gap3d.records import Status
from gap3d.store import ALL, Store
from gap3d.takedown import denied

PIXEL_BYTES = 4  # of a PNG or JPEG in which nothing could be compressed
OVERHEAD = 4096  # bytes of a row beside its picture, captions and tokens


def indexed(store: Store) -> dict[tuple[str, str], list[Row]]:
    """The index's good rows by (shard, split), in the order of their keys.

    Raises:
        ValueError: there is no index, or it still has objects that were denied.
    """
    if not store.manifest("dataset", ALL).complete:
        raise ValueError(f"collection {store.collection} has no dataset yet: run `python -m pipelines.line` first")
    rows = dataset_index.load(store).rows()
    gone = {row.object_id for row in rows} & set(denied(store))
    if gone:
        raise ValueError(f"the dataset still has {len(gone)} denied objects: run `python -m pipelines.line` first")
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.target_shard, row.split), []).append(row)
    return dict(sorted(found.items()))


def rendered(store: Store, shard: str, rows: Sequence[Row]) -> Manifest:
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
        if row.key not in held.rows or held.rows[row.key].status is not Status.OK:
            raise ValueError(f"renders of shard {shard} lack {row.key}: run `python -m pipelines.line` first")
    return held


def require_current(store: Store, shard: str, rows: Sequence[Row]) -> None:
    """Prove that the tokens that the index names are there, and are those of the renders that are there now.

    Raises:
        ValueError: a stage has to run first.
    """
    targets, renders = store.manifest("targets", shard).rows, store.manifest("renders", shard).rows
    for row in rows:
        known = targets.get(row.key)
        if known is None or known.digest != row.target:
            raise ValueError(f"the dataset is older than targets/{shard}: run `python -m pipelines.line` first")
        if row.key in renders and known.inputs.get("render") != renders[row.key].digest:
            raise ValueError(f"targets/{shard} are older than renders: run `python -m pipelines.line` first")


def sizes(store: Store, renders: Manifest | None, rows: Sequence[Row]) -> list[int]:
    """Bytes that a row's picture, of renders, and captions take at most, in any format; no picture is read."""
    shapes = store.read(renders, ["width", "height"], keys=[row.key for row in rows]) if renders else {}
    pixels = [shapes[row.key]["width"] * shapes[row.key]["height"] if renders else 0 for row in rows]
    texts = [sum(len(text.encode()) for text in row.captions) for row in rows]
    return [PIXEL_BYTES * area + 2 * text + OVERHEAD for area, text in zip(pixels, texts, strict=True)]


def planned(
    kind: str,
    store: Store,
    shard: str,
    by_split: Mapping[str, Sequence[Row]],
    path: Callable[[str, int], str],
    sizes: Callable[[Sequence[Row]], list[int]],
    inputs: Callable[[Sequence[Row]], Any],
    most: int,
) -> tuple[Record, dict[str, Sequence[Row]]]:
    """The files of a shard of the store, and the rows of each.

    Args:
        kind: of the export.
        store: the collection.
        shard: of the store: what changes in it changes no other shard's files.
        by_split: rows of the index.
        path: of a file, of its split and its number.
        sizes: bytes that rows take at most.
        inputs: what the bytes of a file of these rows follow from.
        most: bytes of a file.
    """
    pieces: dict[str, Piece] = {}
    content: dict[str, Sequence[Row]] = {}
    for split, rows in by_split.items():
        for number, part in enumerate(pack(sizes(rows), most)):
            chosen = [rows[i] for i in part]
            name = path(split, number)
            objects = tuple(sorted({row.object_id for row in chosen}))
            pieces[name] = Piece(name, fingerprints.digest_of(inputs(chosen)), objects)
            content[name] = chosen
    return Record(kind, store.collection, shard, pieces), content


def pictures(store: Store, renders: Manifest, rows: Sequence[Row]) -> list[bytes]:
    """The PNG of each row, straight alpha."""
    found = store.read(renders, ["png"], keys=[row.key for row in rows])
    return [found[row.key]["png"] for row in rows]


def layout(store: Store, rows: Sequence[Row]) -> dict[str, Any]:
    """What the metadata of the rows' target parts says: tokens as ``tokens`` gives them, encoder, settings.

    Raises:
        ValueError: two parts say different things.
    """
    makers = dataset_index.makers_of(store, rows)
    if len(makers) > 1:
        raise ValueError("the dataset's targets come from different encoders: run `python -m pipelines.line` first")
    for said, _ in makers:
        return {**said, "tokens": as_read(said["tokens"])}
    return {}


def as_read(described: Mapping[str, Any]) -> dict[str, Any]:
    """How tokens are laid out once they are read: int8 has been decoded to float16, and its scales are gone."""
    made = {name: about for name, about in described.items() if not name.endswith("_scale")}
    for name in PACKED:
        if made[name]["dtype"] == "int8":
            made[name] = {key: value for key, value in made[name].items() if key != "decode"} | {"dtype": "float16"}
    return made


def tokens(store: Store, rows: Sequence[Row]) -> dict[str, dict[str, torch.Tensor]]:
    """CLS float32 [C], registers [R, C] and patches [N, C] by key; of the parts only these rows are copied."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for batch in dataset_index.batches(store, rows):
        for i, key in enumerate(batch.keys):
            found[key] = {"cls": batch.cls[i], "registers": batch.registers[i], "patches": batch.patches[i]}
    return found


def provenance(store: Store, rows: Sequence[Row]) -> dict[str, str]:
    """By stage, under which settings and by which engine the rows were made, as their ledgers say."""
    found: dict[str, dict[str, None]] = {"views": {}, "renders": {}}
    for shard in sorted({row.target_shard for row in rows}):
        chosen = [row for row in rows if row.target_shard == shard]
        for stage, keys in (("views", {row.object_id for row in chosen}), ("renders", {r.key for r in chosen})):
            ledger = store.manifest(stage, shard).rows
            keys &= set(ledger)  # none of a collection of images
            for digest, engine in sorted({(ledger[k].inputs["settings"], ledger[k].inputs["engine"]) for k in keys}):
                words = [f"{name} {value}" for name, value in store.settings(stage, digest).items()]
                found[stage]["; ".join([", ".join(words), engine])] = None
    return {stage: " or ".join(texts) for stage, texts in found.items() if texts}
