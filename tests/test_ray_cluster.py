"""A Ray cluster as a user makes one with `ray up`, of machines that share a folder and nothing else."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from code_location import digests, environment, program
from dagster_site import executable
from folders import write_box
from machines import Machine, join, why_not
from processes import alive, end, named, tree, wait_for

from gap3d.store import Store

ROOT = Path(__file__).resolve().parents[1]
CLUSTER = ROOT / "pipelines" / "cluster.yaml"
OBJECTS = 12
TOOK_LONG = {"RENDERS__RESOLUTION": "128", "RENDERS__SAMPLES": "256"}
"""About a second of Cycles for each object."""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can be done")]


@pytest.fixture(scope="module")
def place():
    """A short path: the names of unix sockets have at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="gap3d-cluster-", ignore_cleanup_errors=True) as folder:
        for index in range(OBJECTS):
            write_box(Path(folder) / "objects" / f"{index:02d}.obj", 0.5 + 0.1 * index)
        yield Path(folder)


@pytest.fixture(scope="module")
def laptop(place):
    """Where the user sits: a home with a key and a token, and an environment that knows neither of this one's."""
    home = place / "laptop"
    (home / ".ray").mkdir(parents=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / "key"], check=True)
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("GAP3D_", "RAY_"))}
    found = {**bare, "HOME": str(home), "PATH": f"{Path(sys.executable).parent}:{bare['PATH']}"}
    found |= {"TMPDIR": str(place / "laptop"), "RAY_USAGE_STATS_ENABLED": "0", "TERM": "dumb"}
    subprocess.run([executable("ray"), "get-auth-token", "--generate"], env=found, check=True, capture_output=True)
    return found


@pytest.fixture(scope="module")
def machines(place, laptop):
    """A head and a worker, as they are before anything of ours is on them, but with the environment in its place."""
    key = Path(laptop["HOME"]) / "key"
    made = [
        Machine(place / name, name, address, key) for name, address in (("alpha", "10.78.0.1"), ("beta", "10.78.0.2"))
    ]
    try:
        join(*made)
        for machine in made:
            install(machine)
        yield made
    finally:
        for machine in made:
            machine.close()


def install(machine):
    """What `pip install` would need a network for; and two folders whose names are those of our packages."""
    venv = machine.home / ".gap3d-venv"
    venv.mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (venv / name).symlink_to(Path(sys.prefix) / name)
    shutil.copy(ROOT / "constraints.txt", venv / "pins")
    for package in ("gap3d", "render"):
        (machine.home / package).mkdir()
        (machine.home / package / "__init__.py").write_text("raise RuntimeError('a namesake in the home folder')\n")
    if machine.name == "beta":
        with (machine.home / ".profile").open("a") as profile:
            profile.write("export NODE_RESOURCES='{\"rt_cores\": 1}'\n")


@pytest.fixture(scope="module")
def inline(place):
    """Views of all objects, and the digests that the programs write without Ray."""
    settings = environment(place / "store", place / "objects", **TOOK_LONG)
    for stage in ("catalog", "downloads", "views"):
        program(settings, stage)
    shutil.copytree(place / "store", place / "inline")
    reference = {**settings, "GAP3D_STORE": str(place / "inline")}
    program(reference, "renders")
    return digests(reference)


class Cluster:
    """What `ray up` made of a copy of pipelines/cluster.yaml in which the marked values are edited."""

    def __init__(self, place, laptop, machines):
        self.place, self.laptop, self.head, self.machines = place, laptop, machines[0], machines
        self.file = place / "cluster.yaml"
        text = CLUSTER.read_text()
        for old, new in {
            "cluster_name: gap3d": f"cluster_name: {place.name}",
            "192.0.2.1": machines[0].address,
            "[192.0.2.2, 192.0.2.3]": f"[{machines[1].address}]",
            "ssh_user: ray": "ssh_user: root",
            "~/.ssh/id_ed25519": f"{laptop['HOME']}/key",
            "PROJECT=/shared/gap3d": f"PROJECT={ROOT}",
            "GAP3D_STORE=/shared/gap3d-store": f"GAP3D_STORE={place}/store",
        }.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        self.file.write_text(text)

    def start(self, *words, **options):
        """A command of the user's, in the cluster's network."""
        return subprocess.Popen(
            self.head.inside(*words),
            env=self.laptop,
            cwd=ROOT,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, **options},
        )

    def run(self, *words):
        """Its output, at the end."""
        with self.start(*words) as process:
            said, _ = process.communicate(timeout=240)
        return process.returncode, said

    def watch(self, *words):
        """The same, and the names of the machines that had a Blender meanwhile."""
        seen = set()
        with tempfile.TemporaryFile("w+") as log, self.start(*words, stdout=log) as process:
            while process.poll() is None:
                seen |= {machine.name for machine in self.machines if blenders(machine)}
                time.sleep(0.2)
            log.seek(0)
            return process.returncode, log.read(), seen

    def submit(self, script, *flags):
        """The words that run a program of ours on it."""
        return executable("ray"), "submit", str(self.file), f"pipelines/{script}", "--", *flags


