"""The worker against a real Blender that hangs, dies and swells, and against programs that only pretend to be one."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import PIL.Image
import psutil
import pytest
from asked import TINY, VIEW, failure_of, serves
from shared_data import DATA, needs_data

from gap3d.records import Failure, Status, SystemicFault
from gap3d.settings import Limits
from render.job import FILE_TYPES, Model, View
from render.scratch import PREFIX, Scratch
from render.worker import Blender

ROOT = Path(__file__).resolve().parents[1]


def shared_model(path: str) -> Model:
    file = DATA / path
    return Model(file.parent, file.name, file.suffix[1:].lower())


def act_while_loading(blender: Blender, act: int, after: float = 1.0) -> None:
    """Send a signal to the child that the next object gets, which lies in another tree."""
    before = blender.pid

    def send() -> None:
        while (now := blender.pid) in (None, before):
            time.sleep(0.01)
        time.sleep(after)
        os.kill(now, act)

    threading.Thread(target=send, daemon=True).start()


@needs_data
@pytest.mark.parametrize(("act", "name"), [(signal.SIGKILL, "SIGKILL"), (signal.SIGSEGV, "SIGSEGV")])
def test_a_blender_that_dies_while_loading_is_crashed_and_the_next_object_is_served(triangle, act, name):
    with Blender(Limits(), threads=1) as blender:
        first = serves(blender, triangle)
        act_while_loading(blender, act)
        failure = failure_of(blender, shared_model("bad/made/instancing_2e6_gpu.glb"))
        assert failure.status is Status.CRASHED
        assert f"signal {name}" in failure.reason
        assert blender.last_log
        assert serves(blender, triangle)[1].png == first[1].png


@needs_data
def test_an_object_that_never_ends_is_a_timeout_and_the_next_one_is_served(triangle):
    with Blender(Limits(timeout_s=3), threads=1) as blender:
        serves(blender, triangle)
        process = psutil.Process(blender.pid)
        begun = time.monotonic()
        failure = failure_of(blender, shared_model("bad/made/instancing_1e8.usda"))
        assert failure.status is Status.TIMEOUT
        assert time.monotonic() - begun < 8
        assert not process.is_running()
        serves(blender, triangle)


@needs_data
@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("bad/made/claims_4e9_vertices.ply", Status.CRASHED, "SIGABRT"),
        ("bad/made/zero_bytes.glb", Status.IMPORT_ERROR, "Bad glTF"),
        ("bad/made/cyclic_nodes_with_mesh.glb", Status.IMPORT_ERROR, "RecursionError"),
        ("bad/made/coincident_point.ply", Status.DEGENERATE, "zero extent"),
        ("bad/made/zero_area.stl", Status.DEGENERATE, "zero area"),
        ("bad/made/primitive_without_position.glb", Status.NO_GEOMETRY, "none with faces"),
        ("bad/real/trimesh/obj_wireframe.obj", Status.POINT_CLOUD, "8 points, no faces"),
        ("objects/derived/fuze_bottle_points_40k.ply", Status.POINT_CLOUD, "40000 points, no faces"),
        ("objects/donmccurdy/glTF-Transform/packages/extensions/test/in/BoxMeshopt.glb", Status.UNSUPPORTED, "meshopt"),
    ],
)
def test_every_bad_file_has_its_status_and_a_reason_without_machine_paths(shared_blender, path, status, reason):
    failure = failure_of(shared_blender, shared_model(path))
    assert failure.status is status
    assert reason in failure.reason
    assert str(DATA) not in failure.reason
    assert sys.prefix not in failure.reason
    assert "\n" not in failure.reason


@pytest.fixture(scope="module")
def shared_blender():
    with Blender(Limits(), threads=1) as blender:
        yield blender


def test_too_many_triangles_are_too_large(tmp_path):
    quads = "".join(f"f {1 + i} {2 + i} {3 + i}\n" for i in range(50))
    points = "".join(f"v {i} {i * i % 7} {i % 3}\n" for i in range(60))
    (tmp_path / "many.obj").write_text(points + quads)
    with Blender(Limits(triangles=49), threads=1) as blender:
        assert failure_of(blender, Model(tmp_path, "many.obj", "obj")).status is Status.TOO_LARGE


def test_an_object_that_no_ray_of_the_camera_meets_is_an_empty_render(shared_blender, triangle):
    shared_blender.load(triangle)
    away = np.array(VIEW.camera_to_world)
    away[:3, :3] = away[:3, :3] @ np.diag([1.0, -1.0, -1.0])
    with pytest.raises(Failure) as caught:
        shared_blender.render(View(away, 40.0), TINY)
    assert caught.value.status is Status.EMPTY_RENDER


def test_a_file_type_outside_the_table_is_unsupported_without_starting_blender(tmp_path):
    blender = Blender(Limits(), threads=1)
    assert failure_of(blender, Model(tmp_path, "a.step", "step")).status is Status.UNSUPPORTED
    assert blender.pid is None
    assert len(FILE_TYPES) == 12


def test_a_blender_is_replaced_after_so_many_objects(triangle):
    with Blender(Limits(recycle_after=2), threads=1) as blender:
        pids = []
        for _ in range(3):
            blender.load(triangle)
            pids.append(blender.pid)
    assert pids[0] == pids[1] != pids[2]


def test_closing_leaves_no_process_and_no_file(triangle, tmp_path):
    scratch = tmp_path / "scratch"
    with Blender(Limits(), threads=1, scratch_root=scratch) as blender:
        serves(blender, triangle)
        process = psutil.Process(blender.pid)
        assert any(scratch.iterdir())
    assert not process.is_running()
    assert not any(scratch.iterdir())


def test_a_parent_killed_with_9_leaves_no_blender_behind_and_its_files_to_the_next_one(triangle, monkeypatch):
    program = textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        from gap3d.settings import Limits
        from render.job import Model
        from render.worker import Blender
        blender = Blender(Limits(), threads=1, scratch_root=Path({str(triangle.tree)!r}))
        blender.load(Model(Path({str(triangle.tree)!r}), "triangle.obj", "obj"))
        print(blender.pid, flush=True)
        time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    gone, alive = psutil.wait_procs([child], timeout=5)
    assert gone and not alive
    assert len(list(triangle.tree.glob(PREFIX + "*"))) == 1
    monkeypatch.setattr("render.scratch.SETTLED_SECONDS", 0.0)
    Scratch(triangle.tree).remove()
    assert not list(triangle.tree.glob(PREFIX + "*"))


def test_a_blender_that_cannot_start_is_a_fault_of_the_machine(triangle):
    broken = (sys.executable, "-c", "import sys; sys.exit('no module named bpy')")
    with Blender(Limits(), threads=1, program=broken) as blender, pytest.raises(SystemicFault, match="pip install"):
        blender.load(triangle)
    with Blender(Limits(), threads=1, program=("/nowhere/python",)) as blender, pytest.raises(SystemicFault):
        blender.load(triangle)


def test_a_device_that_is_not_there_is_a_fault_of_the_machine(triangle):
    with (
        Blender(Limits(), threads=1, device="metal") as blender,
        pytest.raises(SystemicFault, match=r"can't render on metal here.*compute\.render_device"),
    ):
        blender.load(triangle)
    with Blender(Limits(), threads=1, device="cpu") as blender:
        assert serves(blender, triangle)[1].device == blender.device == "CPU"


def test_the_command_writes_the_picture_and_its_depth(triangle, tmp_path):
    command = [sys.executable, "-m", "render", str(triangle.tree / triangle.main), "--resolution", "32"]
    command += ["--samples", "1", "--prefilter", "fast", "--threshold", "0", "--device", "cpu"]
    command += ["--out", str(tmp_path / "a.png"), "--depth", str(tmp_path / "a.npy")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ok: 1 objects, 1 triangles; CPU, sandboxed; ")
    covered = np.asarray(PIL.Image.open(tmp_path / "a.png"))[..., 3] > 0
    depth = np.load(tmp_path / "a.npy")
    assert covered.any()
    assert np.isfinite(depth[covered]).any()
    assert 1.0 < depth.min() < 3.0


def test_the_child_gets_no_secrets_of_the_parent(triangle, monkeypatch):
    monkeypatch.setenv("CLOUD_TOKEN", "s3cret")
    with Blender(Limits(), threads=1) as blender:
        blender.load(triangle)
        process = psutil.Process(blender.pid)
        assert "CLOUD_TOKEN" not in process.environ()
        assert Path(process.environ()["HOME"]).parent == Path(process.cwd())


def test_the_last_words_of_an_object_begin_with_its_own(tmp_path):
    (tmp_path / "good.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    (tmp_path / "broken.glb").write_bytes(b"not a model")
    with Blender(Limits(), 1, trees=tmp_path) as blender:
        for _ in range(3):
            blender.load(Model(tmp_path, "good.obj", "obj"))
        with pytest.raises(Failure):
            blender.load(Model(tmp_path, "broken.glb", "glb"))
        assert "\0" not in blender.last_log and "good" not in blender.last_log
