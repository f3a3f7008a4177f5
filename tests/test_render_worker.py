"""The worker against a real Blender that hangs, dies and swells, and against programs that only pretend to be one."""

import contextlib
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

from gap3d.cameras import look_at_origin
from gap3d.records import Failure, Status, SystemicFault
from gap3d.settings import GIB, Limits, RenderSettings
from render.job import FILE_TYPES, Image, Mesh, Model, View
from render.scratch import PREFIX, Scratch
from render.worker import Blender

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
TINY = RenderSettings(resolution=32, samples=1, denoise=False)
DEEP = TINY.model_copy(update={"depth": True})
VIEW = View(look_at_origin(30.0, 30.0, 2.0), 40.0)

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the shared data set is not at {DATA}")

TRIANGLE = "v 0 0 0\nv 1 0 0\nv 0 1 0.5\nf 1 2 3\n"


@pytest.fixture
def triangle(tmp_path: Path) -> Model:
    (tmp_path / "triangle.obj").write_text(TRIANGLE)
    return Model(tmp_path, "triangle.obj", "obj")


def shared_model(path: str) -> Model:
    file = DATA / path
    return Model(file.parent, file.name, file.suffix[1:].lower())


def failure_of(blender: Blender, model: Model) -> Failure:
    with pytest.raises(Failure) as caught:
        blender.load(model)
        blender.render(VIEW, TINY)
    return caught.value


def serves(blender: Blender, model: Model) -> tuple[Mesh, Image]:
    return blender.load(model), blender.render(VIEW, TINY)


