"""The pairs of a validation: the same in every pass and for any number of ranks, each with its longest caption."""

import pytest
import torch
from stores import flipped
from target_stores import LAYOUT, as_stored, collection, write_index

from gap3d.training.held_out import HeldOut

ROWS = 60


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return collection(tmp_path_factory.mktemp("held_out") / "store", ROWS)


@pytest.fixture(scope="module")
def store(made):
    return made[0]


def held_out(store, count=100, batch_size=5, **ranks):
    return HeldOut(store, LAYOUT, count=count, batch_size=batch_size, **ranks)


def keys_of(pairs):
    return [key for batch in pairs for key, counts in zip(batch.keys, batch.counted, strict=True) if counts]


def test_every_pair_of_the_split_comes_once_with_its_tokens_and_its_longest_caption(made):
    store, tokens = made
    pairs = held_out(store)
    assert sorted(keys_of(pairs)) == list(tokens)[4::5]
    assert len(pairs) == pairs.count == ROWS // 5
    for batch in pairs:
        assert batch.tokens.dtype == torch.float32
        for key, caption, found in zip(batch.keys, batch.captions, batch.tokens, strict=True):
            number = int(key[:4])
            assert torch.equal(found[1:], as_stored(tokens[key])[1:].float())
            assert torch.equal(found[0], tokens[key][0])
            assert caption == (f"caption {number}.0" if number % 4 else "")  # all of one length: the first


def test_the_longest_caption_is_taken_wherever_it_stands(tmp_path):
    store, _ = collection(tmp_path / "store", 10)
    write_index(store, captions=lambda number: ["short", f"the longest of {number}", "middling"])
    captions = [caption for batch in held_out(store) for caption in batch.captions]
    assert sorted(captions) == ["the longest of 4", "the longest of 9"]


def test_fewer_pairs_are_always_the_same_ones_and_not_the_first(store):
    few = [set(keys_of(held_out(store, count, batch_size))) for count in (3, 7) for batch_size in (1, 4)]
    assert few[0] == few[1] < few[2] == few[3]
    assert [len(each) for each in few] == [3, 3, 7, 7]
    everything = sorted(keys_of(held_out(store)))
    assert few[2] != set(everything[:7])


@pytest.mark.parametrize("count", [1, 7, 12])
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_have_equally_many_batches_and_every_pair_once_between_them(store, count, ranks):
    parts = [held_out(store, count, 2, rank=rank, ranks=ranks) for rank in range(ranks)]
    assert len({len(list(part)) for part in parts}) == 1
    assert sorted(key for part in parts for key in keys_of(part)) == sorted(keys_of(held_out(store, count)))
    sizes = [[batch.tokens.shape for batch in part] for part in parts]
    assert all(each == sizes[0] for each in sizes)


def test_a_pair_that_is_damaged_keeps_its_place_and_does_not_count(tmp_path):
    store, tokens = collection(tmp_path / "store", 40, part_rows=20)
    (path,) = [
        store.shard("targets", shard) / rows["0004/000"].part
        for shard in store.shards
        if "0004/000" in (rows := store.manifest("targets", shard).rows)
    ]
    content = path.read_bytes()
    path.write_bytes(flipped(content, content.index(as_stored(tokens["0004/000"])[3:].numpy().tobytes())))
    counted = {}
    for batch in held_out(store):
        counted |= dict(zip(batch.keys, zip(batch.counted, batch.tokens, strict=True), strict=True))
    assert len(counted) == 8
    assert not counted["0004/000"][0]
    assert not counted["0004/000"][1].any()
    assert counted["0039/000"][0]


def test_a_dataset_without_held_out_pairs_is_refused_with_what_it_has(tmp_path):
    store, _ = collection(tmp_path / "store", 4)
    with pytest.raises(ValueError, match="no good row of the split 'validation': it has 4 of 'train'"):
        held_out(store)
