"""A baseline without 3D generation: for a prompt's object stands the one whose CLS is nearest to the predicted CLS.

What it measures is how far a prediction leads to the right pictures; it is no generator, and its label says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gap3d.metrics.retrieval import similarities, vectors

LABEL = "nearest object, no generation"


@dataclass(frozen=True)
class Nearest:
    """What was found for one prompt.

    Attributes:
        key: of the picture in the database.
        cosine: of its CLS with the predicted one.
    """

    key: str
    cosine: float


def nearest(predicted: Tensor, database: Tensor, keys: Sequence[str]) -> list[Nearest]:
    """The picture of a database that is most similar to each predicted CLS.

    Args:
        predicted: [Q, C].
        database: true CLS [N, C]; of those equally similar, the first is found.
        keys: of the database's pictures.

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite, or an empty database.
    """
    if len(keys) != len(database):
        raise ValueError(f"{len(keys)} keys for {len(database)} pictures")
    if not len(predicted):
        return []
    found = []
    for _, block in similarities(vectors(predicted), vectors(database)):
        cosines, places = torch.max(block, dim=1)
        found += [Nearest(keys[place], cosine) for place, cosine in zip(places.tolist(), cosines.tolist(), strict=True)]
    return found
