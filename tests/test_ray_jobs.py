"""The same stages as Ray jobs, the end of a run that is cancelled, and who may hear any of it."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from code_location import digests, environment, write_toys
from dagster_site import ROOT, Site, executable
from processes import alive, beyond_loopback, blenders, free_ports, listening, named, tree, wait_for
from ray_head import LOOPBACK, jobs, ray, started
from target_stores import collection
from test_dagster_model import given as model_settings

from gap3d.store import Store

SLOW = {
    "RENDERS__RESOLUTION": "1024",
    "RENDERS__SAMPLES": "60000",
    "RENDERS__DENOISE": "false",
    "COMPUTE__WORKERS": "1",
}
"""Minutes of Cycles for one object."""


@pytest.fixture(scope="module")
def place():
    """A short path: Ray keeps unix sockets there, whose names have at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="gap3d-ray-", ignore_cleanup_errors=True) as folder:
        write_toys(Path(folder) / "objects")
        (Path(folder) / "tmp").mkdir()
        yield Path(folder)


@pytest.fixture(scope="module")
def surroundings(place):
    """What a user's shell has for Ray; settings of other tests are not in it."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("GAP3D_", "RAY_"))}
    path = f"{Path(sys.executable).parent}:{bare['PATH']}"
    return {**bare, **LOOPBACK, "PATH": path, "RAY_AUTH_TOKEN": secrets.token_hex(32), "TMPDIR": str(place / "tmp")}


@pytest.fixture(scope="module")
def head(place, surroundings):
    """A Ray of this module's own."""
    with started(place, surroundings) as made:
        yield made


@pytest.fixture(scope="module")
def inline(place, program):
    """The digests that the programs write without Ray."""
    settings = environment(place / "inline", place / "objects")
    assert program("pipelines.line", **settings).returncode == 0
    return digests(settings)


@pytest.fixture(scope="module")
def slow_site(place, surroundings, head, inline):
    """``dagster dev`` over objects that keep Blender busy for minutes; views are made already."""
    settings = environment(
        place / "slow", place / "objects", COMPUTE__MODE="job", COMPUTE__ADDRESS=head.address, **SLOW
    )
    shutil.copytree(place / "inline", place / "slow")  # other settings of renders: views stand, renders do not
    with Site(place / "site", {**surroundings, **settings}) as site:
        yield site


@pytest.fixture(scope="module")
def inline_run(place, slow_site):
    """A run in the Dagster step's own process, with its own Ray, in the middle of a render."""
    run = slow_site.launch("renders", shard="0", mode="inline")
    return busy(slow_site, place, run)


def busy(site, place, run):
    """A run that has a Blender at work."""
    found = wait_for(lambda: blenders(str(place / "tmp")), 90, f"a Blender of run {run}: {site.events(run)[-2000:]}")
    time.sleep(2.0)  # past the import, into Cycles
    assert alive(found), site.events(run)[-2000:]
    return SimpleNamespace(run=run, blenders=found)


def seconds_to_end(busy_run, site):
    """Terminate as the button does; how long its Blenders lived on."""
    started = time.monotonic()
    site.terminate(busy_run.run)
    wait_for(lambda: not alive(busy_run.blenders), 30, "the Blenders end")
    took = time.monotonic() - started
    assert site.wait(busy_run.run, 30) == "CANCELED"
    return took


@pytest.fixture
def dagster(place, surroundings, program):
    """``dagster asset materialize``: what the button does, in one process."""
    folder = place / "home"
    folder.mkdir(exist_ok=True)
    shutil.copy(ROOT / "dagster.yaml", folder / "dagster.yaml")

    def run(settings, *assets, shard=None):
        words = ["asset", "materialize", "-m", "assets_defs.definitions", "--select", ",".join(assets)]
        words += ["--partition", shard] if shard else []
        environment = {**surroundings, **settings, "DAGSTER_HOME": str(folder)}
        return program("dagster", *words, within=folder, **environment)

    return run


