"""Reading target parts: tokens as torch tensors, a row group at a time, from this machine or from a URL.

What is stored plain on a local disk is mapped: tensors are views of the file. What is compressed, or lies at a URL,
is decoded by Arrow from the bytes of its row group.
"""

import contextlib
import json
import mmap
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from gap3d.features.tokens import PACKED, dequantise, unpack
from gap3d.store import Store

PAGE_HEADER = 128  # bytes; a page's header is some 30 bytes, a second page would bring a second one


class DamagedPart(OSError):
    """Bytes of a part are not those that were written; the message says which."""


@dataclass(frozen=True)
class TargetBatch:
    """Targets of several images.

    Attributes:
        keys: (object_id, view) as ``object_id/view``.
        cls: float32 [B, C].
        registers: the store's number format (float16 for int8), [B, R, C].
        patches: the same, [B, N, C]; like registers, it may be a view of the file: never write to it.
    """

    keys: list[str]
    cls: torch.Tensor
    registers: torch.Tensor
    patches: torch.Tensor

    def rows(self, keep: list[int]) -> "TargetBatch":
        """Some of the rows, copied."""
        return TargetBatch([self.keys[i] for i in keep], self.cls[keep], self.registers[keep], self.patches[keep])


class RowGroup:
    """The rows of one row group as they are stored: int8 is decoded when a row is asked for.

    Args:
        keys: of the rows.
        cls: float32 [B, C].
        buffers: the values of the fixed-size columns, all rows one after the other.
        layout: shapes and number formats (``TokenLayout.describe``).
        mapped: whether the buffers are the file itself.
    """

    def __init__(
        self, keys: list[str], cls: NDArray[np.float32], buffers: dict[str, Any], layout: Any, *, mapped: bool
    ) -> None:
        self.keys = keys
        self.cls = torch.from_numpy(cls)
        self.mapped = mapped
        self._layout = layout
        self._buffers = buffers

    @property
    def nbytes(self) -> int:
        """Bytes of tokens that it holds in memory; 0 where they are the mapped file."""
        return 0 if self.mapped else sum(memoryview(buffer).nbytes for buffer in self._buffers.values())

    def tokens(self, name: str, row: int | None = None) -> torch.Tensor:
        """Registers [R, C] or patches [N, C] of a row; [B, ...] of all. The tensor's memory is that of these rows only.

        Args:
            name: ``registers`` or ``patches``.
            row: position in the group.
        """
        values = self.stored(name, row)
        if self._layout[name]["dtype"] != "int8":
            return values
        return dequantise(values, self.stored(f"{name}_scale", row))

    def stored(self, name: str, row: int | None = None) -> torch.Tensor:
        """A column as it is stored: of a row, or of all."""
        buffer, about = memoryview(self._buffers[name]), self._layout[name]
        if row is None:
            return unpack(buffer, (len(self.keys), *about["shape"]), about["dtype"])
        width = buffer.nbytes // len(self.keys)
        return unpack(buffer[row * width : (row + 1) * width], tuple(about["shape"]), about["dtype"])

    def batch(self) -> TargetBatch:
        """All rows."""
        return TargetBatch(self.keys, self.cls, *(self.tokens(name) for name in PACKED))


