"""What a stranger's file can reach: nothing, and the same file unconfined reaches its target."""

import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from shared_data import DATA, needs_data

from gap3d.cameras import look_at_origin
from gap3d.records import Failure, Status, SystemicFault
from gap3d.settings import Limits, RenderSettings
from render.job import Model, View
from render.sandbox import seen_from_outside
from render.worker import PROGRAM, Blender

ROOT = Path(__file__).resolve().parents[1]
BAD = DATA / "bad" / "made"
TINY = RenderSettings(resolution=32, samples=1, denoise=False)
VIEW = View(look_at_origin(30.0, 30.0, 2.0), 40.0)
QUAD = "v 0 0 0\nv 1 0 0\nv 1 1 0.3\nv 0 1 0.3\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"

UNCONFINED = (
    *PROGRAM[:-2],
    "-c",
    "from render import child, sandbox; sandbox.confine = lambda cell: 'off'; child.main()",
)
WITHOUT_LANDLOCK = textwrap.dedent("""
    import ctypes, errno, os, sys
    from render import seccomp
    ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
    seccomp.install(seccomp.fail(444, errno.ENOSYS))
    os.execv(sys.executable, [*PROGRAM, *sys.argv[1:]])
""").replace("PROGRAM", repr(PROGRAM))


@pytest.fixture(scope="module")
def confined():
    with Blender(Limits(), threads=1, device="cpu") as blender:
        yield blender


@pytest.fixture(scope="module")
def free():
    with Blender(Limits(), threads=1, program=UNCONFINED, device="cpu", allow_unsandboxed=True) as blender:
        yield blender


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "trees" / "tree"
    folder.mkdir(parents=True)
    return folder


def write_png(path: Path, colour: tuple[int, int, int]) -> None:
    PIL.Image.new("RGB", (8, 8), colour).save(path)


def write_painted(path: Path, texture: str) -> Model:
    """A quad whose colour comes from an image file."""
    path.write_text(f"mtllib {path.stem}.mtl\n{QUAD}usemtl m\nf 1/1 2/2 3/3 4/4\n")
    path.with_suffix(".mtl").write_text(f"newmtl m\nKd 1 1 1\nmap_Kd {texture}\n")
    return Model(path.parent, path.name, "obj")


def picture(blender: Blender, model: Model) -> bytes:
    blender.load(model)
    return np.asarray(PIL.Image.open(BytesIO(blender.render(VIEW, TINY).png))).tobytes()


def triangles(blender: Blender, model: Model) -> int | Status:
    try:
        return len(blender.load(model).faces)
    except Failure as failure:
        return failure.status


def box_bytes() -> bytes:
    """A cube as the 240 bytes that the glTF files below point at: 8 corners, 36 indices."""
    corners = [(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
    quads = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
    indices = [index for a, b, c, d in quads for index in (a, b, c, a, c, d)]
    return np.array(corners, "<f4").tobytes() + np.array(indices, "<u4").tobytes()


def write_gltf(path: Path, buffer: str, image: str) -> Model:
    """A cube with its geometry and its texture somewhere else."""
    accessors = [
        {"bufferView": 0, "componentType": 5126, "count": 8, "type": "VEC3", "min": [-1] * 3, "max": [1] * 3},
        {"bufferView": 1, "componentType": 5125, "count": 36, "type": "SCALAR"},
    ]
    document = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1, "material": 0}]}],
        "buffers": [{"byteLength": 240, "uri": buffer}],
        "bufferViews": [
            {"buffer": 0, "byteLength": 96},
            {"buffer": 0, "byteOffset": 96, "byteLength": 144},
        ],
        "accessors": accessors,
        "images": [{"uri": image}],
        "textures": [{"source": 0}],
        "materials": [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}],
    }
    path.write_text(json.dumps(document))
    return Model(path.parent, path.name, "gltf")


def test_a_texture_outside_the_tree_renders_as_a_missing_one(confined, free, tree):
    write_png(tree.parent / "secret.png", (0, 255, 0))
    model = write_painted(tree / "a.obj", "../secret.png")
    absent = write_painted(tree / "b.obj", "../absent.png")
    assert picture(confined, model) == picture(confined, absent)
    assert picture(free, model) != picture(free, absent)


