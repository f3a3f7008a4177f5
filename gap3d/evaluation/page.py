"""The evaluation's report as one self-contained page: our numbers beside the paper's, cell by cell."""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gap3d.evaluation.difference import difference
from gap3d.evaluation.history import arrow, columns_of, history_png, number, ordered, step_of
from gap3d.evaluation.published import Column, Published
from gap3d.evaluation.quirks import QUIRKS
from gap3d.evaluation.result import Cell, Result
from gap3d.evaluation.runs import bundled
from gap3d.evaluation.standing import apart, bests, newest, samples_of
from gap3d.pages import document

BODY = "evaluation/evaluation.html"
STYLES = ("pages/elements.css", "evaluation/evaluation.css")
SCRIPTS = ("pages/elements.js", "evaluation/evaluation.js")


@dataclass(frozen=True)
class Picture:
    """A picture of a result.

    Attributes:
        name: its file's.
        png: its bytes; empty where the page has no room for it.
        place: where the file lies.
    """

    name: str
    png: bytes
    place: str


@dataclass(frozen=True)
class Comparison:
    """Objects of several models in rows of prompts.

    Attributes:
        title: of it.
        note: what to know of it.
        warning: what is untrained in it; empty where nothing is.
        pictures: its grids.
    """

    title: str
    note: str
    warning: str
    pictures: Sequence[Picture]


def page(
    head: Mapping[str, Any],
    published: Published,
    results: Sequence[Result],
    pictures: Mapping[str, Sequence[Picture]],
    comparisons: Sequence[Comparison] = (),
) -> bytes:
    """The page.

    Args:
        head: ``title``, ``made`` (when), ``notes`` (what else to know).
        published: the paper's numbers.
        results: all there are, of any table and collection; of one fingerprint there may be several names.
        pictures: of results, by their fingerprint.
        comparisons: further pictures (Figures 3, 4 and 6).
    """
    shown: set[str] = set()
    tables = []
    for name in published.tables:
        tables.append(table_of(published, name, results, pictures, shown))
        shown |= {result.fingerprint for result in results if stands_in(published, name, result)}
    labels = sorted({result.label for result in results if not result.trained})
    labels += [each.warning for each in comparisons if each.warning and each.warning not in labels]
    data = {
        "head": {**head, "source": published.source, "added": published.added, "untrained": labels},
        "tables": tables,
        "comparisons": [
            {**vars(each), "pictures": [picture_record(picture) for picture in each.pictures]} for each in comparisons
        ],
    }
    return document.document(BODY, STYLES, SCRIPTS, str(head["title"]), data, "")


def stands_in(published: Published, name: str, result: Result) -> bool:
    """Whether a result is shown with a table of the paper: those that have its row, else the first of its kind."""
    same = {other: paper for other, paper in published.tables.items() if paper.kind == result.table}
    having = [other for other, paper in same.items() if paper.row_of(result.model)]
    return name in (having or list(same)[:1])


def table_of(
    published: Published,
    name: str,
    results: Sequence[Result],
    pictures: Mapping[str, Sequence[Picture]],
    shown: set[str],
) -> dict[str, Any]:
    """One table of the paper.

    Args:
        published: the paper's numbers.
        name: of the table.
        results: all there are.
        pictures: of results.
        shown: fingerprints that stand in an earlier table.
    """
    paper = published.tables[name]
    mine = [result for result in results if stands_in(published, name, result)]
    by_dataset = {
        dataset: [result for result in mine if paper.dataset_of(result.collection) == dataset]
        for dataset in paper.datasets
    }
    blocks = [block(published, name, dataset, found, pictures) for dataset, found in by_dataset.items()]
    for collection in sorted({result.collection for result in mine if not paper.dataset_of(result.collection)}):
        found = [result for result in mine if result.collection == collection]
        if not all(result.fingerprint in shown for result in found):
            blocks.append(block(published, name, "", found, pictures))
    blocks.sort(key=lambda each: not each["collections"])  # what is measured comes first
    cells = [column for column in paper.columns.values() if not column.absent]
    held = [cell for rows in paper.values.values() for row in rows.values() for cell in row]
    return {
        "number": name,
        "kind": paper.kind,
        "sheet": sheet if (sheet := f"table{name}") in bundled() else "",
        "title": paper.title,
        "differs": [*paper.differs, *(f"{row.title}: {each}" for row in paper.rows.values() for each in row.differs)],
        "notes": paper.notes,
        "elsewhere": published.elsewhere(name),
        "transcribed": len(held),
        "cells": len(cells) * len(paper.rows) * len(paper.datasets),
        "quirks": {name: quirk.sentence for name, quirk in QUIRKS.items() if quirk.table == paper.kind},
        "blocks": blocks,
    }


def block(
    published: Published,
    name: str,
    dataset: str,
    results: Sequence[Result],
    pictures: Mapping[str, Sequence[Picture]],
) -> dict[str, Any]:
    """A table on one dataset of the paper, or on one collection of ours that is none."""
    paper = published.tables[name]
    measured = {column for result in results for column in result.cells}
    columns = {key: each for key, each in paper.columns.items() if key in measured or (dataset and not each.absent)}
    columns |= {key: each for key, each in columns_of(results).items() if key not in columns}
    places = {row: place for place, row in enumerate(paper.rows)}
    last = newest(results)
    last.sort(key=lambda each: (places.get(paper.row_of(each.model), len(places)), each.model, each.quirks))
    best = bests(last, columns)
    made = [{**ours(published, name, result, columns, best, pictures), "apart": apart(result, last)} for result in last]
    rows: list[dict[str, Any]] = []
    for row, about in paper.rows.items() if dataset else ():
        theirs = {key: paper.value(dataset, row, key) for key, each in columns.items() if not each.absent}
        mine = [each for each in made if each["row"] == row]
        rows.append({"name": row, "title": about.title, "paper": theirs, "ours": mine})
    for model in dict.fromkeys(each["model"] for each in made if not (dataset and each["row"])):
        rows.append({"name": model, "title": model, "paper": None, "ours": [m for m in made if m["model"] == model]})
    collections = sorted({result.collection for result in results})
    return {
        "title": paper.datasets[dataset].title if dataset else ", ".join(collections),
        "dataset": dataset,
        "collections": collections,
        "columns": [column_record(key, each) for key, each in columns.items()],
        "rows": rows,
        "history": history(results, columns, f"Table {name}: {', '.join(collections)}"),
    }


