"""What a user types: settings, plan, why, previews, gc, help."""

import io
import json
import shutil
import subprocess
import sys

import pytest
from folders import run_line, small, write_box, write_objects
from PIL import Image
from pydantic import ValidationError
from pydantic_settings.exceptions import SettingsError

from gap3d.catalog import object_id_of
from gap3d.store import Store, free_bytes
from pipelines import catalog
from pipelines.command import load_settings, open_store, presets, say
from pipelines.plan import lines, make_plan, refusal
from pipelines.previews import collection_sheet
from pipelines.why import changed_settings, rows_of

STAGES = [
    "catalog",
    "downloads",
    "views",
    "renders",
    "rendering",
    "targets",
    "dataset",
    "line",
    "plan",
    "why",
    "gc",
    "verify",
    "previews",
    "image_text",
    "coco",
    "smoke_online",
    "evaluate",
]


@pytest.fixture(scope="module")
def finished(walked, tmp_path_factory):
    """(root, settings, those as a preset) of a finished line; never changed by a test."""
    root = walked[0]
    settings = small(root / "store", root / "objects")
    path = tmp_path_factory.mktemp("commands") / "settings.json"
    path.write_text(settings.model_dump_json())
    return root, settings, path


def test_flags_win_over_the_environment_and_it_over_the_preset(tmp_path, monkeypatch):
    preset = tmp_path / "mine.toml"
    preset.write_text('collection = "preset"\n[renders]\nsamples = 3\nresolution = 99\n[catalog]\nshards = 8\n')
    monkeypatch.setenv("GAP3D_RENDERS__SAMPLES", "5")
    monkeypatch.setenv("GAP3D_RENDERS__RESOLUTION", "77")
    settings = load_settings(str(preset), renders={"resolution": 55})
    assert (settings.catalog.shards, settings.renders.samples, settings.renders.resolution) == (8, 5, 55)
    assert settings.views.points == 5000


def test_unknown_keys_are_refused_everywhere(tmp_path, monkeypatch, program):
    preset = tmp_path / "mine.toml"
    preset.write_text("[renders]\nsample = 3\n")
    with pytest.raises(ValidationError, match="sample"):
        load_settings(str(preset))
    with pytest.raises(SettingsError, match="no preset"):
        load_settings("papre")
    assert program("pipelines.views", "--renders.sampels", "3").returncode == 2
    assert {"demo", "paper"} <= set(presets())


def test_the_paper_preset_is_the_papers():
    paper = load_settings("paper")
    assert (paper.views.points, paper.views.yaws) == (5000, (0.0, 90.0, 180.0, 270.0))
    assert (paper.views.pitches, paper.views.radius, paper.views.fov) == ((30.0,), 2.0, 40.0)
    assert (paper.renders.resolution, paper.renders.samples) == (512, 128)
    assert paper.views.protocol == "least_occluded" and paper.views == load_settings("demo").views
    assert (paper.targets.image_size, paper.targets.encoder) == (518, "facebook/dinov2-with-registers-large")
    assert paper.dataset.count == 60_000


def test_presets_lie_one_over_the_other_and_flags_over_all(monkeypatch):
    layered = load_settings("paper,twenty_views,fast")
    assert (layered.views.images, layered.renders.depth, layered.views.protocol) == (20, True, "fixed")
    assert layered.renders.samples == load_settings("fast").renders.samples < 128
    assert (layered.collection, layered.targets) == ("objaverse", load_settings("paper").targets)
    assert load_settings("fast,paper").renders.samples == 128  # the later one has the say
    monkeypatch.setenv("GAP3D_RENDERS__SAMPLES", "7")
    assert load_settings("paper,fast").renders.samples == 7


@pytest.mark.parametrize("stage", STAGES)
def test_every_program_explains_itself(stage, program):
    told = program(f"pipelines.{stage}", "--help")
    assert told.returncode == 0
    assert "--preset" in told.stdout
    assert "--renders.resolution" in told.stdout


def test_a_misspelt_flag_is_told_below_a_short_usage(program):
    told = program("pipelines.why", "some-object", "--quriks", "paper")
    assert told.returncode == 2
    assert len(told.stderr.splitlines()) < 10
    assert "object" in told.stderr.splitlines()[0]  # the program's own arguments are still in it
    assert "unrecognized arguments: --quriks" in told.stderr


def test_an_unknown_shard_is_refused_with_the_ones_there_are(finished, program):
    told = program("pipelines.views", "--preset", finished[2], "--shards", "7")
    assert told.returncode == 2
    assert "0 to 1" in told.stderr


