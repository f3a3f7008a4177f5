"""The measurements behind the dataset's report, over a committed dataset, in bounded memory.

CLS tokens of all images are compared (they are small); the other tokens of a seeded sample are measured, and of a
sample of that one shown. Everything is read where the dataset's index says that it lies.
"""

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gap3d import entries
from gap3d.atlas import health, index, pictures
from gap3d.atlas.health import Finding
from gap3d.atlas.histogram import Histogram
from gap3d.atlas.index import Row
from gap3d.atlas.neighbours import Duplicates, Neighbours, nearest
from gap3d.atlas.pca import Colours, Components, Covariance
from gap3d.atlas.statistics import TokenStatistics
from gap3d.settings import Settings
from gap3d.store import ALL, Store
from pipelines.job import NotReady
from pipelines.progress import progress

TOUCHED_BYTES = 2_500_000  # of what the page needs to tell patches apart under the pointer
TOUCHED_MOST, TOUCHED_LEAST = 32, 6  # components of it
COLOUR_TOKENS = 500_000  # tokens that the scale of colours is taken from
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
    measured: int = 2000
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
    """A picture of an image, as the encoder saw it, and its tokens as colours: uint8 [H, W, 3 or 4]."""

    seen: NDArray[np.uint8]
    tokens: NDArray[np.uint8] | None = None
    object_tokens: NDArray[np.uint8] | None = None
    touch: str = ""  # base64 of int8 [N, K]


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
        touched: components in ``Looked.touch``.
        looked: pictures by key.
        cosines: between the CLS tokens of two images.
        cls_dimensions: that they fill.
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
    touched: int = 0
    looked: dict[str, Looked] = field(default_factory=dict)
    neighbours: Neighbours | None = None
    duplicates: Duplicates | None = None
    cosines: Histogram = field(default_factory=Histogram)
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
    rows = index.rows_of(store)
    makers = index.makers_of(store, rows)
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
    found.measured = index.sample(found.alike, bounds.measured, bounds.seed)
    if not found.rows:
        return
    grid = tuple(found.layout["grid"])
    kinds = {
        name: TokenStatistics(name, grid if name == "patches" else None) for name in ("cls", "registers", "patches")
    }
    for batch in index.batches(store, found.measured):
        kinds["cls"].add(batch.cls[:, None])
        kinds["registers"].add(batch.registers)
        kinds["patches"].add(batch.patches)
        if each is not None:
            each(batch.keys, batch.patches)
        tell(len(batch.keys))
    found.kinds = [kind for kind in kinds.values() if kind.tokens]
    coarse = found.layout["patches"]["dtype"] == "int8"
    found.findings = [
        health.one_encoder([said for said, _ in found.made_by]),
        *health.findings(found.kinds, health.COARSE if coarse else health.TOLERANCE),
    ]


