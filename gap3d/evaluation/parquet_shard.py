"""A plain Parquet shard of token sets: ``key``, and for each kind of tokens a column of numbers.

Columns: ``patches`` (or ``tokens``), and optional ``cls`` and ``registers``. A cell is a nested list [N][C], an Arrow
tensor, or a flat list or binary whose shape stands in the column ``<name>_shape`` (for patches also ``shape``); a CLS
needs none. Binary is little-endian and of the format in a column ``dtype``; without that, of the one that fits its
shape (float16, float32 or float64), and float32 where there is no shape.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gap3d.evaluation.target_sets import keys_of
from gap3d.records import Failure, Status

NAMES = {"cls": ("cls",), "registers": ("registers",), "patches": ("patches", "tokens")}
SIZES = {2: "float16", 4: "float32", 8: "float64"}
CHUNK = 1 << 24  # bytes of cells at once
BUFFER = 1 << 20


class ParquetShard:
    """One file.

    Args:
        path: of it.

    Attributes:
        keys: of its rows.
        kinds: of tokens that it has.

    Raises:
        ValueError: it can't be read, or has no tokens.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys = keys_of(path)
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            rows, size = (
                file.metadata.num_rows,
                sum(file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups)),
            )
        self._columns = columns_of(path, schema)
        self.kinds = tuple(self._columns)
        self._types = {kind: number_of(schema.field(name).type) for kind, name in self._columns.items()}
        for kind, name in self._columns.items():
            if self._types[kind] is None:
                words = f"{path}: column {name} is {schema.field(name).type}"
                raise ValueError(f"{words}: give lists of floats, or binary with a shape")
        shapes = {kind: f"{name}_shape" for kind, name in self._columns.items()}
        self._shapes = {kind: name for kind, name in shapes.items() if name in schema.names}
        if "patches" in self.kinds and "shape" in schema.names:
            self._shapes.setdefault("patches", "shape")
        self._dtype = "dtype" in schema.names
        self._rows_at_once = max(1, CHUNK // max(1, size // max(1, rows)))

    def precision(self, kind: str) -> str:
        """Number format of a kind; empty where only the rows tell it."""
        return self._types[kind] or ""

    def rows(self) -> Iterator[tuple[int, Mapping[str, NDArray[Any]] | Failure]]:
        """(number, by kind [N, C]) of every row; of those in a damaged row group, why there is nothing."""
        names = [*self._columns.values(), *self._shapes.values(), *(["dtype"] if self._dtype else [])]
        with pq.ParquetFile(self.path, buffer_size=BUFFER, page_checksum_verification=True) as file:
            start = 0
            for group in range(file.num_row_groups):
                done, end = start, start + file.metadata.row_group(group).num_rows
                try:
                    # A thread for each column would decode ahead, without a bound.
                    for batch in file.iter_batches(self._rows_at_once, [group], names, use_threads=False):
                        for row in range(batch.num_rows):
                            yield done, self._row(batch, row)
                            done += 1
                except (OSError, pa.ArrowException) as error:
                    if isinstance(error, OSError) and error.errno is not None:
                        raise
                    words = f"{self.path}: row group {group} is damaged ({' '.join(str(error).split())[:200]})"
                    yield from ((row, Failure(Status.HASH_MISMATCH, words)) for row in range(done, end))
                start = end

    def _row(self, batch: pa.RecordBatch, row: int) -> Mapping[str, NDArray[Any]] | Failure:
        dtype = batch.column("dtype")[row].as_py() if self._dtype else None
        found = {}
        for kind, name in self._columns.items():
            shape = batch.column(self._shapes[kind])[row].as_py() if kind in self._shapes else None
            try:
                found[kind] = numbers(batch.column(name)[row], shape, dtype, flat=kind == "cls")
            except ValueError as error:
                return Failure(Status.UNSUPPORTED, f"{self.path}: its {name} {error}")
        return found


def columns_of(path: Path, schema: pa.Schema) -> dict[str, str]:
    """The column of each kind of tokens.

    Raises:
        ValueError: there is none.
    """
    found = {kind: [name for name in names if name in schema.names] for kind, names in NAMES.items()}
    if len(found["patches"]) > 1:
        raise ValueError(f"{path} has columns patches and tokens, which are the same thing here: remove one of them")
    columns = {kind: names[0] for kind, names in found.items() if names}
    if not columns:
        raise ValueError(f"{path} has no column cls, registers, patches or tokens, only {', '.join(schema.names[:8])}")
    return columns


def number_of(kind: pa.DataType) -> str | None:
    """The number format of a column's innermost values; empty for binary, None for what is no tokens."""
    if isinstance(kind, pa.FixedShapeTensorType):
        return number_of(pa.list_(kind.value_type))
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return ""
    depth = 0
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind, depth = kind.value_type, depth + 1
    if not depth or not pa.types.is_floating(kind):
        return None
    return {"halffloat": "float16", "float": "float32", "double": "float64"}[str(kind)]


def numbers(cell: Any, shape: Any, dtype: str | None, *, flat: bool) -> NDArray[Any]:
    """A cell as [N, C].

    Args:
        cell: Arrow's scalar.
        shape: of it, where a column tells it.
        dtype: of binary, where a column tells it.
        flat: whether without a shape it is one token.

    Raises:
        ValueError: it is null or can't be understood; the message goes on from the column's name.
    """
    if not cell.is_valid:
        raise ValueError("are null")
    if isinstance(cell, pa.ExtensionScalar):
        shape, cell = shape or list(cell.type.shape), cell.value
    if isinstance(cell.type, pa.DataType) and number_of(cell.type) == "":
        shape = checked_shape(shape)
        return shaped(decoded(cell.as_buffer(), shape, dtype), shape, flat=flat)
    inner = cell.values
    if number_of(inner.type) is None:  # of a flat list
        shape = checked_shape(shape)
        if inner.null_count:
            raise ValueError("hold nulls")
        return shaped(inner.to_numpy(zero_copy_only=False), shape, flat=flat)
    lengths = inner.value_lengths().to_numpy(zero_copy_only=False)
    values = inner.flatten()
    if inner.null_count or values.null_count or len(lengths) == 0 or (lengths != lengths[0]).any():
        raise ValueError("are no rectangle of numbers [N][C]")
    if number_of(values.type) is not None:
        raise ValueError("are nested deeper than [N][C]")
    return values.to_numpy(zero_copy_only=False).reshape(len(lengths), -1)


def checked_shape(shape: Any) -> list[int] | None:
    """A shape, if it is one: a column of that name may hold anything."""
    if shape is not None and not (isinstance(shape, list) and all(isinstance(side, int) for side in shape)):
        raise ValueError(f"are of the shape {str(shape)[:80]!r}, which is no list of whole numbers [N, C]")
    return shape


def decoded(buffer: Any, shape: list[int] | None, dtype: str | None) -> NDArray[Any]:
    """The numbers of a binary cell, little-endian."""
    count = math.prod(shape) if shape else 0
    name = dtype or (SIZES.get(buffer.size // count, "") if count else "float32")
    if name == "bfloat16":
        wide = np.frombuffer(buffer, "<u2").astype(np.uint32) << 16
        return wide.view(np.float32)
    if name not in SIZES.values():
        raise ValueError(f"are {buffer.size} bytes for a shape of {shape} and dtype {dtype!r}: no number format fits")
    try:
        return np.frombuffer(buffer, np.dtype(name).newbyteorder("<"))
    except ValueError as error:
        raise ValueError(f"are {buffer.size} bytes, which no {name} fits: {error}") from error


def shaped(values: NDArray[Any], shape: list[int] | None, *, flat: bool) -> NDArray[Any]:
    """Flat numbers as [N, C]."""
    if shape is None:
        if not flat:
            raise ValueError("are flat, and no column shape says how many tokens [N, C] they are")
        shape = [1, len(values)]
    shape = [1, *shape] if len(shape) == 1 else shape
    if len(shape) != 2 or any(side < 1 for side in shape) or math.prod(shape) != len(values):
        raise ValueError(f"are {len(values)} numbers, which are not of shape {shape}")
    return values.reshape(shape)
