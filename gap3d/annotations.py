"""Tables of objects from elsewhere: Objaverse-XL's annotations, TRELLIS-500K's captions and scores, the user's own.

They are read by DuckDB where they lie, never whole into memory.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from gap3d.catalog import CAPTION_BYTES
from gap3d.section import absolute
from gap3d.settings import SourceSettings

log = logging.getLogger(__name__)

REPOSITORY = "allenai/objaverse-xl"  # a dataset of the hub (docs/method.md 1.1)
# What a column may be called: Objaverse-XL's name first, then TRELLIS-500K's and plain ones.
NAMES: Mapping[str, Sequence[str]] = {
    "identifier": ("fileIdentifier", "file_identifier", "identifier"),
    "source": ("source",),
    "licence": ("license", "licence"),
    "file_type": ("fileType", "file_type"),
    "sha256": ("sha256",),
    "bytes": ("bytes", "size"),
    "score": ("aesthetic_score",),
    "captions": ("captions",),
}


def annotation_tables(source: SourceSettings) -> list[Path]:
    """The files that list the objects; Objaverse-XL's are downloaded where they are not there yet.

    They are kept as the ``objaverse`` package keeps them (``~/.objaverse/github/github.parquet``), so either finds
    the other's.

    Raises:
        ValueError: a file is not there, or can't be had; the message says what to do.
    """
    if source.kind == "tables":
        return checked(source.tables, "source.tables")
    found = []
    folder = absolute(source.annotations)
    for origin in source.origins:
        name = f"{origin}/{origin}.parquet"
        if not (folder / name).is_file():
            log.info("downloading %s of %s (revision %s)", name, REPOSITORY, source.revision)
            try:
                hf_hub_download(REPOSITORY, name, repo_type="dataset", revision=source.revision, local_dir=folder)
            except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
                words = " ".join(str(error).split())[:300]
                raise ValueError(
                    f"the annotations {name} are not in {folder} and can't be downloaded ({words}): "
                    "copy them there, or run again with a network"
                ) from error
        found.append(folder / name)
    return found


def checked(paths: Sequence[Path], setting: str) -> list[Path]:
    """The same paths, absolute.

    Raises:
        ValueError: one is no file.
    """
    found = [path.expanduser().absolute() for path in paths]
    for path in found:
        if not path.is_file():
            raise ValueError(f"{setting} names {path}, which is no file")
    return found


def literal(text: str) -> str:
    """A text in SQL."""
    return "'" + text.replace("'", "''") + "'"


def reader(path: Path) -> str:
    """The SQL expression that reads a CSV or Parquet file."""
    if path.suffix == ".parquet":
        return f"read_parquet({literal(str(path))})"
    shape = f"all_varchar=true, header=true, delim=',', quote='\"', escape='\"', max_line_size={CAPTION_BYTES}"
    return f"read_csv({literal(str(path))}, {shape})"


def columns_of(connection: duckdb.DuckDBPyConnection, path: Path) -> dict[str, tuple[str, str]]:
    """The column of a table that holds each of NAMES, where it has one, and its SQL type.

    Raises:
        ValueError: it is no table.
    """
    try:
        described = connection.execute(f"DESCRIBE SELECT * FROM {reader(path)}").fetchall()
        there = {row[0]: str(row[1]) for row in described}
    except duckdb.Error as error:
        words = " ".join(str(error).split())[:400]
        raise ValueError(f"{path} can't be read as a table: {words}") from error
    found = {meaning: [name for name in names if name in there] for meaning, names in NAMES.items()}
    return {meaning: (names[0], there[names[0]]) for meaning, names in found.items() if names}


def table_sql(connection: duckdb.DuckDBPyConnection, path: Path, wanted: Mapping[str, str], needed: str) -> str:
    """A SELECT of some of NAMES from a file, as SQL types; NULL where it has no such column or value.

    Args:
        connection: to look at the file's columns.
        path: the file.
        wanted: SQL type by meaning.
        needed: the meaning without which a table is none.

    Raises:
        ValueError: that column is not there.
    """
    there = columns_of(connection, path)
    if needed not in there:
        raise ValueError(f"{path} has no column {' or '.join(NAMES[needed])}")

    def cell(meaning: str, kind: str) -> str:
        if meaning not in there:
            return f"NULL::{kind}"
        name, written = there[meaning]
        if kind == "VARCHAR":  # captions may be a list of texts
            return f'to_json("{name}")::VARCHAR' if written.endswith("]") else f'try_cast("{name}" AS VARCHAR)'
        # DuckDB makes a bare try_cast the type that a CSV is read with, where a wrong cell is an error.
        number = f"try_cast(nullif(\"{name}\"::VARCHAR, '') AS {kind})"
        return f"CASE WHEN isfinite({number}::DOUBLE) THEN {number} END"  # what is no number, such as nan, is absent

    cells = [f"{cell(meaning, kind)} AS {meaning}" for meaning, kind in wanted.items()]
    return f"SELECT {', '.join(cells)} FROM {reader(path)}"