@pytest.fixture(scope="module")
def cluster(place, laptop, machines, inline):
    made = Cluster(place, laptop, machines)
    code, said = made.run(executable("ray"), "up", "-y", str(made.file))
    assert code == 0, said
    try:
        wait_for(lambda: all(raylets(machine) for machine in machines), 60, f"a Ray on each machine: {said}")
        yield made
    finally:
        made.run(executable("ray"), "down", "-y", str(made.file))
        for folder in Path("/tmp").glob(f"ray_ssh_*/{hashlib.sha256(place.name.encode()).hexdigest()[:10]}"):
            shutil.rmtree(folder, ignore_errors=True)  # where Ray keeps its ssh connections open


def raylets(machine):
    """Ray's own process on a machine."""
    return [process for process in alive(tree(machine.pid)) if process.name() == "raylet"]


def blenders(machine):
    """Blenders on a machine."""
    return [process for process in alive(tree(machine.pid)) if "render.child" in named(process)]


def flags(place, collection="toys", **values):
    """Settings as flags; the store is the one that the cluster file names."""
    settings = environment(place / "store", place / "objects", COLLECTION=collection, COMPUTE__WORKERS="4", **TOOK_LONG)
    settings |= {f"GAP3D_{name}": value for name, value in values.items()}
    del settings["GAP3D_STORE"]
    names = {name: name.removeprefix("GAP3D_").lower().replace("__", ".") for name in settings}
    return [word for name, value in settings.items() for word in (f"--{names[name]}", value)]


def another(place, collection):
    """A collection of its own that has its views, and no renders."""
    shutil.copytree(place / "inline" / "toys", place / "store" / collection, ignore=shutil.ignore_patterns("renders"))
    return flags(place, collection)


def ledger(place, collection="toys"):
    """Rows of all renders."""
    store = Store(place / "store", collection, 4)
    return [row for shard in store.shards for row in store.manifest("renders", shard).rows.values()]


def made(place, collection):
    """Digests of a collection's renders."""
    found = digests({"GAP3D_STORE": str(place / "store"), "GAP3D_COLLECTION": collection})
    return {stage: digest for stage, digest in found.items() if stage.startswith("renders/")}


def wanted(inline):
    """Digests of the renders that were made without Ray."""
    return {stage: digest for stage, digest in inline.items() if stage.startswith("renders/")}


def test_ray_submit_renders_a_folder_on_all_machines_into_what_one_machine_makes_alone(cluster, place, inline):
    code, said = cluster.run(*cluster.submit("views.py", *flags(place)))
    assert code == 0, said
    code, said, seen = cluster.watch(*cluster.submit("renders.py", *flags(place)))
    assert code == 0, said
    assert f"{OBJECTS} rows: {OBJECTS} ok" in said
    assert seen == {"alpha", "beta"}
    assert made(place, "toys") == wanted(inline)


def test_rendering_takes_place_where_the_resource_is_that_it_asks_for(cluster, place):
    more = [*another(place, "placed"), "--shards", "0", "--compute.render_resources", "rt_cores=1"]
    code, said, seen = cluster.watch(*cluster.submit("renders.py", *more))
    assert code == 0, said
    assert seen == {"beta"}


@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_a_client_without_the_token_is_heard_over_the_network_and_refused(cluster, place, laptop, machines, mode):
    words = f"import ray; ray.init('{cluster.head.address}:6379')"
    stranger = {
        **laptop,
        "HOME": str(place),
        "RAY_AUTH_MODE": mode,
        "RAY_AUTH_TOKEN": "0" * 64 if mode == "token" else "",
    }
    tried = subprocess.run(
        machines[1].inside(sys.executable, "-c", words), env=stranger, capture_output=True, text=True, timeout=120
    )
    assert tried.returncode != 0
    assert "Unauthenticated" in tried.stderr or "AuthenticationError" in tried.stderr, tried.stderr[-2000:]


