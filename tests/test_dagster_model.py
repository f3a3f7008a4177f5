"""The model assets through the real definitions: they train, show what came of it, and wait for a person."""

import base64
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest
from code_location import environment, load, materialize, metadata
from dagster._core.events import StepMaterializationData
from PIL import Image
from safetensors.torch import load_file, save_file
from target_stores import collection, write_index
from ticks import Automation

from gap3d.store import Store

ALIGNERS = ("pretrained_aligner", "finetuned_aligner")
CHECKS = ("loss_fell", "no_nan", "resumable")
SMALL = {
    "ALIGNER__VLM": "random-small",
    "ALIGNER__SOFT_TOKENS": "4",
    "ALIGNER__WIDTH": "32",
    "ALIGNER__BLOCKS": "1",
    "ALIGNER__HEADS": "2",
    "ALIGNER__DTYPE": "float32",
}
SHORT = {
    "STEPS": "12",
    "BATCH_SIZE": "4",
    "LEARNING_RATE": "0.01",
    "SAVE_EVERY": "6",
    "VALIDATE_EVERY": "6",
    "VALIDATION_COUNT": "2",
    "VALIDATION_STEPS": "2",
}


def given(root, **values):
    """Settings of a collection of tokens, and of two trainings of seconds."""
    trainings = {f"{stage}__{name}": value for stage in ("PRETRAINING", "FINETUNING") for name, value in SHORT.items()}
    small = {"COLLECTION": "test", "CATALOG__SHARDS": "2", **SMALL, **trainings}
    return environment(root / "store", root / "objects", **{**small, **values})


