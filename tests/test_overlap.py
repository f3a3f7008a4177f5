"""Decoding, the encoder and writing overlap, and a death costs nobody else's row.

Nothing is timed: who waits, waits for an event that only overlap brings about.
"""

import os
import shutil
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from folders import digests
from pictures import of_images, pairs, picture, rows_of, run_images, write_tar
from processes import wait_for
from remains import new_run

from gap3d.fingerprints import row_digest
from gap3d.records import Outcome, SystemicFault
from gap3d.shard_writer import ShardWriter
from pipelines import featurizer, images, targets
from pipelines.command import open_store
from pipelines.report import Report
from pipelines.targets import AHEAD
from pipelines.utilisation import Utilisation
from pipelines.worker import Broken, LocalPool

LONG = 30.0  # seconds after which it is not going to happen


@pytest.fixture
def ready(tmp_path):
    """Six images that wait for targets, in two shards, one image to a batch."""
    for number in range(3):
        write_tar(tmp_path / "tars" / f"{number}.tar", pairs(10 * number, 2))
    settings = of_images(tmp_path / "store", tmp_path / "tars", compute={"batch_size": 1, "workers": 0})
    images.run(settings, open_store(settings).shards)
    return settings


def run_targets(settings):
    return targets.run(settings, open_store(settings).shards)


def test_while_an_image_is_in_the_encoder_the_next_one_is_decoded(ready, monkeypatch):
    decoded, encoding, early = threading.Semaphore(0), Counter(), []
    to_uint8, encode = featurizer.to_uint8, featurizer.Encoder.encode

    def counting(*args):
        found = to_uint8(*args)
        decoded.release()
        return found

    def waiting(self, pixels):
        encoding["images"] += 1
        # Every image but the last waits in the encoder until one more than have been encoded is decoded.
        early.append(decoded.acquire(timeout=LONG) and (encoding["images"] == 6 or decoded.acquire(timeout=LONG)))
        decoded.release()
        return encode(self, pixels)

    monkeypatch.setattr(featurizer, "to_uint8", counting)
    monkeypatch.setattr(featurizer.Encoder, "encode", waiting)
    assert run_targets(ready).by_status("targets") == {"ok": 6}
    assert early == [True] * 6


def test_while_a_row_is_written_the_encoder_is_at_the_next(ready, monkeypatch):
    begun, overlapped = threading.Semaphore(0), []
    encode, add = featurizer.Encoder.encode, ShardWriter.add

    def counting(self, pixels):
        begun.release()
        return encode(self, pixels)

    def waiting(self, *args):
        overlapped.append(begun.acquire(timeout=LONG) and (len(overlapped) == 5 or begun.acquire(timeout=LONG)))
        begun.release()
        return add(self, *args)

    monkeypatch.setattr(featurizer.Encoder, "encode", counting)
    monkeypatch.setattr(ShardWriter, "add", waiting)
    assert run_targets(ready).by_status("targets") == {"ok": 6}
    assert overlapped == [True] * 6


def test_what_one_picture_does_costs_no_row_that_travels_with_it(ready, monkeypatch):
    settings = ready.model_copy(update={"compute": ready.compute.model_copy(update={"batch_size": 64})})
    to_uint8, encode, calls = featurizer.to_uint8, featurizer.Encoder.encode, Counter()
    lock = threading.Lock()

    def surprising(*args):
        with lock:
            calls["decoded"] += 1
            if calls["decoded"] == 2:
                raise AssertionError("nobody thought of this")
        return to_uint8(*args)

    def not_finite(self, pixels):
        calls["encoded"] += 1
        tokens = encode(self, pixels)
        return tokens * np.nan if calls["encoded"] == 2 else tokens

    monkeypatch.setattr(featurizer, "to_uint8", surprising)
    monkeypatch.setattr(featurizer.Encoder, "encode", not_finite)
    assert run_targets(settings).by_status("targets") == {"internal_error": 2, "ok": 4}


@pytest.mark.parametrize("alpha", ["black", "drop"])
def test_the_crop_of_trellis_goes_through_the_stage(ready, alpha):
    section = ready.targets.model_copy(update={"crop": "trellis", "alpha": alpha})
    assert run_targets(ready.model_copy(update={"targets": section})).by_status("targets") == {"ok": 6}


