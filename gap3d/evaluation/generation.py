"""Table 3: how far generated objects are from true ones, and how well they fit their prompts (docs/method.md 8.3).

Frechet and kernel distance compare the features of two sets of objects: pictures by Inception-v3 and DINOv2, clouds by
PointNet++. CLIP scores compare an object's pictures with its prompt, text or picture. All is made of features that are
stored already; an object without them is a row that says why, in every case.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gap3d.evaluation.feature_rows import FeatureRows
from gap3d.evaluation.result import Cell, Sample
from gap3d.metrics.bootstrap import mean_interval
from gap3d.metrics.extractors.clip import clip_score
from gap3d.metrics.frechet import FeatureMoments, frechet_distance
from gap3d.metrics.kernel import kernel_distance
from gap3d.records import Failure

Extractor = Literal["inception", "dinov2", "pointnet", "clip", "clip_large"]
KERNEL_SCALE = 100  # as the paper prints it


@dataclass(frozen=True)
class Metric:
    """A column of the table.

    Attributes:
        column: its name.
        kind: frechet and kernel compare two sets; text and image an object with its prompt.
        extractor: whose features are compared.
        views: pictures of an object, or pictures that its cloud is made of.
    """

    column: str
    kind: Literal["frechet", "kernel", "text", "image"]
    extractor: Extractor
    views: Literal[4, 8, 20]


METRICS = (
    Metric("clip_text", "text", "clip", 8),
    Metric("clip_text_large", "text", "clip_large", 8),
    Metric("clip_image", "image", "clip_large", 8),
    Metric("fd_inception", "frechet", "inception", 4),
    Metric("kd_inception", "kernel", "inception", 4),
    Metric("fd_dinov2", "frechet", "dinov2", 4),
    Metric("kd_dinov2", "kernel", "dinov2", 4),
    Metric("fd_pointnet", "frechet", "pointnet", 20),
)


@dataclass(frozen=True)
class Pair:
    """A true object, and what was generated in its place.

    Attributes:
        key: of the true object.
        generated: of the other, among its own kind.
        failure: why there is none.
        values: what else is known of it, for its row of the samples.
    """

    key: str
    generated: str = ""
    failure: Failure | None = None
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Measuring:
    """How it is measured.

    Attributes:
        seed: of the bootstrap.
        level: of confidence intervals.
        resamples: of the bootstrap.
        unpaired: keep true objects whose generation failed: the two sets are then of other objects, as in the released
            evaluation. Else a distance is between sets of the same objects.
    """

    seed: int = 0
    level: float = 0.95
    resamples: int = 2000
    unpaired: bool = False


Side = Mapping[Extractor, FeatureRows]
References = Mapping[str, Mapping[str, Tensor | Failure]]


@dataclass
class Table:
    """What was measured.

    Attributes:
        cells: by column.
        samples: a row for every pair.
    """

    cells: dict[str, Cell]
    samples: list[Sample]


def measure(
    pairs: Sequence[Pair], true: Side, generated: Side, references: References, how: Measuring | None = None
) -> Table:
    """All columns.

    Args:
        pairs: every object that was expected; the order does not matter.
        true: features of true objects; extractors that there are none of are absent.
        generated: features of generated objects.
        references: for the columns of CLIP, the feature of each pair's text or picture [D], or why it has none, by key
            of the pair.
        how: seeds and quirks.

    Returns:
        A cell for every metric. One that can't be measured has no value and says why.
    """
    how = how or Measuring()
    ordered = sorted(pairs, key=lambda pair: pair.key)
    found = [column(metric, ordered, true, generated, references.get(metric.column, {}), how) for metric in METRICS]
    return Table({one.metric.column: one.cell for one in found}, [sample_of(pair, found) for pair in ordered])


@dataclass(frozen=True)
class Column:
    """One metric's result.

    Attributes:
        metric: which.
        cell: its number.
        lacking: why pairs are not part of it, by key.
        scores: of single objects, by key.
    """

    metric: Metric
    cell: Cell
    lacking: Mapping[str, Failure]
    scores: Mapping[str, float] = field(default_factory=dict)


def column(
    metric: Metric,
    pairs: Sequence[Pair],
    true: Side,
    generated: Side,
    references: Mapping[str, Tensor | Failure],
    how: Measuring,
) -> Column:
    """One metric over all pairs, in the order of their keys."""
    theirs = generated.get(metric.extractor)
    if theirs is None:
        return Column(metric, Cell(None, note=no_features(metric)), {})
    if metric.kind in ("text", "image"):
        if not references:
            thing = "text" if metric.kind == "text" else "picture"
            return Column(metric, Cell(None, note=f"no prompt has a {thing}"), {})
        fit = {key: each for key, each in references.items() if isinstance(each, Tensor)}
        unfit = {
            key: name_owner(why, f"{metric.kind} of its prompt")
            for key, why in references.items()
            if isinstance(why, Failure)
        }
        lacking = {pair.key: why for pair in pairs if (why := fault_of(pair, theirs) or unfit.get(pair.key))}
        return scored(metric, pairs, theirs, fit, lacking, how)
    ours = true.get(metric.extractor)
    if ours is None:
        return Column(metric, Cell(None, note=no_features(metric)), {})
    absent = {pair.key: why for pair in pairs if (why := fault_of(pair, theirs))}
    untrue = {pair.key: name_owner(why, "true object") for pair in pairs if (why := ours.failure(pair.key))}
    lacking = untrue | absent
    kept = [pair for pair in pairs if pair.key not in (absent if how.unpaired else lacking)]
    known = [pair for pair in pairs if pair.key not in (untrue if how.unpaired else lacking)]
    if len(kept) < 2 or len(known) < 2:
        return Column(metric, Cell(None, samples=len(kept), note=too_few(kept, known, lacking)), lacking)
    first, second = [pair.key for pair in known], [pair.generated for pair in kept]
    return Column(metric, distance(metric, ours, first, theirs, second), lacking)


def no_features(metric: Metric) -> str:
    """Why a whole column has no number."""
    return f"there are no features of {metric.extractor}: evaluation.views has no {metric.views}"


def fault_of(pair: Pair, theirs: FeatureRows) -> Failure | None:
    """Why there are no features of a pair's generated object."""
    if pair.failure is not None:
        return pair.failure
    why = theirs.failure(pair.generated)
    return name_owner(why, "generated object") if why else None


