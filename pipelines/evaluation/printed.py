"""A result as a program prints it."""

from collections.abc import Mapping
from typing import Any

from gap3d.evaluation.result import Cell, Result


def heading(result: Result, unit: str) -> list[str]:
    """What is measured of which model, how much of it, and what the numbers are worth.

    Args:
        result: the row.
        unit: its samples, in the plural.
    """
    good, total = result.counts.get("ok", 0), sum(result.counts.values())
    made = [f"{result.model} on {result.collection}: {good} of {total} {unit}; {result.label}"]
    if seen := result.checkpoint.get("trained_on"):
        made.append(f"  {seen}")
    if result.quirks:
        made.append(f"  as the released evaluation does it: {', '.join(result.quirks)}")
    if any(cell.low is not None for cell in result.cells.values()):
        level = result.protocol.get("bootstrap", {}).get("level", 0.95)
        made.append(f"  in brackets: {100 * level:g} % confidence intervals")
    return made


def failed_checks(result: Result) -> list[str]:
    """The checks that do not hold, or that do not apply, and why."""
    made = []
    for name, check in result.checks.items():
        if check["passed"] and check.get("applies") is not False:
            continue
        note = check.get("note") or f"{check.get('measured')} of {check.get('expected', check.get('pairs'))} measured"
        made.append(f"  {name}: {note}" if check["passed"] else f"  check failed: {name}: {note} (see samples.parquet)")
    return made


def format_cell(cell: Cell, digits: int, unit: str = "") -> str:
    """A cell in words: its value with its interval, or why there is none."""
    if cell.value is None:
        return f"- ({cell.note})"
    ends = "" if cell.low is None or cell.high is None else f" [{cell.low:.{digits}f}, {cell.high:.{digits}f}]"
    return f"{cell.value:.{digits}f}{unit}{ends}" + (f"  ({cell.note})" if cell.note else "")


def found(about: Mapping[str, Any], total: int) -> list[str]:
    """What a baseline retrieved; nothing of objects that were generated."""
    if "true_object_found" not in about:
        return []
    return [
        f"  the true object itself was found {about['true_object_found']} of {total} times, "
        f"{about['different_objects_found']} different objects in all"
    ]
