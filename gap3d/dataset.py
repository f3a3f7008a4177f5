"""Reading target parts: tokens as torch tensors over the mapped file, a row group at a time."""

import json
import mmap
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from gap3d.features.tokens import unpack
from gap3d.store import Store

PAGE_HEADER = 128  # bytes; a page's header is some 30 bytes, a second page would bring a second one


@dataclass(frozen=True)
class TargetBatch:
    """Targets of several images.

    Attributes:
        keys: (object_id, view) as ``object_id/view``.
        cls: float32 [B, C].
        registers: the store's number format, [B, R, C].
        patches: the store's number format, [B, N, C]; like registers, a view of the file: never write to it.
    """

    keys: list[str]
    cls: torch.Tensor
    registers: torch.Tensor
    patches: torch.Tensor

    def rows(self, keep: list[int]) -> "TargetBatch":
        """Some of the rows, copied."""
        return TargetBatch([self.keys[i] for i in keep], self.cls[keep], self.registers[keep], self.patches[keep])


def read_targets(store: Store, shard: str, *, verify: bool = False) -> Iterator[TargetBatch]:
    """The live targets of a shard, a row group of a part at a time.

    Args:
        store: the collection, on a local disk: parts are mapped into memory.
        shard: shard key.
        verify: check page checksums first.

    Raises:
        OSError: a page is damaged (with ``verify``).
        ValueError: a part is laid out otherwise than this package writes it.
    """
    held = store.manifest("targets", shard)
    for part in sorted(held.parts):
        live = {row.part_row for row in held.rows.values() if row.part == part}
        yield from read_part(store.shard("targets", shard) / part, live, verify=verify)


def read_part(path: Path, live: Container[int | None], *, verify: bool = False) -> Iterator[TargetBatch]:
    """The row groups of one part, less the rows whose position is not live; see ``read_targets``."""
    with path.open("rb") as handle, pq.ParquetFile(handle, page_checksum_verification=verify) as file:
        memory = memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))
        layout = json.loads(file.schema_arrow.metadata[b"gap3d"])["tokens"]
        places = {file.metadata.row_group(0).column(i).path_in_schema: i for i in range(file.metadata.num_columns)}
        widths = {name: file.schema_arrow.field(name).type.byte_width for name in ("registers", "patches")}
        start = 0
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=None if verify else ["key", "cls"], use_threads=False)
            rows = table.num_rows
            tensors = {
                name: unpack(
                    mapped(memory, file.metadata.row_group(group).column(places[name]), widths[name], path),
                    (rows, *layout[name]["shape"]),
                    layout[name]["dtype"],
                )
                for name in ("registers", "patches")
            }
            keep = [i for i in range(rows) if start + i in live]
            start += rows
            keys = table.column("key").to_pylist()
            cls = np.array(table.column("cls").combine_chunks().values).reshape(rows, -1)
            batch = TargetBatch(keys, torch.from_numpy(cls), **tensors)
            yield batch if len(keep) == rows else batch.rows(keep)


def mapped(memory: memoryview, column: pq.ColumnChunkMetaData, width: int, path: Path) -> memoryview:
    """The values of a fixed-size binary column chunk where they lie in the file.

    A chunk is a page header and the values, because parts are written plain, uncompressed, without nulls
    and with one page per chunk; what is no such chunk is refused.
    """
    plain = column.compression == "UNCOMPRESSED" and column.physical_type == "FIXED_LEN_BYTE_ARRAY"
    size = column.num_values * width
    header = column.total_compressed_size - size
    if not plain or column.has_dictionary_page or not 0 < header <= PAGE_HEADER:
        raise ValueError(
            f"{path}: column {column.path_in_schema} is not one plain page: read it with any Parquet reader"
        )
    end = column.data_page_offset + column.total_compressed_size
    return memory[end - size : end]
