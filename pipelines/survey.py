"""The measurements behind the dataset's report, over a committed dataset, in bounded memory.

CLS tokens of all images are compared (they are small); the other tokens of a seeded sample are measured, and of a
sample of that one shown. Everything is read where the dataset's index says that it lies.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gap3d import dataset_index, entries
from gap3d.atlas import health, pictures
from gap3d.atlas.health import Finding
from gap3d.atlas.histogram import Histogram
from gap3d.atlas.neighbours import Duplicates, Neighbours, nearest
from gap3d.atlas.palette import Painting, Palette
from gap3d.atlas.pca import Components, Covariance
from gap3d.atlas.statistics import TokenStatistics
from gap3d.dataset_index import Row
from gap3d.features.tokens import KINDS
from gap3d.settings import Settings
from gap3d.store import ALL, Store
from pipelines import images
from pipelines.job import NotReady
from pipelines.progress import progress

TOUCHED_BYTES = 2_500_000  # of what the page needs to tell patches apart under the pointer
TOUCHED_MOST, TOUCHED_LEAST = 32, 6  # components of it
PAIRED = 2000  # images whose CLS are compared each with each, for the histogram


@dataclass(frozen=True)
class Bounds:
    """How much is looked at.

    Attributes:
        compared: images whose CLS tokens are compared with all others.
        measured: images whose tokens are all measured.
        fitted: of those, images that the components are fitted to.
        shown: of those, images that are shown with their tokens.
        queries: images that are shown with their neighbours.
        neighbours: of each of them.
        outliers: images that are shown as outliers.
        pairs: near duplicates that are named.
        duplicate: cosine from which on two images are near duplicates.
        seed: of the samples.
    """

    compared: int = 100_000
    measured: int = 1000
    fitted: int = 200
    shown: int = 24
    queries: int = 12
    neighbours: int = 5
    outliers: int = 12
    pairs: int = 60
    duplicate: float = 0.98
    seed: int = 0


@dataclass
class Looked:
    """A picture of an image, as the encoder saw it: uint8 [H, W, 3]; and its tokens, where they are shown."""

    seen: NDArray[np.uint8]
    painting: Painting | None = None


@dataclass
class Survey:
    """What was measured.

    Attributes:
        rows: the dataset's.
        made_by: what the parts say of themselves, with the number of rows, the most frequent first.
        alike: rows whose targets have the layout of most; all others are counted and no more.
        kinds: statistics by kind of token; empty for an empty dataset.
        findings: whether the tokens can be what they claim to be.
        measured, fitted, compared: images that were looked at; see ``Bounds``.
        components: of all patch tokens, and of those that an object covers; None where there are none.
        looked: pictures by key.
        cosines: between the CLS tokens of two images.
        patch_dimensions, cls_dimensions: how many dimensions the tokens fill.
    """

    rows: list[Row]
    made_by: list[tuple[dict[str, Any], int]] = field(default_factory=list)
    alike: list[Row] = field(default_factory=list)
    kinds: list[TokenStatistics] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    measured: list[Row] = field(default_factory=list)
    fitted: list[Row] = field(default_factory=list)
    shown: list[Row] = field(default_factory=list)
    compared: list[Row] = field(default_factory=list)
    components: Components | None = None
    object_components: Components | None = None
    looked: dict[str, Looked] = field(default_factory=dict)
    neighbours: Neighbours | None = None
    duplicates: Duplicates | None = None
    cosines: Histogram = field(default_factory=Histogram)
    patch_dimensions: float | None = None
    cls_dimensions: float | None = None

    @property
    def layout(self) -> Mapping[str, Any]:
        """Order, shapes and formats of the tokens, as the parts say them."""
        return self.made_by[0][0]["tokens"]

    @property
    def untrained(self) -> str:
        """The label of random weights; empty where all are trained."""
        labels = [said["encoder"]["label"] for said, _ in self.made_by if not said["encoder"]["trained"]]
        return str(labels[0]) if labels else ""


def begin(store: Store) -> Survey:
    """The dataset's rows and what made them, before anything is measured.

    Raises:
        NotReady: there is no dataset.
        OSError: a part is gone.
    """
    if not store.manifest("dataset", ALL).complete:
        raise NotReady(f"collection {store.collection} has no dataset yet: run `python -m pipelines.line` first")
    rows = dataset_index.load(store).rows()
    makers = dataset_index.makers_of(store, rows)
    alike = {row.key for said, held in makers if said["tokens"] == makers[0][0]["tokens"] for row in held}
    return Survey(rows, [(said, len(held)) for said, held in makers], [row for row in rows if row.key in alike])


def measure(
    store: Store,
    found: Survey,
    bounds: Bounds,
    tell: Callable[[int], object] = bool,
    each: Callable[[list[str], Tensor], None] | None = None,
) -> None:
    """Statistics of the tokens of a sample, and what to think of them.

    Args:
        store: the collection.
        found: takes the results.
        bounds: the sample.
        tell: hears how many images were read.
        each: hears of every batch: its keys, and its patches [B, N, C] as they are stored.
    """
    found.measured = dataset_index.sample(found.alike, bounds.measured, bounds.seed)
    if not found.rows:
        return
    grid = tuple(found.layout["grid"])
    kinds = {
        name: TokenStatistics(name, grid if name == "patches" else None, found.layout[name]["dtype"]) for name in KINDS
    }
    for batch in dataset_index.batches(store, found.measured):
        kinds["cls"].add(batch.cls[:, None])
        kinds["registers"].add(batch.registers)
        kinds["patches"].add(batch.patches)
        if each is not None:
            each(batch.keys, batch.patches)
        tell(len(batch.keys))
    found.kinds = [kind for kind in kinds.values() if kind.tokens]
    found.findings = [health.one_encoder([said for said, _ in found.made_by]), *health.findings(found.kinds)]


def survey(store: Store, settings: Settings, bounds: Bounds) -> Survey:
    """All measurements.

    Raises:
        NotReady: see ``begin``.
        OSError, ValueError: a part is gone or damaged.
    """
    found = begin(store)
    found.compared = dataset_index.sample(found.alike, bounds.compared, bounds.seed)
    found.measured = dataset_index.sample(found.alike, bounds.measured, bounds.seed)
    found.fitted = dataset_index.sample(found.measured, bounds.fitted, bounds.seed + 1)
    found.shown = dataset_index.sample(found.fitted, bounds.shown, bounds.seed + 2)
    if not found.rows:
        return found
    work = len(found.measured) + len(found.fitted) + 2 * len(found.compared)
    with progress(total=work, desc="report", unit="image") as bar:
        masks = silhouettes(store, settings, found)
        palette = Palette(tuple(found.layout["grid"]), len(found.fitted))

        def fit(keys: Sequence[str], patches: Tensor) -> None:
            for key, tokens in zip(keys, patches, strict=True):
                if key in masks:
                    palette.fit(key, tokens, masks[key])

        measure(store, found, bounds, bar.update, fit)
        paint(store, found, palette, masks, bar.update)
        compare(store, found, bounds, bar.update)
    wanted = [row for row in to_picture(found, bounds) if row.key not in found.looked]
    for key, picture in pictures_of(store, settings, wanted):
        if (seen := pictures.as_seen(picture, settings.targets, settings.limits.pixels)) is not None:
            found.looked[key] = Looked(pictures.shrunk(seen))
    return found


def pictures_of(store: Store, settings: Settings, rows: Iterable[Row]) -> Iterator[tuple[str, bytes]]:
    """(key, encoded picture) of rows of the dataset; rows whose picture is not there any more are left out."""
    shards: dict[str, list[str]] = {}
    for row in rows:
        shards.setdefault(row.target_shard, []).append(row.key)
    for shard, keys in shards.items():
        if settings.pictures == "images":
            yield from images.pictures(store, settings, shard, keys)
            continue
        for record in entries.pictures(store.manifest("renders", shard), store, keys):
            yield record["key"], record["png"]


def silhouettes(store: Store, settings: Settings, found: Survey) -> dict[str, NDArray[np.bool_] | None]:
    """Of the images that components are fitted to, the patches that an object covers; takes up pictures to show."""
    grid = tuple(found.layout["grid"])
    shown = {row.key for row in found.shown}
    masks: dict[str, NDArray[np.bool_] | None] = {row.key: None for row in found.fitted}
    for key, picture in pictures_of(store, settings, found.fitted):
        masks[key] = pictures.foreground(picture, settings.targets, grid, settings.limits.pixels)
        if key in shown:
            seen = pictures.as_seen(picture, settings.targets, settings.limits.pixels)
            if seen is not None:
                found.looked[key] = Looked(pictures.shrunk(seen))
    return masks


def paint(
    store: Store,
    found: Survey,
    palette: Palette,
    masks: Mapping[str, NDArray[np.bool_] | None],
    tell: Callable[[int], object],
) -> None:
    """The patch tokens of the shown images as colours, on a scale taken from all that the components are fitted to."""
    width = max(1, len(found.looked) * palette.grid[0] * palette.grid[1])
    palette.settle(min(TOUCHED_MOST, max(TOUCHED_LEAST, TOUCHED_BYTES // width)))
    for batch in dataset_index.batches(store, found.fitted):
        for key, tokens in zip(batch.keys, batch.patches, strict=True):
            palette.project(key, tokens, masks[key], paint=key in found.looked)
        tell(len(batch.keys))
    found.components, found.object_components = palette.components, palette.object_components
    found.patch_dimensions = palette.dimensions
    for key, painting in palette.paintings().items():
        found.looked[key].painting = painting


def compare(store: Store, found: Survey, bounds: Bounds, tell: Callable[[int], object]) -> None:
    """Neighbours and near duplicates by CLS."""
    vectors: Tensor | None = None
    covariance = Covariance()
    for places, tokens in dataset_index.cls_of(store, found.compared):
        if vectors is None:
            vectors = torch.zeros(len(found.compared), tokens.shape[1])
        sound = torch.nan_to_num(tokens, nan=0.0, posinf=0.0, neginf=0.0)
        vectors[places] = sound
        covariance.add(sound)
        tell(len(places))
    if vectors is None:
        return
    found.cls_dimensions = covariance.effective
    some = torch.nn.functional.normalize(vectors[:: max(1, len(vectors) // PAIRED)], dim=-1)
    pairs = torch.triu_indices(len(some), len(some), offset=1)
    found.cosines.add((some @ some.T)[pairs[0], pairs[1]].numpy())
    groups, sides = (
        np.unique([getattr(row, name) for row in found.compared], return_inverse=True)[1].astype(np.int64)
        for name in ("object_id", "split")
    )
    found.neighbours, found.duplicates = nearest(
        vectors, bounds.neighbours, groups, sides, bounds.duplicate, bounds.pairs, tell
    )


def queries(found: Survey, bounds: Bounds) -> list[int]:
    """Indices into ``compared`` of the images that are shown with their neighbours."""
    if found.neighbours is None:
        return []
    able = np.flatnonzero(found.neighbours.indices[:, 0] >= 0)
    drawn = np.random.default_rng(bounds.seed + 3).choice(able, min(bounds.queries, len(able)), replace=False)
    return sorted(drawn.tolist())


def outliers(found: Survey, bounds: Bounds) -> list[int]:
    """Indices into ``compared`` of the images that are least like their neighbours, the strangest first."""
    if found.neighbours is None:
        return []
    closeness = found.neighbours.closeness
    able = np.flatnonzero(np.isfinite(closeness))
    return able[np.argsort(closeness[able], kind="stable")][: bounds.outliers].tolist()


def to_picture(found: Survey, bounds: Bounds) -> Iterable[Row]:
    """Rows that are shown without their tokens."""
    if found.neighbours is None or found.duplicates is None:
        return []
    asked = queries(found, bounds)
    places = {*asked, *outliers(found, bounds), *found.neighbours.indices[asked].ravel().tolist()}
    places |= {place for first, second, _ in found.duplicates.pairs for place in (first, second)}
    return [found.compared[place] for place in sorted(places - {-1})]
