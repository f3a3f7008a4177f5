"""The Dagster assets: what they run is what the programs run, what they show is what was committed."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from code_location import (
    OBJECTS,
    SHARDS,
    digests,
    environment,
    load,
    materialize,
    metadata,
    write_toys,
)
from folders import write_box
from PIL import Image

from pipelines.report import Report

STAGES = ("catalog", "downloads", "views", "renders", "targets", "dataset")
SHARDED = ("downloads", "views", "renders", "targets")
ALIGNERS = ("pretrained_aligner", "finetuned_aligner")
EVALUATION = ("alignment_metrics", "retrieval_metrics", "generation_metrics", "evaluation_report")


def open_place(root, monkeypatch, instance):
    """A code location over the folder ``root``."""
    settings = environment(root / "store", root / "objects")
    return SimpleNamespace(root=root, settings=settings, defs=load(monkeypatch, settings), instance=instance)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Every shard of every asset, materialised by Dagster one after the other; never changed by a test."""
    root = tmp_path_factory.mktemp("dagster")
    write_toys(root / "objects")
    with pytest.MonkeyPatch.context() as patch, dg.DagsterInstance.ephemeral() as instance:
        place = open_place(root, patch, instance)
        assert materialize(place.defs, place.instance, "catalog").success
        for shard in SHARDS:
            assert materialize(place.defs, place.instance, *SHARDED, shard=shard).success
        assert materialize(place.defs, place.instance, "dataset").success
        yield place


