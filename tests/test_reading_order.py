"""The order of reading: every row once, the same for any number of workers, resumed anywhere, mixed within bounds."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gap3d.readers.order import Order, Split

SIZES = st.lists(st.integers(1, 9), max_size=40).map(lambda sizes: np.array(sizes, np.int64))
SMALL = st.integers(1, 5)


def sequence(order, start=0, workers=1):
    """Rows as a DataLoader that deals batches to workers in turn hands them out; positions are proven on the way."""
    streams = [list(order.places(start, worker, workers)) for worker in range(workers)]
    batch, merged = order.split.batch, []
    while any(streams):
        for stream in streams:
            merged += stream[:batch]
            del stream[:batch]
    assert [place.position for place in merged] == list(range(start, len(order)))
    return [place.row for place in merged]


@settings(deadline=None, max_examples=40)
@given(sizes=SIZES, ranks=SMALL, batch=SMALL, lanes=SMALL, interleave=st.integers(0, 20), epoch=st.integers(0, 3))
def test_every_row_is_read_once_by_all_ranks_together(sizes, ranks, batch, lanes, interleave, epoch):
    splits = [Split(rank=rank, ranks=ranks, batch=batch, lanes=lanes) for rank in range(ranks)]
    orders = [Order(sizes=sizes, seed=7, epoch=epoch, interleave=interleave, split=split) for split in splits]
    read = [row for order in orders for row in sequence(order)]
    assert sorted(read) == list(range(sizes.sum()))
    assert max(map(len, orders)) - min(map(len, orders)) <= 1
    if not interleave:
        assert read == sorted(read)


@settings(deadline=None, max_examples=40)
@given(sizes=SIZES.filter(len), ranks=st.integers(1, 12), batch=SMALL, lanes=SMALL)
def test_padded_ranks_are_equal_and_still_lose_nothing(sizes, ranks, batch, lanes):
    read, lengths = set(), set()
    for rank in range(ranks):
        split = Split(rank=rank, ranks=ranks, batch=batch, lanes=lanes, pad=True)
        order = Order(sizes=sizes, seed=1, epoch=0, interleave=4, split=split)
        rows = sequence(order)
        assert len(rows) - len(set(rows)) <= 1
        lengths.add(len(rows))
        read |= set(rows)
    assert read == set(range(sizes.sum()))
    assert lengths == {-(-int(sizes.sum()) // ranks)}


@settings(deadline=None, max_examples=40)
@given(sizes=SIZES, workers=SMALL, batch=SMALL, lanes=SMALL, data=st.data())
def test_the_sequence_does_not_depend_on_workers_and_goes_on_from_anywhere(sizes, workers, batch, lanes, data):
    split = Split(rank=1, ranks=2, batch=batch, lanes=lanes)
    order = Order(sizes=sizes, seed=3, epoch=2, interleave=16, split=split)
    whole = sequence(order)
    start = data.draw(st.integers(0, len(order)))
    assert sequence(order, start, workers) == whole[start:]


@settings(deadline=None, max_examples=40)
@given(sizes=SIZES.filter(len), lanes=st.integers(1, 3), workers=st.integers(1, 3), interleave=st.integers(1, 20))
def test_no_more_blocks_are_in_progress_than_asked_for_and_few_are_read_twice(sizes, lanes, workers, interleave):
    order = Order(sizes=sizes, seed=5, epoch=1, interleave=interleave, split=Split(batch=4, lanes=lanes))
    block_of = np.repeat(np.arange(len(sizes)), sizes)
    for worker in range(workers):
        held, opened, most = {}, [], 0
        for place in order.places(0, worker, workers):
            held = {block: until for block, until in held.items() if until >= place.position}
            if (block := block_of[place.row]) not in held:
                opened.append(block)
            held[block] = place.until
            most = max(most, len(held))
        assert most <= interleave * lanes
        visits = len(opened) - len(set(opened))
        assert visits <= (interleave + 2) * lanes  # the wrapped ones, and those that a lane's end cuts


def neighbours(rows):
    return {frozenset(pair) for pair in itertools.pairwise(rows)}


@pytest.mark.parametrize("interleave", [1, 4, 16])
def test_neighbours_differ_from_epoch_to_epoch(interleave):
    """Neighbours share a block with a chance of 7 / (8 W - 1), and then meet again with one of 2 / (8 W)."""
    sizes = np.full(1000, 8, np.int64)
    split = Split()
    first, second = (
        neighbours(sequence(Order(sizes=sizes, seed=0, epoch=epoch, interleave=interleave, split=split)))
        for epoch in (0, 1)
    )
    overlap = len(first & second) / len(first)
    expected = 7 / 8 * 2 / 8 if interleave == 1 else 7 / (8 * interleave - 1) * 2 / (8 * interleave)
    assert 0.4 * expected < overlap < 2.5 * expected
    assert interleave < 16 or overlap < 0.005


def test_seeds_and_epochs_are_other_orders_and_the_same_ones_are_equal():
    sizes = np.full(50, 8, np.int64)

    def read(seed, epoch):
        return sequence(Order(sizes=sizes, seed=seed, epoch=epoch, interleave=16, split=Split()))

    assert read(1, 0) == read(1, 0)
    assert len({tuple(read(seed, epoch)) for seed in (0, 1, -1) for epoch in (0, 1)}) == 6


def test_lanes_keep_workers_out_of_each_others_blocks():
    sizes = np.full(200, 8, np.int64)
    order = Order(sizes=sizes, seed=0, epoch=0, interleave=16, split=Split(batch=16, lanes=4))
    blocks = [{place.row // 8 for place in order.places(0, worker, 2)} for worker in range(2)]
    assert len(blocks[0] & blocks[1]) <= 3  # those that a lane's end cuts
    whole = Order(sizes=sizes, seed=0, epoch=0, interleave=16, split=Split(batch=16))
    shared = [{place.row // 8 for place in whole.places(0, worker, 2)} for worker in range(2)]
    assert len(shared[0] & shared[1]) > 100


@pytest.mark.parametrize("values", [{"rank": 2, "ranks": 2}, {"batch": 0}, {"lanes": 0}])
def test_a_split_that_cannot_be_is_refused(values):
    with pytest.raises(ValueError, match=r"must be|counted"):
        Split(**values)
