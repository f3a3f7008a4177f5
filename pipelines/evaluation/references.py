"""What CLIP makes of prompts: features of their texts, and of the pictures that belong to them (docs/method.md 8.3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gap3d.evaluation.extractors import load_pictures
from gap3d.evaluation.generation import METRICS, Extractor, References
from gap3d.features.decoding import decode_image
from gap3d.metrics.extractors.clip import ClipFeatures
from gap3d.metrics.extractors.extractor import PASS
from gap3d.parts import read_rows
from gap3d.records import Failure
from gap3d.settings import Settings
from pipelines.progress import progress


@dataclass(frozen=True)
class Picture:
    """Where the picture of a prompt is stored.

    Attributes:
        part: the file.
        row: position there.
        column: of the picture.
        digest: of its row.
    """

    part: Path
    row: int
    column: str
    digest: str


def references(
    settings: Settings, captions: Mapping[str, str], pictures: Mapping[str, Picture], names: Sequence[Extractor]
) -> References:
    """Features of the prompts, for the columns of CLIP (``gap3d.evaluation.generation.measure``).

    Args:
        settings: weights, and limits of pictures.
        captions: texts, by key.
        pictures: of those prompts that have one, by key.
        names: of the extractors that there are features of.

    Raises:
        SystemicFault: weights can't be had.
    """
    found: dict[str, Mapping[str, Tensor | Failure]] = {}
    wanted = [metric for metric in METRICS if metric.kind in ("text", "image") and metric.extractor in names]
    total = sum(len(captions if metric.kind == "text" else pictures) for metric in wanted)
    with progress(total=total, desc="prompts", unit="prompt") as bar:
        for name in dict.fromkeys(metric.extractor for metric in wanted):
            assert name in ("clip", "clip_large")
            extractor = load_pictures(name, settings.evaluation)
            assert isinstance(extractor, ClipFeatures)
            for metric in (each for each in wanted if each.extractor == name):
                column: dict[str, Tensor | Failure] = {}
                for keys in chunks(sorted(captions if metric.kind == "text" else pictures)):
                    if metric.kind == "text":
                        column |= of_texts(extractor, {key: captions[key] for key in keys})
                    else:
                        column |= of_pictures(extractor, {key: pictures[key] for key in keys}, settings)
                    bar.update(len(keys))
                found[metric.column] = column
    return found


def chunks(keys: Sequence[str]) -> list[Sequence[str]]:
    """A few at a time."""
    return [keys[start : start + PASS] for start in range(0, len(keys), PASS)]


def of_texts(extractor: ClipFeatures, captions: Mapping[str, str]) -> dict[str, Tensor]:
    """Features of texts [D], by key."""
    return dict(zip(captions, extractor.texts(list(captions.values())), strict=True))


def of_pictures(
    extractor: ClipFeatures, pictures: Mapping[str, Picture], settings: Settings
) -> dict[str, Tensor | Failure]:
    """Features of pictures [D], by key, or why one can't be looked at; what has alpha is composited on black."""
    found: dict[str, Tensor | Failure] = {}
    for key, each in pictures.items():
        png = read_rows(each.part, [each.row], [each.column]).column(each.column)[0].as_py()
        try:
            # Singly: what is too long a strip is told by the extractor.
            found[key] = extractor.features([decode_image(png, settings.limits.pixels)])[0]
        except Failure as known:
            found[key] = known
    return found
