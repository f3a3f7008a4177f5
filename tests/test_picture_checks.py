"""Quality gates in the UI: each is a check of the renders that counts and names what does not pass."""

import dagster as dg
import pytest
from code_location import environment, load, materialize
from folders import write_box

from gap3d.catalog import object_id_of
from gap3d.quality import GATES


def write_objects(folder):
    """Two sound boxes, and one whose texture is not there."""
    write_box(folder / "a.obj", 1.0)
    write_box(folder / "b.obj", 2.0)
    write_box(folder / "c.obj", 0.5, material="paint")
    with (folder / "paint.mtl").open("a") as file:
        file.write("map_Kd wood.png\n")


def evaluations(defs, instance, shard=None):
    """The checks of renders as their Execute button runs them, by gate."""
    selection = dg.AssetSelection.checks_for_assets("renders")
    names = {key.name for key in selection.resolve_checks(defs.resolve_asset_graph()) if key.name.startswith("quality")}
    keys = [dg.AssetCheckKey(dg.AssetKey("renders"), name) for name in sorted(names)]
    job = dg.Definitions(
        assets=defs.assets,
        asset_checks=defs.asset_checks,
        resources=defs.resources,
        jobs=[dg.define_asset_job("checks", selection=dg.AssetSelection.checks(*keys))],
    )
    result = job.resolve_job_def("checks").execute_in_process(instance=instance)
    return {each.check_name.removeprefix("quality_"): each for each in result.get_asset_check_evaluations()}


def settings_of(root, action):
    """Four pictures of each object, in one shard."""
    values = {"QUALITY__MISSING_TEXTURES": action, "VIEWS__PROTOCOL": "fixed", "CATALOG__SHARDS": "1"}
    return environment(root / "store", root / "objects", **values)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the checks say where the gate flags, and afterwards where it drops."""
    root = tmp_path_factory.mktemp("gates")
    write_objects(root / "objects")
    said = {}
    with dg.DagsterInstance.ephemeral() as instance:
        for action in ("flag", "drop"):
            with pytest.MonkeyPatch.context() as patch:
                defs = load(patch, settings_of(root, action))
                if action == "flag":
                    assert materialize(defs, instance, "catalog").success
                assert materialize(defs, instance, "downloads", "views", "renders", shard="0").success
                said[action] = evaluations(defs, instance)
    return said


@pytest.mark.parametrize("action", ["flag", "drop"])
def test_each_gate_is_a_check_that_counts_and_names_the_pictures(found, action):
    said = found[action]
    assert set(said) == {*GATES, "right_size"}
    failed = {name for name, each in said.items() if not each.passed} - {"cut_off"}  # what fills its cube is cut
    assert failed == {"missing_textures"}
    check = said["missing_textures"]
    named = {f"{object_id_of('folder', 'c.obj')}/{number:03d}" for number in range(4)}
    assert set(check.metadata["keys"].value.split(", ")) == named
    assert check.metadata["flagged"].value == 4
    assert check.metadata["action"].value == action
    assert check.severity is dg.AssetCheckSeverity.WARN
    assert said["right_size"].severity is dg.AssetCheckSeverity.ERROR
    assert said["right_size"].metadata["pictures"].value == 12, "a rejected picture was looked at too"
