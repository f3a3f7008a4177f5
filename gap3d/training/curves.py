"""The curves of a training as one picture: what a glance has to tell of thousands of steps."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from gap3d.training.log import read

# Okabe and Ito's colours, which people with any colour vision tell apart.
ALL, PATCHES, CLS, REGISTERS, OTHER = "#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7"
WIDTH = 8.0  # inches; 1200 pixels, to be looked at on 800
DPI = 150
COLOURS = 128  # of the picture's palette: it lies in Dagster's event log, and is a quarter of the size with one
PANEL = 2.1  # inches of height
LEFT, RIGHT, BOTTOM = 0.55, 0.12, 0.42  # inches around the panels, for numbers and words
GAPS = {"wspace": 0.2, "hspace": 0.36}  # between them, in panels; what is measured for each picture takes twice as long
POINTS = 400  # of a curve: more steps are drawn as the mean, and as the range, of so many runs of them
SMOOTHED = 15  # a smooth curve is a moving average over a fifteenth of it
EXACT = ("learning_rate",)  # not measured but set: neither smoothed nor a range
FEW = 40  # points that are marked as points
SPAN = 20.0  # greatest over least value from which an axis is logarithmic
BOUNDED = ("cosine", "overlap")  # at most 1, and 0 means something: a logarithm would hide how near to 1 they come

Panel = tuple[str, Sequence[tuple[str, str, str, str]]]
"""Title, and (kind, name, label, colour) of each curve."""

LOSSES = [
    ("", "all", ALL),
    ("_patches", "patches", PATCHES),
    ("_cls", "CLS", CLS),
    ("_registers", "registers", REGISTERS),
]
PANELS: Sequence[Panel] = (
    ("loss", [("train", "loss", "training", PATCHES), ("validation", "loss", "held out", CLS)]),
    ("loss by kind of token", [("train", f"loss{name}", label, colour) for name, label, colour in LOSSES[1:]]),
    ("learning rate", [("train", "learning_rate", "", ALL)]),
    ("norm of the gradient", [("train", "gradient_norm", "", ALL)]),
    ("samples a second", [("train", "samples_per_s", "", ALL)]),
    ("share of the machine's peak", [("train", "flops_share", "", ALL)]),
    (
        "held out: cosine",
        [
            *(("validation", f"cosine{name}", label, colour) for name, label, colour in LOSSES[1:]),
            ("validation", "overlap", "shared neighbours", OTHER),
        ],
    ),
    ("held out: squared error", [("validation", f"mse{name}", label, colour) for name, label, colour in LOSSES[1:]]),
    (
        "held out: norm ratio",
        [("validation", f"norm_ratio{name}", label, colour) for name, label, colour in LOSSES[1:]],
    ),
)


def draw(metrics: Path, title: str = "") -> bytes:
    """The picture of a run.

    Curves of many steps are drawn smoothed over the range of what was measured. Steps at which a number was not finite
    are marked by a red line.

    Args:
        metrics: the JSON lines of ``gap3d.training.log``.
        title: above everything.

    Returns:
        A PNG, 1200 pixels wide, to be read on 800.

    Raises:
        ValueError: there is no line, or one can't be read.
    """
    curves = curves_of(read(metrics))
    panels = [(name, [curve for curve in wanted if curve[:2] in curves]) for name, wanted in PANELS]
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        raise ValueError(f"{metrics} holds no step yet: there is nothing to draw")
    rows = -(-len(panels) // 2)
    above = 0.55 if title else 0.3  # inches
    height = PANEL * rows + BOTTOM + above - PANEL * GAPS["hspace"] / (1 + GAPS["hspace"])
    figure = Figure(figsize=(WIDTH, height), dpi=DPI)
    figure.subplots_adjust(LEFT / WIDTH, BOTTOM / height, 1 - RIGHT / WIDTH, 1 - above / height, **GAPS)
    if title:
        figure.suptitle(title, fontsize=10, y=1 - 0.08 / height, va="top", parse_math=False)
    grid = figure.subplots(rows, 2, squeeze=False).ravel()
    last = max(int(steps[-1]) for steps, _ in curves.values())
    for axes, (name, wanted) in zip(grid, panels, strict=False):
        first = wanted[0][1]
        drawn = [(*curves[curve[:2]], *curve[2:]) for curve in wanted]
        fill(axes, drawn, smooth=first not in EXACT, linear=first.startswith(BOUNDED))
        axes.set_title(name, fontsize=9)
        axes.set_xlim(0, max(1, last) * 1.02)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[max(0, len(panels) - 2) : len(panels)]:
        axes.set_xlabel("step", fontsize=8)
    canvas = FigureCanvasAgg(figure)  # no pyplot: that keeps every figure of the process
    canvas.draw()
    picture = io.BytesIO()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    # By coverage: a rare colour, the red of what is not finite, stays itself.
    pixels.quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(picture, format="png")
    return picture.getvalue()


Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


def curves_of(lines: Any) -> Mapping[tuple[str, str], Curve]:
    """(steps, values) of every number, by (kind, name); null is no number."""
    found: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    for values in lines:
        kind, step = str(values["kind"]), values["step"]
        for name, value in values.items():
            if name not in ("kind", "step") and (value is None or isinstance(value, int | float)):
                steps, numbers = found.setdefault((kind, name), ([], []))
                steps.append(step)
                numbers.append(math.nan if value is None else value)
    return {name: (np.array(steps, float), np.array(numbers, float)) for name, (steps, numbers) in found.items()}


def fill(axes: Axes, curves: Sequence[tuple[Any, Any, str, str]], *, smooth: bool, linear: bool = False) -> None:
    """Draw (steps, values, label, colour) of each curve, on a logarithmic axis where they span much."""
    shown: list[NDArray[np.float64]] = []
    for steps, values, label, colour in curves:
        finite = np.isfinite(values)
        for step in steps[~finite][:1]:
            axes.axvline(step, color="red", linestyle=":", linewidth=1.2, label="not finite")
        if not finite.any():
            continue
        middle, mean, least, most = pooled(steps[finite], values[finite])
        if not smooth:
            axes.plot(middle, mean, color=colour, linewidth=1.2, label=label)
            axes.plot(middle[-1:], mean[-1:], color=colour, marker="o", markersize=3)
        elif len(mean) > FEW:
            axes.fill_between(middle, least, most, color=colour, alpha=0.2, linewidth=0)
            axes.plot(middle, mean, color=colour, alpha=0.35, linewidth=0.6)
            axes.plot(middle, smoothed(mean, len(mean) // SMOOTHED), color=colour, linewidth=1.4, label=label)
        else:
            axes.plot(middle, mean, color=colour, linewidth=1.2, marker="o", markersize=3, label=label)
        shown.append(values[finite])
    numbers = np.concatenate(shown) if shown else np.zeros(1)
    if not linear and numbers.min() > 0 and numbers.max() / numbers.min() > SPAN:
        axes.set_yscale("log")
    axes.tick_params(labelsize=7)
    axes.yaxis.get_offset_text().set_fontsize(7)
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    named = {label: handle for handle, label in zip(handles, labels, strict=True)}  # of equal labels one
    if named:
        axes.legend(named.values(), named.keys(), fontsize=7, framealpha=0.6)


def pooled(steps: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """At most ``POINTS`` (step, mean, least, greatest value), each of a run of steps."""
    firsts = np.unique(np.linspace(0, len(values), min(POINTS, len(values)), endpoint=False).astype(int))
    counts = np.diff([*firsts, len(values)])
    means = (np.add.reduceat(each, firsts) / counts for each in (steps, values))
    return *means, np.minimum.reduceat(values, firsts), np.maximum.reduceat(values, firsts)


def smoothed(values: NDArray[np.float64], span: int) -> NDArray[np.float64]:
    """A moving average around each point, of ``span`` points to either side, nearer ones weighing more."""
    weights = np.hanning(2 * span + 3)[1:-1]
    total, weight = (np.convolve(np.pad(each, span), weights, "valid") for each in (values, np.ones_like(values)))
    return total / weight