def survey(store: Store, settings: Settings, bounds: Bounds) -> Survey:
    """All measurements.

    Raises:
        NotReady: see ``begin``.
        OSError, ValueError: a part is gone or damaged.
    """
    found = begin(store)
    found.compared = index.sample(found.alike, bounds.compared, bounds.seed)
    found.measured = index.sample(found.alike, bounds.measured, bounds.seed)
    found.fitted = index.sample(found.measured, bounds.fitted, bounds.seed + 1)
    found.shown = index.sample(found.fitted, bounds.shown, bounds.seed + 2)
    if not found.rows:
        return found
    work = len(found.measured) + len(found.fitted) + 2 * len(found.compared)
    with progress(total=work, desc="report", unit="image") as bar:
        masks = silhouettes(store, settings, found)
        everything, objects = Covariance(), Covariance()

        def take(keys: Sequence[str], patches: Tensor) -> None:
            for key, tokens in zip(keys, patches, strict=True):
                if key in masks and torch.isfinite(tokens).all():
                    everything.add(tokens)
                    if (mask := masks[key]) is not None:
                        objects.add(tokens[torch.from_numpy(mask.ravel())])

        measure(store, found, bounds, bar.update, take)
        width = len(found.looked) * int(np.prod(found.layout["grid"]))
        found.touched = min(TOUCHED_MOST, max(TOUCHED_LEAST, TOUCHED_BYTES // max(width, 1)))
        if everything.count:
            found.components = everything.components(found.touched)
            found.touched = len(found.components.axes)
        if objects.count > 3:
            found.object_components = objects.components(3)
        paint(store, found, masks, bar.update)
        compare(store, found, bounds, bar.update)
    wanted = [row for row in to_picture(found, bounds) if row.key not in found.looked]
    for key, picture in pictures_of(store, wanted):
        if (seen := pictures.as_seen(picture, settings.targets, settings.limits.pixels)) is not None:
            found.looked[key] = Looked(pictures.shrunk(seen))
    return found


def pictures_of(store: Store, rows: Iterable[Row]) -> Iterator[tuple[str, bytes]]:
    """(key, encoded picture) of rows of the dataset; rows whose picture is not there any more are left out."""
    shards: dict[str, list[str]] = {}
    for row in rows:
        shards.setdefault(row.shard, []).append(row.key)
    for shard, keys in shards.items():
        for record in entries.pictures(store.manifest("renders", shard), store, keys):
            yield record["key"], record["png"]


def silhouettes(store: Store, settings: Settings, found: Survey) -> dict[str, NDArray[np.bool_] | None]:
    """Of the images that components are fitted to, the patches that an object covers; takes up pictures to show."""
    grid = tuple(found.layout["grid"])
    shown = {row.key for row in found.shown}
    masks: dict[str, NDArray[np.bool_] | None] = {row.key: None for row in found.fitted}
    for key, picture in pictures_of(store, found.fitted):
        masks[key] = pictures.foreground(picture, settings.targets, grid, settings.limits.pixels)
        if key in shown:
            seen = pictures.as_seen(picture, settings.targets, settings.limits.pixels)
            if seen is not None:
                found.looked[key] = Looked(pictures.shrunk(seen))
    return masks


def paint(
    store: Store, found: Survey, masks: Mapping[str, NDArray[np.bool_] | None], tell: Callable[[int], object]
) -> None:
    """The colours of the shown images' tokens, on scales taken from all that the components were fitted to."""
    if found.components is None:
        tell(len(found.fitted))
        return
    whole: dict[str, NDArray[np.float32]] = {}
    covered: dict[str, tuple[NDArray[np.float32], NDArray[np.bool_]]] = {}
    scale: list[NDArray[np.float32]] = []
    object_scale: list[NDArray[np.float32]] = []
    step = max(1, len(found.fitted) * int(np.prod(found.layout["grid"])) // COLOUR_TOKENS)
    for batch in index.batches(store, found.fitted):
        for key, tokens in zip(batch.keys, batch.patches, strict=True):
            projected = found.components.project(tokens).numpy()
            if not np.isfinite(projected).all():
                continue
            scale.append(projected[::step, :3])
            if key in found.looked:
                whole[key] = projected
            if found.object_components is not None and (mask := masks[key]) is not None and mask.any():
                own = found.object_components.project(tokens).numpy()
                object_scale.append(own[mask.ravel()][::step])
                if key in found.looked:
                    covered[key] = own, mask
        tell(len(batch.keys))
    grid = tuple(found.layout["grid"])
    colours = Colours.of(np.concatenate(scale))
    for key, projected in whole.items():
        units = projected / np.maximum(np.linalg.norm(projected, axis=1, keepdims=True), 1e-12)
        found.looked[key].touch = base64.b64encode(np.rint(units * 127).astype(np.int8).tobytes()).decode()
        found.looked[key].tokens = colours.paint(projected).reshape(*grid, 3)
    if object_scale:
        colours = Colours.of(np.concatenate(object_scale))
        for key, (projected, mask) in covered.items():
            rgb = colours.paint(projected).reshape(*grid, 3)
            found.looked[key].object_tokens = np.dstack([rgb, np.where(mask, 255, 0).astype(np.uint8)])


def compare(store: Store, found: Survey, bounds: Bounds, tell: Callable[[int], object]) -> None:
    """Neighbours and near duplicates by CLS."""
    vectors: Tensor | None = None
    covariance = Covariance()
    for places, tokens in index.cls_of(store, found.compared):
        if vectors is None:
            vectors = torch.zeros(len(found.compared), tokens.shape[1])
        sound = torch.nan_to_num(tokens, nan=0.0, posinf=0.0, neginf=0.0)
        vectors[places] = sound
        covariance.add(sound)
        tell(len(places))
    if vectors is None:
        return
    found.cls_dimensions = covariance.components(1).effective
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
