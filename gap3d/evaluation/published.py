"""What the paper published, cell by cell, and when a number of ours may be set against it (docs/method.md 8 and 9)."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from gap3d.evaluation.quirks import QUIRKS, Table
from gap3d.evaluation.result import Result
from gap3d.section import Section

FILE = "published.toml"
CAPTIONS = ("drawn", "longest", "all")  # queries.Which, whose module brings torch
LOST = 0.01  # share of the samples that may have no number: published ones have lost some too, nobody says how many
Better = Literal["higher", "lower", "one", ""]


class Column(Section):
    """A column of ours, and the paper's of the same thing."""

    title: str
    """Its head."""
    panel: str
    """Which panel of the history its curve is in."""
    line: str
    """Its curve's name there."""
    unit: str = ""
    """% or nothing."""
    better: Better
    """Which numbers are: higher ones, lower ones, those near one; empty where nobody knows."""
    digits: int = 2
    """Shown after the point."""
    least: float | None = None
    """A published number below it is a slip."""
    most: float | None = None
    """One above it likewise."""
    brief: bool = False
    """Whether it is in the short history."""
    absent: str = ""
    """Why the paper has no such column; empty where it has."""
    needs: tuple[str, ...] = ()
    """Quirks that a result must have for its difference from the paper to mean anything."""
    differs: tuple[str, ...] = ()
    """How the released evaluation measures it."""
    notes: tuple[str, ...] = ()
    """Published numbers whose row is not known, and the like."""


class Row(Section):
    """A row of the paper."""

    title: str
    """As it is shown; a model of ours of that name is this row."""
    names: tuple[str, ...] = ()
    """Patterns of other names of it, in small letters."""

    def holds(self, model: str) -> bool:
        """Whether a model of ours of this name is this row."""
        small = model.lower()
        return small == self.title.lower() or any(fnmatchcase(small, pattern) for pattern in self.names)


class Dataset(Section):
    """What the paper measured on."""

    title: str
    """As it is shown."""
    collections: tuple[str, ...]
    """Patterns of the names of collections of ours that hold it."""
    samples: int | None = None
    """How many there were, where that is known."""
    captions: str = ""
    """Which of an image's were asked for (``queries.Which``); empty where that is no matter."""

    def holds(self, collection: str) -> bool:
        """Whether a collection of ours is this dataset."""
        return any(fnmatchcase(collection, pattern) for pattern in self.collections)


class PaperTable(Section):
    """A table of the paper."""

    kind: Table
    """Which of our tables has its numbers."""
    title: str
    """As it is shown."""
    differs: tuple[str, ...] = ()
    """How the released evaluation differs in all columns."""
    notes: tuple[str, ...] = ()
    """What else to know of it."""
    datasets: dict[str, Dataset]
    """By name."""
    rows: dict[str, Row]
    """By our name of the model."""
    columns: dict[str, Column]
    """By our name, in their order."""
    values: dict[str, dict[str, dict[str, float]]] = Field(default_factory=dict)
    """By dataset, row and column: what is transcribed."""

    def dataset_of(self, collection: str) -> str:
        """The name of the dataset that a collection of ours is; empty where it is none of the paper's."""
        return next((name for name, dataset in self.datasets.items() if dataset.holds(collection)), "")

    def row_of(self, model: str) -> str:
        """The name of the row that a model of ours is; empty where it is none of the paper's."""
        return next((name for name, row in self.rows.items() if name == model.lower() or row.holds(model)), "")

    def value(self, dataset: str, row: str, column: str) -> float | None:
        """A published number; None where it is not transcribed."""
        return self.values.get(dataset, {}).get(row, {}).get(column)


class Published(Section):
    """The paper's tables."""

    source: str
    """Where they are published."""
    tables: dict[str, PaperTable]
    """By number."""
    added: str = ""
    """The file that numbers were added from; empty without one."""

    def elsewhere(self, number: str) -> str:
        """What is said in place of a number."""
        return f"not transcribed here: see Table {number} of {self.source}"


@cache
def bundled() -> Published:
    """What comes with the program."""
    content = tomllib.loads(resources.files("gap3d.evaluation").joinpath(FILE).read_text())
    for table in content["tables"].values():
        if like := table.pop("like", ""):
            other = content["tables"][like]
            columns = {name: {**column, "notes": []} for name, column in other["columns"].items()}
            table |= {"datasets": other["datasets"], "columns": columns}
            table["differs"] = [*other.get("differs", ()), *table.get("differs", ())]
    made = Published(**content)
    for number, paper in made.tables.items():
        check(made, number, paper.values, FILE)
        if unknown := {name for column in paper.columns.values() for name in column.needs} - set(QUIRKS):
            raise ValueError(f"{FILE}: quirks {', '.join(sorted(unknown))} are unknown")
    return made


