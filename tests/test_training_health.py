"""Whether a training is sound: a whole one has no fault, and every kind of damage to its checkpoint is named."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from trainings import small, trained

from gap3d.training import health
from gap3d.training.checkpoint import OPTIMISER, TRAINING
from gap3d.training.log import METRICS, read
from gap3d.training.run import Run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    plan, _ = trained(small(tmp_path_factory.mktemp("health") / "store"))
    return plan.run


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it to damage, and its newest checkpoint."""
    shutil.copytree(finished.folder, tmp_path / finished.name)
    return Run(tmp_path / finished.name, finished.stage, finished.settings, finished.data, finished.keep)


def newest(run):
    return run.checkpoints.path(run.checkpoints.steps()[-1])


def change(path, **tensors):
    """Replace tensors of a file, or remove those that are None."""
    state = {name: value for name, value in {**load_file(path), **tensors}.items() if value is not None}
    save_file(state, path)


def test_a_whole_run_has_no_fault(finished):
    assert health.faults_of(finished) == []
    assert health.not_finite(read(finished.folder / METRICS)) == []


def test_a_resumed_state_with_a_number_that_is_none_is_a_fault(run):
    path = newest(run) / OPTIMISER
    name, moment = next(iter(load_file(path).items()))
    moment.flatten()[0] = torch.nan
    change(path, **{name: moment})
    assert health.faults_of(run) == [f"{name} is not finite"]


def test_a_moment_that_is_missing_or_of_another_shape_is_a_fault(run):
    path = newest(run) / OPTIMISER
    first, second, *_ = load_file(path)
    change(path, **{first: None, second: torch.zeros(3), "exp_avg.of.nothing": torch.zeros(1)})
    found = health.faults_of(run)
    assert len(found) == 3
    assert any(first in fault and "is missing" in fault for fault in found)
    assert any(second in fault and "is (3,)" in fault for fault in found)
    assert any("exp_avg.of.nothing" in fault and "its weight missing" in fault for fault in found)


def test_weights_of_another_model_are_a_fault(run):
    path = newest(run) / "model.safetensors"
    change(path, **{"model.latent_queries": torch.zeros(1, 2, 3)})
    (fault,) = health.faults_of(run)
    assert "of another geometry" in fault


@pytest.mark.parametrize("name", [OPTIMISER, TRAINING, "model.safetensors", "aligner.json"])
@pytest.mark.parametrize("how", ["gone", "cut"])
def test_a_file_that_is_gone_or_cut_off_is_a_fault(run, name, how):
    path = newest(run) / name
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (fault,) = health.faults_of(run)
    assert "can't be read" in fault


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"step": 3}, "named for step 6 and holds step 3"),
        ({"data": "0" * 32}, "of other settings or data"),
        ({"settings": "0" * 32}, "of other settings or data"),
        ({"places": []}, "where in the data"),
    ],
    ids=str,
)
def test_a_checkpoint_that_is_not_what_its_run_says_is_a_fault(run, changed, words):
    path = newest(run) / TRAINING
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    (fault,) = health.faults_of(run)
    assert words in fault


def test_metrics_that_end_before_the_checkpoint_are_a_fault(run):
    path = run.folder / METRICS
    path.write_text("".join(f"{line}\n" for line in path.read_text().splitlines()[:2]))
    (fault,) = health.faults_of(run)
    assert "the metrics end at step 2" in fault


def test_without_a_checkpoint_that_is_said(run):
    shutil.rmtree(run.folder / "checkpoints")
    (fault,) = health.faults_of(run)
    assert "there is no checkpoint" in fault


def lines(*losses):
    return [{"step": step, "kind": "train", "loss": loss} for step, loss in enumerate(losses, 1)]


def test_the_fall_is_between_the_means_of_the_first_and_the_last_tenth():
    falling = [2.0, 4.0, *[9.0] * 16, 1.0, 2.0]
    found = health.fall_of([*lines(*falling), {"step": 20, "kind": "validation", "loss": 99.0}])
    assert (found.first, found.last, found.steps, found.fell) == (3.0, 1.5, 20, True)
    assert not health.fall_of(lines(*reversed(falling))).fell
    assert not health.fall_of(lines(1.0)).fell
    assert not health.fall_of(lines(1.0, 1.0)).fell
    assert health.fall_of(lines(3.0, None, 1.0)).steps == 2
    with pytest.raises(ValueError, match="no step with a finite loss"):
        health.fall_of(lines(None))


def test_numbers_that_are_none_are_named_with_their_step():
    found = health.not_finite([*lines(1.0, None), {"step": 2, "kind": "validation", "cosine_patches": None}])
    assert found == ["loss of train at step 2", "cosine_patches of validation at step 2"]
