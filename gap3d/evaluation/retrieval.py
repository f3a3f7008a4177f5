"""Retrieval of true images by predicted tokens: Table 2 (docs/method.md 8.2).

A token set counts as one vector of each kind: its CLS, and the mean of its patches. Tokens are read a batch at a time
and only these vectors are kept: ``most_bytes`` of memory are enough, however many tokens there are.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gap3d.evaluation.queries import Query
from gap3d.evaluation.result import Cell, Sample
from gap3d.evaluation.tokens import BATCH_BYTES, TokenSets
from gap3d.evaluation_settings import EvaluationSettings
from gap3d.metrics.bootstrap import DRAWN, mean_interval
from gap3d.metrics.retrieval import AT, BLOCK, PAPER_LIST, Precision, retrieve, vectors
from gap3d.records import Failure, Status

NAMES = {"cls": "CLS", "patches": "mean patch"}  # of the kinds that are compared
UNSORTED, ROUNDED = "unsorted_list", "float16_vectors"  # quirks


@dataclass(frozen=True)
class Pooled:
    """Token sets as retrieval compares them.

    Attributes:
        keys: of those that could be read, in the order in which they were asked for.
        vectors: by kind, [len(keys), C], of length 1.
        failures: why the others have none, by key.
    """

    keys: list[str]
    vectors: Mapping[str, Tensor]
    failures: Mapping[str, Failure]


@dataclass(frozen=True)
class Found:
    """What was measured.

    Attributes:
        samples: one for each query: ``rank_cls``, ``rank_patches``, from 1; with the quirk ``unsorted_list`` also
            ``place_cls``, ``place_patches`` in the released code's list, 11 where it is not there.
        cells: ``cls_r1`` ... ``patches_r10`` in percent, of the kinds that both have.
        queries: that were measured, in their order.
        rows: of these among the predicted vectors, int64 [queries].
        ranks: of these, by kind: int64 [queries].
    """

    samples: list[Sample]
    cells: dict[str, Cell]
    queries: list[Query]
    rows: Tensor
    ranks: dict[str, NDArray[np.int64]]


def kinds_of(predicted: TokenSets, true: TokenSets) -> tuple[str, ...]:
    """What can be compared: of a model without CLS, patches alone; registers are not compared.

    Raises:
        ValueError: nothing can, or the tokens have other widths.
    """
    kinds = tuple(kind for kind in NAMES if kind in predicted.kinds and kind in true.kinds)
    if not kinds:
        had = [", ".join(sets.kinds) or "none" for sets in (predicted, true)]
        raise ValueError(
            f"the predicted tokens are {had[0]}, the true ones {had[1]}: retrieval compares cls, patches, or both"
        )
    for kind in kinds:
        widths = [sets.shapes[kind][1] for sets in (predicted, true)]
        if widths[0] != widths[1]:
            raise ValueError(
                f"predicted {kind} have {widths[0]} channels, true ones {widths[1]}: give the true tokens of the "
                "encoder whose tokens the model predicts"
            )
    return kinds


def most_bytes(queries: int, images: int, widths: Collection[int], *, unsorted: bool = False) -> int:
    """A bound of the memory that ``pool`` (of both) and ``measure`` take beyond the interpreter's own.

    Vectors of everything; once more, those of one kind, and the database turned; two batches of tokens as they are
    read; a block of similarities with what is counted of it, or a block of the bootstrap.

    Args:
        queries: how many.
        images: in the database.
        widths: channels of each kind that is compared.
        unsorted: whether the released code's lists are made.
    """
    kept = 4 * (queries + images) * (sum(widths) + max(widths))
    block = max((56 if unsorted else 8) * max(BLOCK, images), 24 * max(DRAWN, queries))
    return kept + max(2 * BATCH_BYTES, block) + 1000 * (queries + images) + 32 * 1024**2


def pool(
    sets: TokenSets,
    keys: Sequence[str],
    kinds: Sequence[str],
    precision: Precision = "float32",
    tell: Callable[[int], object] = bool,
) -> Pooled:
    """Read token sets in the order in which they lie.

    Args:
        sets: where they are.
        keys: whose, each once.
        kinds: of tokens.
        precision: float16 rounds the vectors (quirk ``float16_vectors``).
        tell: hears how many were looked at.
    """
    place = {key: row for row, key in enumerate(keys)}
    dtype = torch.float16 if precision == "float16" else torch.float32
    made = {kind: torch.zeros(len(keys), sets.shapes[kind][1], dtype=dtype) for kind in kinds}
    good = torch.zeros(len(keys), dtype=torch.bool)
    failures: dict[str, Failure] = {}
    there = [key for key in sets.keys if key in place]
    tell(len(keys) - len(there))
    many = sets.at_once(kinds)
    for start in range(0, len(there), many):
        asked = there[start : start + many]
        found, tokens = sets.read(asked, kinds)
        for number, key in enumerate(found):
            try:
                for kind in kinds:
                    made[kind][place[key]] = vectors(tokens[kind][number : number + 1], precision)[0]
                good[place[key]] = True
            except ValueError:  # sets that hold what is no number were refused before
                failures[key] = Failure(Status.UNSUPPORTED, f"its {NAMES[kind]} is zero, which has no direction")
        tell(len(asked))
    for key in place.keys() - failures.keys():
        if not good[place[key]]:
            missing = Failure(Status.MISSING, f"{sets.description['name']} has no such key")
            failures[key] = sets.failures.get(key, missing)
    if failures:
        made = {kind: rows[good] for kind, rows in made.items()}
    return Pooled([key for key in keys if key not in failures], made, failures)


def database_of(queries: Sequence[Query], images: Collection[str]) -> list[str]:
    """The images that are sought in, also those that no query means: ties, and the released list, follow their order.

    Those that are meant come first, in the order of the queries, which is the protocol's; then the others by key.
    """
    meant = dict.fromkeys(query.truth for query in queries)
    return [*meant, *sorted(set(images) - meant.keys())]


def measure(queries: Sequence[Query], predicted: Pooled, true: Pooled, section: EvaluationSettings) -> Found:
    """Ranks, and recalls with their intervals.

    A query without a prediction, or whose true image can't be read, is not measured: recalls are those of the others,
    and their notes say of how many, and what they would be if those were misses. Intervals draw images with all their
    queries: captions of one image are found, or not, together.

    Args:
        queries: no two with the same key.
        predicted: vectors by the queries' keys.
        true: vectors of the database by the images' keys.
        section: quirks, and the bootstrap's seed, level and resamples.
    """
    image, row = ({key: number for number, key in enumerate(each.keys)} for each in (true, predicted))
    faults = {query.key: fault for query in queries if (fault := fault_of(query, predicted, true, image)) is not None}
    good = [query for query in queries if query.key not in faults]
    rows = torch.tensor([row[query.key] for query in good], dtype=torch.int64)
    truth = torch.tensor([image[query.truth] for query in good], dtype=torch.int64)
    ranks: dict[str, NDArray[np.int64]] = {}
    columns: dict[str, NDArray[np.int64]] = {}
    cells: dict[str, Cell] = {}
    for kind in predicted.vectors:
        sought, database = predicted.vectors[kind][rows], true.vectors[kind]
        if good:
            ranks[kind] = columns[f"rank_{kind}"] = retrieve(sought, database, truth).ranks
            if UNSORTED in section.quirks:
                columns[f"place_{kind}"] = retrieve(sought, database, truth, paper=True).ranks
        counted = columns.get(f"place_{kind}", ranks.get(kind))
        cells |= {f"{kind}_r{at}": cell_of(counted, at, len(queries), truth.numpy(), section) for at in AT}
    values = {
        query.key: {name: float(column[number]) for name, column in columns.items()}
        for number, query in enumerate(good)
    }
    samples = [
        Sample(query.key, faults[query.key].status, faults[query.key].reason)
        if query.key in faults
        else Sample(query.key, values=values[query.key])
        for query in queries
    ]
    return Found(samples, cells, good, rows, ranks)


def fault_of(query: Query, predicted: Pooled, true: Pooled, image: Mapping[str, int]) -> Failure | None:
    """Why a query can't be measured."""
    if query.key in predicted.failures:
        fault = predicted.failures[query.key]
        return Failure(fault.status, f"its prediction: {fault.reason}")
    if query.truth in image:
        return None
    fault = true.failures.get(query.truth, Failure(Status.MISSING, "it is not in the database"))
    return Failure(fault.status, f"its true image {query.truth}: {fault.reason}")


def cell_of(
    ranks: NDArray[np.int64] | None, at: int, queries: int, truth: NDArray[np.int64], section: EvaluationSettings
) -> Cell:
    """A recall in percent."""
    if ranks is None:
        return Cell(None, note=f"none of the {queries} queries has a prediction and a true image")
    hits = (ranks <= at).astype(np.float64)
    interval = mean_interval(hits, seed=section.seed, level=section.level, resamples=section.resamples, groups=truth)
    made = Cell.of(interval, 100)
    notes = []
    if UNSORTED in section.quirks and at < PAPER_LIST:
        notes.append(f"the first {at} of a list that is not sorted: no recall")
    if len(hits) < queries:
        notes.append(
            f"of {len(hits)} of {queries} queries: the others have no prediction or no true image; counted as misses "
            f"they would make it {100 * hits.sum() / queries:.2f}"
        )
    return Cell(made.value, made.low, made.high, made.samples, "; ".join(notes))
