"""Table 1: how well predicted tokens agree with true ones (docs/method.md 8.1).

Every measure is the mean over samples of a mean over tokens, with an interval by bootstrap over the samples. The quirk
``batch_means`` averages batches of 64 instead, as the released evaluation does.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gap3d.evaluation.encoder_check import encoder_check
from gap3d.evaluation.result import Cell, Sample
from gap3d.evaluation.tokens import TokenSets
from gap3d.metrics.alignment import GAP, MEASURES, NORMALISED, TABLE_KINDS, Alignment, expected_mse, mean
from gap3d.metrics.bootstrap import mean_interval
from gap3d.records import Failure, Status

log = logging.getLogger(__name__)

PAPER_BATCH = 64
BATCH_MEANS = "batch_means"


def kinds_of(predicted: TokenSets, true: TokenSets) -> tuple[str, ...]:
    """The kinds of tokens that both have, in the order of the table.

    Raises:
        ValueError: there are none, or of a kind there are other numbers or widths.
    """
    kinds = tuple(kind for kind in TABLE_KINDS if kind in predicted.shapes and kind in true.shapes)
    ours, theirs = (f"{sets.description['name']} has {shown(sets)}" for sets in (predicted, true))
    if not kinds:
        raise ValueError(f"nothing can be compared: {ours}, and {theirs}")
    if unlike := [kind for kind in kinds if predicted.shapes[kind] != true.shapes[kind]]:
        raise ValueError(
            f"{' and '.join(unlike)} can't be compared: {ours}, and {theirs}. Predictions are measured against the "
            "targets of the encoder that they predict: name those as the true ones"
        )
    return kinds


def shown(sets: TokenSets) -> str:
    """Numbers and widths of tokens, in words."""
    return ", ".join(f"{count} {kind} of width {width}" for kind, (count, width) in sets.shapes.items())


def measure(
    predicted: TokenSets,
    true: TokenSets,
    pairs: Sequence[tuple[str, str]],
    told: Callable[[int], object] = lambda _: None,
) -> list[Sample]:
    """One sample for each pair, in their order: its measures, or why there are none.

    Args:
        predicted: token sets of a model.
        true: of the same shapes.
        pairs: (key of the predicted set, key of the true one), each predicted key once.
        told: is called with a number of pairs that are done.

    Raises:
        ValueError: see ``kinds_of``.
    """
    kinds = kinds_of(predicted, true)
    many = min(predicted.at_once(kinds), true.at_once(kinds))
    samples: list[Sample] = []
    for start in range(0, len(pairs), many):
        batch = pairs[start : start + many]
        ours, made = predicted.read([key for key, _ in batch], kinds)
        theirs, targets = true.read(list(dict.fromkeys(truth for _, truth in batch)), kinds)
        rows = {key: row for row, key in enumerate(ours)}
        truths = {key: row for row, key in enumerate(theirs)}
        both = [(key, truth) for key, truth in batch if key in rows and truth in truths]
        found = Alignment()
        if both:
            found.add(rows_of(made, [rows[key] for key, _ in both]), rows_of(targets, [truths[key] for _, key in both]))
        values = iter([dict(zip(found.values, row, strict=True)) for row in zip(*found.values.values(), strict=True)])
        for key, truth in batch:
            if key not in rows:
                samples.append(failed(key, "predicted", predicted.failures[key]))
            elif truth not in truths:
                samples.append(failed(key, "true", true.failures[truth]))
            else:
                samples.append(Sample(key, values=next(values)))
        told(len(batch))
    return samples


def rows_of(batch: Mapping[str, Tensor], rows: Sequence[int]) -> dict[str, Tensor]:
    """Some rows of a batch; the batch itself, without a copy, where they are all."""
    wanted = list(rows)
    return {kind: part if wanted == list(range(len(part))) else part[wanted] for kind, part in batch.items()}


def failed(key: str, which: str, why: Failure) -> Sample:
    """The row of a pair that has no measures."""
    return Sample(key, why.status, f"{which} tokens: {why.reason}")


def cells_of(
    samples: Sequence[Sample], kinds: Sequence[str], *, seed: int, level: float, resamples: int, quirks: Sequence[str]
) -> dict[str, Cell]:
    """The cells of the table's row: each measure of each kind, with its interval.

    Args:
        samples: in the order of the protocol, on which the quirk's batches depend.
        kinds: of tokens.
        seed: of the bootstrap.
        level: of the intervals.
        resamples: of the bootstrap.
        quirks: that hold.
    """
    good = [sample.values for sample in samples if sample.status is Status.OK]
    names = [f"{measure}_{kind}" for kind in kinds for measure in MEASURES]
    if not good:
        return dict.fromkeys(names, Cell(None, note="no pair could be measured"))
    weights, note = np.ones(len(good)), ""
    if BATCH_MEANS in quirks:
        weights = paper_weights(len(good))
        note = f"mean of means of batches of {PAPER_BATCH}, as the released evaluation"
    made = {}
    for name in names:
        values = np.array([each[name] for each in good]) * weights
        interval = mean_interval(values, seed=seed, level=level, resamples=resamples)
        cell = Cell.of(interval)
        made[name] = Cell(cell.value, cell.low, cell.high, cell.samples, note)
    return made


def paper_weights(count: int) -> NDArray[np.float64]:
    """Weights of samples, with which their mean is the mean of the means of batches of 64: float64 [count]."""
    sizes = [min(PAPER_BATCH, count - start) for start in range(0, count, PAPER_BATCH)]
    return np.repeat([count / (len(sizes) * size) for size in sizes], sizes)


def checks_of(
    samples: Sequence[Sample], kinds: Sequence[str], predicted: TokenSets, true: TokenSets
) -> dict[str, dict[str, Any]]:
    """What was found to hold, loudly where it does not.

    ``identity``: MSE = 1 + r^2 - 2 r cos of every token, which is so where targets are layer-normed. ``encoder``: see
    ``encoder_check``. ``complete``: every pair was measured.
    """
    good = [sample.values for sample in samples if sample.status is Status.OK]
    complete = {"passed": len(good) == len(samples), "pairs": len(samples), "measured": len(good)}
    checks = {"identity": identity(good, kinds, true), "complete": complete}
    for name, check in checks.items():
        if not check["passed"] and name != "complete":
            log.warning("%s: the check %s FAILS: %s", predicted.description["name"], name, check["note"])
    return checks | encoder_check(predicted, true)


def identity(values: Sequence[Mapping[str, float]], kinds: Sequence[str], true: TokenSets) -> dict[str, Any]:
    """Whether the identity holds: its greatest relative gap over all tokens, and over the means of the table."""
    if not values:
        return {"passed": False, "applies": False, "note": "no pair could be measured"}
    gaps = {kind: max(each[f"{GAP}_{kind}"] for each in values) for kind in kinds}
    means = {name: torch.tensor(mean([each[name] for each in values]), dtype=torch.float64) for name in values[0]}
    of_means = {
        kind: float(abs(means[f"mse_{kind}"] - expected_mse(means[f"cosine_{kind}"], means[f"norm_ratio_{kind}"])))
        for kind in kinds
    }
    found: dict[str, Any] = {"greatest_gap": gaps, "gap_of_means": of_means, "most": NORMALISED}
    holds, said = max(gaps.values()) <= NORMALISED, true.description.get("normalised")
    if holds:
        return {"passed": True, "applies": True, **found, "note": "MSE = 1 + r^2 - 2 r cos holds for every token"}
    worst = max(gaps, key=lambda kind: gaps[kind])
    if said:
        note = (
            f"the targets say that they are layer-normed, and MSE = 1 + r^2 - 2 r cos is off by {gaps[worst]:.3g} "
            f"of {worst}: they are not what they say, so the numbers can't be compared with the paper's"
        )
        return {"passed": False, "applies": True, **found, "note": note}
    note = f"does not apply: these targets are not layer-normed (it is off by up to {gaps[worst]:.3g}, in {worst})"
    return {"passed": True, "applies": False, **found, "note": note}