class TargetPart:
    """One part of ``targets``, opened.

    Args:
        place: a path, or any URL that fsspec knows; of a URL only the footer and the row groups that are asked for
            are fetched.
        verify: check the checksums of all pages of a row group when it is read.

    Attributes:
        metadata: all that the part says about itself: stage, tokens, encoder, settings.
        layout: of that, how tokens are stored (``TokenLayout.describe``).

    Raises:
        DamagedPart: it is no Parquet file, or cut off.
        ValueError: it is no part of targets.
        OSError: it can't be opened.
    """

    def __init__(self, place: Path | str, *, verify: bool = False) -> None:
        self.place = str(place)
        self.verify = verify
        path = local_path(self.place)
        self._memory: mmap.mmap | None = None
        self._handle: BinaryIO
        if path is not None:
            self._handle = path.open("rb")
        else:
            fs, name = fsspec.core.url_to_fs(self.place)
            # Arrow asks for the ranges it needs, joined where they touch: reading ahead would fetch others too.
            self._handle = fs.open(name, "rb", cache_type="none")
        with contextlib.ExitStack() as undo:
            undo.callback(self._handle.close)
            with naming_damage(self.place, "its footer"):
                self._file = pq.ParquetFile(self._handle, page_checksum_verification=verify, pre_buffer=path is None)
                said = (self._file.schema_arrow.metadata or {}).get(b"gap3d", b"{}")
                self.metadata: dict[str, Any] = json.loads(said)
            if "tokens" not in self.metadata:
                raise ValueError(f"{self.place} is no part of targets: its schema metadata does not say how to decode")
            self.layout: dict[str, Any] = self.metadata["tokens"]
            if path is not None:
                self._memory = mmap.mmap(self._handle.fileno(), 0, access=mmap.ACCESS_READ)
            undo.pop_all()
        about = self._file.metadata
        self._starts = np.cumsum([0, *(about.row_group(group).num_rows for group in range(about.num_row_groups))])
        self._places = {name: i for i, name in enumerate(about.schema.names)} if about.num_row_groups else {}
        self._columns = [name for name in self.layout if name.partition("_")[0] in PACKED]

    def close(self) -> None:
        """Close the file; tensors over it stay good."""
        self._file.close()
        self._handle.close()

    def __enter__(self) -> "TargetPart":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def groups(self) -> int:
        """Number of row groups."""
        return int(self._file.num_row_groups)

    def rows(self, group: int) -> int:
        """Number of rows in a row group."""
        return int(self._starts[group + 1] - self._starts[group])

    def find(self, row: int) -> tuple[int, int]:
        """A row of the part as (row group, position in it).

        Raises:
            IndexError: the part has no such row.
        """
        if not 0 <= row < self._starts[-1]:
            raise IndexError(f"{self.place} has {self._starts[-1]} rows, and row {row} is asked for")
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        return group, int(row - self._starts[group])

    def read(self, group: int) -> TargetBatch:
        """The rows of one row group; see ``open``."""
        return self.open(group).batch()

    def open(self, group: int) -> RowGroup:
        """One row group.

        Raises:
            DamagedPart: a page is damaged (with ``verify``), or can't be decoded.
            OSError: the file can't be read.
        """
        mapped = {} if self._memory is None else self._mapped(group)
        with naming_damage(self.place, f"row group {group}"):
            names = ["key", "cls", *self._columns]
            few = mapped and not self.verify  # what is read for its checksum only is dropped again
            table = self._file.read_row_group(group, columns=names[:2] if few else names, use_threads=False)
            buffers = mapped or {name: values_of(table.column(name)) for name in self._columns}
            cls = np.array(table.column("cls").combine_chunks().flatten(), dtype=np.float32).reshape(table.num_rows, -1)
            return RowGroup(table.column("key").to_pylist(), cls, buffers, self.layout, mapped=bool(mapped))

    def _mapped(self, group: int) -> dict[str, memoryview]:
        """The values of the fixed-size columns where they lie in the file; empty unless each is one plain page.

        A chunk is then a page header and the values: so parts are written, if they are not compressed.
        """
        found = {}
        for name in self._columns:
            column = self._file.metadata.row_group(group).column(self._places[name])
            size = column.num_values * self._file.schema_arrow.field(name).type.byte_width
            header = column.total_compressed_size - size
            plain = column.compression == "UNCOMPRESSED" and column.physical_type == "FIXED_LEN_BYTE_ARRAY"
            if not plain or column.has_dictionary_page or not 0 < header <= PAGE_HEADER:
                return {}
            end = column.data_page_offset + column.total_compressed_size
            found[name] = memoryview(self._memory)[end - size : end]  # type: ignore[arg-type]
        return found


def values_of(column: pa.ChunkedArray) -> pa.Buffer:
    """The values of a fixed-size binary column, one after the other."""
    array = column.combine_chunks()
    width = array.type.byte_width
    return array.buffers()[1].slice(array.offset * width, len(array) * width)


@contextmanager
def naming_damage(place: str, what: str) -> Iterator[None]:
    """Tell damage from a disk or network that fails: those errors have a number or a type.

    Arrow finds most of it; footers have no checksum, so that names, lengths and metadata may be anything.
    """
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
            raise
        words = " ".join(str(error).split())[:200]
        raise DamagedPart(
            f"{place}: {what} is damaged ({words}): `python -m pipelines.verify` says what to do"
        ) from error


def local_path(place: str) -> Path | None:
    """A place on this machine's file systems as a path; None for any other URL."""
    if "://" not in place:
        return Path(place).expanduser()
    fs, name = fsspec.core.url_to_fs(place)
    return Path(name) if isinstance(fs, LocalFileSystem) else None


def read_targets(store: Store, shard: str, *, verify: bool = False) -> Iterator[TargetBatch]:
    """The live targets of a shard, a row group of a part at a time.

    Args:
        store: the collection.
        shard: shard key.
        verify: check page checksums first.

    Raises:
        DamagedPart: a page is damaged (with ``verify``).
    """
    held = store.manifest("targets", shard)
    for part in sorted(held.parts):
        live = {row.part_row for row in held.rows.values() if row.part == part}
        yield from read_part(store.shard("targets", shard) / part, live, verify=verify)


def read_part(place: Path | str, live: Container[int | None], *, verify: bool = False) -> Iterator[TargetBatch]:
    """The row groups of one part, less the rows whose position is not live; see ``read_targets``."""
    with TargetPart(place, verify=verify) as part:
        start = 0
        for group in range(part.groups):
            batch, rows = part.read(group), part.rows(group)
            keep = [i for i in range(rows) if start + i in live]
            start += rows
            yield batch if len(keep) == rows else batch.rows(keep)
