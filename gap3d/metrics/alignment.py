"""Alignment of predicted with true tokens: cosine, squared error, norm ratio (paper, equations 6 to 8).

The means are exact: of each sample the mean over its tokens, then the mean over samples. The released code averages
means of batches instead, which gives the samples of a small last batch more weight (docs/method.md 8.1).
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from gap3d.features.tokens import TokenLayout, serially

TABLE_KINDS = ("patches", "cls", "registers")  # the kinds of tokens in the order of the paper's Table 1
MEASURES = ("cosine", "mse", "norm_ratio")
EPS = 1e-8  # of cosine and norm ratio, as in the released evaluation
GAP = "identity_gap"
ROUNDING = 1e-6  # added to an expected error: that of a perfect prediction is 0 but for rounding
NORMALISED = 0.05
"""Targets whose greatest identity gap is above this are no layer-normed tokens: float16 gives 1e-3, int8 about 1e-2."""


def kinds_of(tokens: Tensor, layout: TokenLayout) -> dict[str, Tensor]:
    """Tokens [B, T, C] as patches [B, N, C], CLS [B, 1, C] and registers [B, R, C]; no entry where there are none."""
    cls, registers, patches = layout.split(tokens)
    return {
        name: part for name, part in zip(TABLE_KINDS, (patches, cls[:, None], registers), strict=True) if part.shape[1]
    }


def expected_mse(cosine: Tensor, norm_ratio: Tensor) -> Tensor:
    """What the squared error of a token must be if its target has mean square 1, as layer-normed ones have.

    |p - t|^2 / C = r^2 + 1 - 2 r cos, because |t|^2 = C and |p|^2 = r^2 C. It holds for each token; of the means of
    many tokens it holds about (all published cells within 0.02).

    Args:
        cosine: of any shape.
        norm_ratio: of that shape.
    """
    return 1 + norm_ratio**2 - 2 * norm_ratio * cosine


def measure(predicted: Tensor, true: Tensor) -> dict[str, float]:
    """The measures of one sample's tokens of one kind, in float64.

    Args:
        predicted: [N, C].
        true: [N, C].

    Returns:
        ``cosine``, ``mse``, ``norm_ratio``: means over the tokens. ``identity_gap``: the greatest relative
        deviation of a token from ``expected_mse``, which is that of its target's mean square from 1.
    """
    products = []
    for p, t in serially(predicted, true):  # in float64 a whole sample would not stay in the cache: ten times the time
        p, t = p.double(), t.double()
        error = p - t
        products.append(torch.stack([torch.linalg.vecdot(*each) for each in ((p, t), (p, p), (t, t), (error, error))]))
    dot, ours, theirs, errors = torch.cat(products, dim=1)
    ours, theirs = ours.sqrt(), theirs.sqrt()
    cosine = dot / (ours.clamp_min(EPS) * theirs.clamp_min(EPS))
    ratio = ours / (theirs + EPS)
    mse = errors / predicted.shape[-1]
    expected = expected_mse(cosine, ratio)
    gap = (mse - expected).abs() / (expected + ROUNDING)
    found = torch.stack([cosine.mean(), mse.mean(), ratio.mean(), gap.max()]).tolist()
    return dict(zip((*MEASURES, GAP), found, strict=True))


class Alignment:
    """The measures of many samples, a batch at a time; how they are cut into batches changes nothing.

    Attributes:
        values: per measure and kind (``cosine_patches`` ...) one number a sample, in the order in which they came.
    """

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def __len__(self) -> int:
        return len(next(iter(self.values.values()), ()))

    def add(self, predicted: Mapping[str, Tensor], true: Mapping[str, Tensor]) -> None:
        """Measure a batch.

        Args:
            predicted: by kind, [B, N, C]: of ``kinds_of``, or those that a model has (one without CLS gives patches).
            true: the same kinds and shapes.

        Raises:
            ValueError: other kinds or shapes, no token of a kind, or other kinds than those of earlier batches.
        """
        shapes = {name: tuple(part.shape) for name, part in true.items()}
        if shapes != {name: tuple(part.shape) for name, part in predicted.items()}:
            about = {name: tuple(part.shape) for name, part in predicted.items()}
            raise ValueError(f"predicted tokens {about} can't be compared with {shapes}")
        if not shapes or any(len(shape) != 3 or 0 in shape[1:] for shape in shapes.values()):
            raise ValueError(f"{shapes} are not [B, N, C] with at least one token of every kind")
        if len(batches := {shape[0] for shape in shapes.values()}) != 1:
            raise ValueError(f"{shapes} are not of one number of samples")
        names = {f"{measured}_{kind}" for kind in shapes for measured in (*MEASURES, GAP)}
        if self.values and set(self.values) != names:
            raise ValueError(f"tokens of {', '.join(shapes)} follow others: {', '.join(sorted(self.values))}")
        for kind in shapes:
            for sample in range(*batches):  # one at a time: float64 of a whole batch would be most of the memory
                for name, value in measure(predicted[kind][sample], true[kind][sample]).items():
                    self.values.setdefault(f"{name}_{kind}", []).append(value)

    def means(self) -> dict[str, float]:
        """The mean of every measure over the samples, and of identity gaps the greatest.

        A sample with a number that is not finite makes the mean so too.

        Raises:
            ValueError: there are no samples.
        """
        if not len(self):
            raise ValueError("no sample was measured: there is no mean")
        return {
            name: greatest(values) if name.startswith(GAP) else mean(values) for name, values in self.values.items()
        }


def mean(values: list[float]) -> float:
    """The mean, exactly rounded: the order of the values does not matter."""
    if not all(map(math.isfinite, values)):
        return math.nan
    return math.fsum(values) / len(values)


def greatest(values: list[float]) -> float:
    """The greatest; no number if one of them is none."""
    return max(values) if all(map(math.isfinite, values)) else math.nan
