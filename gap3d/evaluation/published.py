"""What the paper published, cell by cell, and what a number of ours has to be of (docs/method.md 8 and 9)."""

import math
import tomllib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from gap3d.evaluation.quirks import QUIRKS, Table
from gap3d.section import Section

FILE = "published.toml"
Better = Literal["higher", "lower", "one", ""]


class Condition(Section):
    """What a result has to state, for its numbers to be of one thing with published ones."""

    at: str
    """Where it states it: names joined by points, from ``protocol``, ``settings`` or ``checks``; * is every name."""
    values: Annotated[tuple[Any, ...], Field(min_length=1)]
    """What may stand there, texts as patterns; the first is the paper's."""
    what: str
    """What it is, for people."""
    kinds: tuple[str, ...] = ()
    """Patterns of the kinds of generated objects that it is asked of (``protocol.generated.kind``); none: of all."""


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
    conditions: tuple[str, ...] = ()
    """Of what else its number has to be, by name."""
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
    conditions: tuple[str, ...] = ()
    """Of what a result of that row has to be, by name."""
    differs: tuple[str, ...] = ()
    """How the released evaluation does this row otherwise."""

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
    others: tuple[str, ...] = ()
    """Patterns of those among them that hold something else."""
    samples: int | None = None
    """How many there were, where that is known."""
    database: int | None = None
    """Among how many images was sought, where that is known."""
    lost: float = 0.01
    """Share of them that may lack: published numbers have lost some too, and nobody says how many."""
    captions: str = ""
    """Which of an image's were asked for (``queries.Which``); empty where that is no matter."""

    def holds(self, collection: str) -> bool:
        """Whether a collection of ours is this dataset."""
        held, other = (any(fnmatchcase(collection, each) for each in some) for some in (self.collections, self.others))
        return held and not other


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
    conditions: tuple[str, ...] = ()
    """Of what all of its numbers have to be, by name."""
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
    conditions: dict[str, tuple[Condition, ...]]
    """What a number can be asked to be of, by name."""
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
        asked = [*paper.conditions]
        for row in paper.rows.values():
            asked += row.conditions
        for column in paper.columns.values():
            asked += column.conditions
        known(dict.fromkeys(asked), made.conditions, f"{FILE}: there is no condition")
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
