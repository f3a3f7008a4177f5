"""Image-text tars as the released training reads them (docs/method.md 1.2, decisions 8, 12 and 19).

A sample is ``<object_id>_<view>``: ``jpg`` composited on black or ``png`` as it was rendered, ``txt`` the longest
caption, ``json`` the list of all. A split has a flat folder of tars of its own: whoever trains reads ``train/*.tar``.
"""

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image, __version__, features

from gap3d import tars
from gap3d.dataset_index import Row
from gap3d.exports import rows as exported
from gap3d.exports.pieces import Piece, Record
from gap3d.features.images import decode_png
from gap3d.store import Store

KIND = "webdataset"
VERSION = 1  # raise it where equal rows give other bytes


@dataclass(frozen=True)
class Pictures:
    """What becomes of a render.

    Attributes:
        format: png keeps the bytes, with alpha; jpg is composited on black.
        quality: of JPEG, 95 at least (docs/method.md, decision 12); its colour is not subsampled, silhouettes are hard.
        pixels: most pixels of a picture that is decoded.
    """

    format: Literal["jpg", "png"] = "jpg"
    quality: int = 95
    pixels: int = 1 << 28

    def __post_init__(self) -> None:
        if not 95 <= self.quality <= 100:
            raise ValueError(f"--jpeg-quality {self.quality}: from 95 to 100, for the sake of the features")

    def describe(self) -> str:
        """In words, for a card."""
        if self.format == "png":
            return "PNG, RGBA with straight alpha, as rendered"
        return f"JPEG of quality {self.quality} without chroma subsampling, composited on black"

    def inputs(self) -> list[Any]:
        """What its bytes follow from beside the render."""
        return ["png"] if self.format == "png" else ["jpg", self.quality, __version__, features.version("jpg")]

    def encode(self, png: bytes) -> bytes:
        """A render as it goes into the tar."""
        if self.format == "png":
            return png
        file = io.BytesIO()
        image = Image.fromarray(decode_png(png, self.pixels))
        black = Image.new("RGB", image.size)
        black.paste(image.convert("RGB"), mask=image)
        black.save(file, "JPEG", quality=self.quality, subsampling=0)
        return file.getvalue()


def sample(row: Row, png: bytes, made: Pictures) -> dict[str, Any]:
    """One sample.

    Args:
        row: of the index, with at least one caption.
        png: its render.
        made: what becomes of it.
    """
    captions = list(row.captions)
    return {
        "__key__": row.key.replace("/", "_"),
        made.format: made.encode(png),
        "txt": max(captions, key=len).encode(),  # the first of equals
        "json": json.dumps(captions, ensure_ascii=False).encode(),
    }


def planned(
    store: Store, shard: str, by_split: Mapping[str, Sequence[Row]], made: Pictures, most: int
) -> tuple[Record, dict[str, Sequence[Row]]]:
    """The tars of a shard of the store, and the rows of each.

    Args:
        store: the collection.
        shard: of the store: what changes in it changes no other tar.
        by_split: rows of the index that have a caption.
        made: what becomes of a render.
        most: bytes of a tar.
    """
    renders = exported.rendered(store, shard, [row for rows in by_split.values() for row in rows])

    def inputs(rows: Sequence[Row]) -> list[Any]:
        about = [[row.key, renders.rows[row.key].digest, row.captions] for row in rows]
        return [KIND, VERSION, made.inputs(), about]

    return exported.planned(
        KIND,
        store,
        shard,
        by_split,
        lambda split, number: f"{split}/{store.collection}-{shard}-{number:05d}.tar",
        lambda rows: exported.sizes(store, renders, rows),
        inputs,
        most,
    )


def write(
    folder: Path,
    piece: Piece,
    store: Store,
    shard: str,
    rows: Sequence[Row],
    made: Pictures,
    done: Callable[[], object],
) -> None:
    """Write a tar; equal rows give equal bytes, whatever parts they lie in.

    Args:
        folder: the export's.
        piece: the tar.
        store: the collection.
        shard: of the store.
        rows: of the tar.
        made: what becomes of a render.
        done: called for each sample.
    """
    renders = exported.rendered(store, shard, rows)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="jpeg") as pool:

        def samples() -> Iterator[dict[str, Any]]:
            for each in pool.map(sample, rows, exported.pictures(store, renders, rows), [made] * len(rows)):
                yield each
                done()

        tars.write(folder / piece.path, samples())
