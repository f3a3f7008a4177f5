"""Queries: the captions that a model is asked for when it is evaluated, each with its true image (docs/method.md 8).

An object of several views counts once, by its first frame: view 0.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from gap3d import dataset_index
from gap3d.store import ALL, Store

Which = Literal["drawn", "longest", "all"]
Table = Literal["alignment", "retrieval"]
COCO = "coco"  # the stage whose rows know the drawn caption
COLUMNS = ("key", "object_id", "view", "captions", "identifier")


@dataclass(frozen=True, slots=True)
class Query:
    """A caption and its true image.

    Attributes:
        key: of the predicted token set: the true image's, and where an image has several queries ``#`` and the
            caption's number after it.
        truth: key of the true image in the dataset.
        caption: the text.
        caption_index: which of the image's captions it is: of MS-COCO's by annotation id, of others' longest first.
        index: position among all queries, from 0.
    """

    key: str
    truth: str
    caption: str
    caption_index: int
    index: int


def usual(store: Store, table: Table) -> Which:
    """Which captions a table of the paper takes of a collection: MS-COCO's are drawn and all, others' the longest."""
    if not has_drawn(store):
        return "longest"
    return "drawn" if table == "alignment" else "all"


def queries_of(store: Store, which: Which) -> list[Query]:
    """The queries of a collection's good rows, in the protocol's order: MS-COCO's images by id, objects by sha256.

    Args:
        store: a collection with a dataset.
        which: ``drawn``: the one caption of each MS-COCO image that the protocol draws (docs/method.md 8.1).
            ``longest``: of each image, of equally long ones the first. ``all``: each different caption.

    Raises:
        ValueError: there is no dataset, it has no captions, or no drawn ones.
    """
    if which not in get_args(Which):
        raise ValueError(f"{which!r} names no captions: choose one of {', '.join(get_args(Which))}")
    found = [
        (row["key"], index, caption, which == "all")
        for row, captions, drawn in pictures_of(store, which)
        for index, caption in chosen(captions, drawn, which)
    ]
    if not found:
        raise ValueError(
            f"no image of collection {store.collection} has a caption: give the objects captions (--source.captions, "
            "--images.captions, or a text beside each image), then run `python -m pipelines.line` again"
        )
    return [
        Query(f"{key}#{number}" if several else key, key, caption, number, index)
        for index, (key, number, caption, several) in enumerate(found)
    ]


def pictures_of(store: Store, which: Which) -> Iterator[tuple[Mapping[str, Any], list[str], str]]:
    """(row of the dataset, its captions, the drawn one or nothing) of each first frame, in the protocol's order."""
    table = dataset_index.load(store, columns=COLUMNS).table
    rows: Sequence[Mapping[str, Any]] = [row for row in table.to_pylist() if row["view"] == 0]
    if not has_drawn(store):
        if which == "drawn":
            raise ValueError(
                f"nobody drew a caption for the images of collection {store.collection}: that is MS-COCO's protocol. "
                "Ask for the longest (--which longest), or make its tars in that collection (`python -m pipelines.coco "
                f"--collection {store.collection} --coco.path DIR`)"
            )
        # The released evaluation names an object's folder by its sha256 and sorts the names.
        content = content_of(store)
        rows = sorted(rows, key=lambda row: (content.get(row["object_id"], ""), row["key"]))
        yield from ((row, list(dict.fromkeys(row["captions"] or ())), "") for row in rows)
        return
    known = store.read(store.manifest(COCO, ALL), ["tar", "caption", "captions"])
    placed = {f"{about['tar']}#{key}": (key, about) for key, about in known.items()}
    # The identifier of an image of a tar is the tar's path and the sample's name, which is COCO's id.
    mine = {row["key"]: placed.get(row["identifier"].rpartition("/")[2]) for row in rows}
    if strangers := [row["identifier"] for row in rows if mine[row["key"]] is None]:
        raise ValueError(
            f"{len(strangers)} images of collection {store.collection} are in no tar that `pipelines.coco` made, the "
            f"first of them {strangers[0]}: leave images.path at its default, or take a collection of its own for them"
        )
    for row in sorted(rows, key=lambda row: mine[row["key"]][0]):  # type: ignore[index]
        about = mine[row["key"]][1]  # type: ignore[index]
        yield row, list(about["captions"]), about["caption"]


def content_of(store: Store) -> dict[str, str]:
    """The sha256 of each object's file, by object_id; of a collection that begins with images, nothing."""
    found: dict[str, str] = {}
    for shard in store.shards:
        rows = store.read(store.manifest("catalog", shard), ["sha256"])
        found |= {key: row["sha256"] or "" for key, row in rows.items()}
    return found


def chosen(captions: Sequence[str], drawn: str, which: Which) -> list[tuple[int, str]]:
    """(number, text) of the captions that are asked for."""
    if not captions:
        return []
    if which == "all":
        return list(enumerate(captions))
    one = drawn if which == "drawn" else max(captions, key=len)
    return [(captions.index(one), one)]


def has_drawn(store: Store) -> bool:
    """Whether it is a collection of MS-COCO, with the protocol's captions."""
    return bool(store.manifest(COCO, ALL).rows)
