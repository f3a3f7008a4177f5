"""A changed setting reaches exactly the stages that it affects: what Dagster sees changed, and what a run computes."""

import shutil

import dagster as dg
import pytest
from code_location import environment, load
from folders import counters, run_line, write_box

from gap3d.settings import Section, Settings
from pipelines.command import load_settings

STAGES = ("catalog", "downloads", "views", "renders", "targets", "dataset")
ASSETS_OF = {
    "source": {"catalog"},
    "catalog": {"catalog"},
    "views": {"views"},
    "renders": {"renders"},
    "quality": {"renders"},
    "targets": {"targets"},
    "dataset": {"dataset"},
    "limits": set(),
    "network": set(),
    "compute": set(),
}
"""Sections of the settings, and the assets whose code version they are part of."""

COMPUTED = {
    ("CATALOG__SEED", "7"): {"catalog", "dataset"},  # other ranks
    ("CATALOG__VALIDATION_SHARE", "0.99"): {"catalog", "dataset"},  # other splits
    ("SOURCE__CAPTIONS", "captions.csv"): {"catalog", "dataset"},
    ("VIEWS__POINTS", "600"): {"views"},  # other scores, the same cameras
    ("VIEWS__FOV", "50"): {"views", "renders", "targets", "dataset"},
    ("RENDERS__RESOLUTION", "48"): {"renders", "targets", "dataset"},
    ("QUALITY__BLACK", "9"): {"renders"},  # the gates are passed anew, the pictures stand
    ("TARGETS__ALPHA", "drop"): {"targets", "dataset"},
    ("DATASET__COUNT", "1"): {"dataset"},
    ("LIMITS__TIMEOUT_S", "77"): set(),
    ("LIMITS__RECYCLE_AFTER", "3"): set(),
    ("NETWORK__RETRIES", "1"): set(),
    ("COMPUTE__BATCH_SIZE", "1"): set(),
    ("COMPUTE__PART_BYTES", "1000"): set(),
}
"""Settings, and the stages of which a run computes rows."""


def versions(monkeypatch, settings):
    graph = load(monkeypatch, settings).resolve_asset_graph()
    return {stage: graph.get(dg.AssetKey(stage)).code_version for stage in STAGES}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder that went through the line once; its settings, and the code versions of its assets."""
    root = tmp_path_factory.mktemp("settings")
    for name, height in {"low": 0.5, "high": 3.0}.items():
        write_box(root / "objects" / f"{name}.obj", height)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        before = versions(patch, given(root))
        run_line(load_settings())
    return root, before


def given(root, **values):
    return environment(root / "store", root / "objects", CATALOG__SHARDS="1", **values)


@pytest.mark.parametrize(("name", "value"), COMPUTED, ids=lambda text: text)
def test_a_changed_setting_is_seen_by_its_asset_and_computes_what_it_affects(
    finished, tmp_path, monkeypatch, name, value
):
    root, before = finished
    settings = given(root, **{name: value})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "captions.csv").write_text("path,captions\nlow.obj,a low box\n")
    after = versions(monkeypatch, settings)
    section = name.partition("__")[0].lower()
    assert {stage for stage in STAGES if before[stage] != after[stage]} == ASSETS_OF[section]

    shutil.copytree(root / "store", tmp_path / "store")
    monkeypatch.setenv("GAP3D_STORE", str(tmp_path / "store"))
    computed = counters(run_line(load_settings()))
    assert {stage for stage, count in computed.items() if count} == COMPUTED[name, value]


def test_every_section_of_the_settings_says_which_assets_it_affects():
    sections = {name for name, field in Settings.model_fields.items() if isinstance(field.default, Section)}
    sections -= {"image_text", "coco", "images"}  # beside the line of objects
    sections -= {"aligner", "pretraining", "finetuning", "sampling"}  # of the model: tests/test_dagster_model.py
    sections -= {"evaluation"}  # tests/test_dagster_evaluation.py
    assert sections == set(ASSETS_OF)
    assert {name.partition("__")[0].lower() for name, _ in COMPUTED} == sections