def test_a_texture_in_the_tree_of_another_object_cannot_be_read(confined, free, tree):
    other = tree.parent / "other"
    other.mkdir()
    write_png(other / "secret.png", (0, 255, 0))
    neighbour = write_painted(other / "own.obj", "secret.png")
    model = write_painted(tree / "a.obj", str(other / "secret.png"))
    absent = write_painted(tree / "b.obj", str(other / "absent.png"))
    own = picture(confined, neighbour)
    assert own == picture(free, neighbour) == picture(free, model)
    assert picture(confined, model) == picture(confined, absent) != own


def test_a_buffer_outside_the_tree_is_an_import_error(confined, free, tree):
    (tree.parent / "secret.bin").write_bytes(box_bytes())
    model = write_gltf(tree / "a.gltf", "../secret.bin", "absent.png")
    assert triangles(confined, model) is Status.IMPORT_ERROR
    assert triangles(free, model) == 12


def test_a_link_that_leads_out_of_the_tree_is_an_import_error(confined, free, tree):
    (tree.parent / "secret.obj").write_text(QUAD + "f 1 2 3 4\n")
    (tree / "a.obj").symlink_to(tree.parent / "secret.obj")
    model = Model(tree, "a.obj", "obj")
    assert triangles(confined, model) is Status.IMPORT_ERROR
    assert triangles(free, model) == 2


def test_a_usd_layer_outside_the_tree_adds_nothing(confined, free, tree):
    mesh = """def Mesh "NAME" {
        int[] faceVertexCounts = [3]
        int[] faceVertexIndices = [0, 1, 2]
        point3f[] points = [(0, 0, 0), (1, 0, 0), (0, 1, 1)]
    }"""
    (tree.parent / "secret.usda").write_text("#usda 1.0\n" + mesh.replace("NAME", "secret"))
    layers = "(\n subLayers = [@../secret.usda@]\n)\n"
    (tree / "a.usda").write_text("#usda 1.0\n" + layers + mesh.replace("NAME", "own"))
    model = Model(tree, "a.usda", "usda")
    assert triangles(confined, model) == 1
    assert triangles(free, model) == 2


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def heard(server: socket.socket) -> bool:
    try:
        server.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def test_an_image_on_the_network_is_not_asked_for(confined, tree, listener):
    (tree / "own.bin").write_bytes(box_bytes())
    port = listener.getsockname()[1]
    model = write_gltf(tree / "a.gltf", "own.bin", f"http://127.0.0.1:{port}/image.png")
    assert triangles(confined, model) == 12
    confined.render(VIEW, TINY)
    assert not heard(listener)
    with socket.create_connection(("127.0.0.1", port)):
        assert heard(listener)


MAKE_BLEND = """
import os, sys, bpy
path, script, expression = sys.argv[1:]
text = bpy.data.texts.new("startup.py")
text.write(script)
text.use_module = True
driver = bpy.data.objects["Cube"].driver_add("location", 0).driver
driver.type = "SCRIPTED"
driver.expression = expression
bpy.ops.wm.save_as_mainfile(filepath=path)
os._exit(0)
"""
OPEN_BLEND = """
import os, sys, bpy
bpy.ops.wm.open_mainfile(filepath=sys.argv[1], use_scripts=True)
bpy.context.view_layer.update()
os._exit(0)
"""


def test_scripts_and_drivers_of_a_blend_file_do_not_run(confined, free, tree, listener):
    script, driver = tree.parent / "script", tree.parent / "driver"
    port = listener.getsockname()[1]
    startup = f"import os, socket\nos.mkdir({str(script)!r})\nsocket.create_connection(('127.0.0.1', {port}))\n"
    expression = f"__import__('os').mkdir({str(driver)!r}) or 1.0"
    assert len(expression) < 256  # what a driver holds
    model = Model(tree, "a.blend", "blend")

    def blender(program, *arguments):
        command = [sys.executable, "-c", program, str(tree / "a.blend"), *arguments]
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    blender(MAKE_BLEND, startup, expression)
    for path in (script, driver):  # who makes the file may have run them
        if path.exists():
            path.rmdir()
    for item in (confined, free):  # without the kernel's help, too: Blender is told not to
        assert triangles(item, model) == 12
        item.render(VIEW, TINY)
        assert not script.exists()
        assert not driver.exists()
        assert not heard(listener)
    blender(OPEN_BLEND)
    assert script.exists()
    assert driver.exists()
    assert heard(listener)