def with_file(path: Path) -> Published:
    """The same with a user's file over it: published numbers that are not transcribed here, or are better known.

    Raises:
        ValueError: the file is no TOML, or names a table, dataset, row or column that there is not, or a number that
            can't be one.
        OSError: it can't be read.
    """
    ours = bundled()
    try:
        content = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML: {error}") from error
    known(content, ("tables", "source"), f"{path}: there is no entry")
    if content.get("source", ours.source) != ours.source:
        raise ValueError(f"{path}: its source is {content['source']!r}, the tables here are of {ours.source}")
    tables = dict(ours.tables)
    for number, given in mapping(content.get("tables", {}), f"{path}: tables").items():
        known({number: given}, ours.tables, f"{path}: there is no table")
        known(mapping(given, f"{path}: tables.{number}"), ("values",), f"{path}: tables.{number} has no entry")
        values = given.get("values", {})
        check(ours, number, values, str(path))
        kept = ours.tables[number].values
        merged = {
            dataset: {
                row: {**kept.get(dataset, {}).get(row, {}), **values.get(dataset, {}).get(row, {})}
                for row in (*kept.get(dataset, {}), *values.get(dataset, {}))
            }
            for dataset in (*kept, *values)
        }
        tables[number] = ours.tables[number].model_copy(update={"values": merged})
    return ours.model_copy(update={"tables": tables, "added": path.name})


def check(published: Published, number: str, values: Any, place: str) -> None:
    """Raises ValueError where a number stands in no cell of a table, or can't be one."""
    paper, at = published.tables[number], f"{place}: Table {number}"
    columns = [name for name, column in paper.columns.items() if not column.absent]
    known(mapping(values, f"{at}, values"), paper.datasets, f"{at} has no dataset")
    for dataset, rows in values.items():
        known(mapping(rows, f"{at}, {dataset}"), paper.rows, f"{at} has no row")
        for row, cells in rows.items():
            where = f"{at}, {dataset}, {row}"
            known(mapping(cells, where), columns, f"{at} has no column")
            for name, value in cells.items():
                if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                    raise ValueError(f"{where}, {name}: {value!r} is no number; leave out what is not known")
                column = paper.columns[name]
                least, most = column.least, column.most
                if (least is not None and value < least) or (most is not None and value > most):
                    bounds = " and ".join(f"{end:g}" for end in (least, most) if end is not None)
                    raise ValueError(f"{where}, {name}: {value:g} is beyond {bounds}: look at the digits")


def known(given: Mapping[str, Any], names: Any, words: str) -> None:
    """Raises ValueError for the first name that is none of these."""
    for name in given:
        if name not in names:
            raise ValueError(f"{words} {name!r}: choose of {', '.join(names)}")


def mapping(value: Any, place: str) -> Mapping[str, Any]:
    """The value, if it is a table of TOML.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{place} is {value!r}: a table of names is wanted there")
    return value


@dataclass(frozen=True)
class Difference:
    """Ours less the published number, or why there is none.

    Attributes:
        value: None where the two are not of one thing, or one of them is missing.
        why: in words; empty where there is a value.
    """

    value: float | None
    why: str = ""


def difference(published: Published, number: str, name: str, result: Result) -> Difference:
    """Set one number of a result against the paper's.

    Args:
        published: the paper's numbers.
        number: of its table.
        name: of the column.
        result: ours.
    """
    paper = published.tables[number]
    column, dataset, row = paper.columns.get(name), paper.dataset_of(result.collection), paper.row_of(result.model)
    if column is None or column.absent:
        return Difference(None, column.absent if column else "The paper has no such column.")
    if not dataset:
        return Difference(None, f"{result.collection} is none of the paper's datasets.")
    if not row:
        return Difference(None, "The paper has no such row.")
    cell = result.cells.get(name)
    if cell is None or cell.value is None or not math.isfinite(cell.value):
        return Difference(None, f"Ours is missing: {(cell.note if cell else '') or 'not measured'}.")
    if not result.trained:
        return Difference(None, "Ours is of UNTRAINED weights and means nothing.")
    if missing := [quirk for quirk in column.needs if quirk not in result.quirks]:
        did = "; it ".join(QUIRKS[quirk].sentence for quirk in missing)
        return Difference(
            None,
            f"They are not of one thing: the released evaluation {did}. "
            f"To compare, measure with evaluation.quirks {', '.join(missing)}.",
        )
    asked, captions = result.protocol.get("captions"), paper.datasets[dataset].captions
    if captions and asked in CAPTIONS and asked != captions:
        return Difference(None, f"Ours is of other captions ({asked}) than the published number ({captions}).")
    wanted, measured = paper.datasets[dataset].samples, sum(result.counts.values())
    if wanted is not None and measured != wanted:
        return Difference(None, f"Ours is of {measured:,} samples, the published number of {wanted:,}.")
    good = result.counts.get("ok", 0)
    if good < (1 - LOST) * measured:
        return Difference(None, f"Ours is of {good:,} of {measured:,} samples: the others failed, see its reasons.")
    theirs = paper.value(dataset, row, name)
    if theirs is None:
        return Difference(None, f"The published number is {published.elsewhere(number)}.")
    return Difference(cell.value - theirs)
