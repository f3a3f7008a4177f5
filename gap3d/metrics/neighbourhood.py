"""Do predicted patches have the neighbours that the true ones have? (docs/method.md 6)."""

import torch
from torch import Tensor

ROWS = 512  # of the matrix of similarities that is in memory, [ROWS, N]


def neighbourhood_overlap(predicted: Tensor, true: Tensor, k: int = 10) -> Tensor:
    """The share of each patch's k nearest others that agree between prediction and truth, as a mean over patches.

    Nearest by cosine, within the patch's own image; of equally near ones those with the smaller index. Each side is
    looked at by itself, so the channels of the two may be different ones. Chance is k / (N - 1).

    Args:
        predicted: [B, N, C].
        true: [B, N, C'].
        k: neighbours of a patch.

    Returns:
        float64 [B]; NaN where a token of the sample is not finite.

    Raises:
        ValueError: the two have not the same patches, or a patch has fewer than k others.
    """
    if predicted.ndim != 3 or true.ndim != 3 or predicted.shape[:2] != true.shape[:2]:
        raise ValueError(f"{tuple(predicted.shape)} and {tuple(true.shape)} are not the same patches [B, N, C]")
    count = predicted.shape[1]
    if not 1 <= k < count:
        raise ValueError(f"{count} patches have no {k} nearest others")
    # Under autocast the products would have three digits, and neighbours differ in the fourth.
    with torch.autocast(predicted.device.type, enabled=False):
        return torch.stack([of_one(one, other, k) for one, other in zip(predicted, true, strict=True)])


def of_one(predicted: Tensor, true: Tensor, k: int) -> Tensor:
    """The overlap of one image, float64 []: tokens [N, C] and [N, C']."""
    if not (torch.isfinite(predicted).all() and torch.isfinite(true).all()):
        return torch.tensor(torch.nan, dtype=torch.float64, device=predicted.device)
    sides = [torch.nn.functional.normalize(tokens.float(), dim=-1) for tokens in (predicted, true)]
    agreeing = torch.zeros((), dtype=torch.int64, device=predicted.device)
    for start in range(0, len(predicted), ROWS):
        near = [nearest(units, start, min(start + ROWS, len(units)), k) for units in sides]
        agreeing += (near[0] & near[1]).sum()
    return agreeing.double() / (k * len(predicted))


def nearest(units: Tensor, start: int, stop: int, k: int) -> Tensor:
    """Which others are the k nearest of patches start to stop.

    Args:
        units: unit vectors [N, C].
        start: first patch.
        stop: the one after the last.
        k: neighbours of a patch.

    Returns:
        bool [stop - start, N], k of each row true.
    """
    similarity = units[start:stop] @ units.T
    similarity.diagonal(start).fill_(-torch.inf)  # not its own neighbour
    least = similarity.topk(k, dim=-1).values[:, -1:]
    nearer, equal = similarity > least, similarity == least
    wanted = k - nearer.sum(-1, keepdim=True)  # topk takes any of equal ones; here the first
    return nearer | (equal & (equal.cumsum(-1) <= wanted))
