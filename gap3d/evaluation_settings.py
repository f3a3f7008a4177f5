"""Settings of the evaluation (docs/method.md 8)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator

from gap3d.evaluation.quirks import ALL, QUIRKS, Table, of_table
from gap3d.section import Section

Model = Literal["pretrained", "finetuned"]
Weights = Annotated[str, Field(min_length=1)]
_MEASURED = ("models", "steps", "level", "resamples", "seed")
SHAPING: Mapping[Table, tuple[str, ...]] = {
    "alignment": (*_MEASURED, "collections"),
    "retrieval": (*_MEASURED, "collections", "captions"),
    "generation": (
        *(*_MEASURED, "true", "count", "shuffle", "views", "resolution", "samples", "points", "presample"),
        *("inception", "dinov2", "dinov2_size", "clip", "clip_large", "pointnet"),
    ),
}
"""Which settings shape the numbers of a table, beside its quirks."""


class EvaluationSettings(Section):
    """What is measured, with which extractors, and how far as the released evaluation does."""

    models: Annotated[tuple[Model, ...], Field(min_length=1)] = ("pretrained", "finetuned")
    """The collection's trainings that are measured, each a row of the tables."""
    collections: tuple[str, ...] = ()
    """Collections of this store that alignment and retrieval are measured on (coco, toys4k); none: the own one."""
    captions: Literal["protocol", "longest", "all"] = "protocol"
    """Queries of retrieval. protocol: all captions of an image, the longest of a rendered object
    (docs/method.md 8.2)."""
    true: str = ""
    """Collection of the true objects of generation, rendered from all around; empty: made from the settings' own."""
    count: PositiveInt | None = 1250
    """Objects of generation: the first so many with captions, after the protocol's shuffle; none takes all."""
    shuffle: int = 42
    """Seed of that shuffle."""
    views: Annotated[tuple[Literal[4, 8, 20], ...], Field(min_length=1)] = (4, 8, 20)
    """Cameras all around the objects: 4 for Frechet and kernel distance, 8 for CLIP, 20 with depth for clouds."""
    resolution: Annotated[int, Field(ge=4)] = 512
    """Pixels per side of renders from all around."""
    samples: PositiveInt = 128
    """Cycles samples per pixel of them, at most."""
    points: PositiveInt = 4000
    """Points of an object's cloud."""
    presample: PositiveInt | None = 100_000
    """Points from which those are chosen, drawn at random where more are seen; none chooses from all."""
    steps: PositiveInt = 30
    """Of the sampler, for alignment, retrieval and the retrieved baseline; what is made in 3D takes sampling.steps."""
    inception: Weights = "torchvision"
    """Weights of Inception-v3: torchvision, a file, a hub id, or random-small."""
    dinov2: Weights = "facebook/dinov2-large"
    """Weights of the DINOv2 whose CLS are compared: a hub id, a folder, a file of the authors', or random-small."""
    dinov2_size: PositiveInt = 518
    """Pixels per side that it sees."""
    clip: Weights = "openai/clip-vit-base-patch32"
    """Weights of the CLIP that compares pictures with texts, as the released evaluation does: a hub id, a folder, or
    random-small."""
    clip_large: Weights = "openai/clip-vit-large-patch14"
    """Weights of the CLIP that compares pictures with texts and with the picture of the prompt."""
    pointnet: Weights = "point-e"
    """Weights of PointNet++: point-e, a file, a hub id, or random-small."""
    quirks: tuple[str, ...] = ()
    """What is done as the released evaluation does it: names of gap3d.evaluation.quirks; paper names all."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Of confidence intervals."""
    resamples: PositiveInt = 2000
    """Of the bootstrap."""
    seed: int = 0
    """Of the bootstrap, of clouds, and of extractors' random weights."""
    published: Path | None = None
    """TOML file of published numbers for the report, over those that are known here (gap3d/evaluation/published.toml is
    its form)."""
    automatic: bool = False
    """Whether the metrics are measured by themselves after every training; else started by hand."""

    def shaping(self, table: Table) -> dict[str, Any]:
        """All of this section that shapes a table's numbers."""
        return {**self.model_dump(mode="json", include=set(SHAPING[table])), "quirks": of_table(self.quirks, table)}

    @field_validator("quirks")
    @classmethod
    def quirks_are_known(cls, quirks: tuple[str, ...]) -> tuple[str, ...]:
        """By name, each once, in one order."""
        if unknown := sorted(set(quirks) - {ALL, *QUIRKS}):
            raise ValueError(f"quirks {', '.join(unknown)} are unknown: choose of {ALL}, {', '.join(QUIRKS)}")
        return tuple(name for name in QUIRKS if name in quirks or ALL in quirks)

    @field_validator("inception", "dinov2", "clip", "clip_large", "pointnet")
    @classmethod
    def weights_hold_anywhere(cls, weights: str) -> str:
        """A job runs in no folder of the caller's."""
        path = Path(weights).expanduser()
        return str(path.absolute()) if path.exists() else weights
