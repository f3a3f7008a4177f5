"""The evaluation's assets: real programs on a tiny collection that was rendered and trained, one beside the other."""

import base64
import io
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest
from code_location import environment, load, materialize, metadata
from dagster._core.events import StepMaterializationData
from evaluation_results import result
from PIL import Image
from test_dagster_model import ALIGNERS, SHORT, SMALL, check, of
from ticks import Automation

from gap3d.evaluation.difference import is_asked, stated
from gap3d.evaluation.published import bundled
from gap3d.evaluation.result import TABLES, find
from gap3d.evaluation_settings import SHAPING, EvaluationSettings
from pipelines import evaluate
from pipelines.command import load_settings
from pipelines.job import NotReady

METRICS = tuple(f"{table}_metrics" for table in TABLES)
ASSETS = (*METRICS, "evaluation_report")
CHECKS = {(asset, name) for asset in METRICS for name in ("every_sample_accounted", "metrics_possible")} | {
    ("alignment_metrics", "identity_holds")
}
TINY = {
    "COUNT": "2",
    "VIEWS": "[4, 8]",
    "RESOLUTION": "16",
    "SAMPLES": "1",
    "STEPS": "2",
    "RESAMPLES": "50",
    "DINOV2_SIZE": "28",
    **dict.fromkeys(("INCEPTION", "DINOV2", "CLIP", "CLIP_LARGE", "POINTNET"), "random-small"),
}


def given(root, **values):
    """Settings of the line that ``walked`` went through, of two trainings of seconds, and of an evaluation."""
    short = {**SHORT, "STEPS": "6", "VALIDATE_EVERY": "6"}
    usual = {
        "COLLECTION": "test",
        "CATALOG__SHARDS": "2",
        "CATALOG__VALIDATION_SHARE": "0.2",
        "LIMITS__TIMEOUT_S": "60",
        "SAMPLING__STEPS": "2",
        **SMALL,
        **{f"{stage}__{name}": value for stage in ("PRETRAINING", "FINETUNING") for name, value in short.items()},
        **{f"EVALUATION__{name}": value for name, value in TINY.items()},
    }
    return environment(root / "store", root / "objects", **{**usual, **values})


def open_place(root, monkeypatch, instance, **values):
    settings = given(root, **values)
    return SimpleNamespace(root=root, settings=settings, defs=load(monkeypatch, settings), instance=instance)


