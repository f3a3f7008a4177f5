"""Batches made ahead by a thread: the same ones, in order, no more than asked for, resumed where they were used."""

import itertools
import threading

import pytest
import torch
from target_stores import collection
from torch.utils.data import DataLoader

from gap3d.readers.batches import Collate, prefetch
from gap3d.readers.targets import TargetDataset

LONG = 30.0  # seconds after which it is not going to happen


@pytest.fixture(scope="module", params=["none", "zstd"])
def store(request, tmp_path_factory):
    return collection(tmp_path_factory.mktemp("targets") / "store", 60, compression=request.param)[0]


def loader(dataset):
    return DataLoader(dataset, dataset.batch_size, collate_fn=Collate())


class Source:
    """Numbers, and how many were asked for; fails at the one that is told."""

    def __init__(self, count=100, bad=None):
        self.count, self.bad = count, bad
        self.made, self.threads, self.closed = 0, set(), threading.Event()
        self.more = threading.Condition()

    def __iter__(self):
        try:
            for number in range(self.count):
                if number == self.bad:
                    raise OSError("the disk is gone")
                with self.more:
                    self.made += 1
                    self.threads.add(threading.get_ident())
                    self.more.notify_all()
                yield number
        finally:
            self.closed.set()

    def reaches(self, count):
        with self.more:
            return self.more.wait_for(lambda: self.made >= count, LONG)


@pytest.mark.parametrize("depth", [1, 2, 50])
def test_they_are_the_loaders_batches(store, depth):
    dataset = TargetDataset(store, batch_size=7)
    wanted = [(batch.keys, batch.captions, batch.position, batch.tokens.clone()) for batch in loader(dataset)]
    for batch, (keys, captions, position, tokens) in itertools.zip_longest(prefetch(loader(dataset), depth), wanted):
        assert (batch.keys, batch.captions, batch.position) == (keys, captions, position)
        assert torch.equal(batch.tokens, tokens)


def test_a_training_goes_on_after_the_batch_that_it_used(store):
    whole = [batch.keys for batch in loader(TargetDataset(store, batch_size=7))]
    first = TargetDataset(store, batch_size=7)
    batches = prefetch(loader(first), depth=4)
    used = [next(batches), next(batches)]
    state = first.state_dict(used[-1].position)
    batches.close()
    second = TargetDataset(store, batch_size=7)
    second.load_state_dict(state)
    assert [batch.keys for batch in [*used, *prefetch(loader(second))]] == whole


def test_a_thread_makes_so_many_ahead_and_no_more():
    source = Source()
    batches = prefetch(source, depth=3)
    for number in range(5):
        assert next(batches) == number
        assert source.reaches(number + 4)  # while the caller has this one
    batches.close()
    assert source.made == 8
    assert source.threads.isdisjoint({threading.get_ident()})
    assert len(source.threads) == 1


def test_an_error_comes_after_the_batches_before_it():
    batches = prefetch(Source(bad=4), depth=2)
    assert [next(batches) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


def test_whoever_stops_early_leaves_no_thread():
    source = Source()
    for number in prefetch(source):
        if number == 3:
            break
    names = [thread.name for thread in threading.enumerate()]
    assert not any(name.startswith("prefetch") for name in names), names
    assert source.closed.wait(LONG)


def test_memory_of_used_batches_is_used_again(store):
    collate = Collate()
    dataset = TargetDataset(store, batch_size=4)
    batches = prefetch(DataLoader(dataset, 4, collate_fn=collate), depth=2)
    addresses = {batch.tokens.data_ptr() for batch in batches}
    # One at the caller's, two that wait, one that is made; and one that the last of them let go of meanwhile.
    assert len(addresses) <= 5