@pytest.mark.parametrize("fault", ["raises", "gives no numbers"])
def test_an_encoder_that_fails_ends_the_run_and_no_picture_is_blamed(ready, monkeypatch, fault):
    encode = featurizer.Encoder.encode

    def broken(self, pixels):
        if fault == "raises":
            raise RuntimeError("CUDA out of memory")
        return encode(self, pixels) * np.nan

    monkeypatch.setattr(featurizer.Encoder, "encode", broken)
    with pytest.raises(SystemicFault, match="encoder"):
        run_targets(ready)
    store = open_store(ready)
    assert not any(store.manifest("targets", shard).rows for shard in store.shards)


def test_over_many_shards_there_is_one_encoder_and_its_time_is_accounted_for(ready, monkeypatch):
    made = []
    load = featurizer.load_encoder
    monkeypatch.setattr(
        featurizer, "load_encoder", lambda *a, **kw: made.append(threading.current_thread().name) or load(*a, **kw)
    )
    report = run_targets(ready)
    assert len(made) == 1
    assert made[0].startswith("encode")  # its own thread, so that the run's gets no team of OpenMP's
    assert len(report.of_stage("targets")) == 2
    busy = report.utilisation("targets")
    assert busy.images == 6
    assert 0 < busy.seconds["forward"] < report.wall_s
    # From when it was ready to its last image the encoder worked or waited, and did nothing else.
    assert sum(busy.seconds.values()) < report.wall_s
    assert "encoder busy" in report.lines()[0]
    assert {"decode", "pack", "write", "commit"} <= set(report.of("targets", "0").costs)
    assert run_targets(ready).utilisation("targets").images == 0
    assert len(made) == 1


def test_an_encoder_that_is_handed_two_items_at_once_makes_the_same_rows_and_its_time_adds_up(ready, monkeypatch):
    """As on a GPU."""
    run_targets(ready)
    wanted = rows_of(ready, "targets")
    monkeypatch.setattr(featurizer, "cuda_here", lambda: True)
    again = ready.model_copy(update={"store": ready.store.with_name("again")})
    shutil.copytree(ready.store, again.store)
    shutil.rmtree(again.store / again.collection / "targets")
    report = run_targets(again)
    busy = report.utilisation("targets")
    assert busy.images == 6
    assert 0 < sum(busy.seconds.values()) < report.wall_s
    assert min(busy.seconds.values()) >= 0
    found = rows_of(again, "targets")
    assert found.keys() == wanted.keys()
    for key, (status, _, data) in wanted.items():
        assert found[key][0] == status == "ok"
        assert found[key][2] == data


def test_a_worker_on_a_cpu_has_one_team_of_threads(ready, monkeypatch):
    """More teams than cores would sleep whenever they wait."""
    monkeypatch.setattr(featurizer, "cuda_here", lambda: False)
    found, close = [], featurizer.Featurizer.close

    def nameless():
        """Threads that are not Python's: members of teams, and those of Arrow."""
        return len(list(Path("/proc/self/task").iterdir())) - threading.active_count()

    def counting(self):
        found.append(nameless())
        close(self)

    monkeypatch.setattr(featurizer.Featurizer, "close", counting)
    section = ready.targets.model_copy(update={"image_size": 518})  # at which even packing would be worth a team
    compute = ready.compute.model_copy(update={"encoder_threads": 3})
    settings = ready.model_copy(update={"targets": section, "compute": compute})
    assert run_targets(settings).by_status("targets") == {"ok": 6}
    wait_for(
        lambda: nameless() == found[0] - 2, LONG, "the team of two has ended with the encoder's thread, and no other"
    )


def test_shares_of_an_encoders_time_add_up_to_all_of_it():
    rows = [{"forward": 6.0, "wait_decode": 1.0, "wait_feed": 1.0}, {"forward": 2.0}, {"decode": 5.0}]
    busy = Utilisation().add(rows)
    assert (busy.images, busy.share("forward"), busy.share("wait_decode"), busy.share("wait_feed")) == (
        2,
        0.8,
        0.1,
        0.1,
    )
    assert (busy + busy).share("forward") == 0.8
    assert (busy + busy).images == 4
    assert Utilisation.of({"write": 1.0}, 3).images == 0


