"""What is said of numbers of tokens that are kept as int8: patches and registers are rounded, the CLS never is."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from gap3d.evaluation.result import Cell
from gap3d.evaluation.tokens import TokenSets

ROUNDED = "int8"


def note_of(predicted: TokenSets, true: TokenSets) -> str:
    """What is said of numbers of patches and registers; empty where neither side is rounded."""
    sides = {"predictions": predicted, "targets": true}
    rounded = [name for name, sets in sides.items() if sets.description.get("stored") == ROUNDED]
    return f"{' and '.join(rounded)} are kept as {ROUNDED}, which rounds them and changes this a bit" if rounded else ""


def noted(cells: Mapping[str, Cell], note: str, of: Callable[[str], bool]) -> dict[str, Cell]:
    """The same cells, some with a note more.

    Args:
        cells: by column.
        note: empty changes none.
        of: whether a column is of tokens that are rounded.
    """
    found = dict(cells)
    for name, cell in cells.items():
        if cell.value is not None and of(name):
            found[name] = replace(cell, note="; ".join(filter(None, (cell.note, note))))
    return found
