"""The worker against programs that only pretend to be a Blender."""

import contextlib
import sys
import textwrap

import pytest
from asked import DEEP, TINY, VIEW, failure_of

from gap3d.records import Failure, Status
from gap3d.settings import Limits
from render.job import Model
from render.worker import Blender

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