def name_owner(why: Failure, whose: str) -> Failure:
    """The same, saying whose it is."""
    return Failure(why.status, f"{whose}: {why.reason}")


def too_few(kept: Sequence[Pair], known: Sequence[Pair], lacking: Mapping[str, Failure]) -> str:
    """Why a distance can't be measured."""
    words = f"{len(known)} true and {len(kept)} generated objects: a distance is between sets of at least 2"
    return f"{words}{most_frequent(lacking)}"


def most_frequent(lacking: Mapping[str, Failure]) -> str:
    """The status that most have, with one of its reasons; empty where nothing lacks."""
    if not lacking:
        return ""
    (status, count), *_ = Counter(why.status for why in lacking.values()).most_common(1)
    reason = next(why.reason for why in lacking.values() if why.status is status)
    return f"; {count} are {status}, e.g. {reason}"


def distance(
    metric: Metric, ours: FeatureRows, first: Sequence[str], theirs: FeatureRows, second: Sequence[str]
) -> Cell:
    """The distance of two sets of objects, of the features of all their pictures or clouds."""
    if ours.width != theirs.width:
        raise ValueError(
            f"{metric.extractor}: true objects have {ours.width} channels and generated ones {theirs.width}: they were "
            "measured with other weights; run it again, and both are measured with those of the settings"
        )
    count, width = len(second), ours.width
    if metric.kind == "kernel":
        value = KERNEL_SCALE * kernel_distance(together(ours, first), together(theirs, second))
        return Cell(value, samples=count)
    value = frechet_distance(feature_moments(ours, first), feature_moments(theirs, second))
    fewest = min(ours.per_object * len(first), theirs.per_object * count)
    # Told, because a reader would take the number for one of a larger set: it falls with the number of features.
    few = f"{fewest} features of {width} channels: the covariance is singular, and the distance too great"
    return Cell(value, samples=count, note=few if fewest <= width else "")


def feature_moments(features: FeatureRows, keys: Sequence[str]) -> FeatureMoments:
    """Mean and covariance over all features of these objects; none is kept."""
    made = FeatureMoments(features.width)
    for some in features.batches(keys):
        made.update(some.reshape(-1, features.width))
    return made


def together(features: FeatureRows, keys: Sequence[str]) -> Tensor:
    """All features of these objects, float32 [N, D]."""
    return torch.from_numpy(np.concatenate([some.reshape(-1, features.width) for some in features.batches(keys)]))


def scored(
    metric: Metric,
    pairs: Sequence[Pair],
    theirs: FeatureRows,
    references: Mapping[str, Tensor],
    lacking: Mapping[str, Failure],
    how: Measuring,
) -> Column:
    """The mean over objects of how well their pictures fit; those whose prompt has no picture are no part of it."""
    kept = [pair for pair in pairs if pair.key not in lacking and pair.key in references]
    if not kept:
        return Column(
            metric, Cell(None, note=f"no object of {len(pairs)} has a score{most_frequent(lacking)}"), lacking
        )
    views = (one for some in theirs.batches([pair.generated for pair in kept]) for one in some)
    scores = {
        pair.key: clip_score(torch.from_numpy(each), references[pair.key])
        for pair, each in zip(kept, views, strict=True)
    }
    interval = mean_interval(list(scores.values()), seed=how.seed, level=how.level, resamples=how.resamples)
    return Column(metric, Cell.of(interval), lacking, scores)


def sample_of(pair: Pair, columns: Sequence[Column]) -> Sample:
    """The row of one pair: ok where it is part of every column that has a number, else what it lacks first."""
    values = dict(pair.values) | {one.metric.column: one.scores[pair.key] for one in columns if pair.key in one.scores}
    measured = [one for one in columns if one.cell.value is not None] or columns
    why = next(failures(pair, measured), None)
    return Sample(pair.key, values=values) if why is None else Sample(pair.key, why.status, why.reason, values)


def failures(pair: Pair, columns: Sequence[Column]) -> Iterator[Failure]:
    """What is wrong with a pair, what was generated first."""
    if pair.failure is not None:
        yield pair.failure
    for one in columns:
        if pair.key in one.lacking:
            why = one.lacking[pair.key]
            yield Failure(why.status, f"{one.metric.column}: {why.reason}")