def act_while_loading(blender: Blender, act: int, after: float = 1.0) -> threading.Timer:
    def send() -> None:
        assert blender.pid is not None
        os.kill(blender.pid, act)

    timer = threading.Timer(after, send)
    timer.start()
    return timer


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
def test_a_memory_bomb_is_out_of_memory_and_the_next_object_is_served(triangle):
    with Blender(Limits(memory_bytes=GIB // 2), threads=1) as blender:
        failure = failure_of(blender, shared_model("bad/made/instancing_1e8.usda"))
        assert failure.status is Status.OUT_OF_MEMORY
        assert "0.50 GiB" in failure.reason
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


# An impostor: it speaks the framing, and answers load and render with the code given to it.
IMPOSTOR = """
import io, json, os, struct, sys, time
import numpy as np
import PIL.Image
requests, answers = os.fdopen(int(sys.argv[1]), "rb"), os.fdopen(int(sys.argv[2]), "wb", buffering=0)
def say(body):
    answers.write(struct.pack(">I", len(body)) + body)
def ok(body):
    say(json.dumps({"status": "ok", "reason": "", "body": body}).encode())
facts = {"scale": 1.0, "offset": [0, 0, 0], "objects": 1, "triangles": 1, "animated": False, "points": 0,
         "missing_textures": [], "costs": {}}
made = {"costs": {}, "device": ""}
vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
faces = np.array([[0, 1, 2]], np.int32)
depth = np.full((32, 32), np.inf, np.float32)
def load(out):
    ok(facts)
def render(out):
    ok(made)
def picture(path, size=(32, 32), mode="RGBA"):
    PIL.Image.new(mode, size, "white").save(path, "PNG")
EXEC
while header := requests.read(4):
    request = json.loads(requests.read(struct.unpack(">I", header)[0]))
    if request["op"] == "load":
        out = request["out"]
        np.save(out + "/vertices.npy", vertices)
        np.save(out + "/faces.npy", faces)
        load(out)
    elif request["op"] == "render":
        picture(out + "/image.png")
        np.save(out + "/depth.npy", depth)
        render(out)
    else:
        ok({"version": "0.0"})
"""


def impostor(operation: str = "", answer: str = "pass") -> tuple[str, ...]:
    """A program that answers one operation in its own way."""
    code = f"def {operation}(out):\n{textwrap.indent(answer, '    ')}" if operation else ""
    return (sys.executable, "-c", IMPOSTOR.replace("EXEC", code))


@contextlib.contextmanager
def pretender(operation: str = "", answer: str = "pass", limits: Limits | None = None):
    program = impostor(operation, answer)
    with Blender(limits or Limits(), threads=1, program=program, allow_unsandboxed=True) as blender:
        yield blender


def test_the_impostor_of_these_tests_is_believed_while_it_behaves(triangle):
    with pretender() as blender:
        assert blender.load(triangle).faces.tolist() == [[0, 1, 2]]
        image = blender.render(VIEW, DEEP)
        assert image.depth.shape == (32, 32)
        assert blender.version == "0.0"
        assert not blender.sandboxed


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param("np.save(out + '/faces.npy', np.array([[{}] * 3]), allow_pickle=True); ok(facts)", id="pickle"),
        pytest.param("np.save(out + '/faces.npy', faces.astype(float)); ok(facts)", id="wrong dtype"),
        pytest.param("np.save(out + '/faces.npy', faces + 1); ok(facts)", id="index out of range"),
        pytest.param("np.save(out + '/faces.npy', faces[:0]); ok(facts)", id="fewer faces than told"),
        pytest.param("open(out + '/vertices.npy', 'ab').write(b'x'); ok(facts)", id="longer than its shape"),
        pytest.param("os.truncate(out + '/vertices.npy', 130); ok(facts)", id="shorter than its shape"),
        pytest.param("os.unlink(out + '/faces.npy'); ok(facts)", id="no file"),
        pytest.param(
            "os.rename(out + '/faces.npy', out + '/x'); os.symlink('x', out + '/faces.npy'); ok(facts)", id="symlink"
        ),
        pytest.param("os.link(out + '/faces.npy', out + '/x'); ok(facts)", id="hard link"),
        pytest.param("os.unlink(out + '/faces.npy'); os.mkfifo(out + '/faces.npy'); ok(facts)", id="pipe"),
        pytest.param("os.rename(out, out + '2'); os.symlink('/etc', out); ok({})", id="folder replaced"),
        pytest.param("answers.write(struct.pack('>I', 2**31)); ok(facts)", id="oversize frame"),
        pytest.param("say(b'\\x80 no JSON')", id="no JSON"),
        pytest.param("say(b'[' * 10**6)", id="deep JSON"),
        pytest.param("say(b'[1, 2]')", id="no object"),
        pytest.param('say(b\'{"status": "splendid"}\')', id="unknown status"),
        pytest.param('say(b\'{"status": "duplicate"}\')', id="status it cannot know"),
        pytest.param("ok({})", id="no facts"),
        pytest.param("ok(facts | {'scale': float('nan')})", id="scale is no number"),
        pytest.param("ok(facts | {'objects': 'many'})", id="wrong type"),
        pytest.param("ok(facts | {'objects': 2**40})", id="more objects than a column holds"),
        pytest.param("ok(facts | {'points': -1})", id="less than nothing"),
        *(
            pytest.param(
                f"h = {head!r}; open(out + '/vertices.npy', 'wb').write(b'\\x93NUMPY\\x01\\x00' "
                "+ struct.pack('<H', len(h)) + h); ok(facts)",
                id=f"header {name}",
            )
            for name, head in {
                "of minus signs": b"-" * 9000 + b"1",
                "of attributes": b"a" + b".a" * 9000,
                "of sums": b"1" + b"+1" * 9000,
                "of brackets": b"(" * 9000,
                "that ends in a string": b"{'descr': '<f4",
                "with a list as a key": b"{[]: 1}",
                "of objects": b"{'descr': '|O', 'fortran_order': False, 'shape': (3, 3), }\n",
                "of endless length": b"{'descr': '<f4', 'fortran_order': False, 'shape': ("
                + 5000 * b"9"
                + b", 3), }\n",
            }.items()
        ),
        pytest.param("ok(facts); ok(facts)", id="two answers"),
    ],
)
def test_a_forged_answer_is_a_typed_failure_and_its_author_is_ended(triangle, answer):
    with pretender("load", answer) as blender:
        failure = failure_of(blender, triangle)
        assert failure.status is Status.CRASHED
        assert blender.pid is None


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param("open(out + '/image.png', 'wb').write(b'GIF89a'); ok(made)", id="no PNG"),
        pytest.param("picture(out + '/image.png', (33, 32)); ok(made)", id="wrong size"),
        pytest.param("picture(out + '/image.png', mode='L'); ok(made)", id="wrong mode"),
        pytest.param("picture(out + '/image.png', (14000, 14000), '1'); ok(made)", id="bomb"),
        pytest.param("os.truncate(out + '/image.png', 60); ok(made)", id="cut short"),
        pytest.param("os.truncate(out + '/image.png', 2**40); ok(made)", id="huge file"),
        pytest.param(
            "os.unlink(out + '/image.png'); os.symlink('/etc/hostname', out + '/image.png'); ok(made)", id="link"
        ),
        pytest.param("ok(made | {'device': 'CUDA'})", id="another device"),
        pytest.param("ok(made | {'costs': {'render': 'much'}})", id="costs of the wrong type"),
        pytest.param("np.save(out + '/depth.npy', depth.astype(object)); ok(made)", id="depth: pickle"),
        pytest.param("np.save(out + '/depth.npy', depth[:16]); ok(made)", id="depth: wrong shape"),
        pytest.param("np.save(out + '/depth.npy', np.asfortranarray(depth[:, ::-1])); ok(made)", id="depth: order"),
        pytest.param("np.save(out + '/depth.npy', -depth); ok(made)", id="depth: behind the camera"),
        pytest.param("np.save(out + '/depth.npy', depth * 0); ok(made)", id="depth: no number"),
        pytest.param("os.unlink(out + '/depth.npy'); ok(made)", id="depth: none"),
        pytest.param("os.unlink(out + '/depth.npy'); os.mkfifo(out + '/depth.npy'); ok(made)", id="depth: pipe"),
        pytest.param(
            "open(out + '/depth.npy', 'wb').write(b'\\x93NUMPY\\1\\0\\xff\\xff' + b'(' * 4000); ok(made)",
            id="depth: huge header",
        ),
    ],
)
def test_a_forged_picture_is_a_typed_failure_and_its_author_is_ended(triangle, answer):
    with pretender("render", answer) as blender:
        blender.load(triangle)
        with pytest.raises(Failure) as caught:
            blender.render(VIEW, DEEP)
        assert caught.value.status is Status.CRASHED
        assert blender.pid is None


