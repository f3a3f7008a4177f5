"""Where the samples of a tar lie: found once by reading its headers, remembered by the tar's path, size and time."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from gap3d import tars
from gap3d.captions import EXTENSIONS
from gap3d.images import FORMATS
from gap3d.parts import write_atomically
from gap3d.records import Failure
from gap3d.tars import Span

ABSENT = Span(-1, -1)
VERSION = 1  # of the remembered form
SCHEMA = pa.schema(
    [("stem", pa.string()), ("format", pa.string())]
    + [(f"{kind}_{what}", pa.int64()) for kind in ("image", *EXTENSIONS) for what in ("offset", "size")]
)


@dataclass(frozen=True)
class Entry:
    """One sample of a tar.

    Attributes:
        stem: its members' common name.
        format: of its image; empty where it has none.
        image: where the image's bytes lie.
        texts: where those lie that may hold captions, by extension.
    """

    stem: str
    format: str
    image: Span
    texts: dict[str, Span]


@dataclass(frozen=True)
class TarIndex:
    """The samples of one tar.

    Attributes:
        path: of the tar.
        known: the file of the user's cache that says where they lie.
        table: that file, mapped: one row a sample (``SCHEMA``), in the order of the tar.
        fault: why the tar could not be read to its end; empty where it could.
    """

    path: Path
    known: Path
    table: pa.Table
    fault: str

    def __reduce__(self) -> tuple[Any, ...]:
        return (open_index, (self.path, self.known))  # a worker maps the same file

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def entry(self, row: int) -> Entry:
        """One sample."""
        (record,) = self.table.slice(row, 1).to_pylist()
        spans = {kind: Span(record[f"{kind}_offset"], record[f"{kind}_size"]) for kind in ("image", *EXTENSIONS)}
        image = spans.pop("image")
        return Entry(record["stem"], record["format"], image, {k: span for k, span in spans.items() if span != ABSENT})


def indexed(path: Path) -> TarIndex:
    """The samples of a tar, from the user's cache where the tar is as it was."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gap3d" / "tars"
    name = hashlib.sha256(f"{VERSION}\0{path}\0{tars.stamp_of(path)}".encode()).hexdigest()
    known = cache / f"{name}.arrow"
    if not known.exists():
        sink = pa.BufferOutputStream()
        table = scanned(path)
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        write_atomically(known, sink.getvalue().to_pybytes())
    return open_index(path, known)


def open_index(path: Path, known: Path) -> TarIndex:
    """An index that was made before."""
    table = pa.ipc.open_file(pa.memory_map(str(known))).read_all()
    return TarIndex(path, known, table, (table.schema.metadata or {}).get(b"fault", b"").decode())


def scanned(path: Path) -> pa.Table:
    """Reads the headers of a tar; what is wrong with it stands in the schema's metadata."""
    columns: dict[str, list[object]] = {name: [] for name in SCHEMA.names}
    fault = ""
    try:
        for sample in tars.samples(path):
            kind = next((kind for kind in FORMATS if kind in sample.members), "")
            columns["stem"].append(sample.stem)
            columns["format"].append(FORMATS.get(kind, ""))
            for column, extension in (("image", kind), *((text, text) for text in EXTENSIONS)):
                span = sample.members.get(extension, ABSENT)
                columns[f"{column}_offset"].append(span.offset)
                columns[f"{column}_size"].append(span.size)
    except Failure as failure:
        fault = f"{failure.reason}; {len(columns['stem'])} samples before that"
    return pa.table(columns, schema=SCHEMA.with_metadata({"fault": fault}))
