"""Takedowns: objects and licences that the user has put on a deny-list."""

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gap3d.catalog import known_columns, read_table

COLUMNS = ("object", "licence", "reason")
HASH = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}", re.IGNORECASE)


@dataclass(frozen=True)
class Denial:
    """One line of a deny-list.

    Attributes:
        object: an object_id, an identifier or a sha256, hashes in small letters; empty where a licence is denied.
        licence: a licence's name with * and ?; empty where an object is denied.
        reason: for the row of whatever it denies.
    """

    object: str
    licence: str
    reason: str

    @property
    def line(self) -> str:
        """What it names."""
        return self.object or f"licence {self.licence}"


def read_denials(path: Path) -> list[Denial]:
    """The lines of a deny-list.

    Raises:
        ValueError: no file, an unknown column, or a line that denies nothing; the message names it.
    """
    if not path.is_file():
        raise ValueError(f"catalog.denied names {path}, which is no file")
    rows = read_table(path, "object")
    known_columns(path, rows, COLUMNS)
    found = []
    for number, row in enumerate(rows, start=2):
        cells = {name: str(value).strip() for name, value in row.items() if value is not None}
        named = cells.get("object", "")
        denial = Denial(
            named.lower() if HASH.fullmatch(named) else named,
            cells.get("licence", ""),
            cells.get("reason", "") or "on the deny-list",
        )
        if bool(denial.object) == bool(denial.licence):
            raise ValueError(f"{path} line {number}: name either an object or a licence")
        found.append(denial)
    return found


@dataclass(frozen=True)
class DenyList:
    """What a deny-list says of an image, which has its row beside others of its tar."""

    denials: Sequence[Denial]

    def of(self, names: Sequence[str], licence: str) -> Denial | None:
        """The first line that denies what has these names: its id, identifier and sha256."""
        return next(
            (
                denial
                for denial in self.denials
                if denial.object in names or (denial.licence and matches(licence, [denial.licence]))
            ),
            None,
        )

    def says(self, line: str) -> bool:
        """Whether it still has a line (``Denial.line``)."""
        return any(denial.line == line for denial in self.denials)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a licence's name fits one of the patterns, in any case."""
    return any(fnmatch.fnmatchcase(name.lower(), pattern.lower()) for pattern in patterns)
