"""A table's numbers over checkpoints: as a picture, and as a short text."""

import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import cycle
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from PIL import Image

from gap3d.evaluation.lettering import in_first
from gap3d.evaluation.published import Column, bundled
from gap3d.evaluation.result import Cell, Result
from gap3d.exports.card import plain, table

# Okabe and Ito's colours, which people with any colour vision tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLES: Sequence[Literal["-", "--", ":", "-."]] = ("-", "--", ":", "-.")
MARKERS = "os^D"
WIDTH, PANEL, LINE = 8.0, 2.3, 0.17  # inches: of the whole, of a panel's height, of a line of the legend
DPI, PALETTE = 150, 128  # pixels an inch, colours: as gap3d.training.curves
FOLDED = 1000  # characters from which Dagster folds a text
NAME = 24  # of a model's name, in the short text


def columns_of(results: Sequence[Result]) -> dict[str, Column]:
    """The columns that results have, in the order of the tables; last, under their names, those that no table knows."""
    kinds = {result.table for result in results}
    known = {name: each for t in bundled().tables.values() if t.kind in kinds for name, each in t.columns.items()}
    found = {name for result in results for name in result.cells}
    ordered = [*(name for name in known if name in found), *sorted(found - set(known))]
    return {name: known.get(name) or unknown(name) for name in ordered}


def unknown(name: str) -> Column:
    """A column of somebody's that no table of the paper has; nobody knows which numbers are better."""
    return Column(title=name, panel=name, line="", better="", digits=4, absent="The paper has no such column.")


def step_of(result: Result) -> int | None:
    """Of the checkpoint; None for what is no checkpoint of ours."""
    step = result.checkpoint.get("step")
    return step if isinstance(step, int) and not isinstance(step, bool) else None


def series_of(results: Sequence[Result]) -> dict[tuple, list[Result]]:
    """Results that can be joined by a curve: of one model, training and set of quirks."""
    found: dict[tuple, list[Result]] = {}
    for result in results:
        run = str(result.checkpoint.get("run", ""))
        found.setdefault((result.collection, result.model, run, result.quirks), []).append(result)
    return found


def names_of(series: Mapping[tuple, list[Result]]) -> list[str]:
    """What the series are called: the model, and of those with one name what tells them apart."""
    extras = [("as released: " + ", ".join(quirks) if quirks else "", run, where) for where, _, run, quirks in series]
    names = [short(model) for _, model, _, _ in series]
    for place in range(3):
        counts = Counter(names)
        told = [each[place] if counts[name] > 1 else "" for name, each in zip(names, extras, strict=True)]
        names = [", ".join(filter(None, pair)) for pair in zip(names, told, strict=True)]
    return names


