"""Which results stand in a table as its rows, and whose numbers are the best of a column."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from gap3d.evaluation.history import number, ordered
from gap3d.evaluation.published import Column
from gap3d.evaluation.result import Result
from gap3d.evaluation_settings import SHAPING

NOT_OF_IT = ("models", "collections", "true", "count", "captions", "level", "resamples", "seed")
"""Settings that choose what is measured, or shape its interval: what was measured says the first for itself."""
LOST = 0.01  # share of the samples that a number may lack and still compete


def samples_of(result: Result) -> int:
    """How many were expected."""
    return sum(result.counts.values())


def measuring(result: Result) -> dict[str, Any]:
    """How a result was measured: the settings that shape its table, and its captions, as far as it says them."""
    section = result.settings.get("evaluation")
    said = section if isinstance(section, Mapping) else {}
    found = {name: said[name] for name in SHAPING[result.table] if name in said and name not in NOT_OF_IT}
    asked = result.protocol.get("captions")
    return found | ({"captions": asked} if asked and result.table != "generation" else {})


def newest(results: Sequence[Result]) -> list[Result]:
    """Of each collection, model, set of quirks, number of samples and way of measuring the last of its history.

    One of fewer samples does not hide one of more: it stands below it where it is newer, and where it is older in the
    history alone. Those of most samples come first, of as many the newest.
    """
    last: dict[tuple, tuple[int, Result]] = {}
    for place, result in enumerate(ordered(results)):
        way = json.dumps(measuring(result), sort_keys=True, default=str)
        last[result.collection, result.model, result.quirks, samples_of(result), way] = place, result
    found = sorted(last.values(), key=lambda each: (-samples_of(each[1]), -each[0]))
    kept: list[tuple[int, Result]] = []
    for place, result in found:
        if not any(
            same_row(result, other) and place < later and samples_of(result) < samples_of(other)
            for later, other in kept
        ):
            kept.append((place, result))
    return [result for _, result in kept]


def same_row(one: Result, other: Result) -> bool:
    """Whether two results are of one model, measured on one collection, with the same quirks."""
    return (one.collection, one.model, one.quirks) == (other.collection, other.model, other.quirks)


def apart(result: Result, results: Sequence[Result]) -> dict[str, Any]:
    """What of a result's measuring others of its row were measured with otherwise."""
    mine = measuring(result)
    others = [measuring(each) for each in results if same_row(each, result)]
    return {name: value for name, value in mine.items() if any(other.get(name) != value for other in others)}


def bests(results: Sequence[Result], columns: Mapping[str, Column]) -> dict[str, set[str]]:
    """By column the fingerprints of the best results, among numbers of one thing.

    They are of trained weights, of equal quirks, measured in one way and on as many samples. What retrieves its objects
    generates none, and may find the true ones: it does not compete.
    """
    found: dict[str, set[str]] = {}
    for name, column in columns.items():
        groups: dict[tuple, dict[str, float]] = {}
        for result in results:
            cell, value = result.cells.get(name), number(result.cells.get(name))
            if cell is None or value is None or not column.better or not competes(result):
                continue
            if cell.samples < math.floor((1 - LOST) * samples_of(result)):
                continue
            badness = {"higher": -value, "lower": value, "one": abs(value - 1)}[column.better]
            way = json.dumps({**measuring(result), "steps": None}, sort_keys=True, default=str)  # steps are a model's
            group = result.collection, result.quirks, samples_of(result), way
            groups.setdefault(group, {})[result.fingerprint] = badness
        found[name] = {
            fingerprint
            for group in groups.values()
            if len(group) > 1
            for fingerprint, badness in group.items()
            if badness == min(group.values())
        }
    return found


def competes(result: Result) -> bool:
    """Whether a result's numbers say something of a model that makes what is measured."""
    generated = result.protocol.get("generated")
    kind = generated.get("kind") if isinstance(generated, Mapping) else None
    return result.trained and kind != "retrieved"
