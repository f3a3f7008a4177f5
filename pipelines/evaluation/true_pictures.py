"""Pictures of a collection's true images: its renders, or the images that it was made from."""

from collections.abc import Collection, Iterator

import numpy as np
from numpy.typing import NDArray

from gap3d import dataset_index, entries
from gap3d.atlas.pictures import shrunk
from gap3d.features.decoding import decode_image
from gap3d.features.images import without_alpha
from gap3d.records import Failure, Status
from gap3d.settings import Settings
from gap3d.store import Store
from pipelines import images
from pipelines.command import load_settings

GONE = Failure(Status.MISSING, "the picture is not where it was")


def true_pictures(settings: Settings, store: Store, keys: Collection[str]) -> dict[str, NDArray[np.uint8] | Failure]:
    """Pictures of rows of the dataset, or why there is none: uint8 [H, W, 3], at most 256 pixels a side, on black.

    Args:
        settings: limits of pictures; of this collection or of another.
        store: the collection.
        keys: which.
    """
    found: dict[str, NDArray[np.uint8] | Failure] = dict.fromkeys(keys, GONE)
    for key, data in encoded(settings, store, keys):
        try:
            image = without_alpha(decode_image(data, settings.limits.pixels), "black")
            found[key] = shrunk(np.asarray(image))
        except Failure as known:
            found[key] = known
    return found


def encoded(settings: Settings, store: Store, keys: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """(key, picture file) of rows of the dataset; those whose picture is gone are left out."""
    table = dataset_index.load(store, columns=("key", "target_shard")).table
    shards: dict[str, list[str]] = {}
    for row in table.to_pylist():
        if row["key"] in keys:
            shards.setdefault(row["target_shard"], []).append(row["key"])
    if (store.folder / "renders").is_dir():
        for shard, mine in shards.items():
            for record in entries.pictures(store.manifest("renders", shard), store, mine):
                yield record["key"], record["png"]
        return
    own = settings_of(settings, store)
    for shard, mine in shards.items():
        yield from images.pictures(store, own, shard, mine)


def settings_of(settings: Settings, store: Store) -> Settings:
    """A collection's own settings, where its line saved them; else these, for it."""
    saved = store.folder / "settings.json"
    if settings.collection == store.collection or not saved.is_file():
        return settings.model_copy(update={"collection": store.collection})
    return load_settings(str(saved), store=settings.store, collection=store.collection)
