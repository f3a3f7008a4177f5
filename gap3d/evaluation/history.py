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
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import offset_copy as moved
from PIL import Image

from gap3d.evaluation.lettering import in_first
from gap3d.evaluation.published import Column, bundled
from gap3d.evaluation.result import Cell, Result
from gap3d.exports.card import plain, table

# Okabe and Ito's colours, which people with any colour vision tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLES: Sequence[Literal["-", "--", ":", "-."]] = ("-", "--", ":", "-.")
MARKERS = "os^DvPX"  # not as many as styles: 28 models differ
APART, APART_ALL = 7.0, 42.0  # points between models that share a step, and between the first and the last of them
FLAT = 10  # a model that makes a panel so many times as high as the others need is shown by an arrow
WIDTH, PANEL, LINE = 8.0, 2.3, 0.17  # inches: of the whole, of a panel's height, of a line of the legend
DPI, PALETTE = 150, 256  # pixels an inch, colours: with half of them pale bands take those of others
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
    results = [each for each in results if any(number(cell) is not None for cell in each.cells.values())]
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
    below_all = "step of the training" if steps else "measured at"
    if steps and any(step_of(result) is None for result in results):
        below_all += " (level lines: models without one)"
    for axes, panel in zip(grid, panels, strict=False):
        wanted = {name: column for name, column in columns.items() if column.panel == panel}
        fill(figure, axes, series, wanted, steps=steps)
        axes.set_title(in_first(panel), fontsize=9, parse_math=False)
        if steps:
            axes.set_xlim(*around([step for step in map(step_of, results) if step is not None]))
        else:
            days = [float(date2num(datetime.fromisoformat(result.made_at))) for result in results]
            margin = 0.08 * (max(days) - min(days)) or 1 / 24
            axes.set_xlim(min(days) - margin, max(days) + margin)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[max(0, len(panels) - 2) : len(panels)]:
        axes.set_xlabel(below_all, fontsize=8)
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


def around(steps: Sequence[int]) -> tuple[float, float]:
    """Limits of an axis that leave room on both sides of all steps."""
    margin = 0.08 * (max(steps) - min(steps)) or max(1.0, 0.25 * max(steps))
    return min(steps) - margin, max(steps) + margin


def fill(
    figure: Figure, axes: Axes, series: Mapping[tuple, list[Result]], columns: Mapping[str, Column], *, steps: bool
) -> None:
    """Draw a panel: colours are columns, styles are models; models that share a step stand side by side."""
    drawn = {key: {name: points_of(members, name, steps=steps) for name in columns} for key, members in series.items()}
    drawn = {key: {name: points for name, points in each.items() if points} for key, each in drawn.items()}
    shown = {
        key: [end for points in each.values() for point in points for end in point[1:]] for key, each in drawn.items()
    }
    far = far_off({key: ends for key, ends in shown.items() if ends})
    low, high = span([end for key, ends in shown.items() if key not in far for end in ends])
    shifts = apart(drawn) if steps else [0.0] * len(drawn)
    said = {True: 0, False: 0}  # lines of text at the upper and at the lower edge
    looks = zip(drawn.items(), shifts, cycle(STYLES), cycle(MARKERS), strict=False)
    where = [
        point[0] for each in drawn.values() for points in each.values() for point in points if point[0] is not None
    ]
    levels = 0
    for (key, found), shift, style, marker in looks:
        at = 0.02 + 0.03 * levels  # of a level line's marker, in widths of the panel: beside those of others
        levels += any(points[0][0] is None for points in found.values())
        for order, (name, colour) in enumerate(zip(columns, cycle(COLOURS), strict=False)):
            if name not in found:
                continue
            places, values, lows, highs = (np.array(each) for each in zip(*found[name], strict=True))
            level = places[0] is None
            if key in far and not low <= values[-1] <= high:
                above = values[-1] > high
                text = f"{'↑' if above else '↓'} {values[-1]:.4g}"
                x = at if level else places[-1]
                transform = (
                    axes.transAxes if level else moved(axes.get_xaxis_transform(), figure, x=shift, units="points")
                )
                y = (0.95 - 0.09 * said[above]) if above else (0.05 + 0.09 * said[above])
                said[above] += 1
                axes.plot([x], [y], transform=transform, color=colour, marker=marker, markersize=4)
                side = "right" if not level and x > min(where) + (max(where) - min(where)) / 2 else "left"
                axes.text(x, y, f"  {text}  ", transform=transform, fontsize=7, color=colour, va="center", ha=side)
                continue
            line: dict[str, Any] = {"color": colour, "linestyle": style, "marker": marker, "alpha": 0.85}
            line["markersize"] = max(3, 6 - order)  # of equal numbers the column below shows around that above
            if level:
                axes.plot(
                    [0, at, 1],
                    values[[-1] * 3],
                    transform=axes.get_yaxis_transform(),
                    linewidth=1,
                    markevery=[1],
                    **line,
                )
                continue
            band: dict[str, Any] = {
                "color": colour,
                "transform": moved(axes.transData, figure, x=shift, units="points"),
            }
            if len(places) > 1:
                axes.fill_between(places, lows.astype(float), highs.astype(float), alpha=0.15, linewidth=0, **band)
            else:
                axes.plot(places[[0, 0]], [lows[0], highs[0]], alpha=0.4, linewidth=3, **band)
            axes.plot(places, values, linewidth=1.2, **{**line, **band})
    least, most = (0.05 + 0.09 * said[above] for above in (False, True))  # shares of the height that hold no curve
    height = (high - low or 0.1 * abs(high) or 1.0) / max(0.3, 1 - least - most)
    axes.set_ylim(low - least * height, high + most * height)
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


def span(values: Sequence[float]) -> tuple[float, float]:
    """The least and the greatest of some values."""
    return min(values, default=0.0), max(values, default=0.0)


def far_off(shown: Mapping[tuple, Sequence[float]]) -> set[tuple]:
    """The models, at most half, that would flatten the others: those need less than a tenth of the height."""
    near, out = dict(shown), list[tuple]()
    far: set[tuple] = set()

    def height(without: tuple | None) -> float:
        low, high = span([value for key, values in near.items() if key != without for value in values])
        return high - low

    while len(near) > 2 and len(out) < len(shown) // 2:
        worst = min(near, key=height)
        before, after = height(None), height(worst)
        del near[worst]
        out.append(worst)
        if 0 < FLAT * after < before:
            far = set(out)
    return far


def apart(drawn: Mapping[tuple, Mapping[str, Sequence[tuple]]]) -> list[float]:
    """By how many points each model is drawn to the right: beside those that share a step with it, else by none."""
    steps = [{point[0] for points in each.values() for point in points} - {None} for each in drawn.values()]
    counts = Counter(step for each in steps for step in each)
    sharing = [place for place, each in enumerate(steps) if any(counts[step] > 1 for step in each)]
    pitch = min(APART, APART_ALL / max(1, len(sharing) - 1))
    shifts = {place: (order - (len(sharing) - 1) / 2) * pitch for order, place in enumerate(sharing)}
    return [shifts.get(place, 0.0) for place in range(len(drawn))]


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
