"""Which captions a model is asked for when it is evaluated, and whose image each is."""

import pytest
from target_stores import collection, tokens_of, write_index, write_part
from test_coco import IDS, TEXTS, protocol, settings_of, write_folder

from gap3d import schemas
from gap3d.evaluation.queries import Query, queries_of, usual
from gap3d.records import Outcome
from gap3d.settings import ComputeSettings, Limits
from gap3d.store import Store
from pipelines import coco, dataset, images
from pipelines.command import open_store


@pytest.fixture(scope="module")
def mscoco(tmp_path_factory):
    """A collection of MS-COCO, less an image that is not there; its dataset's keys by image id."""
    root = tmp_path_factory.mktemp("coco")
    texts = {number: text for number, text in TEXTS.items() if number != 724}
    settings = settings_of(
        root, write_folder(root / "coco"), images={"kind": "tars"}, catalog={"shards": 2}, compute={"workers": 0}
    )
    (root / "coco" / "val2017" / f"{724:012d}.jpg").unlink()
    coco.run(settings)
    store = open_store(settings)
    images.run(settings, store.shards)
    keys = {}
    for number, shard in enumerate(store.shards):
        rows = store.read(store.manifest("images", shard), ["identifier"])
        write_part(store, shard, {key: tokens_of(number) for key in rows})
        keys |= {int(row["identifier"].rpartition("#")[2]): key for key, row in rows.items()}
    dataset.run(settings)
    assert set(keys) == set(texts)
    return store, keys


def test_drawn_are_the_captions_of_the_protocol_in_the_order_of_the_image_ids(mscoco):
    store, keys = mscoco
    expected, there = protocol(), sorted(set(IDS) - {724})
    found = queries_of(store, "drawn")
    assert [(each.truth, each.caption) for each in found] == [(keys[number], expected[number][0]) for number in there]
    assert [each.index for each in found] == list(range(7)) and all(each.key == each.truth for each in found)
    for each, number in zip(found, there, strict=True):
        assert expected[number][1][each.caption_index] == each.caption


def test_all_are_the_different_captions_of_every_image_by_annotation_id(mscoco):
    store, keys = mscoco
    wanted = [
        (f"{keys[number]}#{place}", keys[number], caption, place)
        for number, (_, captions) in sorted(protocol().items())
        if number != 724
        for place, caption in enumerate(captions)
    ]
    found = queries_of(store, "all")
    assert [(each.key, each.truth, each.caption, each.caption_index) for each in found] == wanted
    drawn = {(each.truth, each.caption_index): each.caption for each in queries_of(store, "drawn")}
    assert drawn.items() <= {(each.truth, each.caption_index): each.caption for each in found}.items()


def test_the_tables_take_the_papers_captions(mscoco, tmp_path):
    assert (usual(mscoco[0], "alignment"), usual(mscoco[0], "retrieval")) == ("drawn", "all")
    store, _ = collection(tmp_path, 5)
    assert usual(store, "alignment") == usual(store, "retrieval") == "longest"


def test_the_longest_caption_is_that_of_the_first_frame_and_of_equals_the_first(tmp_path):
    store = Store(tmp_path, "views", 1)
    keys = [f"{name}/00{view}" for name in "ba" for view in range(3)] + ["c/001"]
    write_part(store, "0", {key: tokens_of(0) for key in keys})
    write_index(store, captions=lambda number: ["two", "a long one", "also so long"[:10], "two"] if number != 3 else [])
    assert queries_of(store, "longest") == [Query("a/000", "a/000", "a long one", 1, 0)]
    assert [each.key for each in queries_of(store, "all")] == ["a/000#0", "a/000#1", "a/000#2"]


def test_objects_come_in_the_order_of_their_files_sha256(tmp_path):
    store, _ = collection(tmp_path, 8)
    content = {f"{number:04d}": f"{7 * number % 8:064x}" for number in range(8)}
    compute = ComputeSettings(flush_rows=10**6, flush_s=1e6, lease_wait_s=0)
    for number, shard in enumerate(store.shards):
        keys = list(content)[number::2]
        with store.writer("catalog", shard, schemas.CATALOG, compute, Limits()) as writer:
            for key in keys:
                row = dict.fromkeys(schemas.CATALOG.columns.names[1:]) | {"sha256": content[key]}
                writer.add(Outcome(stage="catalog", key=key, data=row), {})
            writer.finish(set(keys))
    captioned = [key for key in content if int(key) % 4]  # see write_index
    expected = [f"{key}/000" for key in sorted(captioned, key=content.__getitem__)]
    assert expected != sorted(expected)
    assert [each.truth for each in queries_of(store, "longest")] == expected


def test_what_can_not_be_asked_is_a_sentence_that_says_what_to_do(tmp_path):
    store, _ = collection(tmp_path / "some", 3)
    with pytest.raises(ValueError, match=r"nobody drew a caption .*`python -m pipelines.coco --collection test"):
        queries_of(store, "drawn")
    write_index(store, captions=lambda _: [])
    with pytest.raises(ValueError, match="no image of collection test has a caption"):
        queries_of(store, "longest")
    with pytest.raises(ValueError, match="choose one of drawn, longest, all"):
        queries_of(store, "shortest")
    with pytest.raises(ValueError, match="no dataset index: run"):
        queries_of(Store(tmp_path, "empty", 1), "all")


def test_images_that_the_converter_did_not_write_have_no_drawn_caption(mscoco, tmp_path):
    store, _ = mscoco
    other = Store(tmp_path, "coco", 2)
    (other.folder / "coco").symlink_to(store.folder / "coco")
    write_part(other, "0", {"0000/000": tokens_of(0)})
    write_index(other, captions=lambda _: ["a caption"])
    with pytest.raises(ValueError, match=r"1 images of collection coco are in no tar that `pipelines.coco` made"):
        queries_of(other, "drawn")
