"""Token sets of any model in plain shards: Parquet with lists of numbers, or .npz.

Such shards are read once, from their beginning to their end, into a scratch file from which rows are taken in any
order: a compressed row group of any size is never held in memory.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from gap3d.evaluation.npz_shard import NpzShard
from gap3d.evaluation.parquet_shard import ParquetShard
from gap3d.records import Failure, Status

SHARDS: Mapping[str, type[ParquetShard] | type[NpzShard]] = {".parquet": ParquetShard, ".npz": NpzShard}


class PlainSets:
    """Rows of plain shards.

    Args:
        paths: of the shards.

    Attributes:
        keys: in the order in which they lie in the shards.
        shapes: tokens and width of each kind, of the first row.

    Raises:
        ValueError: a shard can't be read, a key stands twice, or the shards have other kinds of tokens.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._shards = [SHARDS[path.suffix.lower()](path) for path in paths]
        self._rows: dict[str, int] = {}
        where: dict[str, Path] = {}
        for shard in self._shards:
            for key in shard.keys:
                if key in where:
                    raise ValueError(
                        f"the key {key!r} stands in {where[key]} and again in {shard.path}: remove one of them"
                    )
                where[key] = shard.path
                self._rows[key] = len(self._rows)
            if shard.kinds != self._shards[0].kinds:
                first = self._shards[0]
                raise ValueError(
                    f"{shard.path} has {' and '.join(shard.kinds)}, {first.path} has {' and '.join(first.kinds)}: "
                    "all shards of a model need the same columns"
                )
        self.keys = list(self._rows)
        self._failures: dict[int, Failure] = {}
        self._scratch: dict[str, NDArray[Any]] = {}
        self.shapes = self._first() if self.keys else {}

    def read(self, keys: Iterable[str], kinds: Sequence[str]) -> Iterator[tuple[str, dict[str, Tensor] | Failure]]:
        """Token sets of some keys that are there, in any order: by kind [N, C], or why they can't be had.

        They are views of the scratch file: never write to them.
        """
        self.prepare()
        for key in sorted(keys, key=lambda key: self._rows[key]):
            row = self._rows[key]
            if row in self._failures:
                yield key, self._failures[row]
            else:
                yield key, {kind: torch.from_numpy(np.asarray(self._scratch[kind][row])) for kind in kinds}

    @property
    def ready(self) -> bool:
        """Whether they are read."""
        return bool(self._scratch) or not self.keys

    def prepare(self, told: Callable[[int], object] = lambda _: None) -> None:
        """Read all shards; before that only their keys are known.

        Args:
            told: is called with a number of rows that were read.

        Raises:
            ValueError: the scratch file has no room, or a shard's footer is damaged.
        """
        if self.ready:
            return
        scratch = {kind: memory(len(self.keys), *self.shapes[kind], self._precision(kind)) for kind in self.shapes}
        start = 0
        for shard in self._shards:
            seen = set()
            for row, found in shard.rows():
                if row >= len(shard.keys):
                    raise ValueError(f"{shard.path} has more token sets than keys: it is damaged, write it again")
                self._take(start + row, found, scratch)
                told(row not in seen)  # what is damaged is told of its rows once more
                seen.add(row)
            for row in set(range(len(shard.keys))) - seen:
                self._failures[start + row] = Failure(Status.MISSING, f"{shard.path} ends before row {row}")
            start += len(shard.keys)
        self._scratch = scratch

    def close(self) -> None:
        """Give the scratch file back."""
        self._scratch = {}

    def _take(self, row: int, found: Mapping[str, NDArray[Any]] | Failure, scratch: Mapping[str, NDArray[Any]]) -> None:
        """Keep a row, or the reason why there is none."""
        if isinstance(found, Failure):
            self._failures[row] = found
            return
        for kind, (count, width) in self.shapes.items():
            if found[kind].shape != (count, width):
                words = f"its {kind} are {list(found[kind].shape)}, those of the first row [{count}, {width}]"
                self._failures[row] = Failure(Status.UNSUPPORTED, words)
                return
        with np.errstate(over="ignore"):  # what float32 can't hold is found out as not finite
            for kind, target in scratch.items():
                target[row] = found[kind]

    def _first(self) -> dict[str, tuple[int, int]]:
        """Shapes of the first row that can be read."""
        why = ""
        for shard in self._shards:
            for row, found in shard.rows():
                if not isinstance(found, Failure):
                    return {kind: (part.shape[0], part.shape[1]) for kind, part in found.items()}
                why = why or f"{shard.path} row {row}: {found.reason}"
        raise ValueError(f"no row of {self._shards[0].path.parent} can be read; {why}")

    def _precision(self, kind: str) -> np.dtype[Any]:
        """float16 where all shards have that, else float32."""
        kinds = {shard.precision(kind) for shard in self._shards}
        return np.dtype(np.float16) if kinds == {"float16"} else np.dtype(np.float32)


def memory(rows: int, count: int, width: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Numbers [rows, count, width] in a file without a name, which goes with them.

    Raises:
        ValueError: there is no room for it.
    """
    needed, folder = rows * count * width * dtype.itemsize, tempfile.gettempdir()
    if needed > (free := shutil.disk_usage(folder).free):
        raise ValueError(
            f"reading {rows} sets of {count} x {width} tokens needs {needed / 1e9:.1f} GB in {folder}, which has "
            f"{free / 1e9:.1f} GB free: set TMPDIR to a folder on a larger disk"
        )
    with tempfile.TemporaryFile(prefix="gap3d-tokens-") as file:
        return np.memmap(file, dtype=dtype, mode="w+", shape=(rows, count, width))


def is_ours(schema: pa.Schema) -> bool:
    """Whether a Parquet file is a part of this package, which says how to decode it."""
    return b'"tokens"' in (schema.metadata or {}).get(b"gap3d", b"")
