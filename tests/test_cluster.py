"""The pool of workers on several nodes, the cluster files, and the programs as single files."""

import importlib.machinery
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest
import yaml

from gap3d.records import Outcome, SystemicFault
from pipelines import cluster
from pipelines.command import load_settings
from pipelines.job import Item, Row, outcomes

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 0.1
SOON = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 300, "health_check_timeout_ms": 3000}
"""How soon Ray misses a node that died: by default it looks after five seconds, every three."""


class Sleeper:
    """Answers an item with the node and the process it was done in, and what Ray gave it; at once when ``hurry`` is."""

    def __init__(self, hurry=None):
        self.hurry = hurry

    def process(self, payload):
        import ray

        if not (self.hurry and self.hurry.exists()):
            time.sleep(SECONDS)
        context = ray.get_runtime_context()
        found = {"node": context.get_node_id(), "process": os.getpid(), "given": context.get_assigned_resources()}
        return [Outcome(key=str(payload), data=found)]

    def probe(self):
        pass

    def close(self):
        pass


@pytest.fixture(scope="module")
def nodes():
    """Ray's own nodes, several on this machine; the head has one CPU and a resource of which no other node has any."""
    import ray
    from ray.cluster_utils import Cluster

    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", folder)  # names of unix sockets are short
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where the workers below are found
        head = {"num_cpus": 1, "resources": {"rt_cores": 1}, "_system_config": SOON}
        made = Cluster(initialize_head=True, head_node_args=head)
        ray.init(made.address, log_to_driver=False)
        yield made
        ray.shutdown()
        made.shutdown()


def test_a_node_that_joins_is_used_and_one_that_dies_costs_no_item(nodes, tmp_path):
    pool = cluster.RayPool(partial(Sleeper, tmp_path / "hurry"), cluster.Resources(3), 60)
    items = [f"item {index}" for index in range(100)]
    answers = pool.run(items, str)
    done = [next(answers) for _ in range(5)]
    assert len({answer.data["node"] for _, (answer,) in done}) == 1
    assert {answer.host for _, (answer,) in done} == {socket.gethostname()}
    joined = nodes.add_node(num_cpus=1)
    while len({answer.data["node"] for _, (answer,) in done}) == 1:
        done.append(next(answers))
    raylet = joined.all_processes["raylet"][0].process.pid
    for process in (raylet, done[-1][1][0].data["process"]):  # a worker lives on for a while without its raylet
        os.kill(process, signal.SIGKILL)
    done += itertools.islice(answers, 5)
    (tmp_path / "hurry").touch()
    done += answers
    pool.close()
    assert sorted(item for item, _ in done) == sorted(items)
    assert all(answer.key == item for item, (answer,) in done)
    nodes.remove_node(joined, allow_graceful=False)


def test_workers_are_where_the_resource_is_and_no_more_than_it_is_good_for(nodes):
    other = nodes.add_node(num_cpus=4)
    pool = cluster.RayPool(Sleeper, cluster.Resources(4, custom={"rt_cores": 0.5}, cpus=0.25), 60)
    done = [answer.data for _, (answer,) in pool.run(list(range(20)), str)]
    pool.close()
    assert {each["node"] for each in done} == {nodes.head_node.node_id}
    assert len({each["process"] for each in done}) == 2
    assert all(each["given"] == {"rt_cores": 0.5, "CPU": 0.25} for each in done)
    nodes.remove_node(other)


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        pytest.param(cluster.Resources(2, custom={"tpu": 1.0}), "CPU 1, tpu 1", id="custom"),
        pytest.param(cluster.Resources(2, gpus=1.0), "CPU 1, GPU 1", id="gpu"),
        pytest.param(cluster.Resources(2, cpus=64.0), "CPU 64", id="cpus"),
    ],
)
def test_what_no_node_has_is_said_at_once(nodes, resources, words):
    started = time.monotonic()
    with pytest.raises(SystemicFault, match=rf"no node .* \({words}\); its nodes have"):
        cluster.RayPool(Sleeper, resources, 60)
    assert time.monotonic() - started < 5


class Poisoned(Sleeper):
    """Dies of one item as soon as it is at it."""

    def process(self, payload):
        if payload == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().process(payload)


def test_of_several_items_at_work_in_an_actor_that_dies_the_guilty_one_alone_is_told_so(nodes):
    pool = cluster.RayPool(Poisoned, cluster.Resources(1, ahead=3), 60)
    payloads = ["a", "b", "poison", "c", "d", "e"]
    items = [Item(shard="0", rows=(Row(stage="s", key=each, inputs={}),), payload=each) for each in payloads]
    found = {item.payload: outcome for item, (outcome,) in outcomes(pool, items, load_settings("demo"))}
    pool.close()
    assert {name: outcome.status for name, outcome in found.items()} == {
        **dict.fromkeys("abcde", "ok"),
        "poison": "crashed",
    }
    assert found["poison"].attempts == 2
    assert sum(outcome.attempts for outcome in found.values()) <= 6 + 3  # those that were at work beside it, once more


