"""What retrieval is measured on: a training and a collection, or any model's token sets with the true ones."""

import logging
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gap3d import dataset_index
from gap3d.evaluation.queries import Query, Which, queries_of, usual
from gap3d.evaluation.query_table import matched, read_queries
from gap3d.evaluation.tokens import TokenSets, collection_at, of_dataset, open_tokens
from gap3d.settings import Settings
from gap3d.store import Store
from pipelines.predictions import predictions

log = logging.getLogger(__name__)

CAPTIONS: tuple[Which, ...] = ("longest", "all")  # whose keys are an image's, or an image's and a number


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured.

    Attributes:
        model: what its row is called.
        collection: what it is measured on, by name.
        home: folder of the collection that keeps the result.
        predicted: its token sets, by the queries' keys.
        true: token sets of the images.
        images: keys of the images that are sought in.
        queries: what is sought.
        captions: which of the images' captions they are.
        checkpoint: of an aligner.
        store: of the pictures of the images; None where there are none.
    """

    model: str
    collection: str
    home: Path
    predicted: TokenSets
    true: TokenSets
    images: Collection[str]
    queries: Sequence[Query]
    captions: str = ""
    checkpoint: dict[str, Any] = field(default_factory=dict)
    store: Store | None = None


def of_aligner(
    settings: Settings, model: str | Path, collection: str, closing: ExitStack, name: str = "", vlm: str | None = None
) -> Subject:
    """An aligner on a collection; its missing token sets are generated.

    Args:
        settings: of the run.
        model: see ``predictions``.
        collection: its name.
        closing: closes the token sets.
        name: of the row; default: the model's.
        vlm: see ``predictions``.
    """
    store = Store.open(settings.store, collection, settings.blobs)
    which = captions_of(settings, store)
    # Of several captions an image nothing but retrieval is measured: what it compares is a two hundredth of a set.
    sampling = settings.sampling.model_copy(update={"pooled": which == "all"})
    found = predictions(settings.model_copy(update={"sampling": sampling}), model, collection, which, vlm)
    return Subject(
        model=name or Path(model).name,
        collection=collection,
        home=store.folder,
        predicted=closing.enter_context(found.sets),
        true=closing.enter_context(of_dataset(store)),
        images=first_frames(store),
        queries=found.queries,
        captions=which,
        checkpoint=found.checkpoint,
        store=store,
    )


def of_places(
    settings: Settings, predicted: str, true: str, closing: ExitStack, name: str = "", table: Path | None = None
) -> Subject:
    """Token sets of any model.

    Args:
        settings: of the run.
        predicted: a collection of the store by name, or any place of ``open_tokens``.
        true: likewise. Of a collection's dataset its queries are expected, where predicted keys are theirs.
        closing: closes the token sets.
        name: of the row; default: the folder's.
        table: of the queries (``read_queries``).

    Raises:
        ValueError: there are no token sets, or no prediction means an image that is there.
    """
    places = [place_of(settings, place) for place in (predicted, true)]
    sets = [closing.enter_context(open_tokens(place)) for place in places]
    home, store = settings.store.expanduser().absolute() / settings.collection, None
    if sets[1].description["source"] == "dataset":
        store = collection_at(places[1])
        home = store.folder if store and store.root == home.parent else home
    images = first_frames(store) if store else sets[1].keys
    queries, captions = asked(settings, sets[0], set(images), store, table)
    if not any(each.key in sets[0] and each.truth in sets[1] for each in queries):
        raise ValueError(
            f"no prediction means an image that is there: predicted keys are {sets[0].keys[0]!r} and others, true ones "
            f"{sets[1].keys[0]!r}: give a table of keys and truths (--queries FILE)"
        )
    if strange := set(sets[0].keys) - {each.key for each in queries}:
        log.warning("%d predicted sets are no query's, e.g. %s: they are not measured", len(strange), min(strange))
    return Subject(
        model=name or places[0].stem,
        collection=sets[1].description["name"],
        home=home,
        predicted=sets[0],
        true=sets[1],
        images=images,
        queries=queries,
        captions=captions,
        store=store,
    )


def asked(
    settings: Settings, predicted: TokenSets, images: Collection[str], store: Store | None, table: Path | None
) -> tuple[list[Query], str]:
    """What any model was asked, and in a word, how that is known."""
    if table:
        return read_queries(table, images), table.name
    known = [*predicted.keys, *predicted.failures]
    if store is None:
        return matched(known, images), "by key"
    which = captions_of(settings, store)
    expected = captioned(store, which)
    if any(query.key in predicted for query in expected):
        return expected, which
    texts = {query.key: query.caption for each in CAPTIONS for query in captioned(store, each)}
    return [replace(each, caption=texts.get(each.key, "")) for each in matched(known, images)], "by key"


def captioned(store: Store, which: Which) -> list[Query]:
    """The queries of a collection; none where it has no captions, and any model knows its own."""
    try:
        return queries_of(store, which)
    except ValueError:
        return []


def captions_of(settings: Settings, store: Store) -> Which:
    """Which of a collection's captions are sought."""
    named = settings.evaluation.captions
    return usual(store, "retrieval") if named == "protocol" else named


def place_of(settings: Settings, place: str) -> Path:
    """Where a collection of this store, or a folder, lies."""
    named = Path(place).name == place and Store.exists(settings.store, place)
    return (settings.store / place if named else Path(place).expanduser()).absolute()


def first_frames(store: Store) -> list[str]:
    """Keys of the images of a dataset: of an object of several views the first frame (docs/method.md 8.1)."""
    table = dataset_index.load(store, columns=("key", "view")).table.sort_by("key")
    return [row["key"] for row in table.to_pylist() if row["view"] == 0]
