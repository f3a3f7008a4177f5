"""Whether tokens can be what they claim to be: finite, layer-normed, and not all the same."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gap3d.atlas.statistics import TokenStatistics
from gap3d.moments import sound

COLLAPSED = 0.99  # mean cosine between the tokens of different images


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        about: what should hold.
        good: whether it holds.
        words: what was seen.
        grave: False for what is only worth a look.
    """

    about: str
    good: bool
    words: str
    grave: bool = True


def one_encoder(makers: Sequence[Mapping[str, Any]]) -> Finding:
    """Whether all parts say the same of the encoder that made them, and of the layout of their tokens."""
    made = {json.dumps([each["encoder"], each["tokens"]], sort_keys=True) for each in makers}
    labels = sorted({f"{each['encoder']['label']}, weights {each['encoder']['weights'][:12]}" for each in makers})
    words = "; ".join(labels) + (
        "" if len(made) == 1 else ": run `python -m pipelines.line`, which makes them all anew"
    )
    return Finding("one encoder made all targets", len(made) == 1, words)


def findings(kinds: Iterable[TokenStatistics]) -> list[Finding]:
    """What to know of these tokens, in the order of gravity."""
    made = []
    for kind in kinds:
        if not kind.tokens:
            continue
        made.append(
            Finding(
                f"{kind.name}: every number is finite",
                not kind.broken,
                f"{kind.broken} of {kind.tokens} tokens are not",
            )
        )
        if not kind.slots.count:
            continue
        able = sound(kind.bound)
        for what, seen, (least, most) in (
            ("variance 1", kind.variances, able.variance),
            ("mean 0", kind.means, (-able.mean, able.mean)),
        ):
            good = bool(least <= seen.least and seen.most <= most)
            words = f"{seen.least:.6g} to {seen.most:.6g}; in {kind.kind} {least:.6g} to {most:.6g} is sound"
            made.append(Finding(f"{kind.name}: every token has {what}", good, words))
        if kind.images > 1 and kind.name != "registers":  # registers of one encoder may well be constant
            words = "they differ" if kind.differs else f"all {kind.images} images have the same"
            made.append(Finding(f"{kind.name}: images differ", kind.differs, words))
            across = kind.cosines.across
            words = f"mean cosine between images {across:.3f}; above {COLLAPSED:g} there is next to nothing to learn"
            made.append(Finding(f"{kind.name}: images are told apart", bool(across < COLLAPSED), words, grave=False))
    return made