@pytest.mark.parametrize("how", ["Ctrl-C", "hang-up"])
def test_the_end_of_ray_submit_ends_the_blenders_and_leaves_no_partial_shard(cluster, place, inline, machines, how):
    more = [*another(place, how), "--compute.flush_rows", "1"]
    keyboard, terminal = os.openpty()
    with cluster.start(*cluster.submit("renders.py", *more), stdin=terminal) as process:
        wait_for(lambda: all(blenders(machine) for machine in machines), 60, "each machine has a Blender at work")
        wait_for(lambda: ledger(place, how), 60, "a first row")
        at_work = [process for machine in machines for process in blenders(machine)]
        if how == "Ctrl-C":
            os.write(keyboard, b"\x03")
        else:
            os.killpg(process.pid, signal.SIGKILL)
        wait_for(lambda: not alive(at_work), 10, "the Blenders end")
        process.communicate(timeout=30)
    os.close(keyboard)
    os.close(terminal)
    left = OBJECTS - len(ledger(place, how))
    assert left
    code, said = cluster.run(*cluster.submit("renders.py", *more))
    assert code == 0, said
    assert f"{OBJECTS} ok; computed {left}" in said
    assert made(place, how) == wanted(inline)


LONG = {"RENDERS__SAMPLES": "2048"}
"""Several seconds for each object, so that there is a middle to a run."""


@pytest.fixture(scope="module")
def newcomer(place, laptop, machines):
    """A third machine, on the same network as the head, that no file names."""
    machine = Machine(place / "gamma", "gamma", "10.78.0.3", Path(laptop["HOME"]) / "key")
    try:
        join(machines[0], machine)
        install(machine)
        shutil.copytree(Path(laptop["HOME"]) / ".ray", machine.home / ".ray")
        yield machine
    finally:
        machine.close()


def enter(cluster, machine):
    """`ray start` on a machine, as its user would type it."""
    start = f"ray start --address={cluster.head.address}:6379"
    words = f"bash --login -c 'export RAY_AUTH_MODE=token PATH=~/.gap3d-venv/bin:$PATH; {start}'"
    ssh = ("ssh", "-i", f"{cluster.laptop['HOME']}/key", "-o", "StrictHostKeyChecking=no")
    code, said = cluster.run(*ssh, "-o", "UserKnownHostsFile=/dev/null", f"root@{machine.address}", words)
    assert code == 0, said


@contextmanager
def running(cluster, log, words):
    """A run, in the middle of which something happens; afterwards it has come to its end."""
    with log.open("w") as out, cluster.start(*words, stdout=out) as process:
        try:
            yield
            assert process.wait(300) == 0, log.read_text()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_a_node_that_dies_costs_no_row_and_one_that_joins_takes_its_share(cluster, place, machines, newcomer):
    _, beta = machines
    words = cluster.submit("renders.py", *another(place, "moving"), "--renders.samples", LONG["RENDERS__SAMPLES"])
    log = place / "moving.log"
    with running(cluster, log, words):
        wait_for(lambda: all(blenders(machine) for machine in machines), 60, "each machine has a Blender at work")
        orphans = blenders(beta)
        ray_there = [process for process in tree(beta.pid) if named(process).startswith("ray::")]
        end(raylets(beta) + ray_there)
        wait_for(lambda: not alive(orphans), 10, "the Blenders of the dead node end")
        enter(cluster, newcomer)
        wait_for(lambda: blenders(newcomer), 60, "the newcomer has a Blender at work")
    assert f"{OBJECTS} rows: {OBJECTS} ok; computed {OBJECTS}" in log.read_text()
    assert [(row.status.value, row.attempts) for row in ledger(place, "moving")] == [("ok", 1)] * OBJECTS


def test_a_machine_whose_plug_is_pulled_costs_no_row(cluster, place, machines, newcomer):
    words = cluster.submit("renders.py", *another(place, "dark"), "--renders.samples", LONG["RENDERS__SAMPLES"])
    log = place / "dark.log"
    with running(cluster, log, words):
        wait_for(lambda: blenders(newcomer), 60, "the newcomer has a Blender at work")
        newcomer.pull_the_plug()
    assert f"{OBJECTS} rows: {OBJECTS} ok; computed {OBJECTS}" in log.read_text()
    assert [(row.status.value, row.attempts) for row in ledger(place, "dark")] == [("ok", 1)] * OBJECTS
