"""Settings of the evaluation (docs/method.md 8)."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveInt, field_validator

from gap3d.evaluation.quirks import ALL, QUIRKS, Table, of_table
from gap3d.section import Collection, Place, Section, Weights, of_collection

Model = Literal["pretrained", "finetuned"]
Extractor = Annotated[Weights, Field(min_length=1)]
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
    """Trainings of the collection that are measured, each a row of the tables."""
    collections: tuple[Collection, ...] = ()
    """Names of collections in this store that alignment and retrieval are measured on (coco, toys4k); default:
    --collection."""
    captions: Literal["protocol", "longest", "all"] = "protocol"
    """Captions that are the queries of retrieval. protocol: all of an image, the longest of a rendered object
    (docs/method.md 8.2). longest, all: the same for both."""
    true: Annotated[str, AfterValidator(lambda name: name and of_collection(name))] = ""
    """Name of the collection of generation's true objects, rendered from all around; default: one made of
    --collection."""
    count: PositiveInt | None = 1250
    """Number of objects in the generation table: the first with captions, in shuffled order; None takes all. The
    protocol's is 1250."""
    shuffle: int = 42
    """Seed of the shuffle that generation's objects are chosen by."""
    views: Annotated[tuple[Literal[4, 8, 20], ...], Field(min_length=1)] = (4, 8, 20)
    """Numbers of cameras all around the objects: 4 for Frechet and kernel distance, 8 for CLIP, 20 with depth for
    clouds."""
    resolution: Annotated[int, Field(ge=4)] = 512
    """Width and height of the renders from all around, pixels."""
    samples: PositiveInt = 128
    """Cycles samples per pixel of the renders from all around, at most."""
    points: PositiveInt = 4000
    """Number of points in an object's point cloud."""
    presample: PositiveInt | None = 100_000
    """Number of seen points, drawn at random, that a cloud's points are chosen from; None: all that are seen."""
    steps: PositiveInt = 30
    """Number of sampler steps for alignment, retrieval and the retrieved baseline; what is made in 3D takes
    sampling.steps."""
    inception: Extractor = "torchvision"
    """Weights of Inception-v3: torchvision, a file, a hub id, or random-small."""
    dinov2: Extractor = "facebook/dinov2-large"
    """Weights of the DINOv2 whose CLS tokens are compared: a hub id, a folder, a file of the authors', or
    random-small."""
    dinov2_size: PositiveInt = 518
    """Width and height of that DINOv2's input, pixels."""
    clip: Extractor = "openai/clip-vit-base-patch32"
    """Weights of the CLIP that compares pictures with texts, as the released evaluation does: a hub id, a folder, or
    random-small."""
    clip_large: Extractor = "openai/clip-vit-large-patch14"
    """Weights of the larger CLIP that compares pictures with texts and with the picture of the prompt: likewise."""
    pointnet: Extractor = "point-e"
    """Weights of PointNet++: point-e, a file, a hub id, or random-small."""
    quirks: tuple[str, ...] = ()
    """Names of the released evaluation's peculiarities that are followed (gap3d.evaluation.quirks); paper: all of
    them."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Level of confidence intervals, above 0 and below 1."""
    resamples: PositiveInt = 2000
    """Number of bootstrap resamples that confidence intervals are made from."""
    seed: int = 0
    """Seed of the bootstrap, of the choice of clouds' points, and of extractors' random weights."""
    published: Place | None = None
    """TOML file of published numbers for the report, over those that are known here (gap3d/evaluation/published.toml is
    its form)."""
    automatic: bool = False
    """In Dagster: measure after every training. If not, a person starts it."""

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
