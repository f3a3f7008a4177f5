"""Queries of anybody's model: which predicted token set means which true one, by a table or by their keys."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gap3d.catalog import known_columns, read_table
from gap3d.evaluation.queries import Query
from gap3d.prompts import cell, lines_of
from gap3d.records import Failure

COLUMNS = ("key", "truth", "caption")
WRITTEN = {"id": "key", "prompt": "caption", "index": "", "caption_index": ""}
"""Columns of the file that ``pipelines.predictions --write`` makes: what they are called here, if anything."""

KINDS = (".csv", ".parquet", ".jsonl")


def read_queries(path: Path, true: Collection[str]) -> list[Query]:
    """The queries of a file.

    Args:
        path: ``.csv``, ``.parquet`` or ``.jsonl`` (an object a line) with ``COLUMNS``: the key of the predicted set, of
            the true one (where that is empty: as ``matched`` finds it), and the text, which figures show.
            A file of ``pipelines.predictions --write`` serves as it is.
        true: keys of the true sets.

    Raises:
        ValueError: it is of another kind, has unknown columns or no rows, or a row has no key or one that stood before.
        OSError: it can't be read.
    """
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise ValueError(f"{path} is no table of queries: it has to end in one of {', '.join(KINDS)}")
    rows: Sequence[Mapping[str, Any] | Failure]
    rows = list(lines_of(path, kind)) if kind == ".jsonl" else table_of(path)
    rows = [row if isinstance(row, Failure) else renamed(row) for row in rows]
    known_columns(path, (row for row in rows if not isinstance(row, Failure)), COLUMNS)
    found: dict[str, Query] = {}
    for number, row in enumerate(rows, start=1):
        if isinstance(row, Failure):
            raise ValueError(f"{path} row {number}: {row.reason}")
        key = cell(row, "key")
        if not key or key in found:
            raise ValueError(f"{path} row {number}: " + (f"the key {key!r} stood before" if key else "it has no key"))
        truth = cell(row, "truth") or truth_of(key, true)
        found[key] = Query(key, truth, cell(row, "caption"), 0, number - 1)
    if not found:
        raise ValueError(f"{path} holds no queries")
    return list(found.values())


def table_of(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV or Parquet file that has ``id``, or else ``key``, which is the name that a complaint has."""
    try:
        return read_table(path, "id")
    except ValueError:
        return read_table(path, "key")


def renamed(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of this table; one that ``pipelines.predictions`` wrote, in this table's names."""
    if "key" in row or "id" not in row:
        return row
    return {WRITTEN.get(name, name): value for name, value in row.items() if WRITTEN.get(name, name)}


def matched(predicted: Iterable[str], true: Collection[str]) -> list[Query]:
    """A query for each predicted set, by key: its true set has the same key, or the same up to ``#`` and a number."""
    return [Query(key, truth_of(key, true), "", 0, index) for index, key in enumerate(sorted(predicted))]


def truth_of(key: str, true: Collection[str]) -> str:
    """The key of the true set; one that is not there where there is none."""
    stem, sign, number = key.rpartition("#")
    return stem if sign and number.isdigit() and key not in true and stem in true else key
