"""Kills under Ray and under Dagster: actors, their Blenders, the driver, a Dagster run."""

import os
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from code_location import environment
from folders import digests
from killed import Point
from processes import alive, blenders, mentioning, wait_for
from remains import attempts, committed, leftovers, new_run, orphans, run_again, settings_of, struck

from pipelines.report import Report

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def reference(unkilled):
    """A run without Ray that nobody killed."""
    return unkilled.run


def copy(reference, run, *without):
    """What the reference made, less these stages, where a run looks for it."""
    shutil.copytree(reference.store, run.store, ignore=shutil.ignore_patterns(*without))


@pytest.fixture
def run(tmp_path, reference, ray_folder):
    """The line over the reference's objects with two Ray actors a stage that has something to compute."""
    compute = {"compute": {"flush_rows": 1, "batch_size": 1, "workers": 2, "encoder_threads": 1}}
    return replace(new_run(tmp_path, reference.source, **compute), environment={"RAY_TMPDIR": ray_folder})


def test_a_killed_actor_and_a_killed_blender_cost_a_second_try_each(nursery, reference, run, tmp_path):
    copy(reference, run, "views", "renders")
    doomed = replace(run, setup="doomed:doom", argument=str(tmp_path))
    assert nursery.run(doomed) == 0, Path(run.log).read_text()
    assert (tmp_path / "actor").exists()
    assert (tmp_path / "blender").exists()
    assert digests(settings_of(run)) == digests(settings_of(reference))
    assert all(report.expected == report.found for report in Report.load(Path(f"{run.log}.report")).shards)
    assert attempts(run, "renders") == [1, 1, 1, 2, 2]
    assert leftovers(run) == []
    assert not orphans(run)


def test_a_driver_killed_under_ray_leaves_no_process_and_the_next_run_goes_on(nursery, reference, run, ray_folder):
    copy(reference, run, "views", "renders", "targets", "dataset")
    point = Point("pipelines.job:take", "after", call=4)
    assert nursery.run(replace(run, point=asdict(point))) == -signal.SIGKILL, Path(run.log).read_text()
    assert struck(point) in Path(run.log).read_text()
    assert not orphans(run, 10)
    wait_for(lambda: not alive(mentioning(ray_folder)), 10, "every process of Ray has ended")
    before = committed(run)
    assert {stage for stage, *_ in before} == {"catalog", "downloads", "views", "renders"}
    inline = replace(run, values=reference.values)  # how a run is spread changes no result, and no row is done again
    report = run_again(nursery, inline)[1]
    for stage in report.stages():
        done = sum(of == stage for of, *_ in before)
        assert report.count("computed", stage) + report.count("decided", stage) == 5 - done
    assert digests(settings_of(run)) == digests(settings_of(reference))
    assert leftovers(run) == []


@pytest.mark.slow
def test_a_killed_dagster_run_goes_on_where_it_was(nursery, reference, tmp_path):
    run = new_run(tmp_path, reference.source)
    copy(reference, run, "views", "renders", "targets", "dataset")
    (tmp_path / "home").mkdir()
    (tmp_path / "scratch").mkdir()
    shutil.copy(ROOT / "dagster.yaml", tmp_path / "home")
    values = {
        "COLLECTION": "test",
        "CATALOG__SHARDS": "2",
        "CATALOG__VALIDATION_SHARE": "0.2",
        "COMPUTE__FLUSH_ROWS": "1",
    }
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("GAP3D_", "DAGSTER_"))}
    surroundings = bare | environment(Path(run.store), Path(run.source), **values)
    surroundings |= {"DAGSTER_HOME": str(tmp_path / "home"), "TMPDIR": run.scratch}
    words = ["asset", "materialize", "-m", "assets_defs.definitions", "--select", "views,renders", "--partition", "1"]
    command = replace(run, work="dagster", flags=words, folder=str(tmp_path / "home"), environment=surroundings)
    killed = nursery.start(command)
    wait_for(lambda: blenders(run.scratch), 60, "a Blender works for the run")
    os.kill(killed, signal.SIGKILL)
    assert nursery.wait(killed) == -signal.SIGKILL, Path(run.log).read_text()
    assert not orphans(run)
    assert nursery.run(command) == 0, Path(run.log).read_text()
    before = committed(run)
    assert {stage for stage, *_ in before} == {"catalog", "downloads", "views", "renders"}
    report = run_again(nursery, run)[1]
    done = sum(stage == "views" for stage, *_ in before)
    assert done
    assert report.count("computed", "views") == 5 - done
    assert digests(settings_of(run)) == digests(settings_of(reference))
    assert leftovers(run) == []
