"""A dataset folder of the Hugging Face hub: Parquet shards that ``datasets.load_dataset(folder)`` opens.

A shard is laid out as a part of the store is: tokens are fixed-size binary, the schema metadata ``gap3d`` says how to
decode them, and every reader of target parts reads it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from gap3d.dataset_index import Row
from gap3d.exports import rows as exported
from gap3d.exports.pieces import HIDDEN, Piece, Record
from gap3d.features.tokens import PACKED
from gap3d.parts import PartWriter, fsync_path
from gap3d.schemas import DATASET, KEY, StageSchema
from gap3d.store import Store
from gap3d.temporary import TemporaryFolder

KIND = "datasets"
VERSION = 1  # raise it where equal rows give other bytes
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # what the library's Image feature holds
TEXTS = ("object_id", "licence", "source", "identifier")
ABOUT = {
    "key": "object_id/view",
    "object_id": "hash of source and identifier",
    "view": "number of the camera",
    "image": "the render: PNG, RGBA, straight alpha",
    "captions": "longest first",
    "licence": "of the object",
    "source": "where the object comes from",
    "identifier": "link or path at the source",
    "rank": "order of sampling: the first so many are a sample of that size",
    "cls": "CLS token, float32",
    "registers": "register tokens, row-major {shape}, {dtype}, little-endian",
    "patches": "patch tokens, row-major {shape}, {dtype}, little-endian; row by row of a {grid} grid",
}


@dataclass(frozen=True)
class Columns:
    """What a shard holds.

    Attributes:
        images: whether with renders.
        layout: metadata of the target parts, for tokens; none leaves them out.
    """

    images: bool
    layout: Mapping[str, Any] | None

    @property
    def schema(self) -> pa.Schema:
        """Arrow columns; the first is the key."""
        made = [KEY, ("object_id", pa.string()), ("view", pa.int32())]
        made += [("image", IMAGE)] if self.images else []
        made += [("captions", pa.list_(pa.string())), ("rank", pa.int64())]
        made += [(name, pa.string()) for name in TEXTS[1:]]
        if self.layout:
            made.append(("cls", pa.list_(pa.float32())))
            for name in PACKED:
                about = self.layout["tokens"][name]
                width = int(np.prod(about["shape"])) * getattr(torch, about["dtype"]).itemsize
                made.append(pa.field(name, pa.binary(width), nullable=False))
        return pa.schema(made)

    @property
    def row_group_rows(self) -> int:
        """As target parts have where there are tokens, else as many renders as a viewer likes to load at once."""
        return 8 if self.layout else 64

    @property
    def token_bytes(self) -> int:
        """Bytes of a row's tokens."""
        if not self.layout:
            return 0
        fixed = sum(f.type.byte_width for f in self.schema if pa.types.is_fixed_size_binary(f.type))
        return fixed + 4 * int(self.layout["tokens"]["cls"]["shape"][0])

    def features(self) -> dict[str, dict[str, Any]]:
        """The library's name of each column's type, as its own files say it."""
        return {field.name: feature(field.type) for field in self.schema}

    def yaml(self) -> list[dict[str, Any]]:
        """The same as the front matter of a card wants it."""
        made = []
        for name, each in self.features().items():
            if each["_type"] == "List":
                made.append({"name": name, "list": each["feature"]["dtype"]})
            else:
                made.append({"name": name, "dtype": each.get("dtype", each["_type"].lower())})
        return made

    def metadata(self) -> dict[str, str]:
        """Of a shard's schema: how the library and ``gap3d.target_parts`` read it."""
        made = {"huggingface": json.dumps({"info": {"features": self.features()}})}
        return {**made, "gap3d": json.dumps(self.layout, sort_keys=True)} if self.layout else made

    def about(self) -> dict[str, str]:
        """What each column is, in words."""
        tokens = self.layout["tokens"] if self.layout else {}
        grid = " x ".join(str(side) for side in tokens.get("grid", ()))
        return {name: ABOUT[name].format(grid=grid, **tokens.get(name, {})) for name in self.schema.names}


def feature(kind: pa.DataType) -> dict[str, Any]:
    """The library's name of a column's type."""
    if kind == IMAGE:
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return {"feature": feature(kind.value_type), "_type": "List"}
    return {"dtype": "float32" if kind == pa.float32() else str(kind), "_type": "Value"}


def planned(
    store: Store, shard: str, by_split: Mapping[str, Sequence[Row]], columns: Columns, most: int
) -> tuple[Record, dict[str, Sequence[Row]]]:
    """The files of a shard of the store, and the rows of each; see ``gap3d.exports.webdataset.planned``."""
    every = [row for rows in by_split.values() for row in rows]
    renders = exported.rendered(store, shard, every) if columns.images else None
    if columns.layout:
        exported.require_current(store, shard, every)

    def sizes(rows: Sequence[Row]) -> list[int]:
        return [size + columns.token_bytes for size in exported.sizes(store, renders, rows)]

    def inputs(rows: Sequence[Row]) -> list[Any]:
        names = [name for name in sorted(DATASET.columns.names) if name not in DATASET.exempt]
        about = [[renders and renders.rows[row.key].digest, [getattr(row, name) for name in names]] for row in rows]
        return [KIND, VERSION, columns.metadata(), about]

    return exported.planned(
        KIND,
        store,
        shard,
        by_split,
        lambda split, number: f"data/{split}-{shard}-{number:05d}.parquet",
        sizes,
        inputs,
        most,
    )


def write(
    folder: Path,
    piece: Piece,
    store: Store,
    shard: str,
    rows: Sequence[Row],
    columns: Columns,
    done: Callable[[], object],
) -> None:
    """Write a shard; see ``gap3d.exports.webdataset.write``."""
    pngs = exported.pictures(store, exported.rendered(store, shard, rows), rows) if columns.images else None
    tokens = exported.tokens(store, rows) if columns.layout else {}
    draft = TemporaryFolder(folder / HIDDEN, "draft")
    try:
        writer = PartWriter(draft.path, StageSchema(columns.schema, (), columns.row_group_rows), columns.metadata())
        try:
            for position, row in enumerate(rows):
                data = {name: getattr(row, name) for name in columns.schema.names if hasattr(row, name)}
                del data["key"]
                if pngs:
                    data["image"] = {"bytes": pngs[position], "path": f"{row.key.replace('/', '_')}.png"}
                for name, tensor in tokens.get(row.key, {}).items():
                    data[name] = tensor.numpy() if name == "cls" else tensor.contiguous().view(torch.uint8).numpy()
                writer.add(row.key, row.target, data)
                done()
            made = draft.path / writer.close()
        except BaseException:
            writer.discard()
            raise
        place = folder / piece.path
        place.parent.mkdir(parents=True, exist_ok=True)
        made.chmod(0o444)
        made.replace(place)
        fsync_path(place.parent)
    finally:
        draft.remove()
