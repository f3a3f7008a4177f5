"""Figure 2: some queries, the true image of each, and the images that were found first, with their similarities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gap3d.evaluation.grids import Tile, grid
from gap3d.evaluation.queries import Query
from gap3d.evaluation.retrieval import NAMES, Found, Pooled
from gap3d.metrics.retrieval import top
from gap3d.records import Failure
from gap3d.seeds import generator

BEST = 4  # images that are shown of each query
QUERIES = 8


@dataclass(frozen=True)
class Row:
    """One query.

    Attributes:
        query: it.
        rank: of its true image, from 1.
        best: (key, similarity) of the most similar images, best first.
    """

    query: Query
    rank: int
    best: list[tuple[str, float]]

    @property
    def keys(self) -> list[str]:
        """Of the images that it shows, the true one first."""
        return [self.query.truth, *(key for key, _ in self.best)]


def chosen(ranks: NDArray[np.int64], seed: int, count: int = QUERIES) -> list[int]:
    """Numbers of queries to show, in their order: drawn, half of them failures, so far as there are such.

    Args:
        ranks: int64 [queries]; one that is beyond ``BEST`` is a failure.
        seed: of the draw.
        count: how many.
    """
    drawn = generator("", seed, "retrieval figure").permutation(len(ranks))
    failures, successes = drawn[ranks[drawn] > BEST], drawn[ranks[drawn] <= BEST]
    failed = min(len(failures), max(count // 2, count - len(successes)))
    return sorted([*failures[:failed].tolist(), *successes[: count - failed].tolist()])


def rows_of(found: Found, predicted: Pooled, true: Pooled, kind: str, numbers: Sequence[int]) -> list[Row]:
    """Some queries with what is found of them by one kind of token.

    Args:
        found: what was measured.
        predicted: as it was measured.
        true: the database.
        kind: cls or patches.
        numbers: of queries, as ``chosen`` gives them.
    """
    sought = predicted.vectors[kind][found.rows[list(numbers)]]
    indices, values = top(sought, true.vectors[kind], BEST)
    return [
        Row(
            found.queries[number],
            int(found.ranks[kind][number]),
            [(true.keys[index], value) for index, value in zip(row, similar, strict=True)],
        )
        for number, row, similar in zip(numbers, indices.tolist(), values.tolist(), strict=True)
    ]


def figure(
    rows: Sequence[Row],
    pictures: Mapping[str, NDArray[np.uint8] | Failure],
    kind: str,
    model: str,
    collection: str,
    images: int,
    warning: str = "",
) -> bytes:
    """The PNG.

    Args:
        rows: at least one.
        pictures: uint8 [H, W, 3] by key, or why there is none.
        kind: by which the images were found.
        model: what is measured.
        collection: of the images.
        images: how many were sought in.
        warning: what is untrained.
    """

    def tile(key: str, label: str, *, marked: bool = False) -> Tile:
        picture = pictures[key]
        if isinstance(picture, Failure):
            return Tile(status=f"{picture.status}: {picture.reason}", label=label, marked=marked)
        return Tile(picture=picture, label=label, marked=marked)

    cells = []
    for row in rows:
        truth = row.query.truth
        found = [tile(key, f"{similarity:.4f}", marked=key == truth) for key, similarity in row.best]
        cells.append([tile(truth, f"rank {row.rank} of {images}"), *found])
    columns = ["true image", *(f"found {place}" for place in range(1, len(rows[0].best) + 1))]
    title = f"{model}: images of {collection} found by {NAMES[kind]}, cosine; the true one is framed"
    return grid([row.query.caption or row.query.key for row in rows], columns, cells, title, warning=warning)