def column_record(name: str, column: Column) -> dict[str, Any]:
    """A column as the page's program reads it."""
    return {
        "name": name,
        "arrow": arrow(column),
        **column.model_dump(include={"title", "unit", "better", "digits", "absent", "differs", "notes", "needs"}),
    }


def ours(
    published: Published,
    name: str,
    result: Result,
    columns: Mapping[str, Column],
    best: Mapping[str, set[str]],
    pictures: Mapping[str, Sequence[Picture]],
) -> dict[str, Any]:
    """A result as the page's program reads it."""
    cells = {}
    for key in columns:
        set_against = difference(published, name, key, result)
        cells[key] = {
            **cell_record(result.cells.get(key)),
            "best": result.fingerprint in best[key],
            "difference": set_against.value,
            "why": set_against.why,
        }
    failed = {status: count for status, count in result.counts.items() if status != "ok"}
    return {
        "model": result.model,
        "row": published.tables[name].row_of(result.model),
        "collection": result.collection,
        "trained": result.trained,
        "label": result.label,
        "quirks": result.quirks,
        "step": step_of(result),
        "run": str(result.checkpoint.get("run", "")),
        "made": result.made_at,
        "samples": samples_of(result),
        "failed": failed,
        "retrieved": retrieved(result),
        "trained_on": str(result.checkpoint.get("trained_on", "")),
        "reasons": result.reasons,
        "checks": [
            {"name": check, "passed": passed(said), "said": readable(said)} for check, said in result.checks.items()
        ],
        "cells": cells,
        "provenance": provenance(result),
        "pictures": [picture_record(each) for each in pictures.get(result.fingerprint, ())],
    }


def retrieved(result: Result) -> str:
    """How often the baseline without generation found the true object, in words; empty for other results.

    Two models that retrieve the same objects have the same numbers: this tells why.
    """
    generated = result.protocol.get("generated")
    about = generated if isinstance(generated, dict) else {}
    found, different = about.get("true_object_found"), about.get("different_objects_found")
    if not isinstance(found, int) or not isinstance(different, int):
        return ""
    objects = "object" if different == 1 else "objects"
    return f"true object found {found:,} of {samples_of(result):,}, {different:,} different {objects}"


def passed(said: Mapping[str, Any]) -> bool:
    """Whether a check passed; one that does not say so did not."""
    return said.get("passed") is True


def cell_record(cell: Cell | None) -> dict[str, Any]:
    """A number as the page's program reads it: exactly that of the result; what is not finite is told."""
    if cell is None:
        return {"value": None, "note": ""}
    numbers = {name: getattr(cell, name) for name in ("value", "low", "high")}
    odd = [name for name, value in numbers.items() if value is not None and not math.isfinite(value)]
    notes = [cell.note, *(f"its {name} is not finite" for name in odd)]
    finite = {name: None if name in odd else value for name, value in numbers.items()}
    return {**finite, "samples": cell.samples, "note": "; ".join(filter(None, notes))}


def provenance(result: Result) -> list[dict[str, str]]:
    """All that is needed to measure it again, by title, as text: it may hold numbers that JSON has none for."""
    parts = {
        "what it depends on": {
            "fingerprint": result.fingerprint,
            "samples_digest": result.samples_digest,
            "checkpoint": result.checkpoint,
            "quirks": result.quirks,
        },
        "protocol": result.protocol,
        "settings": result.settings,
        "software": {**result.software, "seconds": result.seconds, "made_at": result.made_at},
    }
    return [{"title": title, "text": readable(part)} for title, part in parts.items() if part]


def readable(content: Any) -> str:
    """JSON for people."""
    return json.dumps(content, indent=1, ensure_ascii=False, default=str)


def picture_record(picture: Picture) -> dict[str, str]:
    """A picture as the page's program reads it."""
    source = f"data:image/png;base64,{base64.b64encode(picture.png).decode()}" if picture.png else ""
    return {"name": picture.name, "place": picture.place, "src": source}


def history(results: Sequence[Result], columns: Mapping[str, Column], title: str) -> dict[str, Any]:
    """All results of a table on one dataset, the oldest checkpoint first, and their picture."""
    rows: list[dict[str, Any]] = [
        {
            "model": result.model,
            "step": step_of(result),
            "run": str(result.checkpoint.get("run", "")),
            "made": result.made_at,
            "trained": result.trained,
            "quirks": result.quirks,
            "samples": samples_of(result),
            "values": {name: number(result.cells.get(name)) for name in columns},
        }
        for result in ordered(results)
    ]
    drawable = len(results) > 1 and any(
        number(result.cells.get(name)) is not None for result in results for name in columns
    )
    png = history_png(results, title) if drawable else b""
    return {"rows": rows, "src": f"data:image/png;base64,{base64.b64encode(png).decode()}" if png else ""}
