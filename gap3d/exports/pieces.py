"""What an export consists of, piece by piece, so that a finished piece is not made again and a takedown finds its own.

A piece is a file, or an object's folder, that appears whole. Before any is written, a record under ``.gap3d`` in the
export says which pieces there are to be, what their bytes follow from and whose objects they hold: a piece that is
there is the piece of the record, however the export ended.
"""

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gap3d import tars
from gap3d.catalog import CAPTION_BYTES
from gap3d.parts import write_atomically

HIDDEN = ".gap3d"  # a name that dataset libraries pass over
MARKER = "transforms.json"  # the last file of an object's folder
PLACES = ("train", "validation", "data", "renders", "renders_cond")  # folders that pieces lie in
TOGETHER = {"renders", "renders_cond"}  # kinds that one folder may hold side by side


@dataclass(frozen=True)
class Piece:
    """A file or a folder of an export.

    Attributes:
        path: below the export's folder.
        inputs: digest of all that its bytes follow from.
        objects: object_ids of what it holds.
    """

    path: str
    inputs: str
    objects: tuple[str, ...]

    def stands(self, folder: Path) -> bool:
        """Whether it is there, whole."""
        place = folder / self.path
        return place.is_file() or (place / MARKER).is_file()

    def remove(self, folder: Path) -> None:
        """Remove it with all in it."""
        place = folder / self.path
        if place.is_dir():
            (place / MARKER).unlink(missing_ok=True)  # first: what is left after a kill is no whole folder
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)

    def open(self, folder: Path) -> None:
        """Make it one that does not stand, ahead of other bytes for it."""
        place = folder / self.path
        (place / MARKER if place.is_dir() else place).unlink(missing_ok=True)


@dataclass(frozen=True)
class Record:
    """Which pieces a shard of a collection has in an export.

    Attributes:
        kind: the way out, and the folder it fills where a folder can be filled by several.
        collection: whose rows they are.
        shard: of the store.
        pieces: by path.
    """

    kind: str
    collection: str
    shard: str
    pieces: Mapping[str, Piece]

    def path(self, folder: Path) -> Path:
        """Where it lies."""
        return folder / HIDDEN / f"{self.kind}-{self.collection}-{self.shard}.json"

    def save(self, folder: Path) -> None:
        """Replace what is there."""
        write_atomically(self.path(folder), json.dumps(asdict(self), separators=(",", ":")).encode())


def read(path: Path) -> Record:
    """A record."""
    content = json.loads(path.read_text())
    pieces = {name: Piece(**{**each, "objects": tuple(each["objects"])}) for name, each in content["pieces"].items()}
    return Record(content["kind"], content["collection"], content["shard"], pieces)


def records(folder: Path) -> list[Record]:
    """All records of an export; none where the folder holds no export of pieces."""
    return [read(path) for path in sorted((folder / HIDDEN).glob("*-*.json"))]


def require_own(folder: Path, kind: str, collection: str) -> None:
    """Prove that a folder holds no export of another collection or in another way.

    Raises:
        ValueError: it does; the message says which.
    """
    for path in sorted((folder / HIDDEN).glob("*-*.json")):
        other = read(path)
        together = kind != other.kind and {kind, other.kind} <= TOGETHER
        if (other.kind, other.collection) != (kind, collection) and not together:
            raise ValueError(
                f"{folder} holds collection {other.collection} as {other.kind}: choose another folder (--out)"
            )


def due(folder: Path, record: Record) -> list[Piece]:
    """The pieces that have to be written now; what is no piece any more is removed, and the record replaced."""
    path = record.path(folder)
    old = read(path).pieces if path.exists() else {}
    for name, piece in old.items():
        if name not in record.pieces:
            piece.remove(folder)
        elif piece.inputs != record.pieces[name].inputs:
            piece.open(folder)
    for name in set(record.pieces) - set(old):  # of nobody's record: whatever it is, it is not this
        record.pieces[name].open(folder)
    if record.pieces != old:
        record.save(folder)
    return [piece for piece in record.pieces.values() if not piece.stands(folder)]


def erase(folder: Path, objects: Collection[str]) -> tuple[list[str], bool]:
    """Remove every piece that holds one of the objects, and their lines in tables.

    Returns:
        The paths of what changed; whether a piece held others too, which are to be exported again.
    """
    gone: list[str] = []
    others = False
    for record in records(folder):
        hit = {name: piece for name, piece in record.pieces.items() if not set(objects).isdisjoint(piece.objects)}
        for name, piece in hit.items():
            piece.remove(folder)
            gone.append(str(folder / name))
            others = others or not set(piece.objects) <= set(objects)
        if hit:  # last: a takedown that was killed before is done again
            kept = {name: piece for name, piece in record.pieces.items() if name not in hit}
            Record(record.kind, record.collection, record.shard, kept).save(folder)
    csv.field_size_limit(CAPTION_BYTES)
    for path in tables(folder):
        with path.open(newline="") as file:
            lines = list(csv.reader(file))
        column = lines[0].index("object_id")
        kept_lines = [line for line in lines if line[column] not in objects]
        if len(kept_lines) < len(lines):
            text = io.StringIO(newline="")
            csv.writer(text).writerows(kept_lines)
            write_atomically(path, text.getvalue().encode())
            gone.append(str(path))
    return gone, others


def tables(folder: Path) -> Iterator[Path]:
    """The CSV files of an export that have a line an object."""
    if not (folder / HIDDEN).is_dir():
        return
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            if "object_id" in next(csv.reader(file), ()):
                yield path


def traces(folder: Path, objects: Collection[str]) -> list[str]:
    """Where an export still names one of the objects: records, tables, and the pieces themselves, read for it."""
    found = []
    made = records(folder)
    for record in made:
        for piece in record.pieces.values():
            found += [f"{folder / piece.path}: {key}" for key in piece.objects if key in objects]
    texts = [*tables(folder), *(folder.glob("*.md") if made else ())]
    for place in (folder / name for name in PLACES if made):
        texts += place.glob(f"*/{MARKER}")
        for path in place.glob("*.tar"):
            found += [f"{path}: {key}" for key in tar_objects(path) if key in objects]
        for path in place.glob("*.parquet"):
            found += [f"{path}: {key}" for key in parquet_objects(path) if key in objects]
    for path in texts:
        text = path.read_text(errors="replace")
        found += [f"{path}: {key}" for key in objects if key in text]
    return found


def tar_objects(path: Path) -> set[str]:
    """object_ids in a tar of ours; none in a stranger's that can't be read."""
    try:
        with tarfile.open(path, "r:") as file:
            return {name.rpartition("/")[2].partition("_")[0] for name in tars.names(file)}
    except (OSError, EOFError, tarfile.TarError):
        return set()


def parquet_objects(path: Path) -> set[str]:
    """object_ids in a Parquet file of ours; none in a stranger's."""
    try:
        return set(pq.read_table(path, columns=["object_id"]).column("object_id").to_pylist())
    except (OSError, KeyError, pa.ArrowException):
        return set()


def pack(sizes: Sequence[int], most: int) -> list[range]:
    """Neighbours put together until the next would make them too much.

    Args:
        sizes: bytes of each row, at most.
        most: bytes of a file; a row that alone is more has a file of its own.
    """
    made: list[range] = []
    start = total = 0
    for position, size in enumerate(sizes):
        if position > start and total + size > most:
            made.append(range(start, position))
            start, total = position, 0
        total += size
    return [*made, range(start, len(sizes))] if sizes else []
