"""What retrieval is measured on: a training and a collection, or any model's token sets with the true ones."""

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gap3d import dataset_index
from gap3d.evaluation.queries import Query, opened, usual
from gap3d.evaluation.query_table import matched, read_queries
from gap3d.evaluation.tokens import TokenSets, of_dataset, open_tokens
from gap3d.settings import Settings
from gap3d.store import Store
from pipelines.predictions import predictions
from pipelines.prompts import existing

HEAD = "collection.json"  # in the folder of every collection


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


def of_training(settings: Settings, model: str, collection: str, closing: ExitStack) -> Subject:
    """One of the settings' trainings; its missing token sets are generated."""
    store = existing(settings, collection)
    which = settings.evaluation.captions
    which = usual(store, "retrieval") if which == "protocol" else which
    # Of several captions an image nothing but retrieval is measured: what it needs takes a two hundredth of the disk.
    sampling = settings.sampling.model_copy(update={"pooled": which == "all"})
    found = predictions(settings.model_copy(update={"sampling": sampling}), model, collection, which)
    true = of_dataset(store)
    for sets in (found.sets, true):
        closing.enter_context(sets)
    return Subject(
        model=model,
        collection=collection,
        home=store.folder,
        predicted=found.sets,
        true=true,
        images=first_frames(store),
        queries=found.queries,
        captions=which,
        checkpoint=found.checkpoint,
        store=store,
    )


def of_places(
    settings: Settings, model: str, predicted: str, true: str, table: Path | None, closing: ExitStack
) -> Subject:
    """Token sets of any model."""
    places = [place_of(settings, place) for place in (predicted, true)]
    store = opened(places[1]) if (places[1] / HEAD).is_file() and (places[1] / "dataset").is_dir() else None
    sets = [closing.enter_context(open_tokens(place)) for place in places]
    images = first_frames(store) if store else sets[1].keys
    there, home = set(images), settings.store.absolute() / settings.collection
    queries = read_queries(table, there) if table else matched([*sets[0].keys, *sets[0].failures], there)
    return Subject(
        model=model,
        collection=sets[1].description["name"],
        home=store.folder if store and store.root == home.parent else home,
        predicted=sets[0],
        true=sets[1],
        images=images,
        queries=queries,
        captions=table.name if table else "by key",
        store=store,
    )


def place_of(settings: Settings, place: str) -> Path:
    """Where a collection of this store, or a folder, lies."""
    named = settings.store / place
    return named if Path(place).name == place and (named / HEAD).is_file() else Path(place).expanduser().absolute()


def first_frames(store: Store) -> list[str]:
    """Keys of the images of a dataset: of an object of several views the first frame (specification 8.1)."""
    table = dataset_index.load(store, columns=("key", "view")).table.sort_by("key")
    return [row["key"] for row in table.to_pylist() if row["view"] == 0]
