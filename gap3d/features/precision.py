"""How far targets are from those of another precision or path, by kind of token."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cosine_similarity

from gap3d.features.tokens import KINDS, TokenLayout


@dataclass(frozen=True)
class Deviation:
    """Of all tokens of a kind.

    Attributes:
        mean_cosine: mean cosine.
        least_cosine: of the worst token.
        error: greatest absolute difference of a number; targets have unit variance.
    """

    mean_cosine: float
    least_cosine: float
    error: float


def deviations(targets: Tensor, exact: Tensor, layout: TokenLayout) -> dict[str, Deviation]:
    """By kind: cls, patches, and registers where there are any.

    Args:
        targets: float32 [B, T, C].
        exact: what they should be, of the same shape.
        layout: which token is of which kind.
    """
    found = {}
    for kind, ours, theirs in zip(KINDS, layout.split(targets), layout.split(exact), strict=True):
        if ours.numel():
            cosines = cosine_similarity(ours.double(), theirs.double(), dim=-1)
            error = float((ours - theirs).abs().max())
            found[kind] = Deviation(float(cosines.mean()), float(cosines.min()), error)
    return found