def test_every_stage_by_ray_job_submit_writes_what_it_writes_inline(place, surroundings, head, inline):
    settings = environment(place / "submitted", place / "objects", COMPUTE__WORKERS="1", COMPUTE__MODE="inline")
    made = ray(
        surroundings,
        head,
        "job",
        "submit",
        "--runtime-env-json",
        json.dumps({"env_vars": settings}),
        "--",
        sys.executable,
        "-m",
        "pipelines.line",
    )
    assert made.returncode == 0, made.stdout[-3000:]
    assert "5 rows: 5 ok; computed 5" in made.stdout
    assert digests(settings) == inline
    bars = [line for line in made.stdout.splitlines() if line.startswith("views+renders:")]
    assert ("0/10" in bars[0], "10/10" in bars[-1]) == (True, True)


@pytest.mark.slow
def test_ray_job_stop_ends_the_blenders_and_the_next_job_computes_exactly_the_rest(place, surroundings, head, inline):
    values = {
        "COMPUTE__WORKERS": "1",
        "COMPUTE__FLUSH_ROWS": "1",
        "RENDERS__SAMPLES": "2048",
        "COMPUTE__MODE": "inline",
    }
    settings = environment(place / "stopped", place / "objects", **values)
    shutil.copytree(place / "inline", place / "stopped", ignore=shutil.ignore_patterns("renders"))
    words = ["job", "submit", "--submission-id", "to-stop", "--runtime-env-json", json.dumps({"env_vars": settings})]
    words += ["--", sys.executable, "-m", "pipelines.renders"]
    follower = subprocess.Popen(
        [executable("ray"), *words],
        env={**surroundings, "RAY_API_SERVER_ADDRESS": head.address},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with follower:
        wait_for(lambda: [stage for stage in digests(settings) if stage.startswith("renders/")], 120, "a first row")
        follower.send_signal(signal.SIGINT)
    at_work = wait_for(lambda: blenders(str(place / "tmp")), 20, "a Blender at work after Ctrl-C: the job goes on")
    assert "RUNNING" in ray(surroundings, head, "job", "status", "to-stop").stdout
    started = time.monotonic()
    assert ray(surroundings, head, "job", "stop", "to-stop").returncode == 0
    wait_for(lambda: not alive(at_work), 10, "its Blenders end")
    assert time.monotonic() - started < 20
    store = Store(place / "stopped", "toys", 4)
    left = 5 - sum(len(store.manifest("renders", shard).rows) for shard in store.shards)  # none of them is damaged
    assert 0 < left < 5
    words[3] = "to-end"
    made = ray(surroundings, head, *words)
    assert made.returncode == 0, made.stdout[-3000:]
    assert f"5 rows: 5 ok; computed {left}" in made.stdout


def test_with_one_setting_the_same_materialisation_is_a_ray_job_with_equal_digests(
    place, surroundings, head, inline, dagster
):
    settings = environment(place / "dagster", place / "objects", COMPUTE__MODE="job", COMPUTE__ADDRESS=head.address)
    later = shutil.ignore_patterns("views", "renders", "targets", "dataset")
    shutil.copytree(place / "inline", place / "dagster", ignore=later)
    done = dagster(settings, "views", "renders", shard="1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert any(name.endswith("-rendering-1-0") for name in jobs(surroundings, head))
    made = digests(settings)
    for stage in ("views", "renders"):
        assert made[f"{stage}/1"] == inline[f"{stage}/1"]


def test_with_the_same_setting_a_program_submits_itself_and_ends_as_its_job_ends(
    place, surroundings, head, inline, program
):
    shutil.copytree(place / "inline", place / "typed", ignore=shutil.ignore_patterns("renders", "targets", "dataset"))
    settings = {**surroundings, **environment(place / "typed", place / "objects")}
    words = ("--compute.mode", "job", "--compute.address", head.address)
    before = set(jobs(surroundings, head))
    report = place / "typed.json"
    done = program("pipelines.renders", *words, "--shards", "1", "--report", report, **settings)
    assert done.returncode == 0, done.stderr
    assert "computed" in done.stdout, "what the job says is shown"
    assert {shard["stage"] for shard in json.loads(report.read_text())["shards"]} == {"renders"}
    assert digests(settings)["renders/1"] == inline["renders/1"]
    settings |= {"GAP3D_COMPUTE__MODE": "job", "GAP3D_COMPUTE__ADDRESS": head.address}
    failed = program("pipelines.targets", "--shards", "3", **settings)
    assert failed.returncode == 1
    assert "run `python -m pipelines.rendering` first" in failed.stdout
    assert "ended as FAILED" in failed.stderr
    assert len(set(jobs(surroundings, head)) - before) == 2  # a job submits no other


@pytest.mark.slow
@pytest.mark.parametrize("where", ["here", "job"])
def test_an_interrupt_here_ends_the_job_and_one_there_is_the_exit_code_here(place, surroundings, head, inline, where):
    values = {**SLOW, "COMPUTE__MODE": "job", "COMPUTE__ADDRESS": head.address}
    store = place / f"interrupted-{where}"
    shutil.copytree(place / "inline", store, ignore=shutil.ignore_patterns("renders"))
    before = set(jobs(surroundings, head))
    typed = subprocess.Popen(
        [sys.executable, "-m", "pipelines.renders"],
        env={**surroundings, **environment(store, place / "objects", **values)},
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    with typed:
        found = wait_for(lambda: blenders(str(place / "tmp")), 90, "a Blender at work")
        (made,) = set(jobs(surroundings, head)) - before
        if where == "here":
            typed.send_signal(signal.SIGINT)
        else:
            (there,) = [
                each for each in tree(head.process.pid) if f"-m pipelines.renders --preset {store}" in named(each)
            ]
            there.send_signal(signal.SIGTERM)  # Ray starts jobs deaf to SIGINT
        wait_for(lambda: not alive(found), 20, "its Blenders end")
        assert typed.wait(30) == 130
        said = typed.stderr.read()
    status = {"here": "STOPPED", "job": "FAILED"}[where]
    assert jobs(surroundings, head)[made]["status"] == status
    assert ("stopped; finished rows are kept", f"ended as {status}")[where == "job"] in said


def test_what_no_job_can_be_made_of_is_refused_with_what_to_do(tmp_path, program):
    job = {"GAP3D_STORE": str(tmp_path), "GAP3D_COMPUTE__MODE": "job"}
    told = program("pipelines.prompts", "--prompt", "a cube", **job)
    assert told.returncode == 1
    assert "ray job submit --address ADDRESS" in told.stderr
    told = program("pipelines.line", **job)
    assert told.returncode == 1
    assert "needs compute.address" in told.stderr
    told = program("pipelines.line", **job, GAP3D_COMPUTE__ADDRESS="127.0.0.1:8265")
    assert told.returncode == 1
    assert "it looks like http://127.0.0.1:8265" in told.stderr
    told = program("pipelines.why", "cube.obj", **job)  # reads: its own answer, as in any other place
    assert "has no catalog yet" in told.stderr


def test_a_job_that_fails_is_a_clear_failure_with_its_last_words(place, head, dagster):
    settings = environment(place / "dagster", place / "objects", COMPUTE__MODE="job", COMPUTE__ADDRESS=head.address)
    made = dagster(settings, "targets", shard="3")
    assert made.returncode != 0
    assert "its last lines" in made.stderr
    assert "run `python -m pipelines.rendering` first" in made.stderr
    assert "ray job logs gap3d-" in made.stderr


def test_an_address_where_no_ray_is_fails_with_the_address(place, dagster):
    (port,) = free_ports(1)
    nowhere = f"http://127.0.0.1:{port}"
    settings = environment(place / "dagster", place / "objects", COMPUTE__MODE="job", COMPUTE__ADDRESS=nowhere)
    made = dagster(settings, "catalog")
    assert made.returncode != 0
    assert f"no Ray at {nowhere}" in made.stderr


@pytest.mark.slow  # a job that is stopped is above, a run that is stopped with Dagster below
def test_cancelling_a_job_run_ends_the_job_and_its_blenders(place, surroundings, head, slow_site):
    running = busy(slow_site, place, slow_site.launch("renders", shard="2"))
    started = time.monotonic()
    assert seconds_to_end(running, slow_site) < 10
    told = jobs(surroundings, head)[f"gap3d-{running.run[:8]}-renders-2-0"]
    assert time.monotonic() - started < 30
    assert told["status"] == "STOPPED"


@pytest.mark.slow  # its button is that of a job run; that Ray ends with it, the test of the stopped Dagster says too
def test_cancelling_an_inline_run_ends_its_blenders_and_its_ray(place, slow_site):
    running = busy(slow_site, place, slow_site.launch("renders", shard="3", mode="inline"))
    before = tree(slow_site.process.pid)
    assert seconds_to_end(running, slow_site) < 10
    wait_for(lambda: not [p for p in alive(before) if "raylet" in named(p)], 15, "the run's own Ray ends")


def test_nothing_listens_beyond_loopback(head, slow_site, inline_run):
    ray_head = listening(tree(head.process.pid))
    dagster_and_its_ray = listening(tree(slow_site.process.pid))
    assert f"127.0.0.1:{slow_site.port}" in dagster_and_its_ray
    assert head.address.removeprefix("http://") in ray_head
    assert any("raylet" in who for who in ray_head.values())
    assert any("raylet" in who for who in dagster_and_its_ray.values()), "the inline run has a Ray of its own"
    assert beyond_loopback(ray_head) == {}
    assert beyond_loopback(dagster_and_its_ray) == {}


def test_telemetry_of_both_is_off(place, surroundings, head, slow_site):
    words = "from ray._common.usage.usage_lib import usage_stats_enabled as on; import pipelines.cluster; print(on())"
    bare = {name: value for name, value in surroundings.items() if not name.startswith("RAY_")}
    ray_says = subprocess.run([sys.executable, "-c", words], env=bare, capture_output=True, text=True, timeout=60)
    assert ray_says.stdout.strip() == "False", ray_says.stderr
    words = "import dagster as dg; "
    words += "print(dg.DagsterInstance.from_config('.').telemetry_enabled)"
    dagster_says = subprocess.run(
        [sys.executable, "-c", words], cwd=slow_site.folder, capture_output=True, text=True, timeout=60
    )
    assert dagster_says.stdout.strip() == "False", dagster_says.stderr


def test_stopping_dagster_dev_in_the_middle_of_a_run_leaves_no_process(slow_site, inline_run):
    left = slow_site.stop()
    assert [named(process) for process in left] == []
    assert alive(inline_run.blenders) == []


@pytest.mark.slow
def test_a_training_and_its_evaluation_are_jobs_of_their_own_whose_results_the_assets_show(place, surroundings, head):
    collection(place / "model" / "store", 20)
    few = {"EVALUATION__MODELS": '["pretrained"]', "EVALUATION__STEPS": "2", "EVALUATION__RESAMPLES": "50"}
    jobs = {"COMPUTE__MODE": "job", "COMPUTE__ADDRESS": head.address, "COMPUTE__WORKERS": "1"}
    settings = model_settings(place / "model", **jobs, **few)
    history = place / "model" / "history"
    history.mkdir()
    words = ["asset", "materialize", "-m", "assets_defs.definitions", "--select"]
    words.append("pretrained_aligner,alignment_metrics")
    done = subprocess.run(
        [executable("dagster"), *words],
        env={**surroundings, **settings, "DAGSTER_HOME": str(history)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = (place / "model" / "store" / "test" / "aligner").glob("pretrain-*/result.json")
    assert json.loads(result.read_text())["step"] == 12
    listed = ray(surroundings, head, "job", "list").stdout
    assert "-pretrain-all-0" in listed
    assert "-alignment_metrics-all-0" in listed
    (measured,) = (place / "model" / "store" / "test" / "evaluation").glob("alignment/pretrained-*/result.json")
    assert json.loads(measured.read_text())["counts"] == {"ok": 15}  # the captioned of 20 images
    for check in ("loss_fell", "no_nan", "resumable"):
        assert f"Asset check '{check}' on 'pretrained_aligner' passed" in done.stderr
    for check in ("identity_holds", "every_sample_accounted", "metrics_possible"):
        assert f"Asset check '{check}' on 'alignment_metrics' passed" in done.stderr
