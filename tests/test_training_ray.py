"""Trainings in workers of Ray Train: two of them, one that dies, a program that is stopped, and what they leave."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from processes import alive, beyond_loopback, listening, mentioning, named, tree, wait_for
from target_stores import collection
from trainings import small

from gap3d.training.log import read
from gap3d.training.plan import plan_of

ROOT = Path(__file__).parents[1]


@pytest.fixture
def place():
    """A short path, for Ray's sockets; a home, which is to stay empty; a store."""
    with tempfile.TemporaryDirectory(prefix="train-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        for name in ("home", "tmp"):
            (root / name).mkdir()
        collection(root / "store", rows=10, shards=2)
        yield root
        wait_for(lambda: not alive(mentioning(folder)), 20, "every process has ended")


def begun(place, *, aligner=None, **training):
    """(run, process) of the program, with Ray."""
    settings = small(
        place / "store",
        rows=10,
        aligner=aligner or {},
        pretraining={"workers": 2, "batch_size": 2} | training,
        compute={"workers": 1},
    )
    (place / "settings.json").write_text(settings.model_dump_json())
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("GAP3D_", "RAY_"))}
    environment = {
        **bare,
        "HOME": str(place / "home"),
        "TMPDIR": str(place / "tmp"),
        "RAY_TMPDIR": str(place / "ray"),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }
    flags = ["--preset", str(place / "settings.json"), "--report", str(place / "report.json")]
    with (place / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.pretrain", *flags],
            env=environment,
            cwd=place,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    return plan_of(settings, "pretrain").run, process


def steps_of(run):
    """Steps that are written down."""
    path = run.folder / "metrics.jsonl"
    return [line["step"] for line in read(path) if line["kind"] == "train"] if path.exists() else []


def workers(process):
    """The processes of Ray Train's workers."""
    return [each for each in tree(process.pid) if "RayTrainWorker" in named(each)]


@pytest.mark.slow
def test_two_workers_share_a_model_and_leave_nothing_at_home(place):
    run, process = begun(place, strategy="fsdp")
    wait_for(lambda: steps_of(run), 180, "the first step")
    heard = beyond_loopback(listening(tree(process.pid)))
    assert process.wait(180) == 0, (place / "log").read_text()
    assert not heard
    assert steps_of(run) == [1, 2, 3, 4, 5, 6]
    assert run.result()["step"] == 6
    report = json.loads((place / "report.json").read_text())
    assert report["shards"][0]["digest"] == run.result()["digest"]
    assert {path.name for path in (place / "home").iterdir()} <= {".ray", ".cache", ".config"}  # token; matplotlib
    assert {path.name for path in run.folder.iterdir()} == {
        *("settings.json", "metrics.jsonl", "tensorboard", "checkpoints", "curves.png", "result.json", "lease.lock")
    }
    assert "6/6" in (place / "log").read_text()


@pytest.mark.slow
def test_a_stopped_program_has_its_workers_save_their_step(place):
    run, process = begun(place, steps=100_000, save_every=100_000, validate_every=100_000)
    wait_for(lambda: steps_of(run), 180, "the first step")
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 130, (place / "log").read_text()
    assert "run it again to go on" in (place / "log").read_text()
    (saved,) = run.checkpoints.steps()
    assert saved == steps_of(run)[-1]
    assert not list(run.folder.glob("driver-*"))


@pytest.mark.slow
def test_a_worker_that_dies_costs_the_steps_since_the_last_checkpoint(place):
    run, process = begun(place, steps=40, save_every=4)
    wait_for(lambda: len(steps_of(run)) >= 6, 180, "six steps")
    workers(process)[0].kill()
    assert process.wait(300) == 0, (place / "log").read_text()
    assert "goes on from its last checkpoint" in (place / "log").read_text()
    assert steps_of(run) == list(range(1, 41))


@pytest.mark.slow
def test_what_a_worker_says_reaches_the_user_as_a_sentence(place):
    (place / "vlm").mkdir()
    _, process = begun(place, aligner={"vlm": str(place / "vlm")})
    assert process.wait(180) == 1
    said = (place / "log").read_text()
    assert str(place / "vlm") in said
    assert "Traceback" not in said