def history_png(results: Sequence[Result], title: str) -> bytes:
    """A picture of a table's history: a panel a measure, a curve a column and model, intervals as bands.

    Over the step of the checkpoint where there are any; what has none, such as another's model, is a level line. Over
    the time of the measurement where none has one.

    Args:
        results: of one table, in any order.
        title: above it.

    Returns:
        A PNG, 1200 pixels wide, to be read on 800.

    Raises:
        ValueError: there is no result with a number.
    """
    columns = {
        name: column
        for name, column in columns_of(results).items()
        if any(number(result.cells.get(name)) is not None for result in results)
    }
    if not columns:
        raise ValueError("no result has a number: there is no history to draw")
    panels = list(dict.fromkeys(column.panel for column in columns.values()))
    rows = -(-len(panels) // 2)
    series = series_of(results)
    below = 0.5 + (LINE * -(-len(series) // 2) + 0.1 if len(series) > 1 else 0)
    height = PANEL * rows + 0.25 + below
    figure = Figure(figsize=(WIDTH, height), dpi=DPI)
    figure.subplots_adjust(0.07, below / height, 0.985, 1 - 0.6 / height, wspace=0.2, hspace=0.42)
    figure.suptitle(in_first(title), fontsize=10, y=1 - 0.08 / height, va="top", parse_math=False)
    grid = figure.subplots(rows, 2, squeeze=False).ravel()
    steps = any(step_of(result) is not None for result in results)
    for axes, panel in zip(grid, panels, strict=False):
        wanted = {name: column for name, column in columns.items() if column.panel == panel}
        fill(axes, series, wanted, steps=steps)
        axes.set_title(in_first(panel), fontsize=9, parse_math=False)
        if steps:
            axes.set_xlim(0, max(1, *(step_of(result) or 0 for result in results)) * 1.02)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[max(0, len(panels) - 2) : len(panels)]:
        axes.set_xlabel("step of the training" if steps else "measured at", fontsize=8)
    if len(series) > 1:
        shapes = zip(series, cycle(STYLES), cycle(MARKERS), strict=False)
        handles = [
            Line2D([], [], color="black", linestyle=style, marker=marker, markersize=3) for _, style, marker in shapes
        ]
        names = [in_first(name) for name in names_of(series)]
        legend = figure.legend(handles, names, loc="lower center", ncols=2, fontsize=7, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
    canvas = FigureCanvasAgg(figure)  # no pyplot: that keeps every figure of the process
    canvas.draw()
    picture = io.BytesIO()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    pixels.quantize(PALETTE, Image.Quantize.MAXCOVERAGE).save(picture, format="png")
    return picture.getvalue()


def fill(axes: Axes, series: Mapping[tuple, list[Result]], columns: Mapping[str, Column], *, steps: bool) -> None:
    """Draw a panel: colours are columns, styles are models."""
    for name, colour in zip(columns, cycle(COLOURS), strict=False):
        for members, style, marker in zip(series.values(), cycle(STYLES), cycle(MARKERS), strict=False):
            points = points_of(members, name, steps=steps)
            if not points:
                continue
            if points[0][0] is None:
                axes.axhline(points[-1][1], color=colour, linestyle=style, linewidth=1, alpha=0.7)
                continue
            places, values, lows, highs = (np.array(each) for each in zip(*points, strict=True))
            if len(points) > 1:
                axes.fill_between(
                    places, lows.astype(float), highs.astype(float), color=colour, alpha=0.15, linewidth=0
                )
            else:
                axes.plot(places[[0, 0]], [lows[0], highs[0]], color=colour, alpha=0.4, linewidth=3)
            axes.plot(places, values, color=colour, linestyle=style, linewidth=1.2, marker=marker, markersize=4)
    if steps:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    else:
        locator = AutoDateLocator(maxticks=6)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.tick_params(labelsize=7)
    axes.xaxis.get_offset_text().set_fontsize(7)
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    lines = [in_first(column.line) for column in columns.values()]
    if len(columns) > 1:
        colours = [Line2D([], [], color=colour) for _, colour in zip(lines, cycle(COLOURS), strict=False)]
        axes.legend(colours, lines, fontsize=7, framealpha=0.6)


def points_of(results: Sequence[Result], name: str, *, steps: bool) -> list[tuple]:
    """(place, value, low, high) of a column, in the order of the places; a place is None for what has no step.

    Of several results at one step the last that was measured is taken.
    """
    found: dict[Any, tuple] = {}
    for result in sorted(results, key=lambda each: each.made_at):
        cell = result.cells.get(name)
        value = number(cell)
        if cell is None or value is None:
            continue
        place = step_of(result) if steps else datetime.fromisoformat(result.made_at)
        ends = [value if end is None or not math.isfinite(end) else end for end in (cell.low, cell.high)]
        found[place] = (place, value, *ends)
    return [found[None]] if None in found else [found[place] for place in sorted(found)]


def number(cell: Cell | None) -> float | None:
    """The value of a cell, if it is a finite number."""
    return cell.value if cell is not None and cell.value is not None and math.isfinite(cell.value) else None


def ordered(results: Sequence[Result]) -> list[Result]:
    """The oldest checkpoint first: by training, step and time."""
    begun: dict[Any, str] = {}
    for result in results:
        run = result.model, result.checkpoint.get("run")
        begun[run] = min(result.made_at, begun.get(run, result.made_at))

    def place(result: Result) -> tuple:
        step = step_of(result)
        run = result.model, result.checkpoint.get("run")
        return begun[run], *map(str, run), -1 if step is None else step, result.made_at

    return sorted(results, key=place)


def history_table(results: Sequence[Result]) -> str:
    """The newest rows of a table's history as Markdown, below the length from which Dagster folds it.

    Args:
        results: of one table, in any order.
    """
    if not results:
        return "nothing is measured yet"
    columns = columns_of(results)
    brief = {name: column for name, column in columns.items() if column.brief} or columns
    rows = ordered(results)
    several = len({result.collection for result in rows}) > 1
    lines = [[*([plain(short(result.collection))] if several else []), *row_of(result, brief)] for result in rows]
    head = [
        *(["on"] if several else []),
        "model",
        "step",
        *(f"{plain(column.title)} {arrow(column)}".strip() for column in brief.values()),
    ]
    for first in range(len(lines)):
        text = "\n".join(table(head, lines[first:])).strip()
        text += f"\n\n{first} earlier rows are in the report." if first else ""
        if len(text) < FOLDED:
            return text
    return f"{len(rows)} rows: see the report"


def row_of(result: Result, columns: Mapping[str, Column]) -> list[str]:
    """One line of the short history."""
    name = plain(short(result.model))
    name += "" if result.trained else " UNTRAINED"
    name += " as released" if result.quirks else ""
    step = step_of(result)
    shown = [number(result.cells.get(column)) for column in columns]
    digits = [column.digits for column in columns.values()]
    numbers = ["-" if value is None else fixed(value, places) for value, places in zip(shown, digits, strict=True)]
    return [name, "" if step is None else f"{step:,}", *numbers]


def fixed(value: float, digits: int) -> str:
    """So many digits after the point; of small numbers two that are not 0."""
    return f"{value:.2g}" if value and abs(value) < 10 ** (1 - digits) else f"{value:.{digits}f}"


def short(name: str) -> str:
    """A model's name of at most so many letters that there is room for it."""
    return name if len(name) <= NAME else f"{name[: NAME - 1]}…"


def arrow(column: Column) -> str:
    """Which numbers are better."""
    return {"higher": "↑", "lower": "↓", "one": "→ 1", "": ""}[column.better]