def test_a_stage_by_its_program_finds_nothing_left_to_compute(finished, tmp_path, program):
    report = tmp_path / "report.json"
    told = program("pipelines.rendering", "--preset", finished[2], "--report", report)
    assert told.returncode == 0, told.stderr
    content = json.loads(report.read_text())
    assert sum(shard["computed"] for shard in content["shards"]) == 0
    assert "computed 0" in told.stdout


def test_a_plan_counts_what_a_run_then_computes(tmp_path):
    write_objects(tmp_path / "objects")
    settings = small(tmp_path / "store", tmp_path / "objects")
    catalog.run(settings)
    fresh = {plan.stage: plan for plan in make_plan(settings)}
    assert {stage: plan.compute for stage, plan in fresh.items()} == {
        "downloads": 5,
        "views": 5,
        "renders": 5,
        "targets": 5,
    }
    assert fresh["downloads"].at_most is False
    assert fresh["renders"].at_most is True
    run_line(settings)
    assert all(plan.compute == 0 for plan in make_plan(settings))
    write_box(tmp_path / "objects" / "new.obj", 4.0)
    catalog.run(settings)
    assert all(plan.compute == 1 for plan in make_plan(settings))
    # Changed settings of a late stage leave the early ones alone.
    changed = small(tmp_path / "store", tmp_path / "objects", targets={"seed": 5})
    assert {plan.stage: plan.compute for plan in make_plan(changed)}["targets"] == 5


