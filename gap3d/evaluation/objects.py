"""Which objects generation is measured on, and in which order (docs/method.md 8.3)."""

import random

from gap3d.store import Store


def objects_of(store: Store, count: int | None, seed: int) -> list[str]:
    """object_ids of a collection in the order of the protocol: by sha256, shuffled, those with captions, the first.

    Args:
        store: the collection; its catalog says what there is.
        count: how many at most; None takes all that have captions.
        seed: of the shuffle.
    """
    rows: dict[str, tuple[str, bool]] = {}
    for shard in store.shards:
        found = store.read(store.manifest("catalog", shard), ["sha256", "captions"])
        rows |= {key: (row["sha256"], bool(row["captions"])) for key, row in found.items()}
    # The released evaluation names an object's folder by its sha256 and sorts the names.
    order = sorted(rows, key=lambda key: (rows[key][0], key))
    random.Random(seed).shuffle(order)
    return [key for key in order if rows[key][1]][:count]