class Counting:
    """A worker whose items say how many of them were at work at once."""

    def __init__(self):
        self.at_work, self.most, self.lock, self.closed = 0, 0, threading.Lock(), False
        self.full = threading.Event()

    def process(self, payload):
        with self.lock:
            self.at_work += 1
            self.most = max(self.most, self.at_work)
            if self.at_work == AHEAD:
                self.full.set()
        if payload < 0:
            raise ValueError(f"item {payload}")
        if payload > 100:
            raise SystemicFault("the disk is gone")
        self.full.wait(0.05)
        with self.lock:
            self.at_work -= 1
        return [Outcome(key=str(payload), data={})]

    def probe(self):
        pass

    def close(self):
        self.closed = True


def test_a_pool_that_looks_ahead_answers_every_item_once_and_no_more_are_at_work():
    pool = LocalPool(Counting, AHEAD)
    answers = list(pool.run(list(range(20)), lambda item: item))
    assert sorted(item for item, _ in answers) == list(range(20))
    assert all(found[0].key == str(item) for item, found in answers)
    assert pool.worker.most == AHEAD
    alone = LocalPool(Counting, AHEAD)
    list(alone.run(list(range(5)), lambda item: item, alone=True))
    assert alone.worker.most == 1
    for each in (pool, alone):
        each.close()
        assert each.worker.closed


def test_in_a_pool_that_looks_ahead_a_failure_is_its_own_items_and_a_fault_ends_the_run():
    pool = LocalPool(Counting, AHEAD)
    answers = dict(pool.run([0, -1, 2], lambda item: item))
    assert isinstance(answers[-1], Broken) and answers[-1].reason == "ValueError: item -1"
    assert answers[0][0].key == "0" and answers[2][0].key == "2"
    with pytest.raises(SystemicFault, match="the disk is gone"):
        list(pool.run([3, 101, 4, 5, 6, 7], lambda item: item))
    pool.close()


def test_bytes_and_arrays_of_bytes_have_one_digest():
    content = bytes(range(256))
    array = np.frombuffer(content, np.uint8)
    assert row_digest("ok", {"a": content}) == row_digest("ok", {"a": array}) == row_digest("ok", {"a": array.copy()})
    assert row_digest("ok", {"a": array}) != row_digest("ok", {"a": array.reshape(16, 16)})


POISON = picture(99)


class PoisonedFeaturizer(featurizer.Featurizer):
    """Dies whenever it is to decode one picture, as a fault in a decoder would have it."""

    def decode(self, image, pixels):
        """See featurizer.Featurizer."""
        if image == POISON:
            os.kill(os.getpid(), 9)
        return super().decode(image, pixels)


def poison(_argument):
    """Called in the run's process: its workers are such ones."""
    targets.Featurizer = PoisonedFeaturizer


@pytest.mark.slow  # of its pool alone there is a test in test_cluster
def test_under_ray_a_picture_that_kills_its_worker_costs_no_other_row(tmp_path, nursery, ray_folder):
    members = [("poison.png", POISON), ("poison.txt", b"kills")]
    write_tar(tmp_path / "tars" / "a.tar", [*pairs(0, 4), *members, *pairs(20, 4)])
    quiet = of_images(tmp_path / "quiet", tmp_path / "tars", catalog={"shards": 1})
    assert run_images(quiet).by_status("targets") == {"ok": 9}
    compute = {"batch_size": 4, "workers": 1, "encoder_threads": 1, "flush_rows": 1}
    source = {"kind": "tars", "path": str(tmp_path / "tars")}
    values = {"images": source, "catalog": {"shards": 1}, "compute": compute}
    run = replace(new_run(tmp_path, tmp_path / "tars", **values), environment={"RAY_TMPDIR": ray_folder})
    run = replace(run, work="images_line", setup="test_overlap:poison")
    assert nursery.run(run) == 0, Path(run.log).read_text()
    settings = of_images(tmp_path / "store", tmp_path / "tars", catalog={"shards": 1}, compute=compute)
    rows = rows_of(settings, "targets")
    assert Counter(status for status, _, _ in rows.values()) == {"ok": 8, "crashed": 1}
    assert rows["a.tar#poison"][0] == "crashed"
    # The neighbours are as without it: through shared memory as in this process.
    others = {name: row for name, (_, _, row) in rows_of(quiet, "targets").items() if name != "a.tar#poison"}
    assert {name: row for name, (_, _, row) in rows.items() if row} == others
    assert Report.load(Path(f"{run.log}.report")).by_status("targets") == {"crashed": 1, "ok": 8}
    assert digests(quiet)["images", "0"] == digests(settings)["images", "0"]