def test_a_plan_refuses_what_the_disk_cannot_hold(finished, tmp_path):
    root = finished[0]
    settings = small(tmp_path / "store", root / "objects")
    catalog.run(settings)
    plans = make_plan(settings)
    needed = sum(plan.bytes for plan in plans)
    assert needed > 0
    assert refusal(plans, needed * 2) == ""
    assert "free some" in refusal(plans, needed // 2)
    assert free_bytes(root / "not" / "there") > 0
    assert any("GB" in line for line in lines(plans, finished[1], needed))


def test_why_shows_every_stage_and_which_part_of_the_fingerprint_changed(finished, program):
    root, _, path = finished
    told = program("pipelines.why", "a.obj", "--preset", path, "--renders.samples", "2")
    assert told.returncode == 0, told.stderr
    for stage in ("catalog", "downloads", "views", "renders", "targets", "dataset"):
        assert f"{stage:>9}  ok" in told.stdout
    assert "changed: settings" in told.stdout
    assert "samples: 1 -> 2" in told.stdout
    broken = program("pipelines.why", object_id_of("folder", "broken.glb")[:8], "--preset", path)
    assert "import_error" in broken.stdout
    assert "passed on from views" in broken.stdout
    assert f"python -m render -- {root / 'objects' / 'broken.glb'}" in broken.stdout
    missing = program("pipelines.why", "nothing.obj", "--preset", path)
    assert missing.returncode == 1
    assert "no object" in missing.stderr
    assert "like it are broken.glb" in program("pipelines.why", "Broken", "--preset", path).stderr
    assert "like it are broken.glb" in program("pipelines.why", "brokn.glb", "--preset", path).stderr


def test_the_command_that_why_names_repeats_the_failure(finished, program):
    told = program("render", finished[0] / "objects" / "broken.glb")
    assert told.returncode == 1
    assert told.stdout.startswith("import_error: ")


def test_settings_are_saved_beside_the_outputs_they_shaped(finished):
    store = open_store(finished[1])
    row = next(
        row
        for stage, _, row in rows_of(store, object_id_of("folder", "a.obj"), find_shard(store))
        if stage == "renders"
    )
    saved = store.settings("renders", row.inputs["settings"])
    assert saved == finished[1].renders.model_dump(mode="json")
    assert changed_settings(store, "renders", row.inputs["settings"], row.inputs["settings"]) == []


def find_shard(store):
    return next(
        shard for shard in store.shards if object_id_of("folder", "a.obj") in store.manifest("catalog", shard).rows
    )


def test_a_contact_sheet_shows_pictures_and_marks_the_chosen_view(finished):
    store = open_store(finished[1])
    with Image.open(io.BytesIO(collection_sheet(store, store.shards))) as sheet:
        pixels = sheet.convert("RGB")
        colours = {pixels.getpixel((x, y)) for x in range(0, pixels.width, 2) for y in range(0, pixels.height, 2)}
    assert any(red > 200 and 120 < green < 210 and blue < 110 for red, green, blue in colours)  # the lit bar


def test_gc_frees_nothing_of_a_finished_collection(finished, program):
    told = program("pipelines.gc", "--preset", finished[2], "--grace-hours", "0")
    assert told.returncode == 0, told.stderr
    assert "freed 0.0 MB in 0 files" in told.stdout


def test_a_misspelt_variable_is_refused(monkeypatch):
    monkeypatch.setenv("GAP3D_RENDERS_SAMPLES", "3")
    with pytest.raises(SettingsError, match="GAP3D_RENDERS_SAMPLES names no setting"):
        load_settings("demo")


def test_a_plan_and_the_line_go_on_when_an_object_is_gone(walked, tmp_path, program):
    shutil.copytree(walked[0], tmp_path, dirs_exist_ok=True)
    settings = small(tmp_path / "store", tmp_path / "objects")
    (tmp_path / "objects" / "a.obj").unlink()
    catalog.run(settings)
    assert make_plan(settings)
    path = tmp_path / "settings.json"
    path.write_text(settings.model_dump_json())
    told = program("pipelines.line", "--preset", path)
    assert told.returncode == 0, told.stderr
    assert "4 rows" in told.stdout


def test_an_empty_source_forgets_nothing(finished, tmp_path):
    (tmp_path / "empty").mkdir()
    settings = small(finished[0] / "store", tmp_path / "empty")
    with pytest.raises(ValueError, match="holds no 3D file"):
        catalog.run(settings)


def test_verify_finds_a_flipped_bit_and_says_how_to_mend_it(walked, tmp_path, program):
    shutil.copytree(walked[0], tmp_path, dirs_exist_ok=True)
    settings = small(tmp_path / "store", tmp_path / "objects")
    path = tmp_path / "settings.json"
    path.write_text(settings.model_dump_json())
    assert "0 shards damaged" in program("pipelines.verify", "--preset", path).stdout
    store = open_store(settings)
    held = next(held for held in (store.manifest("targets", shard) for shard in store.shards) if held.parts)
    part = store.shard("targets", held.shard) / sorted(held.parts)[0]
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    told = program("pipelines.verify", "--preset", path)
    assert told.returncode == 1
    assert part.name in told.stdout
    assert f"rm -r {part.parent}" in told.stderr


@pytest.mark.parametrize(
    "module", ["pipelines.plan", "pipelines.previews", "pipelines.verify", "pipelines.why", "pipelines.gc"]
)
def test_a_misspelt_collection_is_a_sentence_and_no_traceback(tmp_path, module, program):
    (Store(tmp_path, "tables", shards=4).folder / "catalog").mkdir()
    Store(tmp_path, "tabels", shards=4)
    named = ["a.obj"] if module == "pipelines.why" else []
    told = program(module, *named, "--store", tmp_path, "--collection", "typo")
    assert told.returncode == 1
    assert "has no catalog yet" in told.stderr
    assert "(--collection tables)" in told.stderr
    assert "Traceback" not in told.stderr


def test_a_warning_of_the_hub_is_told_once():
    code = (
        "import logging, huggingface_hub; from pipelines.command import parse, parser; parse(parser(''), []); "
        "logging.getLogger('huggingface_hub.file_download').warning('no answer')"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stderr.count("no answer") == 1


def test_a_table_without_captions_is_refused(tmp_path):
    write_objects(tmp_path / "objects")
    (tmp_path / "objects" / "captions.csv").write_text("path,caption\na.obj,a cube\n")
    with pytest.raises(ValueError, match="needs one named captions"):
        catalog.run(small(tmp_path / "store", tmp_path / "objects"))


@pytest.mark.parametrize(
    "flag",
    [
        ["--renders.resolution", "1"],
        ["--renders.seed", "99999999999"],
        ["--renders.samples", "99999999999"],
        ["--views.radius", "inf"],
        ["--views.pitches", "[91]"],
        ["--views.yaws", "[]"],
        ["--quality.covered", "[0.95, 0.005]"],
    ],
)
def test_settings_that_no_picture_can_have_are_refused_at_once(flag, program):
    told = program("pipelines.rendering", *flag)
    assert told.returncode == 2 and "settings:" in told.stderr


def test_a_setting_that_is_refused_is_one_sentence_with_its_name(program, tmp_path):
    told = program("pipelines.evaluate", "--evaluation.models", "finetund", "--evaluation.quirks", "papr")
    (line,) = told.stderr.splitlines()
    assert (
        "evaluation.models should be 'pretrained' or 'finetuned', not 'finetund'; evaluation.quirks: quirks papr"
        in line
    )
    preset = tmp_path / "mine.toml"
    preset.write_text("[renders]\nsample = 3\n")
    (line,) = program("pipelines.views", "--preset", preset).stderr.splitlines()
    assert "renders.sample is no setting" in line


def test_strangers_have_no_say_over_the_terminal(capsys):
    say("a\x1b[31mred\x07", "next\tline")
    assert capsys.readouterr().out == "a\ufffd[31mred\ufffd\nnext\tline\n"
