"""A training that is killed and run again is the one that nobody killed, bit for bit; and one that is stopped too."""

import json
import os
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from killed import Point, Run
from processes import wait_for
from remains import struck
from target_stores import collection
from trainings import small

from gap3d.aligner.weights import read_weights
from gap3d.training.checkpoint import tensors_digest
from gap3d.training.log import read
from gap3d.training.plan import plan_of

TIMES = {"seconds", "samples_per_s", "flops_share", "data_wait_share"}
STEP, WRITE = "gap3d.training.trainer:Trainer.step", "gap3d.training.log:MetricsLog.write"
# Saved after steps 2, 4 and 6, validated after 3 and 6.
FEW = {
    "weights moved, step not written down": Point("gap3d.training.optimiser:Optimiser.step", "after", call=4),
    "best step known, not saved": Point(WRITE, "after", "validation"),
    "checkpoint: files written, not named": Point("pathlib:Path.rename", "before", r"\.writing", 2),
    "checkpoint: an old one half removed": Point("shutil:rmtree", "before", r"step-0"),
}
MORE = {
    "before the first step": Point(STEP, "before"),
    "gradients there, weights not moved": Point("gap3d.training.optimiser:Optimiser.step", "before", call=3),
    "step written down, not saved": Point(WRITE, "after", call=4),
    "in a validation": Point("gap3d.training.trainer:validate", "before"),
    "checkpoint: model written, optimiser not": Point("gap3d.training.checkpoint:save_file", "before", call=2),
    "checkpoint: named, folder not synced": Point("pathlib:Path.rename", "after", r"\.writing", 2),
    "all steps made, no result": Point("gap3d.training.run:Run.save_result", "before"),
}


def run_of(root):
    """The program on a store, in a process of its own."""
    settings = root / "settings.json"
    settings.write_text(small(root / "store").model_dump_json())
    return Run(
        "pipelines.pretrain",
        str(root / "store"),
        "",
        str(root / "scratch"),
        str(root / "log"),
        flags=["--preset", str(settings), "--report", str(root / "report.json")],
        setup="torch:set_num_threads",
        argument=1,
    )


def outcome(root):
    """All that a training left, but for times."""
    run = plan_of(small(root / "store"), "pretrain").run
    lines = [
        {name: value for name, value in line.items() if name not in TIMES}
        for line in read(run.folder / "metrics.jsonl")
    ]
    weights = {step: tensors_digest(read_weights(run.checkpoints.path(step))) for step in run.checkpoints.steps()}
    return SimpleNamespace(
        lines=lines, weights=weights, digest=run.result()["digest"], best=run.result()["best"], folder=run.folder
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory, nursery):
    """A training that nobody killed."""
    root = tmp_path_factory.mktemp("reference")
    collection(root / "store", rows=20, shards=2)
    shutil.copytree(root / "store", root / "fresh")
    run = run_of(root)
    assert nursery.run(run) == 0, Path(run.log).read_text()
    return SimpleNamespace(fresh=root / "fresh", **vars(outcome(root)))


@pytest.fixture
def root(tmp_path, reference):
    """A store like the reference's, not yet trained on."""
    shutil.copytree(reference.fresh, tmp_path / "store")
    return tmp_path


def same_as(reference, root):
    """Whether a training is the reference's, and left nothing else."""
    found = outcome(root)
    assert found.lines == reference.lines
    assert found.weights == reference.weights
    assert (found.digest, found.best) == (reference.digest, reference.best)
    left = {path.name for path in found.folder.rglob("*") if "tensorboard" not in str(path)}
    assert left == {path.name for path in reference.folder.rglob("*") if "tensorboard" not in str(path)}


@pytest.mark.parametrize(
    "point",
    [pytest.param(point, id=name, marks=[pytest.mark.slow] * (name in MORE)) for name, point in (FEW | MORE).items()],
)
def test_a_killed_training_run_again_is_the_one_that_nobody_killed(nursery, reference, root, point):
    run = run_of(root)
    assert nursery.run(replace(run, point=asdict(point))) == -signal.SIGKILL, Path(run.log).read_text()
    assert struck(point) in Path(run.log).read_text()
    assert nursery.run(run) == 0, Path(run.log).read_text()
    same_as(reference, root)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_stopped_training_saves_the_step_it_was_at(nursery, reference, root, number):
    point = Point("gap3d.training.optimiser:Optimiser.gather", "after", call=3, signal=number)
    run = run_of(root)
    assert nursery.run(replace(run, point=asdict(point))) == 130, Path(run.log).read_text()
    said = Path(run.log).read_text()
    assert "run it again to go on" in said
    assert "Traceback" not in said
    assert plan_of(small(root / "store"), "pretrain").run.checkpoints.steps() == [2, 3]
    assert nursery.run(run) == 0, Path(run.log).read_text()
    found = outcome(root)
    assert found.lines == reference.lines
    assert found.digest == reference.digest
    assert json.loads((root / "report.json").read_text())["shards"][0]["computed"] == 1


@pytest.mark.slow
def test_a_training_killed_at_every_step_comes_to_the_same_end(nursery, reference, root):
    run = run_of(root)
    point = Point(STEP, "after", call=3)  # two steps are saved, the third is lost
    kills = 0
    while (code := nursery.run(replace(run, point=asdict(point)))) != 0:
        assert code == -signal.SIGKILL, Path(run.log).read_text()
        kills += 1
        assert kills < 4
    assert kills == 2
    same_as(reference, root)


def test_a_second_program_at_the_same_training_is_refused(nursery, root):
    run = run_of(root)
    pid = nursery.start(replace(run, point=asdict(Point(STEP, "before", call=2, signal=signal.SIGSTOP))))
    state = Path(f"/proc/{pid}/stat")
    wait_for(lambda: state.read_text().rpartition(")")[2].startswith(" T"), 60, "the first stands still")
    second = replace(run, log=f"{run.log}.second")
    assert nursery.run(second) == 1
    assert f"is being written by process {pid} on " in Path(second.log).read_text()
    os.kill(pid, signal.SIGCONT)
    assert nursery.wait(pid) == 0