@pytest.fixture
def place(finished, tmp_path, monkeypatch):
    """A copy of the finished store to change, with the same history."""
    shutil.copytree(finished.root / "store", tmp_path / "store")
    shutil.copytree(finished.root / "objects", tmp_path / "objects")
    return open_place(tmp_path, monkeypatch, finished.instance)


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A folder of objects of which nothing was made yet."""
    write_toys(tmp_path / "objects")
    with dg.DagsterInstance.ephemeral() as instance:
        yield open_place(tmp_path, monkeypatch, instance)


def one_part(place, stage, shard):
    """The only part of a shard."""
    (part,) = [
        path
        for path in (place.root / "store" / "toys" / stage / shard).glob("*.parquet")
        if path.name != "manifest.parquet"
    ]
    return part


def flip_byte(path: Path):
    """Damage a part in the middle, as a bad disk would."""
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)


def check(place, stage, name="parts_intact"):
    """Run the check alone, as its Execute button does."""
    selection = dg.AssetSelection.checks(dg.AssetCheckKey(dg.AssetKey(stage), name))
    job = dg.Definitions(
        assets=place.defs.assets,
        asset_checks=place.defs.asset_checks,
        resources=place.defs.resources,
        jobs=[dg.define_asset_job("only_check", selection=selection)],
    )
    result = job.resolve_job_def("only_check").execute_in_process(instance=place.instance)
    assert result.success
    (evaluation,) = result.get_asset_check_evaluations()
    return evaluation


def test_every_asset_says_what_it_is_who_owns_it_and_where_it_belongs(fresh):
    graph = fresh.defs.resolve_asset_graph()
    wanted = {*STAGES, *ALIGNERS, *EVALUATION, "shard_manifest"}
    assert {key.to_user_string() for key in graph.get_all_asset_keys()} == wanted
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.group_name in {"objects", "images", "features", "model", "evaluation"}, key
        assert node.kinds, key
        assert node.description and len(node.description) > 40, key
        assert node.owners, key
        assert node.code_version or not node.is_executable, key
    for stage in SHARDED:
        assert graph.get(dg.AssetKey(stage)).partitions_def.get_partition_keys() == list(SHARDS)
    for stage in STAGES:
        assert dg.AssetCheckKey(dg.AssetKey(stage), "parts_intact") in graph.asset_check_keys
    dg.Definitions.validate_loadable(fresh.defs)


def test_a_changed_result_setting_changes_the_code_version_of_its_stage_only(fresh, monkeypatch):
    def versions():
        graph = load(monkeypatch, settings).resolve_asset_graph()
        return {stage: graph.get(dg.AssetKey(stage)).code_version for stage in STAGES}

    settings = dict(fresh.settings)
    before = versions()
    settings["GAP3D_RENDERS__SAMPLES"] = "2"
    after = versions()
    assert {stage for stage in STAGES if before[stage] != after[stage]} == {"renders"}


def test_the_catalog_reports_changed_shards_and_no_others(place):
    def events():
        records = place.instance.fetch_materializations(dg.AssetKey("shard_manifest"), limit=100).records
        return [record.partition_key for record in records]

    before = len(events())
    materialize(place.defs, place.instance, "catalog")
    assert len(events()) == before
    write_box(place.root / "objects" / "cube.obj", 7.0)
    materialize(place.defs, place.instance, "catalog")
    assert events()[: len(events()) - before] == ["2"]
    assert metadata(place.instance, "catalog")["changed"] == 1
    write_toys(place.root / "objects")  # as it was, for the history that the tests share
    materialize(place.defs, place.instance, "catalog")


@pytest.mark.parametrize("stage", SHARDED)
def test_a_materialisation_carries_counts_times_rates_and_the_content_digest(finished, stage):
    found = metadata(finished.instance, stage, "1")
    assert (found["dagster/row_count"], found["rows_ok"], found["computed"]) == (2, 2, 2)
    assert "| ok | 2 |" in found["statuses"]
    assert found["seconds"] > 0
    assert found["rows_per_second"] > 0
    assert found["digest"] == digests(finished.settings)[f"{stage}/1"]


@pytest.mark.parametrize("stage", [*SHARDED, "dataset"])
def test_the_data_version_is_the_digest_in_the_manifest(finished, stage):
    place = "all" if stage == "dataset" else "3"
    record = finished.instance.get_latest_data_version_record(
        dg.AssetKey(stage), partition_key=None if stage == "dataset" else place
    )
    assert record.asset_materialization.tags["dagster/data_version"] == digests(finished.settings)[f"{stage}/{place}"]


@pytest.mark.parametrize("stage", ["views", "renders", "targets"])
def test_a_contact_sheet_of_the_shard_is_a_picture(finished, stage):
    text = metadata(finished.instance, stage, "1")["contact_sheet"]
    head, _, encoded = text.partition("base64,")
    assert head.endswith("(data:image/jpeg;")
    assert len(text) < 200_000  # it lies in the event log
    picture = Image.open(io.BytesIO(base64.b64decode(encoded.partition(")")[0])))
    assert picture.width > 250  # two objects side by side
    assert len(set(picture.convert("L").get_flattened_data())) > 50


def test_targets_of_random_weights_say_so(finished):
    assert "UNTRAINED" in metadata(finished.instance, "targets", "0")["encoder"]
    assert "UNTRAINED" in metadata(finished.instance, "dataset")["encoder"]


def test_the_dataset_shows_a_preview_of_its_tokens_their_numbers_and_the_path_of_its_report(finished):
    found = metadata(finished.instance, "dataset")
    assert next(iter(found)) == "preview"  # the UI keeps this order
    encoded = found["preview"].partition("base64,")[2].partition(")")[0]
    assert len(found["preview"]) < 300_000  # it lies in the event log
    assert Image.open(io.BytesIO(base64.b64decode(encoded))).width > 250
    assert Path(found["report"]).read_text().startswith("<!doctype html>")
    assert len(found["tokens"]) < 1000  # the UI folds longer markdown
    numbers = json.loads(Path(found["report"]).with_suffix(".json").read_text())
    assert (found["images"], found["tokens_not_finite"]) == (len(OBJECTS), 0)
    patches = next(kind for kind in numbers["kinds"] if kind["name"] == "patches")
    assert found["patches_cosine_between_images"] == pytest.approx(patches["across"])
    assert found["near_duplicates"] == numbers["duplicates"]["count"]


def test_the_tokens_check_finds_nothing_wrong_then_tokens_that_are_not_normed(place):
    sound = check(place, "dataset", "tokens_healthy")
    assert sound.metadata["images"].value == len(OBJECTS)
    assert sound.passed, sound.description
    part = one_part(place, "targets", "1")
    table = pq.read_table(part)
    column = table.schema.get_field_index("patches")
    doubled = [(2 * np.frombuffer(each, np.float16)).tobytes() for each in table.column(column).to_pylist()]
    table = table.set_column(column, table.schema.field(column), pa.array(doubled, table.schema.field(column).type))
    pq.write_table(table, part, compression="NONE", use_dictionary=False, write_statistics=["key"])
    broken = check(place, "dataset", "tokens_healthy")
    assert not broken.passed
    assert broken.severity is dg.AssetCheckSeverity.ERROR
    assert "patches: every token has variance 1" in broken.description


def test_several_shards_are_materialised_by_one_job(fresh):
    materialize(fresh.defs, fresh.instance, "catalog")
    for shard in ("0", "3"):
        assert materialize(fresh.defs, fresh.instance, "downloads", shard=shard).success
    done = fresh.instance.get_materialized_partitions(dg.AssetKey("downloads"))
    assert done == {"0", "3"}


def test_views_and_renders_can_be_materialised_one_without_the_other(fresh, finished):
    materialize(fresh.defs, fresh.instance, "catalog")
    materialize(fresh.defs, fresh.instance, "downloads", shard="1")
    views = materialize(fresh.defs, fresh.instance, "views", shard="1")
    assert [event.asset_key.to_user_string() for event in views.get_asset_materialization_events()] == ["views"]
    assert "renders/1" not in digests(fresh.settings)
    renders = materialize(fresh.defs, fresh.instance, "renders", shard="1")
    assert [event.asset_key.to_user_string() for event in renders.get_asset_materialization_events()] == ["renders"]
    together = digests(finished.settings)
    assert {stage: digests(fresh.settings)[f"{stage}/1"] for stage in ("views", "renders")} == {
        stage: together[f"{stage}/1"] for stage in ("views", "renders")
    }


def test_the_programs_find_nothing_left_to_do_after_dagster(place, program):
    before = digests(place.settings)
    said = program("pipelines.line", **place.settings).stdout
    for stage in STAGES:
        assert re.search(rf"^ *{stage}: +5 rows: 5 ok; computed 0$", said, re.MULTILINE), said
    path = place.root / "report.json"
    assert program("pipelines.rendering", "--shards", "1", "--report", path, **place.settings).returncode == 0
    report = Report.load(path)
    assert (report.count("computed"), report.count("found")) == (0, 4)
    assert digests(place.settings) == before


def test_dagster_finds_nothing_left_to_do_after_the_programs_and_has_their_digests(fresh, finished, program):
    assert program("pipelines.line", **fresh.settings).returncode == 0
    assert digests(fresh.settings) == digests(finished.settings)
    materialize(fresh.defs, fresh.instance, "catalog")
    materialize(fresh.defs, fresh.instance, *SHARDED, shard="1")
    for stage in SHARDED:
        found = metadata(fresh.instance, stage, "1")
        assert (found["computed"], found["rows_ok"]) == (0, 2), stage
    materialize(fresh.defs, fresh.instance, "dataset")
    assert metadata(fresh.instance, "dataset")["computed"] == 0


def test_a_stage_whose_inputs_are_missing_fails_and_says_what_to_do(fresh):
    result = materialize(fresh.defs, fresh.instance, "targets", shard="0", raise_on_error=False)
    assert not result.success
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "python -m pipelines.rendering" in failure.step_failure_data.user_failure_data.description


def test_the_intact_check_passes_then_fails_on_a_flipped_byte_and_names_the_part(place):
    sound = check(place, "renders")
    assert sound.passed
    assert sound.metadata["rows"].value == len(OBJECTS)
    part = one_part(place, "renders", "1")
    flip_byte(part)
    broken = check(place, "renders")
    assert not broken.passed
    assert broken.severity is dg.AssetCheckSeverity.ERROR
    assert part.name in json.dumps(broken.metadata["faults"].value)


def test_the_remedy_that_a_failed_check_names_gives_the_same_content_again(place):
    before = digests(place.settings)
    flip_byte(one_part(place, "renders", "1"))
    words = check(place, "renders").metadata["remedy"].value.partition("#")[0].split()
    assert words[:2] == ["rm", "-r"]
    assert Path(words[2]) == place.root / "store" / "toys" / "renders" / "1"
    shutil.rmtree(words[2])
    assert materialize(place.defs, place.instance, "renders", shard="1").success
    assert check(place, "renders").passed
    assert digests(place.settings) == before


def test_a_known_fault_stays_visible_while_other_shards_are_materialised(place, program):
    def run(shard):
        keys = {dg.AssetCheckKey(dg.AssetKey("renders"), "parts_intact")}
        job = place.defs.resolve_implicit_global_asset_job_def()
        job = job.get_subset(asset_selection={dg.AssetKey("renders")}, asset_check_selection=keys)
        result = job.execute_in_process(instance=place.instance, partition_key=shard, raise_on_error=False)
        (evaluation,) = [one for one in result.get_asset_check_evaluations() if one.check_name == "parts_intact"]
        return evaluation

    assert run("0").metadata["shards"].value == "0"
    flip_byte(one_part(place, "renders", "1"))
    assert not check(place, "renders").passed
    later = run("0")
    assert not later.passed
    assert later.metadata["shards"].value == "0, 1"
    assert later.metadata["damaged_shards"].value == "1"
    shutil.rmtree(place.root / "store" / "toys" / "renders" / "1")
    assert program("pipelines.rendering", "--shards", "1", **place.settings).returncode == 0
    assert run("0").passed
    assert run("2").metadata["shards"].value == "2"


def test_automation_conditions_can_be_kept_by_the_daemon(fresh):
    graph = fresh.defs.resolve_asset_graph()
    for stage in STAGES:
        assert graph.get(dg.AssetKey(stage)).automation_condition.is_serializable


def test_a_run_whose_process_died_with_the_machine_is_marked_as_failed(fresh):
    from dagster._core.events import EngineEventData

    from assets_defs.lost import lost_runs

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    runs = {}
    for name, pid in {"dead": gone.pid, "alive": os.getpid()}.items():
        run = runs[name] = fresh.instance.create_run_for_job(fresh.defs.resolve_job_def("shard"))
        fresh.instance.report_engine_event("started", run, EngineEventData({"pid": pid}))
        fresh.instance.report_dagster_event(dg.DagsterEvent("PIPELINE_START", run.job_name), run.run_id)
    lost_runs(dg.build_sensor_context(instance=fresh.instance))
    assert fresh.instance.get_run_by_id(runs["dead"].run_id).status is dg.DagsterRunStatus.FAILURE
    assert fresh.instance.get_run_by_id(runs["alive"].run_id).status is dg.DagsterRunStatus.STARTED


def test_a_shard_that_another_run_writes_is_refused_with_the_name_of_that_run(fresh, monkeypatch):
    from gap3d.lease import lease

    fresh.defs = load(monkeypatch, {**fresh.settings, "GAP3D_COMPUTE__LEASE_WAIT_S": "0.2"})
    materialize(fresh.defs, fresh.instance, "catalog")
    with lease(fresh.root / "store" / "toys" / "downloads" / "1", 0.0):
        result = materialize(fresh.defs, fresh.instance, "downloads", shard="1", raise_on_error=False)
    (failure,) = [event for event in result.all_events if event.is_step_failure and event.step_key == "downloads"]
    assert f"is being written by process {os.getpid()} on" in failure.step_failure_data.user_failure_data.description
    assert materialize(fresh.defs, fresh.instance, "downloads", shard="1").success