@pytest.fixture(scope="module")
def finished(walked, one_thread, tmp_path_factory):
    """Both trainings, then all of the evaluation in one run along with its checks; never changed by a test."""
    root = tmp_path_factory.mktemp("evaluation")
    shutil.copytree(walked[0], root, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch, dg.DagsterInstance.ephemeral() as instance:
        place = open_place(root, patch, instance)
        assert materialize(place.defs, instance, *ALIGNERS).success
        place.result = materialize(place.defs, instance, *ASSETS)
        yield place


@pytest.fixture
def place(finished, tmp_path, monkeypatch):
    """A copy of it to change."""
    shutil.copytree(finished.root, tmp_path, dirs_exist_ok=True)
    return open_place(tmp_path, monkeypatch, finished.instance)


def results(place, table):
    """What lies in the store: JSON by the beginning of the model's name."""
    found = {}
    for path in sorted((place.root / "store" / "test" / "evaluation" / table).glob("*/result.json")):
        content = json.loads(path.read_text())
        found[content["model"].partition(":")[0].replace(" ", "_")] = content
    return found


def stamps(place):
    """When every file of the evaluation was written."""
    return {path: path.stat().st_mtime_ns for path in place.root.glob("store/*/evaluation/*/*/*")}


def test_the_whole_evaluation_is_green(finished):
    assert finished.result.success
    made = [event.asset_key.to_user_string() for event in finished.result.get_asset_materialization_events()]
    assert sorted(made) == sorted(ASSETS) and made[-1] == "evaluation_report"
    checks = finished.result.get_asset_check_evaluations()
    assert {(one.asset_key.to_user_string(), one.check_name) for one in checks} == CHECKS
    assert all(one.passed for one in checks), [one.description for one in checks if not one.passed]


@pytest.mark.parametrize("table", TABLES)
def test_every_number_of_a_materialisation_is_that_of_the_json(finished, table):
    shown, there = metadata(finished.instance, f"{table}_metrics"), results(finished, table)
    assert len(there) == 2
    cells = {
        f"{model}_{column}": cell["value"]
        for model, content in there.items()
        for column, cell in content["cells"].items()
        if cell["value"] is not None
    }
    assert len(cells) >= 10
    assert {name: shown[name] for name in cells} == cells
    assert all(isinstance(shown[name], float) for name in cells)  # the UI draws curves of numbers
    for model, content in there.items():
        assert shown[f"{model}_samples"] == sum(content["counts"].values()) == 2
        assert json.loads((Path(shown[f"{model}_result"]) / "result.json").read_text()) == content


def picture_of(markdown):
    return Image.open(io.BytesIO(base64.b64decode(markdown.partition("base64,")[2].rstrip(")"))))


@pytest.mark.parametrize("table", TABLES)
def test_a_materialisation_opens_its_history_as_a_picture_and_shows_it_as_a_table(finished, table):
    found = metadata(finished.instance, f"{table}_metrics")
    assert next(iter(found)) == "history"  # the UI keeps this order
    history = picture_of(found["history"])
    assert history.width >= 800 and len(history.convert("RGB").getcolors(1 << 20)) > 10
    assert all(len(value) < 300_000 for value in found.values() if isinstance(value, str))  # it lies in the event log
    lines = [line for line in found["history_table"].splitlines() if "UNTRAINED" in line]
    assert len(lines) == 2
    assert len(found["measured"]) < 1000 and len(found["history_table"]) < 1000  # the UI folds longer markdown
    assert found["label"].count("UNTRAINED")


def test_every_result_of_a_materialisation_has_entries_of_its_own():
    from assets_defs.evaluation import named

    models = ["c: gap3d", "c: trellis-text", "c: trellis-image", "retrieved by a: nearest object, no generation"]
    settings = load_settings("demo", collection="demo")
    names = [named("fd", settings, result("generation", name, "demo")) for name in (*models, "模型", "型模")]
    assert len(set(names)) == 6 and names[0] == "c_gap3d_fd" and names[3] == "retrieved_by_a_fd"


def test_figure_2_is_shown_for_every_model(finished):
    found = metadata(finished.instance, "retrieval_metrics")
    for model in ("pretrained", "finetuned"):
        assert picture_of(found[f"{model}_figure"]).width > 300


def test_the_report_has_the_numbers_of_every_table(finished):
    found = metadata(finished.instance, "evaluation_report")
    page = Path(found["page"]).read_text()
    assert "UNTRAINED" in page
    for table in TABLES:
        assert found[f"results_of_{table}"] == 2
        for content in results(finished, table).values():
            assert content["fingerprint"][:12] in page


def test_what_was_measured_is_not_measured_again(place):
    before = stamps(place)
    assert len(before) >= 12
    versions = [place.instance.get_latest_data_version_record(dg.AssetKey(asset)) for asset in METRICS]
    assert materialize(place.defs, place.instance, *METRICS).success
    assert stamps(place) == before
    for asset, version in zip(METRICS, versions, strict=True):
        shown = metadata(place.instance, asset)
        assert shown["computed"] == 0
        record = place.instance.get_latest_data_version_record(dg.AssetKey(asset))
        tags = [each.asset_materialization.tags["dagster/data_version"] for each in (record, version)]
        assert tags[0] == tags[1]


def test_a_new_checkpoint_adds_a_line_to_the_history(place, monkeypatch):
    longer = open_place(place.root, monkeypatch, place.instance, FINETUNING__STEPS="8")
    assert materialize(longer.defs, place.instance, "finetuned_aligner").success
    before = stamps(place)
    assert materialize(longer.defs, place.instance, "alignment_metrics").success
    assert {path: stamps(place)[path] for path in before} == before
    found = metadata(place.instance, "alignment_metrics")
    assert (found["checkpoints_measured"], found["computed"], found["finetuned_step"]) == (3, 2, 8)
    assert [line.split("|")[2].strip() for line in found["history_table"].splitlines()[2:]] == ["6", "6", "8"]


@pytest.mark.slow
def test_numbers_on_another_collection_have_its_name(place, monkeypatch):
    store = place.root / "store"
    shutil.copytree(store / "test", store / "other", ignore=shutil.ignore_patterns("evaluation", "aligner"))
    both = {"EVALUATION__COLLECTIONS": '["test", "other"]', "EVALUATION__MODELS": '["pretrained"]'}
    wider = open_place(place.root, monkeypatch, place.instance, **both)
    assert materialize(wider.defs, place.instance, "alignment_metrics").success
    found = metadata(place.instance, "alignment_metrics")
    assert found["pretrained_cosine_cls_on_other"] == found["pretrained_cosine_cls"]  # it is a copy
    assert Path(found["pretrained_result_on_other"]).is_relative_to(store / "other" / "evaluation")
    assert found["computed"] == 2
    assert "pretrained on other" in found["measured"]


def test_numbers_with_the_released_quirks_are_no_points_of_the_same_curves(place, monkeypatch):
    released = open_place(place.root, monkeypatch, place.instance, EVALUATION__QUIRKS='["paper"]')
    assert materialize(released.defs, place.instance, "retrieval_metrics").success
    found = metadata(place.instance, "retrieval_metrics")
    assert {"finetuned_cls_r1_as_released", "finetuned_patches_r10_as_released"} <= found.keys()
    assert "finetuned_cls_r1" not in found
    assert found["quirks"] == "unsorted_list, float16_vectors"
    assert "as released" in found["measured"]


def altered(place, table, column, value):
    """Change a number in a result's JSON."""
    path = sorted((place.root / "store" / "test" / "evaluation" / table).glob("*/result.json"))[0]
    content = json.loads(path.read_text())
    content["cells"][column]["value"] = value
    path.write_text(json.dumps(content))
    return path.parent.name


def test_a_check_names_the_result_whose_number_was_altered(place):
    name = altered(place, "alignment", "cosine_patches", 0.99)
    found = check(place, "alignment_metrics", "every_sample_accounted")
    assert not found.passed and found.severity == dg.AssetCheckSeverity.ERROR
    assert name in found.description and "cosine_patches is 0.99" in found.description
    assert check(place, "alignment_metrics", "metrics_possible").passed
    altered(place, "generation", "fd_inception", -3.0)
    assert "fd_inception is -3" in check(place, "generation_metrics", "metrics_possible").description


def test_a_damaged_result_fails_its_checks_and_the_asset_measures_it_again(place):
    (path, *_) = sorted((place.root / "store" / "test" / "evaluation" / "retrieval").glob("*/result.json"))
    content = path.read_text()
    path.write_text(content[:-40])
    found = check(place, "retrieval_metrics", "metrics_possible")
    assert not found.passed and "can't be read" in found.description
    assert materialize(place.defs, place.instance, "retrieval_metrics").success
    assert json.loads(path.read_text())["cells"] == json.loads(content)["cells"]


def test_one_command_does_it_all_and_the_second_time_computes_nothing(place, monkeypatch, capsys):
    before = stamps(place)
    report = evaluate.run(load_settings())
    assert stamps(place) == before
    assert report.count("computed") == 0
    assert {stage for stage in report.stages() if stage in METRICS} == set(METRICS)
    path = capsys.readouterr().out.split("wrote ")[1].strip()
    assert Path(path).is_relative_to(place.root) and Path(path).is_file()


def test_the_users_published_numbers_stay_in_the_report_whoever_makes_it(place, monkeypatch, capsys):
    mine = place.root / "mine.toml"
    mine.write_text("[tables.2.values.coco.pretrained]\ncls_r10 = 12.34")
    own = open_place(place.root, monkeypatch, place.instance, EVALUATION__PUBLISHED=str(mine))
    assert materialize(own.defs, place.instance, "evaluation_report").success
    page = Path(metadata(place.instance, "evaluation_report")["page"])
    assert "12.34" in page.read_text()
    page.unlink()
    evaluate.run(load_settings())
    assert "12.34" in page.read_text()
    mine.write_text("[tables.9]")
    with pytest.raises(ValueError, match="no table '9'"):
        evaluate.run(load_settings())
    failed = materialize(own.defs, place.instance, "evaluation_report", raise_on_error=False)
    (event,) = [each for each in failed.all_events if each.step_key == "evaluation_report" and each.is_step_failure]
    assert "no table '9'" in event.step_failure_data.user_failure_data.description
    mine.unlink()
    with pytest.raises(ValueError, match=r"evaluation\.published = .* is no file"):
        evaluate.run(load_settings())


def test_results_state_all_that_a_difference_from_the_paper_asks_for(finished):
    paper = bundled()
    asked = {"alignment": ("targets", "sampler"), "retrieval": ("targets", "sampler")}
    asked["generation"] = ("objects", "frames", "dinov2", "inception", "clip", "clip_large")
    for table, names in asked.items():
        for one in find(finished.root / "store" / "test", table):
            for condition in (each for name in names for each in paper.conditions[name]):
                assert not is_asked(one, condition) or None not in stated(one, condition.at), condition.at
            assert re.fullmatch(r"trained on \d+ of the collection's \d+ images", one.checkpoint["trained_on"])


def test_without_a_training_the_command_and_the_asset_say_what_to_run(place):
    shutil.rmtree(next(place.root.glob("store/test/aligner/finetune-*")))
    with pytest.raises(NotReady, match=r"python -m pipelines\.finetune"):
        evaluate.run(load_settings())
    result = materialize(place.defs, place.instance, "alignment_metrics", raise_on_error=False)
    (failure,) = [event for event in result.all_events if event.step_key == "alignment_metrics" and event.is_failure]
    assert "python -m pipelines.finetune" in failure.step_failure_data.user_failure_data.description


# --- settings


def test_every_setting_shapes_a_table_or_is_known_to_shape_none():
    shaping = {name for names in SHAPING.values() for name in names}
    assert shaping | {"quirks", "automatic", "published"} == set(EvaluationSettings.model_fields)


CHANGED = {
    ("EVALUATION__STEPS", "9"): set(METRICS),
    ("EVALUATION__CAPTIONS", "longest"): {"retrieval_metrics"},
    ("EVALUATION__POINTS", "9"): {"generation_metrics"},
    ("EVALUATION__QUIRKS", '["batch_means"]'): {"alignment_metrics"},
    ("EVALUATION__RESAMPLES", "9"): set(METRICS),
    ("SAMPLING__GUIDANCE", "2"): set(METRICS),
    ("EVALUATION__AUTOMATIC", "true"): set(),
    ("EVALUATION__PUBLISHED", "mine.toml"): set(),
    ("COMPUTE__WORKERS", "1"): set(),
}


def test_a_changed_setting_is_seen_by_the_tables_that_it_shapes(tmp_path, monkeypatch):
    def versions(**values):
        graph = load(monkeypatch, {**given(tmp_path), **{f"GAP3D_{name}": value for name, value in values.items()}})
        graph = graph.resolve_asset_graph()
        return {asset: graph.get(dg.AssetKey(asset)).code_version for asset in METRICS}

    before = versions()
    for (name, value), wanted in CHANGED.items():
        after = versions(**{name: value})
        assert {asset for asset in METRICS if before[asset] != after[asset]} == wanted, name


def test_the_report_is_made_again_of_other_published_numbers(tmp_path, monkeypatch):
    mine = tmp_path / "mine.toml"

    def version():
        graph = load(monkeypatch, given(tmp_path, EVALUATION__PUBLISHED=str(mine))).resolve_asset_graph()
        return graph.get(dg.AssetKey("evaluation_report")).code_version

    versions = [version()]
    for number in (26, 27):
        mine.write_text(f"[tables.3.values.toys4k.trellis-image]\nfd_pointnet = {number}")
        versions.append(version())
    assert len(set(versions)) == 3 and version() == versions[-1]


def test_only_aligners_that_are_measured_are_waited_for(tmp_path, monkeypatch):
    graph = load(monkeypatch, given(tmp_path, EVALUATION__MODELS='["pretrained"]')).resolve_asset_graph()
    parents = {key.to_user_string() for key in graph.get(dg.AssetKey("alignment_metrics")).parent_keys}
    assert parents == {"pretrained_aligner", "dataset"}


# --- automation, over told events


@pytest.fixture
def automatic(tmp_path, monkeypatch):
    """Trainings and metrics run by themselves, and everything was made once."""
    with dg.DagsterInstance.ephemeral() as instance:
        on = dict.fromkeys(("PRETRAINING__AUTOMATIC", "FINETUNING__AUTOMATIC", "EVALUATION__AUTOMATIC"), "true")
        made = Automation(monkeypatch, instance, tmp_path, **on)
        made.finish_line()
        assert made.tick() == of(*ALIGNERS, *ASSETS)
        one_run(made, "first", *ALIGNERS, *ASSETS)
        assert made.tick() == set()
        yield made


def one_run(automation, version, *assets):
    """A run of these, told by its events."""
    automation.start(*assets)
    run = automation.runs[None]
    for asset in assets:
        made = StepMaterializationData(dg.AssetMaterialization(asset, tags={"dagster/data_version": version}))
        event = dg.DagsterEvent("ASSET_MATERIALIZATION", run.job_name, event_specific_data=made)
        automation.instance.report_dagster_event(event, run.run_id)
    automation.end()


def test_nothing_is_measured_by_itself_unless_it_is_asked_to(tmp_path, monkeypatch):
    with dg.DagsterInstance.ephemeral() as instance:
        manual = Automation(monkeypatch, instance, tmp_path)
        manual.finish_all()
        manual.came(*ALIGNERS, version="new")
        assert manual.tick() == set()


def test_new_data_train_and_are_measured_in_one_run(automatic):
    automatic.came("dataset", version="new")
    assert automatic.tick() == of(*ALIGNERS, *ASSETS)
    one_run(automatic, "new", *ALIGNERS, *ASSETS)
    assert automatic.tick() == set()


def test_what_a_person_made_anew_is_followed_by_what_depends_on_it_and_the_same_again_by_nothing(automatic):
    automatic.came("finetuned_aligner", version="other")
    assert automatic.tick() == of(*ASSETS)
    one_run(automatic, "other", *ASSETS)
    assert automatic.tick() == set()
    automatic.came("finetuned_aligner", version="other")
    assert automatic.tick() == set()
    automatic.came("retrieval_metrics", version="measured by hand")
    assert automatic.tick() == of("evaluation_report")