def test_non_finite_vertices_are_degenerate(triangle):
    with pretender("load", "np.save(out + '/vertices.npy', vertices / 0); ok(facts)") as blender:
        failure = failure_of(blender, triangle)
    assert (failure.status, failure.reason) == (Status.DEGENERATE, "non-finite coordinates")


def test_each_picture_has_the_whole_time(triangle):
    with pretender("render", "time.sleep(0.7); ok(made)", Limits(timeout_s=1.0)) as blender:
        blender.load(triangle)
        for _ in range(3):
            blender.render(VIEW, TINY)
    with pretender("render", "time.sleep(9)", Limits(timeout_s=1.0)) as blender:
        assert failure_of(blender, triangle).status is Status.TIMEOUT


def test_the_last_words_of_an_object_begin_with_its_own(tmp_path):
    (tmp_path / "good.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    (tmp_path / "broken.glb").write_bytes(b"not a model")
    with Blender(Limits(), 1, trees=tmp_path) as blender:
        for _ in range(3):
            blender.load(Model(tmp_path, "good.obj", "obj"))
        with pytest.raises(Failure):
            blender.load(Model(tmp_path, "broken.glb", "glb"))
        assert "\0" not in blender.last_log and "good" not in blender.last_log


@pytest.mark.parametrize(
    "planted",
    [
        "os.remove(out + '/vertices.npy'); os.makedirs(out + '/vertices.npy/x'); os._exit(1)",
        "os.rename(out, out + '2'); os.mkdir(out); picture(out + '2/image.png'); os._exit(1)",
        "os.rename(out, out + '2'); os.mkdir(out); np.save(out + '2/faces.npy', faces); say(b'no JSON')",
    ],
)
def test_what_an_object_leaves_behind_is_not_there_for_the_next_one(triangle, tmp_path, planted):
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "a.obj").write_bytes((triangle.tree / triangle.main).read_bytes())
    answer = f"if 'evil' in request['tree']:\n    {planted}\nelse:\n    ok(facts)"
    with pretender("load", answer) as blender:
        for _ in range(2):
            assert failure_of(blender, Model(tmp_path / "evil", "a.obj", "obj")).status is Status.CRASHED
            assert blender.load(triangle).faces.tolist() == [[0, 1, 2]]
            assert blender.render(VIEW, DEEP).width == 32


@pytest.mark.parametrize(
    "written",
    [
        "os.posix_fallocate(os.open(out + '/big', os.O_CREAT | os.O_WRONLY), 0, 2**27)",
        "[open(f'{out}/{n}', 'w').close() for n in range(10_001)]",
    ],
    ids=["bytes", "files"],
)
def test_a_child_that_fills_the_disk_is_ended(triangle, written):
    with pretender("load", f"{written}\ntime.sleep(30)", Limits(memory_bytes=2**27 - 1)) as blender:
        failure = failure_of(blender, triangle)
    assert failure.status is Status.OUT_OF_MEMORY and "scratch" in failure.reason
