"""The true objects that generation is measured on, and what is measured beside them (docs/method.md 8.3)."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from gap3d.evaluation.extractors import CLOUD_VIEWS, VIEWS, Name
from gap3d.evaluation.feature_rows import FeatureRows
from gap3d.evaluation.features import Features
from gap3d.evaluation.generation import Pair, Side
from gap3d.evaluation.matching import Known
from gap3d.evaluation.objects import objects_of
from gap3d.evaluation.pictured import Pictured
from gap3d.evaluation.views import Rendered
from gap3d.image_settings import ImageSettings
from gap3d.records import Failure
from gap3d.settings import CatalogSettings, Settings, SourceSettings
from gap3d.store import Store
from gap3d.trellis.seeds import caption_of
from pipelines import around, cloud_features, picture_features
from pipelines.around import parent_of
from pipelines.command import load_settings, open_store
from pipelines.evaluation import pictured
from pipelines.evaluation.references import Picture
from pipelines.report import Report, merge

PER_OBJECT: Mapping[Name, int] = {"pointnet": 1, **dict(VIEWS.items())}  # rows of features


@dataclass(frozen=True)
class Asked:
    """What an object is generated from.

    Attributes:
        caption: the text.
        caption_index: which of the object's captions it is.
        index: of the object; with the first, what the evaluation's seeds are made from.
    """

    caption: str
    caption_index: int
    index: int


@dataclass(frozen=True)
class TrueObjects:
    """What generated objects are compared with.

    Attributes:
        base: the collection whose objects they are; its catalog has their captions, its dataset their targets.
        asked: the expected objects with the evaluation's own captions, by object_id, in the protocol's order.
        known: every object of the collection, by object_id.
        captions: all of an object, longest first, likewise.
        source: their pictures from all around.
        side: their features.
    """

    base: Store
    asked: Mapping[str, Asked]
    known: Mapping[str, Known]
    captions: Mapping[str, Sequence[str]]
    source: Pictured
    side: Side


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured.

    Attributes:
        model: what its row is called.
        pairs: one for every expected object.
        side: features of its objects.
        captions: what its objects were generated from, by key of the pair.
        pictures: where the pictures of the prompts lie, likewise; only of those that have one.
        checkpoint: of an aligner; empty for other models.
        untrained: what of it is untrained, in words.
        about: where its objects come from.
    """

    model: str
    pairs: Sequence[Pair]
    side: Side
    captions: Mapping[str, str]
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    untrained: Sequence[str] = ()
    about: Mapping[str, Any] = field(default_factory=dict)


def true_objects(settings: Settings) -> tuple[TrueObjects, Report]:
    """The true objects of the settings, their renders and features brought up to date.

    They are those of ``evaluation.true``, else of the settings' own collection; where that is not rendered from all
    around, a collection that is, is derived from it (``pipelines.around``).

    Raises:
        ValueError: no object has a caption.
    """
    store = Store.open(settings.store, settings.evaluation.true or settings.collection, settings.blobs)
    base = parent_of(settings, store)
    source, report = from_all_around(settings, store)
    rows: dict[str, Mapping[str, Any]] = {}
    for shard in base.shards:
        rows |= base.read(base.manifest("catalog", shard), ["sha256", "identifier", "captions"])
    captions = {key: row["captions"] or () for key, row in rows.items()}
    section = settings.evaluation
    asked = asked_of(objects_of(base, section.count, section.shuffle), captions)
    if not asked:
        raise ValueError(
            f"no object of collection {base.collection} has a caption, and generation is measured on those that have: "
            "give them captions (--source.captions FILE)"
        )
    known = {key: Known(row["sha256"] or "", row["identifier"] or "") for key, row in rows.items()}
    side, extracted = featured(settings, source, list(asked), true=True)
    return TrueObjects(base, asked, known, captions, source, side), merge([report, extracted])


def from_all_around(
    settings: Settings, store: Store, objects: Collection[str] | None = None
) -> tuple[Pictured, Report]:
    """The pictures of a collection's objects: its renders, or where it has not all cameras, those that are derived.

    A collection that was derived, and was interrupted or lacks some of the objects, is continued.

    Args:
        settings: of the run: pixels and cameras of what is derived.
        store: the collection.
        objects: which are wanted; None takes the true ones (``evaluation.count``).
    """
    base = parent_of(settings, store)
    if all(store.manifest("renders", shard).complete for shard in store.shards):
        found = Rendered(store)
        with suppress(ValueError):  # it has other cameras
            for count in settings.evaluation.views:
                found.require(count)
            if store.collection != f"{base.collection}{around.SUFFIX}" or not lacking(settings, base, store, objects):
                return found, Report(shards=())
    source, saved = settings.source, base.folder / "settings.json"
    if base.collection != settings.collection and saved.is_file():
        source = load_settings(str(saved)).source
    own = settings_in(settings, base.collection, source, len(base.shards))
    report = around.run(own, objects=objects)
    return pictured.rendered(open_store(around.settings_of(own))), report


def lacking(settings: Settings, base: Store, store: Store, objects: Collection[str] | None) -> set[str]:
    """Objects of a collection that are wanted, and that the one which was derived from it has not taken over."""
    section = settings.evaluation
    wanted = objects_of(base, section.count, section.shuffle) if objects is None else objects
    return set(wanted).difference(*(store.manifest("catalog", shard).rows for shard in store.shards))


def settings_in(settings: Settings, name: str, source: SourceSettings, shards: int) -> Settings:
    """Settings of a run for another collection of objects."""
    return settings.model_copy(
        update={
            "collection": name,
            "source": source,
            "catalog": settings.catalog if name == settings.collection else CatalogSettings(shards=shards),
            "images": settings.images if name == settings.collection else ImageSettings(),
            "evaluation": settings.evaluation.model_copy(update={"true": ""}),
        }
    )


def asked_of(keys: Sequence[str], captions: Mapping[str, Sequence[str]]) -> dict[str, Asked]:
    """What each object is generated from, by object_id, in their order."""
    choices = [caption_of(index, len(captions[key])) for index, key in enumerate(keys)]
    return {
        key: Asked(captions[key][choice], choice, index)
        for index, (key, choice) in enumerate(zip(keys, choices, strict=True))
    }


def featured(settings: Settings, source: Pictured, order: Sequence[str], *, true: bool) -> tuple[Side, Report]:
    """The features of objects with pictures from all around, brought up to date.

    Args:
        settings: extractors, and the protocols whose views are wanted.
        source: the objects.
        order: of those that are measured, by their keys: the quirk ``batch_order`` asks for it.
        true: whether they are true ones, whose clouds the quirk ``ray_depth`` bends.
    """
    views = settings.evaluation.views
    reports = [picture_features.run(settings, source=source)]
    names: list[Name] = [name for name, count in VIEWS.items() if count in views]
    if CLOUD_VIEWS in views:
        reports.append(cloud_features.run(settings, source=source, true=true, order=order))
        names.append("pointnet")
    return {name: FeatureRows(Features(source.store, name), PER_OBJECT[name]) for name in names}, merge(reports)


def paired(true: TrueObjects, generated: Mapping[str, str], absent: Failure) -> list[Pair]:
    """A pair for every expected object.

    Args:
        true: the expected objects.
        generated: keys of generated objects, by object_id.
        absent: what is said of the others.
    """
    return [Pair(key, generated[key]) if key in generated else Pair(key, failure=absent) for key in true.asked]