def open_place(root, monkeypatch, instance, **values):
    settings = given(root, **values)
    return SimpleNamespace(root=root, settings=settings, defs=load(monkeypatch, settings), instance=instance)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Both trainings, materialised in one run along with their checks; never changed by a test."""
    root = tmp_path_factory.mktemp("model")
    collection(root / "store", 20)
    with pytest.MonkeyPatch.context() as patch, dg.DagsterInstance.ephemeral() as instance:
        place = open_place(root, patch, instance)
        place.result = materialize(place.defs, instance, *ALIGNERS)
        yield place


@pytest.fixture
def place(finished, tmp_path, monkeypatch):
    """A copy of it to change."""
    shutil.copytree(finished.root, tmp_path, dirs_exist_ok=True)
    return open_place(tmp_path, monkeypatch, finished.instance)


def run_folder(place, stage):
    (folder,) = (place.root / "store" / "test" / "aligner").glob(f"{stage}-*")
    return folder


def check(place, asset, name):
    """Run a check alone, as its Execute button does."""
    selection = dg.AssetSelection.checks(dg.AssetCheckKey(dg.AssetKey(asset), name))
    job = dg.Definitions(
        assets=place.defs.assets,
        asset_checks=place.defs.asset_checks,
        resources=place.defs.resources,
        jobs=[dg.define_asset_job("only_check", selection=selection)],
    )
    result = job.resolve_job_def("only_check").execute_in_process(instance=place.instance)
    (evaluation,) = result.get_asset_check_evaluations()
    return evaluation


def test_both_trainings_run_one_after_the_other_and_pass_their_checks(finished):
    assert finished.result.success
    made = [event.asset_key.to_user_string() for event in finished.result.get_asset_materialization_events()]
    assert made == list(ALIGNERS)
    checks = finished.result.get_asset_check_evaluations()
    assert {(one.asset_key.to_user_string(), one.check_name) for one in checks} == {
        (asset, name) for asset in ALIGNERS for name in CHECKS
    }
    assert all(one.passed for one in checks), [one.description for one in checks if not one.passed]


@pytest.mark.parametrize("asset", ALIGNERS)
def test_a_materialisation_shows_its_curves_what_was_measured_and_where_the_checkpoint_is(finished, asset):
    found = metadata(finished.instance, asset)
    assert next(iter(found)) == "curves"  # the UI keeps this order
    encoded = found["curves"].partition("data:image/png;base64,")[2].rstrip(")")
    assert len(found["curves"]) < 300_000  # it lies in the event log
    picture = Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert picture.width >= 800
    assert len(picture.getcolors()) > 10
    assert found["loss_last"] < found["loss_first"]
    assert (found["steps"], found["samples"], found["held_out_pairs"]) == (12, 48, 2)
    assert -1 <= found["held_out_cosine_patches"] <= 1
    assert found["samples_per_second"] > 0
    assert (Path(found["checkpoint"]) / "model.safetensors").is_file()
    assert found["run"] in found["checkpoint"]
    assert "cosine_patches" in found["measured"]
    assert len(found["measured"]) < 1000  # the UI folds longer markdown


@pytest.mark.parametrize("asset", ALIGNERS)
def test_what_is_untrained_is_said_loudly(finished, asset):
    label = metadata(finished.instance, asset)["label"]
    assert label.startswith("UNTRAINED")
    assert "vision-language model" in label


def test_the_data_version_is_the_digest_of_the_weights_and_the_finetuned_ones_are_others(finished):
    found = {}
    for asset, stage in zip(ALIGNERS, ("pretrain", "finetune"), strict=True):
        record = finished.instance.get_latest_data_version_record(dg.AssetKey(asset))
        result = json.loads((run_folder(finished, stage) / "result.json").read_text())
        found[asset] = record.asset_materialization.tags["dagster/data_version"]
        assert found[asset] == result["digest"] == metadata(finished.instance, asset)["digest"]
    assert len(set(found.values())) == 2


def test_what_is_trained_is_not_trained_again_until_the_data_change(place):
    def stamps():
        return {path.parent.name: path.stat().st_mtime_ns for path in place.root.glob("store/test/aligner/*/*.jsonl")}

    before = stamps()
    assert materialize(place.defs, place.instance, *ALIGNERS).success
    assert stamps() == before
    store = Store(place.root / "store", "test", 2)
    write_index(store, captions=lambda number: [f"another caption of {number}"])
    assert materialize(place.defs, place.instance, *ALIGNERS).success
    after = stamps()
    assert {name: after[name] for name in before} == before  # theirs is left alone
    new = sorted(name.partition("-")[0] for name in after.keys() - before.keys())
    assert new == ["finetune", "pretrain"]


def test_a_finetuning_without_a_pretraining_fails_and_says_what_to_run(place):
    shutil.rmtree(run_folder(place, "pretrain"))
    result = materialize(place.defs, place.instance, "finetuned_aligner", raise_on_error=False)
    (failure,) = [event for event in result.all_events if event.step_key == "finetuned_aligner" and event.is_failure]
    assert "python -m pipelines.pretrain" in failure.step_failure_data.user_failure_data.description
    alone = check(place, "finetuned_aligner", "loss_fell")
    assert not alone.passed
    assert "python -m pipelines.pretrain" in alone.description


def test_the_checks_executed_alone_pass_on_what_is_sound(finished):
    for asset in ALIGNERS:
        for name in CHECKS:
            found = check(finished, asset, name)
            assert found.passed, found.description


def test_a_loss_that_rose_is_a_warning_and_a_number_that_is_none_an_error_that_names_its_step(place):
    path = run_folder(place, "pretrain") / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    turned = [{**line, "loss": 1.0 + line["step"]} for line in lines]
    turned[3]["gradient_norm"] = None
    path.write_text("".join(f"{json.dumps(line)}\n" for line in turned))
    rose = check(place, "pretrained_aligner", "loss_fell")
    assert (rose.passed, rose.severity) == (False, dg.AssetCheckSeverity.WARN)
    broken = check(place, "pretrained_aligner", "no_nan")
    assert (broken.passed, broken.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "gradient_norm of train at step 4" in broken.description
    assert check(place, "finetuned_aligner", "no_nan").passed


def test_a_checkpoint_that_lost_a_moment_can_not_be_resumed(place):
    (path,) = sorted(run_folder(place, "finetune").glob("checkpoints/step-*/optimiser.safetensors"))[-1:]
    state = load_file(path)
    lost = sorted(state)[0]
    save_file({name: value for name, value in state.items() if name != lost}, path)
    found = check(place, "finetuned_aligner", "resumable")
    assert not found.passed
    assert f"{lost} is missing" in found.description


CHANGED = {
    ("ALIGNER__WIDTH", "64"): set(ALIGNERS),
    ("PRETRAINING__LEARNING_RATE", "0.02"): {"pretrained_aligner"},
    ("FINETUNING__SEED", "7"): {"finetuned_aligner"},
    ("FINETUNING__VALIDATE_EVERY", "3"): set(),
    ("PRETRAINING__AUTOMATIC", "true"): set(),
    ("SAMPLING__STEPS", "9"): set(),
    ("RENDERS__SAMPLES", "9"): set(),
    ("COMPUTE__WORKERS", "1"): set(),
}


def test_a_changed_setting_is_seen_by_the_training_that_it_shapes(tmp_path, monkeypatch):
    def versions(**values):
        graph = load(monkeypatch, given(tmp_path, **values)).resolve_asset_graph()
        return {asset: graph.get(dg.AssetKey(asset)).code_version for asset in ALIGNERS}

    before = versions()
    for (name, value), wanted in CHANGED.items():
        after = versions(**{name: value})
        assert {asset for asset in ALIGNERS if before[asset] != after[asset]} == wanted, name


# --- automation, over told events


@pytest.fixture
def manual(tmp_path, monkeypatch):
    with dg.DagsterInstance.ephemeral() as instance:
        yield Automation(monkeypatch, instance, tmp_path)


@pytest.fixture
def automatic(tmp_path, monkeypatch):
    """Both trainings run by themselves, and everything was made once."""
    with dg.DagsterInstance.ephemeral() as instance:
        both = {"PRETRAINING__AUTOMATIC": "true", "FINETUNING__AUTOMATIC": "true"}
        made = Automation(monkeypatch, instance, tmp_path, **both)
        made.finish_line()
        assert made.tick() == of(*ALIGNERS)
        one_run(made, "first")
        assert made.tick() == set()
        yield made


def of(*assets):
    return {(asset, None) for asset in assets}


def one_run(automation, version, during=lambda: None):
    """A run of both trainings, told by its events; what happens while it runs."""
    automation.start(*ALIGNERS)
    run = automation.runs[None]
    during()
    for asset in ALIGNERS:
        made = StepMaterializationData(dg.AssetMaterialization(asset, tags={"dagster/data_version": version}))
        event = dg.DagsterEvent("ASSET_MATERIALIZATION", run.job_name, event_specific_data=made)
        automation.instance.report_dagster_event(event, run.run_id)
    automation.end()


def test_nothing_trains_by_itself_unless_it_is_asked_to(manual):
    manual.finish_all()
    manual.came("dataset", version="new")
    assert manual.tick() == set()
    graph = manual.defs.resolve_asset_graph()
    assert all(graph.get(dg.AssetKey(asset)).automation_condition is None for asset in ALIGNERS)


def test_new_data_train_both_in_one_run_and_a_dataset_that_came_out_as_it_was_none(automatic):
    automatic.came("dataset")
    assert automatic.tick() == set()
    automatic.came("dataset", version="new")
    assert automatic.tick() == of(*ALIGNERS)
    one_run(automatic, "new")
    assert automatic.tick() == set()
    assert automatic.tick() == set()


def test_data_that_change_while_it_trains_are_trained_on_after_it(automatic):
    automatic.came("dataset", version="new")
    assert automatic.tick() == of(*ALIGNERS)

    def during():
        assert automatic.tick() == set()
        automatic.came("dataset", version="newer")
        assert automatic.tick() == set()

    one_run(automatic, "new", during)
    assert automatic.tick() == of(*ALIGNERS)
    one_run(automatic, "newer")
    assert automatic.tick() == set()


def test_a_pretraining_that_a_person_started_is_followed_by_finetuning(automatic):
    automatic.came("pretrained_aligner", version="other")
    assert automatic.tick() == of("finetuned_aligner")


def test_conditions_can_be_kept_by_the_daemon(automatic):
    graph = automatic.defs.resolve_asset_graph()
    assert all(graph.get(dg.AssetKey(asset)).automation_condition.is_serializable for asset in ALIGNERS)
