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


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a licence's name fits one of the patterns, in any case."""
    return any(fnmatch.fnmatchcase(name.lower(), pattern.lower()) for pattern in patterns)
