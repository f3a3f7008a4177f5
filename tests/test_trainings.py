"""Whole trainings in this process: what they leave, what they are named, what they begin with, and what stops them."""

import json
import math
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from target_stores import LAYOUT, collection, tokens_of, write_index, write_part
from trainings import small, trained

from gap3d import gc
from gap3d.aligner.model import load_aligner
from gap3d.aligner.weights import read_weights
from gap3d.records import SystemicFault
from gap3d.settings import ComputeSettings
from gap3d.store import Store
from gap3d.takedown import traces
from gap3d.training.broken import BrokenStep
from gap3d.training.checkpoint import tensors_digest
from gap3d.training.log import read
from gap3d.training.plan import plan_of
from gap3d.training.step import draw
from pipelines import finetune, pretrain
from pipelines.aligner import format_progress
from pipelines.job import NotReady
from pipelines.training import Follower

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A store with a collection of twenty images, both trainings of which are done."""
    root = tmp_path_factory.mktemp("trainings")
    collection(root, rows=20, shards=2)
    for stage in (pretrain, finetune):
        assert stage.run(small(root)).count("computed") == 1
    return root


def lines(run):
    return list(read(run.folder / "metrics.jsonl"))


def test_a_run_leaves_one_line_a_step_and_its_newest_and_best_checkpoints(place):
    run = plan_of(small(place), "pretrain").run
    counted = Counter((line["kind"], line["step"]) for line in lines(run))
    assert counted == Counter([("train", step) for step in range(1, 7)] + [("validation", 3), ("validation", 6)])
    result = run.result()
    assert run.checkpoints.steps() == sorted({4, 6, result["best_step"]})
    assert result["digest"] == tensors_digest(read_weights(run.trained))
    assert json.loads((run.folder / "settings.json").read_text())["pretraining"]["steps"] == 6
    assert (run.folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((run.folder / "tensorboard").iterdir())
    assert {path.name for path in run.folder.iterdir()} == {
        *("settings.json", "metrics.jsonl", "tensorboard", "checkpoints", "curves.png", "result.json", "lease.lock")
    }


def test_untrained_parts_are_named_loudly(place):
    result = plan_of(small(place), "pretrain").run.result()
    assert result["label"].startswith("UNTRAINED random weights: vision-language model")
    assert result["vlm"] == "UNTRAINED random weights"
    assert not result["trained"]


def test_a_checkpoint_is_an_aligner_that_generates(place):
    run = plan_of(small(place), "finetune").run
    aligner = load_aligner(run.trained, device="cpu")
    assert aligner.about["stage"] == "finetune"
    assert aligner.about["step"] == 6
    tokens = aligner.generate(["a cube"], ["key"], small(place).sampling.model_copy(update={"steps": 2}))
    assert tokens.shape == (1, LAYOUT.count, LAYOUT.width)


def test_a_second_run_trains_nothing(place):
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.name != "lease.lock"}
    for stage in (pretrain, finetune):
        report = stage.run(small(place))
        assert report.count("computed") == 0
        assert report.count("found") == report.count("expected") == 1
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.name != "lease.lock"} == before


def test_gc_and_verify_leave_trainings_alone(place, tmp_path):
    shutil.copytree(place, tmp_path / "store")
    store = Store(tmp_path / "store", "test", 2)
    before = {path: path.read_bytes() for path in (store.folder / "aligner").rglob("*") if path.is_file()}
    gc.compact(store, ComputeSettings(), dry_run=False)
    gc.collect(store, 0.0, 0.0, dry_run=False)
    assert {path: path.read_bytes() for path in (store.folder / "aligner").rglob("*") if path.is_file()} == before
    assert not [trace for trace in traces(store, {"0000/000": ""}) if "aligner" in trace]  # no key of a sample


def test_a_training_that_is_all_warm_up_is_refused(place):
    with pytest.raises(NotReady, match=r"pretraining has 6 steps, and warmup_steps = 6 leaves none"):
        pretrain.run(small(place, pretraining={"warmup_steps": 6}))


def test_the_name_carries_what_can_change_a_weight(place):
    def name(**values):
        return plan_of(small(place, **values), "pretrain").run.name

    first = name()
    same = [
        {"pretraining": {"keep": 5, "save_every": 1, "validate_every": 1, "checkpointing": False}},
        {"pretraining": {"epochs": 9.0}},  # steps are given
        {"pretraining": {"strategy": "fsdp"}},  # one worker shares with nobody
        {"pretraining": {"warmup_steps": 1}},  # the share has as many
        {"compute": {"encoder_threads": 1}},
        {"finetuning": {"learning_rate": 1.0}},
        {"sampling": {"steps": 3}},
        {"renders": {"samples": 3}},
    ]
    other = [
        {"pretraining": {"learning_rate": 2e-3}},
        {"pretraining": {"batch_size": 5}},
        {"pretraining": {"workers": 2}},
        {"pretraining": {"workers": 2, "strategy": "fsdp"}},
        {"pretraining": {"steps": None, "epochs": 9.0}},
        {"pretraining": {"steps": None, "epochs": 8.0}},
        {"pretraining": {"seed": 1}},
        {"pretraining": {"warmup_steps": 2}},
        {"aligner": {"blocks": 3}},
        {"aligner": {"dtype": "bfloat16"}},
    ]
    assert {name(**values) for values in same} == {first}
    assert len({first, *(name(**values) for values in other)}) == 1 + len(other)


def test_new_data_never_go_on_from_an_old_model(place, tmp_path):
    shutil.copytree(place, tmp_path / "store")
    settings = small(tmp_path / "store")
    before = plan_of(settings, "pretrain").run
    assert before.result()  # a store that was moved has the same runs
    store = Store(tmp_path / "store", "test", 2)
    write_index(store, captions=lambda number: [f"another caption {number}"])
    after = plan_of(settings, "pretrain").run
    assert after.name.rpartition("-")[0] == before.name.rpartition("-")[0]
    assert after.name != before.name
    assert not after.checkpoints.steps()
    with pytest.raises(SystemicFault, match=r"run `python -m pipelines\.pretrain`"):
        plan_of(settings, "finetune")


def test_finetuning_begins_with_the_pretrained_weights_and_moves_them(place):
    plan = plan_of(small(place), "finetune")
    begun = plan_of(small(place), "pretrain").run
    assert plan.start == begun.trained
    before, after = read_weights(plan.start), read_weights(plan.run.trained)
    largest = max((after[name] - before[name]).abs().max() for name in before)
    assert 0 < largest < 6 * 1.5e-3  # AdamW moves a weight by about the rate a step
    assert plan.run.result()["start"] == str(plan.start)


def test_finetuning_without_pretraining_says_what_to_run(tmp_path):
    settings = small(tmp_path)
    with pytest.raises(SystemicFault, match=r"and there is none: run `python -m pipelines\.pretrain`"):
        finetune.run(settings)


def test_finetuning_after_half_a_pretraining_says_how_far_it_is(tmp_path):
    settings = small(tmp_path)

    def stop(step, _values):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(settings, on_step=stop)
    with pytest.raises(SystemicFault, match="stopped at step 2"):
        finetune.run(settings)


def test_finetuning_can_begin_with_any_checkpoint(place, tmp_path):
    start = plan_of(small(place), "pretrain").run.trained
    settings = small(tmp_path, rows=12, finetuning={"start": start, "steps": 1})
    plan, result = trained(settings, "finetune")
    assert plan.start == start
    assert result["step"] == 1
    moved = small(tmp_path, finetuning={"start": shutil.copytree(start, tmp_path / "elsewhere"), "steps": 1})
    assert plan_of(moved, "finetune").run.name == plan.run.name


def test_weights_of_another_geometry_are_refused(place, tmp_path):
    start = plan_of(small(place), "pretrain").run.trained
    with pytest.raises(SystemicFault, match="can't be trained further with these settings"):
        trained(small(tmp_path, rows=12, aligner={"blocks": 3}, finetuning={"start": start}), "finetune")


def test_weights_that_know_another_encoder_are_refused(place, tmp_path):
    start = shutil.copytree(plan_of(small(place), "pretrain").run.trained, tmp_path / "start")
    about = json.loads((start / "aligner.json").read_text())
    about["about"]["encoder"] = {"fingerprint": "another", "label": "another encoder"}
    (start / "aligner.json").write_text(json.dumps(about))
    with pytest.raises(SystemicFault, match="another encoder"):
        trained(small(tmp_path, rows=12, finetuning={"start": start}), "finetune")


def test_training_overfits_a_handful(tmp_path):
    settings = small(
        tmp_path,
        rows=6,
        aligner={"width": 64},
        pretraining={"steps": 150, "batch_size": 5, "learning_rate": 5e-3, "save_every": 150, "validate_every": 150},
    )
    plan, _ = trained(settings)
    losses = [line["loss"] for line in lines(plan.run) if line["kind"] == "train"]
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:5])


@pytest.mark.parametrize("changed", [{"checkpointing": False}, {"save_every": 1, "validate_every": 2}])
def test_what_is_in_no_name_changes_no_weight(place, tmp_path, changed):
    shutil.copytree(place / "test", tmp_path / "test", ignore=lambda _, names: {"aligner"} & set(names))
    digest = trained(small(tmp_path, pretraining=changed))[1]["digest"]
    assert digest == plan_of(small(place), "pretrain").run.result()["digest"]


def test_accumulated_batches_train_as_one_large_batch(tmp_path):
    found = []
    for batch_size, accumulate in ((8, 1), (2, 4)):
        settings = small(tmp_path, pretraining={"batch_size": batch_size, "accumulate": accumulate, "steps": 3})
        plan, _ = trained(settings)
        found.append(
            ([line["loss"] for line in lines(plan.run) if line["kind"] == "train"], read_weights(plan.run.trained))
        )
    (losses, weights), (others, other_weights) = found
    assert losses == pytest.approx(others, rel=1e-4)
    for name, weight in weights.items():
        assert (weight - other_weights[name]).abs().mean() < 1e-4, name


def test_bfloat16_trains_nearly_as_float32_does(tmp_path):
    curves = []
    for dtype in ("float32", "bfloat16"):
        plan, _ = trained(small(tmp_path, aligner={"dtype": dtype}, pretraining={"steps": 10}))
        assert {tensor.dtype for tensor in read_weights(plan.run.trained).values()} == {torch.float32}
        curves.append([line["loss"] for line in lines(plan.run) if line["kind"] == "train"])
    assert curves[0] == pytest.approx(curves[1], rel=0.03)
    assert curves[0] != curves[1]


@pytest.fixture
def poisoned(tmp_path):
    """Settings of a collection with one picture whose tokens are finite, and so large that no loss is."""
    store = Store(tmp_path, "test", 2)
    tokens = {f"{number:04d}/000": tokens_of(number) for number in range(20)}
    tokens["0006/000"] *= 1e30
    for index, shard in enumerate(store.shards):
        mine = {key: row for number, (key, row) in enumerate(tokens.items()) if number % 2 == index}
        write_part(store, shard, mine, dtype="bfloat16")
    write_index(store, captions=lambda number: [f"caption {number}"])
    return small(tmp_path, pretraining={"save_every": 1, "batch_size": 2, "accumulate": 2})


def test_a_loss_that_is_no_number_stops_the_run_with_its_batch_saved(poisoned):
    with pytest.raises(BrokenStep) as raised:
        trained(poisoned)
    run = plan_of(poisoned, "pretrain").run
    broken = [line for line in lines(run) if line["loss"] is None]
    assert len(broken) == 1
    step = broken[0]["step"]
    (folder,) = (run.folder / "failed").iterdir()
    said = str(raised.value)
    assert f"the loss of step {step} is" in said
    assert str(folder) in said
    assert "pipelines.verify" in said
    assert "\n" not in said
    about = json.loads((folder / "batch.json").read_text())
    (batch,) = about["batches"]
    row = batch["keys"].index("0006/000")
    assert batch["captions"][row] == "caption 6"
    saved = load_file(folder / "batch-0.safetensors")
    assert saved["tokens"][row].abs().max() > 1e29
    assert saved["timestep"].tolist() == batch["timestep"]
    again = draw(batch["visits"], saved["tokens"].shape[1:], poisoned.pretraining.seed, 0.1, torch.device("cpu"))
    assert torch.equal(again.timestep, saved["timestep"])
    assert torch.equal(again.dropped, saved["dropped"])
    # Nothing of that step is kept, and the next run comes to it again.
    assert max(run.checkpoints.steps(), default=0) == step - 1
    assert run.result() is None
    for steps in run.checkpoints.steps():
        assert all(tensor.isfinite().all() for tensor in read_weights(run.checkpoints.path(steps)).values())
    with pytest.raises(BrokenStep, match=f"step {step} is"):
        trained(poisoned)
    assert len([line for line in lines(run) if line["loss"] is None]) == 1


def test_who_follows_a_run_with_a_broken_step_is_told_of_the_steps_before_it(poisoned):
    run = plan_of(poisoned, "pretrain").run
    shown = []
    follower = Follower(
        run.folder / "metrics.jsonl", lambda step, values: shown.append((step, format_progress(values)))
    )
    with pytest.raises(BrokenStep):
        trained(poisoned)
    follower.read()
    made = [line["step"] for line in lines(run) if line["kind"] == "train" and line["loss"] is not None]
    assert [step for step, _ in shown] == made


def test_a_full_disk_stops_the_run_in_a_sentence_and_keeps_earlier_checkpoints(tmp_path, monkeypatch):
    import gap3d.training.checkpoint as checkpoint

    settings, original = small(tmp_path), checkpoint.save_file

    def full(tensors, path):
        if plan_of(settings, "pretrain").run.checkpoints.steps():
            raise OSError(28, "No space left on device")
        original(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(SystemicFault, match="make room, then run it again"):
        trained(settings)
    checkpoints = plan_of(settings, "pretrain").run.checkpoints
    assert checkpoints.steps() == [2]
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000002"]
    monkeypatch.undo()
    assert trained(settings)[1]["step"] == 6


def test_a_damaged_checkpoint_says_which_folder_to_remove(tmp_path):
    settings = small(tmp_path, pretraining={"save_every": 2})
    plan, result = trained(settings)
    (plan.run.folder / "result.json").unlink()
    model = plan.run.checkpoints.path(6) / "optimiser.safetensors"
    model.write_bytes(model.read_bytes()[:1000])
    with pytest.raises(SystemicFault, match=r"step-00000006 can't be read .*: remove the folder"):
        trained(settings)
    shutil.rmtree(plan.run.checkpoints.path(6))
    assert trained(settings)[1]["digest"] == result["digest"]


def test_without_data_it_says_which_program_makes_them(tmp_path):
    Store(tmp_path, "test", 2)
    (tmp_path / "test" / "x").mkdir()
    with pytest.raises(NotReady, match=r"run `python -m pipelines\.dataset` first"):
        pretrain.run(small(tmp_path))


def test_several_workers_want_ray(place):
    with pytest.raises(SystemicFault, match="need Ray"):
        pretrain.run(small(place, pretraining={"workers": 2}))


def test_without_held_out_pairs_training_goes_on_and_says_so(tmp_path, caplog):
    settings = small(tmp_path, rows=4)  # every fifth is held out
    plan, result = trained(settings)
    assert result["validation"] is None
    assert result["best"] is None
    assert "without validation" in caplog.text
    assert plan.run.checkpoints.steps() == [4, 6]


def test_losses_are_finite_and_every_number_is_logged(place):
    for line in lines(plan_of(small(place), "pretrain").run):
        assert all(math.isfinite(value) for value in line.values() if not isinstance(value, str))
        if line["kind"] == "train":
            assert {"loss", "loss_patches", "loss_cls", "loss_registers", "gradient_norm", "learning_rate"} <= set(line)
            assert {"samples_per_s", "flops_share", "data_wait_share", "seconds", "damaged"} <= set(line)
            assert 0 < line["flops_share"] < 1
