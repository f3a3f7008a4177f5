"""Turns at a host: how many, how often, for how long, after whose death; alone and over the workers of a cluster."""

import itertools
import os
import time

import pytest
from hostile_server import Site, serving
from hypothesis import given
from hypothesis import strategies as st
from networked import fetch, listed, settings_of, sha256, statuses, write_catalog

from gap3d.network.politeness import LINE_S, Politeness, Quiet, Trouble, Turns
from gap3d.records import Failure
from gap3d.settings import NetworkSettings


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@given(st.lists(st.integers(0, 4), max_size=60), st.integers(1, 3), st.floats(0.1, 2))
def test_never_more_turns_at_once_nor_in_a_second_than_are_allowed(steps, most, interval):
    clock = Clock()
    turns = Turns(clock)
    held, begun = set(), []
    for who in steps:
        clock.now += 0.25
        if who in held:
            turns.leave("host", str(who))
            held.discard(who)
        elif turns.ask("host", str(who), most, interval, 1000.0)[0] == 0:
            held.add(who)
            begun.append(clock.now)
        assert len(held) <= most
    assert all(later - earlier >= interval for earlier, later in itertools.pairwise(begun))


def test_turns_are_given_in_the_order_of_asking():
    clock = Clock()
    turns = Turns(clock)
    assert turns.ask("host", "first", 1, 0.0, 100.0) == (0.0, False)
    assert turns.ask("host", "second", 1, 0.0, 100.0)[0] > 0
    assert turns.ask("host", "third", 1, 0.0, 100.0)[0] > 0
    turns.leave("host", "first")
    assert turns.ask("host", "third", 1, 0.0, 100.0)[0] > 0
    assert turns.ask("host", "second", 1, 0.0, 100.0) == (0.0, False)


def test_who_died_holds_no_turn_and_no_place_in_the_line():
    clock = Clock()
    turns = Turns(clock)
    turns.ask("host", "dead", 1, 0.0, 60.0)
    turns.ask("host", "dead in line", 1, 0.0, 60.0)
    clock.now = 30.0
    turns.keep("host", "alive elsewhere", 60.0)
    turns.leave("host", "alive elsewhere")
    assert turns.ask("host", "next", 1, 0.0, 60.0)[0] > 0
    clock.now = 60.0 + LINE_S
    assert turns.ask("host", "next", 1, 0.0, 60.0) == (0.0, False)


def test_a_turn_that_is_kept_is_held_and_hosts_do_not_wait_for_one_another():
    clock = Clock()
    turns = Turns(clock)
    turns.ask("host", "long", 1, 0.0, 60.0)
    for clock.now in range(10, 600, 10):
        turns.keep("host", "long", 60.0)
        assert turns.ask("host", "next", 1, 0.0, 60.0)[0] > 0
        assert turns.ask("other", f"at {clock.now}", 1, 0.0, 5.0) == (0.0, False)


def test_tries_end_with_their_number_and_with_their_time():
    politeness = Politeness(Turns(), NetworkSettings(retries=3, pause_s=0.01, requests_per_s=1e6))
    tried = []

    def attempt(turn):
        tried.append(turn)
        raise Trouble("no luck")

    with pytest.raises(Failure, match=r"no luck \(tried 4 times\)"):
        politeness.persist("host", 60.0, attempt)
    assert len(tried) == 4
    with pytest.raises(Failure, match="tried 1 times"):
        politeness.persist("host", 0.001, attempt)
    with pytest.raises(Failure, match="1000 s"):
        politeness.persist("host", 60.0, lambda _: (_ for _ in ()).throw(Trouble("busy", 1000.0)))
    with pytest.raises(Quiet):
        politeness.persist("host", 60.0, attempt)
    assert len(tried) == 5


def test_pauses_grow_up_to_the_longest_and_are_not_all_the_same():
    politeness = Politeness(Turns(), NetworkSettings(retries=4, pause_s=60.0))
    for number, longest in enumerate([7.5, 15.0, 30.0, 60.0, 60.0], start=1):
        pauses = {politeness.pause_after(number) for _ in range(100)}
        assert all(longest / 2 <= pause <= longest for pause in pauses)
        assert len(pauses) > 50


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("per_host", "rate", "together"), [pytest.param(1, 8.0, 1, marks=pytest.mark.slow), (2, 100.0, 2)]
)
def test_two_workers_of_a_cluster_ask_a_host_as_politely_as_one(tmp_path, monkeypatch, per_host, rate, together):
    site = Site({f"/{index}.glb": b"%d" % index for index in range(24)}, work_s=0.1)
    with serving(site):
        network = {"per_host": per_host, "requests_per_s": rate}
        settings = settings_of(tmp_path, network, compute={"workers": 2})
        write_catalog(
            settings,
            [listed("smithsonian", f"{site.address}{path}", sha256(body)) for path, body in site.files.items()],
        )
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        fetch(settings)
        assert set(statuses(settings).values()) == {"ok"}
    assert site.together() == together  # two: both workers are at work
    begun = sorted(request.begun for request in site.requests)
    assert begun[-1] - begun[0] > 0.9 * (len(begun) - 1) / rate
    for first, last in zip(begun, begun[int(rate) + 1 :], strict=False):
        assert last - first > 0.8


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_desk_of_a_cluster_outlives_the_worker_that_made_it(monkeypatch):
    import ray

    from pipelines.cluster import Resources, Shared, connect

    class Client:
        def __init__(self):
            self.turns = Shared(Turns)

        def ask(self, who):
            return self.turns.ask("host", who, 1, 0.0, 100.0)

        def keep(self, who):
            self.turns.keep("host", who, 100.0)

        def process(self):
            return os.getpid()

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray.shutdown()
    connect(Resources(2))
    try:
        one, two = (ray.remote(Client).options(num_cpus=0).remote() for _ in range(2))
        assert ray.get(one.ask.remote("one")) == (0.0, False)
        assert ray.get(two.ask.remote("two"))[0] > 0
        ray.get(two.keep.remote("kept"))
        os.kill(ray.get(one.process.remote()), 9)
        time.sleep(0.5)
        ray.get(two.keep.remote("kept"))  # the new desk learns of what is held from those who hold it
        assert ray.get(two.ask.remote("two"))[0] > 0
    finally:
        ray.shutdown()