@pytest.mark.parametrize("attempts", [1, 2])
def test_of_a_batch_that_an_actor_dies_of_the_guilty_row_alone_is_told_so(nodes, attempts):
    class Batches(Poisoned):
        def process(self, payload):
            return [outcome for each in payload for outcome in super(Batches, self).process(each)]

    def item(keys):
        return Item(shard="0", rows=tuple(Row(stage="s", key=key, inputs={}) for key in keys), payload=keys)

    def singly(batch):
        return [item([key]) for key in batch.payload]

    pool = cluster.RayPool(Batches, cluster.Resources(1, ahead=3), 60)
    settings = load_settings("demo", limits={"attempts": attempts})
    batches = [item(["a", "b"]), item(["c", "poison", "d"]), item(["e", "f"])]
    answers = [
        (row.key, outcome.status)
        for batch, found in outcomes(pool, batches, settings, singly)
        for row, outcome in zip(batch.rows, found, strict=True)
    ]
    pool.close()
    assert sorted(answers) == [*((name, "ok") for name in "abcdef"), ("poison", "crashed")]


class Broken(Sleeper):
    """A worker that can't be made."""

    def __init__(self):
        raise SystemicFault("there is no Blender here")


def test_a_worker_that_cannot_be_made_is_its_own_sentence(nodes):
    pool = cluster.RayPool(Broken, cluster.Resources(1), 60)
    with pytest.raises(SystemicFault, match=r"^there is no Blender here$"):
        list(pool.run([1], str))
    pool.close()


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster-aws.yaml"])
def test_ray_takes_the_cluster_files_and_every_start_asks_for_the_token(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    written = yaml.safe_load((ROOT / "pipelines" / name).read_text())
    config = prepare_config(written)
    validate_config(config)
    starts = [
        words for of in ("head", "worker") for words in config[f"{of}_start_ray_commands"] if "ray start" in words
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in words for words in starts)
    assert "~/.ray/auth_token" in config["file_mounts"]


def test_on_aws_each_stage_has_one_kind_of_machine():
    types = yaml.safe_load((ROOT / "pipelines" / "cluster-aws.yaml").read_text())["available_node_types"]

    def holding(**needs):
        return [name for name, of in types.items() if all(of["resources"].get(n, 0) >= v for n, v in needs.items())]

    assert holding(CPU=1, GPU=1, rt_cores=1) == ["render"]
    assert holding(CPU=1, GPU=1, encoders=1) == ["encode"]


def test_no_module_of_pipelines_hides_another_package():
    ours = {path.stem for path in (ROOT / "pipelines").glob("*.py")} - {"__init__"}
    elsewhere = [path for path in sys.path if path and Path(path) not in (ROOT, ROOT / "tests")]
    found = {name for name in ours if importlib.machinery.PathFinder.find_spec(name, elsewhere)}
    assert found == set()
    assert {"gc"} == ours & set(sys.builtin_module_names)  # those come before any file


def test_a_program_works_as_one_file_in_a_home_of_namesakes_and_as_a_file_here(tmp_path):
    for package in ("gap3d", "render", "pipelines"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('a namesake')\n")
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    begun = []
    for program in ("views.py", "renders.py"):
        shutil.copy(ROOT / "pipelines" / program, tmp_path)
        for folder, path in ((tmp_path, tmp_path / program), (ROOT, f"pipelines/{program}")):
            words = [sys.executable, str(path), "--shards", "none of them"]
            begun.append(subprocess.Popen(words, cwd=folder, env=bare, stderr=subprocess.PIPE, text=True))
    for process in begun:
        _, said = process.communicate(timeout=120)
        assert "no shard none of them: the collection has" in said, said


def test_in_a_log_progress_is_whole_lines_now_and_then():
    words = "import time; from pipelines import progress; progress.LINE_S = 0.2\n"
    words += "for _ in progress.progress(range(100), desc='renders'): time.sleep(0.01)"
    said = subprocess.run([sys.executable, "-c", words], capture_output=True, timeout=60, check=True).stderr.decode()
    lines = said.split("\n")
    assert "\r" not in said
    assert lines.pop() == ""
    assert 3 <= len(lines) <= 12
    assert "0/100" in lines[0]
    assert [("100/100" in line) for line in lines].count(True) == 1


@pytest.mark.slow  # a driver killed under Ray is in test_engine_kills
def test_a_run_that_is_terminated_ends_in_order_once_ray_is_there():
    local = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    code = (
        "import os, signal; from pipelines.cluster import connect; from pipelines.command import stop\n"
        "from pipelines.worker import Resources\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "connect(Resources(workers=1))\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "except KeyboardInterrupt:\n"
        "    print('in order')\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=local, timeout=120)
    assert (told.returncode, told.stdout.strip()) == (0, "in order"), told.stderr