@needs_data
@pytest.mark.parametrize(
    ("name", "secret"),
    [
        pytest.param("path_traversal.gltf", box_bytes(), id="gltf"),
        pytest.param("mtl_path_traversal.obj", b"newmtl e\nKd 0 1 0\n", id="obj"),
    ],
)
def test_the_bad_files_that_climb_out_of_their_folder_reach_nothing(confined, free, tmp_path, name, secret):
    folder = tmp_path / "1" / "2" / "3" / "4" / "5" / "6"  # they climb six folders, to etc/passwd
    folder.mkdir(parents=True)
    shutil.copy(BAD / name, folder)
    model = Model(folder, name, name[-4:].strip("."))

    def found(blender):
        try:
            return picture(blender, model)
        except Failure as failure:
            return failure.status

    without = [found(confined), found(free)]
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_bytes(secret)
    assert found(confined) == without[0]
    assert found(free) != without[1]


@needs_data
@pytest.mark.parametrize(
    ("name", "expected"),
    [("absolute_and_http_uri.gltf", Status.IMPORT_ERROR), ("usda_path_traversal.usda", 1)],
)
def test_the_bad_files_that_name_files_of_the_system_get_none(confined, tree, name, expected):
    shutil.copy(BAD / name, tree)
    assert triangles(confined, Model(tree, name, name.rpartition(".")[2])) == expected


def test_the_child_is_held_by_the_kernel_and_the_first_to_go_when_memory_runs_out(confined):
    assert confined.sandboxed
    assert seen_from_outside(confined.pid) == ""
    assert seen_from_outside(os.getpid()) != ""
    assert Path(f"/proc/{confined.pid}/oom_score_adj").read_text() == "1000\n"
    limits = Path(f"/proc/{confined.pid}/limits").read_text()
    assert f"Max file size {Limits().memory_bytes}" in " ".join(limits.split())


def test_a_kernel_that_cannot_confine_is_refused_unless_a_setting_allows_it(tree):
    (tree / "a.obj").write_text(QUAD + "f 1 2 3 4\n")
    model = Model(tree, "a.obj", "obj")
    program = (*PROGRAM[:-2], "-c", WITHOUT_LANDLOCK)
    with (
        Blender(Limits(), threads=1, program=program) as blender,
        pytest.raises(SystemicFault, match=r"Landlock: Function not implemented.*a file outside can be read.*allow_un"),
    ):
        blender.load(model)
    with Blender(Limits(), threads=1, program=program, allow_unsandboxed=True) as blender:
        assert triangles(blender, model) == 2
        assert not blender.sandboxed


LIAR = """
import json, os, struct, sys
requests, answers = os.fdopen(int(sys.argv[1]), "rb"), os.fdopen(int(sys.argv[2]), "wb", buffering=0)
requests.read(4)
body = json.dumps({"status": "ok", "body": {"version": "4.5", "unconfined": ""}}).encode()
answers.write(struct.pack(">I", len(body)) + body)
requests.read()
"""


def test_a_child_that_only_says_that_it_is_confined_is_not_believed(tree):
    (tree / "a.obj").write_text(QUAD + "f 1 2 3 4\n")
    with (
        Blender(Limits(), threads=1, program=(sys.executable, "-c", LIAR)) as blender,
        pytest.raises(SystemicFault, match="NoNewPrivs is 0"),
    ):
        blender.load(Model(tree, "a.obj", "obj"))


def test_a_tree_that_was_made_anew_under_its_name_is_served(confined, tree):
    for count, faces in enumerate(("f 1 2 3\n", "f 1 2 3 4\n"), start=1):
        (tree / "a.obj").write_text(QUAD + faces)
        assert triangles(confined, Model(tree, "a.obj", "obj")) == count
        tree.rename(tree.with_name(f"gone{count}"))
        tree.mkdir()


def test_one_child_serves_the_trees_below_its_folder_and_no_others(tree):
    (tree / "a.obj").write_text(QUAD + "f 1 2 3 4\n")
    other = tree.parent / "other"
    shutil.copytree(tree, other)
    with Blender(Limits(), threads=1, trees=tree.parent, device="cpu") as blender:
        assert triangles(blender, Model(tree, "a.obj", "obj")) == 2
        first = blender.pid
        assert triangles(blender, Model(other, "a.obj", "obj")) == 2
        assert blender.pid == first
        with pytest.raises(ValueError, match="does not lie below"):
            blender.load(Model(tree.parent.parent, "trees/tree/a.obj", "obj"))
