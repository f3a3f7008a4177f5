"""What a run does not go on from: another language model than it began with, and checkpoints that are not whole."""

import json

import pytest
from safetensors.torch import load_file, save_file
from trainings import small, trained

from gap3d.aligner.random_vlm import random_vlm
from gap3d.aligner_settings import SamplingSettings, TrainingSettings
from gap3d.records import SystemicFault
from gap3d.training.log import read
from gap3d.training.plan import plan_of
from gap3d.training.run import Run
from pipelines import generate

pytestmark = pytest.mark.usefixtures("one_thread")


def unfinished(root, **values):
    """A training that has its last checkpoint, and lost its result: its settings and plan."""
    settings = small(root, **values)
    plan, _ = trained(settings)
    (plan.run.folder / "result.json").unlink()
    return settings, plan


def test_a_language_model_that_changed_where_it_lies_is_not_trained_on(tmp_path):
    random_vlm(1).save(tmp_path / "vlm")
    settings, plan = unfinished(tmp_path / "store", aligner={"vlm": str(tmp_path / "vlm")})
    random_vlm(2).save(tmp_path / "vlm")
    with pytest.raises(SystemicFault, match=r"was trained with other weights of .* put the earlier ones back"):
        trained(settings)
    random_vlm(1).save(tmp_path / "vlm")
    assert trained(settings)[0].run.name == plan.run.name


def lose_a_moment(folder):
    path = folder / "optimiser.safetensors"
    state = load_file(path)
    state.pop(min(state))
    save_file(state, path)


def lose_the_place(folder):
    path = folder / "training.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"places": []}))


def garble_the_place(folder):
    path = folder / "training.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"places": [{"number": 3}]}))


@pytest.mark.parametrize("damage", [lose_a_moment, lose_the_place, garble_the_place])
def test_a_checkpoint_that_lacks_something_is_not_filled_up_in_silence(tmp_path, damage):
    settings, plan = unfinished(tmp_path, pretraining={"validation_count": 1, "validation_steps": 1})
    damage(plan.run.checkpoints.path(6))
    with pytest.raises(SystemicFault, match=r"step-00000006 can't be read .*: remove the folder"):
        trained(settings)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"checkpoint": 3}', "[" * 100_000])
def test_a_damaged_result_is_a_sentence_whoever_reads_it(tmp_path, text):
    folder = tmp_path / "demo" / "aligner" / "pretrain-1-2"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(text)
    for read_it in (Run(folder, "pretrain", "1", "2", 1).result, lambda: generate.trained_in(tmp_path, "demo")):
        with pytest.raises(SystemicFault, match=r"result.json is damaged .*: remove it, then run the stage again"):
            read_it()


@pytest.mark.parametrize("name", ["../other", "/etc", "a/b", "."])
def test_a_collection_to_train_on_is_one_of_the_store(name):
    for setting in ("collection", "mix_collection", "validation_collection"):
        with pytest.raises(ValueError, match="can't name a collection"):
            TrainingSettings(**{setting: name})


def test_a_guidance_interval_from_most_to_least_is_refused():
    with pytest.raises(ValueError, match="the least sigma comes first"):
        SamplingSettings(interval=(0.9, 0.1))


def test_a_validation_that_was_interrupted_is_measured_once(tmp_path):
    settings = small(tmp_path)
    run = plan_of(settings, "pretrain").run

    def interrupt(*_):
        raise KeyboardInterrupt

    def fail(*_):
        raise RuntimeError("after the validation")

    with pytest.raises(KeyboardInterrupt):
        trained(settings, on_validation=interrupt)
    assert run.checkpoints.steps() == [2, 3]
    with pytest.raises(RuntimeError, match="after the validation"):
        trained(settings, on_step=fail)
    trained(settings)
    validated = [line["step"] for line in read(run.folder / "metrics.jsonl") if line["kind"] == "validation"]
    assert validated == [3, 6]


def test_the_curves_in_the_folder_say_that_weights_are_random(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr("gap3d.training.trainer.draw_curves", lambda _, title="": titles.append(title) or b"")
    plan, result = trained(small(tmp_path, pretraining={"validation_count": 1, "validation_steps": 1}))
    assert titles == [f"{result['label']} \u00b7 {plan.run.name}"]
    assert "UNTRAINED" in titles[0]
