"""Two processes that train together do what one with their batches together does; stopped, and broken, they agree."""

import json
from types import SimpleNamespace

import pytest
import torch
from meetings import met
from target_stores import collection, tokens_of, write_index, write_part
from trainings import small, trained

from gap3d.aligner.weights import read_weights
from gap3d.store import Store
from gap3d.training.broken import BrokenStep
from gap3d.training.log import read
from gap3d.training.parallel import Processes
from gap3d.training.plan import plan_of
from gap3d.training.train import train
from gap3d.training.trainer import Stopped

pytestmark = pytest.mark.usefixtures("one_thread")

WHOLE = (("ddp", "float32"), ("fsdp", "float32"), ("fsdp", "bfloat16"))


def settings_of(root, strategy, dtype="float32", **values):
    """Ten images, eight of them to train on: a step of two processes is an epoch."""
    together = {"workers": 2, "strategy": strategy, "batch_size": 2, "accumulate": 2}
    return small(root, rows=10, aligner={"dtype": dtype}, pretraining=together | values)


def process(rank, root):
    """What each of the two does: whole trainings, one that is stopped and goes on, one that breaks."""
    with met(rank, root):
        processes = Processes(rank, 2)
        said = {}
        for strategy, dtype in WHOLE:
            settings = settings_of(root / "whole", strategy, dtype)
            train(settings, plan_of(settings, "pretrain"), processes)
        settings, asked = settings_of(root / "stopped", "fsdp"), iter(range(100))
        try:
            # Only one of them hears it, and both stop.
            train(settings, plan_of(settings, "pretrain"), processes, stopped=lambda: rank == 1 and next(asked) == 2)
        except Stopped as stopped:
            said["stopped"] = str(stopped)
        train(settings, plan_of(settings, "pretrain"), processes)
        settings = settings_of(root / "broken", "ddp")
        try:
            train(settings, plan_of(settings, "pretrain"), processes)
        except BrokenStep as broken:
            said["broken"] = str(broken)
        (root / f"said-{rank}.json").write_text(json.dumps(said))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What two processes made, and what they said."""
    root = tmp_path_factory.mktemp("parallel")
    for name in ("whole", "stopped", "alone"):
        collection(root / name, rows=10, shards=2)
    store = Store(root / "broken", "test", 2)
    tokens = {f"{number:04d}/000": tokens_of(number) * (1e30 if number == 0 else 1) for number in range(10)}
    for shard in store.shards:
        mine = {key: row for key, row in tokens.items() if int(key[:4]) % 2 == int(shard)}
        write_part(store, shard, mine, dtype="bfloat16")
    write_index(store, captions=lambda number: [f"caption {number}"])
    torch.multiprocessing.spawn(process, (root,), nprocs=2)
    said = [json.loads((root / f"said-{rank}.json").read_text()) for rank in range(2)]
    return SimpleNamespace(root=root, said=said)


def lines(run):
    return [line["loss"] for line in read(run.folder / "metrics.jsonl") if line["kind"] == "train"]


@pytest.mark.parametrize(("strategy", "dtype"), WHOLE)
def test_two_processes_train_as_one_with_their_batches_together(made, strategy, dtype):
    run = plan_of(settings_of(made.root / "whole", strategy, dtype), "pretrain").run
    alone = small(made.root / "alone", rows=10, aligner={"dtype": dtype}, pretraining={"batch_size": 8})
    one = plan_of(alone, "pretrain").run
    if one.result() is None:
        trained(alone)
    close = 1e-4 if dtype == "float32" else 1e-2
    assert lines(run) == pytest.approx(lines(one), rel=close)
    weights, others = read_weights(run.trained), read_weights(one.trained)
    for name, weight in weights.items() if dtype == "float32" else ():  # rounding turns some of AdamW's first steps
        assert (weight - others[name]).abs().mean() < 1e-6, name
    # Held-out pairs are shared out, and measured as by one.
    assert run.result()["validation"]["pairs"] == one.result()["validation"]["pairs"] == 2
    assert run.result()["validation"]["loss"] == pytest.approx(one.result()["validation"]["loss"], rel=close)


def test_stopped_together_and_begun_again_they_come_to_the_same_weights(made):
    assert [said["stopped"] for said in made.said] == ["stopped at step 3 of 6"] * 2
    stopped, whole = (plan_of(settings_of(made.root / name, "fsdp"), "pretrain").run for name in ("stopped", "whole"))
    assert stopped.result()["digest"] == whole.result()["digest"]
    assert lines(stopped) == lines(whole)


def test_where_one_breaks_all_stop_and_its_batch_is_saved(made):
    run = plan_of(settings_of(made.root / "broken", "ddp"), "pretrain").run
    assert all("the loss of step 1 is" in said["broken"] for said in made.said)
    (saved,) = (run.folder / "failed").iterdir()
    assert "0000/000" in (saved / "batch.json").read_text()
    assert run.checkpoints.steps() == []
