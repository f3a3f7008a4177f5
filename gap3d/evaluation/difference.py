"""When a number of ours may be set against a published one, and why not where it may not (docs/method.md 8, 9)."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from gap3d.evaluation.published import Column, Condition, Dataset, Published
from gap3d.evaluation.quirks import QUIRKS
from gap3d.evaluation.result import Cell, Result


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
    asked = (*paper.conditions, *paper.rows[row].conditions, *column.conditions)
    conditions = [each for condition in asked for each in published.conditions[condition]]
    if why := next(reasons(result, cell, column, paper.datasets[dataset], conditions), ""):
        return Difference(None, why)
    theirs = paper.value(dataset, row, name)
    if theirs is None:
        return Difference(None, f"The published number is {published.elsewhere(number)}.")
    return Difference(cell.value - theirs)


def reasons(result: Result, cell: Cell, column: Column, dataset: Dataset, conditions: list[Condition]) -> Iterator[str]:
    """Why a number of trained weights is not of one thing with the published one of its cell."""
    if missing := [quirk for quirk in column.needs if quirk not in result.quirks]:
        did = "; it ".join(QUIRKS[quirk].sentence for quirk in missing)
        yield (
            f"They are not of one thing: the released evaluation {did}. "
            f"To compare, measure with evaluation.quirks {', '.join(missing)}."
        )
    asked = result.protocol.get("captions")
    if dataset.captions and asked != dataset.captions:
        other = f"Ours is of other captions ({asked})" if asked else "Ours does not say of which captions it is"
        yield f"{other}, the published number is of {dataset.captions}."
    least, measured = 1 - dataset.lost, sum(result.counts.values())
    if dataset.samples is not None and not least * dataset.samples <= measured <= dataset.samples:
        yield f"Ours is of {measured:,} samples, the published number of {dataset.samples:,}."
    if dataset.database is not None:
        yield from searched(result, dataset.database, least)
    good = result.counts.get("ok", 0)
    if good < least * measured:
        yield f"Ours is of {good:,} of {measured:,} samples: the others failed, see its reasons."
    if cell.samples < least * measured:
        yield f"This number is of {cell.samples:,} of {measured:,} samples."
    for name in ("identity", "encoder"):
        check = result.checks.get(name, {})
        if check.get("passed") is False:
            yield f"Its check, {name}, fails: {check.get('note') or 'see the checks'}."
    for condition in conditions:
        if is_asked(result, condition) and (why := unmet(result, condition)):
            yield why


def searched(result: Result, wanted: int, least: float) -> Iterator[str]:
    """Whether the images that were sought in are as many as the paper's."""
    found = result.checks.get("database", {}).get("measured")
    if not isinstance(found, int):
        yield f"Ours does not say among how many images was sought, the published number is of {wanted:,}."
    elif not least * wanted <= found <= wanted:
        yield f"Ours was sought among {found:,} images, the published number among {wanted:,}."


def is_asked(result: Result, condition: Condition) -> bool:
    """Whether a condition is one of a result's kind of objects."""
    (kind,) = stated(result, "protocol.generated.kind")
    return not condition.kinds or any(equal(kind, each) for each in condition.kinds)


def unmet(result: Result, condition: Condition) -> str:
    """What contradicts a condition, or does not state it; empty where it is met."""
    wanted = shown(condition.values[0])
    for found in stated(result, condition.at):
        if found is None:
            return f"Ours does not state its {condition.what}, the published number's: {wanted}."
        if not any(equal(found, value) for value in condition.values):
            return f"Not of one thing, {condition.what}: {shown(found)} here, {wanted} in the paper."
    return ""


def stated(result: Result, at: str) -> list[Any]:
    """All that a result says at a place (``Condition.at``), None where it says nothing."""
    found: list[Any] = [{"protocol": result.protocol, "settings": result.settings, "checks": result.checks}]
    for name in at.split("."):
        nodes = [node if isinstance(node, Mapping) else {} for node in found]
        below = [list(node.values()) or [None] if name == "*" else [node.get(name)] for node in nodes]
        found = [value for values in below for value in values]
    return found


def equal(found: Any, value: Any) -> bool:
    """Whether what is stated is a value, or of a pattern."""
    if isinstance(found, str) and isinstance(value, str):
        return fnmatchcase(found, value)
    return bool((list(found) if isinstance(found, tuple) else found) == value)


def shown(value: Any) -> str:
    """A value in a sentence; of a pattern, what it names."""
    return (str(value).strip("*").strip(" (") or "none") if isinstance(value, str) else str(value)
