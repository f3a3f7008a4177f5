"""What is wrong with one object costs its row; what is wrong with the machine stops the run and costs no row."""

import contextlib
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from folders import digests, write_box, write_objects
from killed import Point
from remains import STAGES, committed, leftovers, manifests, new_run, orphans, settings_of, struck

from pipelines.command import open_store

LOAD = ("render.channel:Channel.send", "after", "'op': 'load'")


def write_liar(path):
    """A mesh that claims 4e9 vertices: the importer in Blender aborts the process."""
    head = "ply\nformat binary_little_endian 1.0\nelement vertex 4000000000\n"
    columns = "".join(f"property float {axis}\n" for axis in "xyz")
    path.write_text(head + columns + "element face 4000000000\nproperty list uchar int vertex_indices\nend_header\n")


def write_bomb(path):
    """Ten to the eighth instances of a cube in 15 kB."""
    levels = []
    for level in range(1, 9):
        head = f"instanceable = true\nreferences = </L{level - 1}>"
        order = 'uniform token[] xformOpOrder = ["xformOp:translate"]'
        body = [f"double3 xformOp:translate = ({i * 3**level}, 0, 0)\n{order}" for i in range(10)]
        copies = [f'def Xform "i{i}" ({head})\n{{\n{inside}\n}}\n' for i, inside in enumerate(body)]
        levels.append(f'def Xform "L{level}" {{\n{"".join(copies)}}}\n')
    path.write_text('#usda 1.0\n(\ndefaultPrim = "L8"\n)\ndef Cube "L0" {}\n' + "".join(levels))


def rows(run, stage):
    """(status, reason) by file, of a stage."""
    store = open_store(settings_of(run))
    catalog = {
        key: row["identifier"]
        for shard in store.shards
        for key, row in store.read(store.manifest("catalog", shard)).items()
    }
    found = [row for shard in store.shards for row in store.manifest(stage, shard).rows.values()]
    return {catalog[row.key.partition("/")[0]]: (row.status.value, row.reason) for row in found}


def finish(nursery, run):
    """A run to its end."""
    assert nursery.run(run) == 0, Path(run.log).read_text()
    return rows(run, "views")


def stopped(nursery, run, program="pipelines.line"):
    """What a run says that has to stop with exit code 1."""
    preset = Path(f"{run.log}.json")
    preset.write_text(settings_of(run).model_dump_json())
    log = Path(f"{run.log}.stopped")
    again = replace(run, work=program, log=str(log), flags=["--preset", str(preset)])
    assert nursery.run(again) == 1, log.read_text()
    said = log.read_text()
    assert "Traceback" not in said, said
    return said


def test_an_object_that_ends_its_blender_costs_its_own_row(nursery, tmp_path):
    source = tmp_path / "objects"
    for name in ("a", "b", "c"):
        write_box(source / f"{name}.obj")
    write_liar(source / "liar.ply")
    write_bomb(source / "bomb.usda")
    run = new_run(tmp_path, source, limits={"memory_bytes": 700 * 2**20})
    found = finish(nursery, run)
    for name, expected, words in (
        ("liar.ply", "crashed", "SIGABRT"),
        ("bomb.usda", "out_of_memory", "0.68 GiB are allowed"),
    ):
        status, reason = found.pop(name)
        assert status == expected
        assert words in reason
    assert found == dict.fromkeys(("a.obj", "b.obj", "c.obj"), ("ok", ""))
    assert leftovers(run) == []
    assert not orphans(run)


def test_a_blender_that_hangs_costs_one_row_and_the_next_object_a_fresh_one(nursery, tmp_path):
    write_objects(tmp_path / "objects")
    point = Point(*LOAD, 2, signal=19, whom="blender")
    run = new_run(tmp_path, tmp_path / "objects", limits={"timeout_s": 5.0})
    found = finish(nursery, replace(run, point=asdict(point)))
    assert struck(point) in Path(run.log).read_text()
    assert sorted(status for status, _ in found.values()) == ["import_error", "ok", "ok", "ok", "timeout"]
    assert leftovers(run) == []
    assert not orphans(run)


@pytest.fixture
def disk(tmp_path):
    """A disk of 2 MB; ``grow`` makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a small disk needs the right to mount one: {done.stderr.strip()}")
    yield folder, lambda: subprocess.run(["mount", "-o", "remount,size=200m", str(folder)], check=True)
    subprocess.run(["umount", str(folder)], check=True)


FULL = "No space left on device"


@pytest.mark.parametrize("stage", ["catalog", "downloads", "rendering", "targets", "dataset"])
def test_a_full_disk_stops_the_run_without_a_row_and_with_room_it_goes_on(nursery, unkilled, tmp_path, disk, stage):
    folder, grow = disk
    run = replace(new_run(tmp_path, unkilled.run.source), store=str(folder / "store"))
    left = STAGES[STAGES.index("views" if stage == "rendering" else stage) :]
    missing = {*left, "blobs"} if "downloads" in left else {*left}
    if stage != "catalog":
        shutil.copytree(unkilled.run.store, run.store, ignore=lambda _, names: missing & {*names})
    before = committed(run)
    fill(folder)
    assert FULL in stopped(nursery, run, f"pipelines.{stage}")
    assert before <= committed(run)
    statuses = {row.status.value for held in manifests(open_store(settings_of(run))) for row in held.rows.values()}
    assert statuses <= {"ok", "import_error"}
    grow()
    (folder / "ballast").unlink()
    finish(nursery, run)
    assert leftovers(run) == []
    assert digests(settings_of(run)) == digests(settings_of(unkilled.run))


def fill(folder, left=8192):
    """Leave so many bytes."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    os.truncate(ballast, ballast.stat().st_size - left)


def write_terrain(path, side=100):
    """A mesh that Blender needs more room for than its file takes."""
    points = "".join(f"v {x} {y} {x * y % 7}\n" for x in range(side) for y in range(side))
    corners = [side * x + y + 1 for x in range(side - 1) for y in range(side - 1)]
    path.write_text(points + "".join(f"f {c} {c + 1} {c + side + 1} {c + side}\n" for c in corners))


@pytest.mark.parametrize(
    "room", [pytest.param(-100_000, id="for the object"), pytest.param(100_000, id="for its mesh")]
)
def test_a_full_place_for_temporary_files_stops_the_run_without_a_row(nursery, tmp_path, disk, room):
    folder, grow = disk
    (tmp_path / "objects").mkdir()
    write_terrain(tmp_path / "objects" / "terrain.obj")
    run = replace(new_run(tmp_path, tmp_path / "objects"), scratch=str(folder / "scratch"))
    Path(run.scratch).mkdir()
    fill(folder, (tmp_path / "objects" / "terrain.obj").stat().st_size + room)
    assert "no space" in stopped(nursery, run).lower()
    assert not [row for row in committed(run) if row[0] in ("views", "renders")]
    grow()
    (folder / "ballast").unlink()
    assert finish(nursery, run) == {"terrain.obj": ("ok", "")}
    assert leftovers(run) == []


WITHOUT_BPY = [
    sys.executable,
    "-c",
    "import sys; sys.modules['bpy'] = None; import runpy; runpy.run_module('render.child', run_name='__main__')",
]
CRASHING = """
import os
from render import child, sandbox
def then_break(cell, escapes=sandbox.escapes):
    found = escapes(cell)
    from render import session  # brings threads: not before the confinement
    session.Session.load = lambda *_: os.abort()
    return found
sandbox.escapes = then_break
child.main()
"""
ALWAYS_CRASHES = [sys.executable, "-c", CRASHING]


def use_program(program):
    """Called in the run's process: another program stands where Blender does, and has to prove itself sooner."""
    from pipelines import job
    from render.worker import Blender

    job.STREAK = 5

    scratch_root, _ = Blender.__init__.__defaults__
    Blender.__init__.__defaults__ = (scratch_root, tuple(program))


def test_a_missing_blender_stops_the_run_without_a_row(nursery, tmp_path):
    write_objects(tmp_path / "objects")
    run = new_run(tmp_path, tmp_path / "objects")
    said = stopped(nursery, replace(run, setup="test_faults:use_program", argument=WITHOUT_BPY))
    assert "Blender does not start" in said
    assert "pip install" in said
    assert {stage for stage, *_ in committed(run)} == {"catalog", "downloads"}
    finish(nursery, run)
    assert leftovers(run) == []


def write_many(folder, good, count=24):
    """So many files, boxes or broken ones."""
    for index in range(count):
        if good:
            write_box(folder / f"{index:02d}.obj", 1.0 + index)
        else:
            folder.mkdir(exist_ok=True)
            (folder / f"{index:02d}.glb").write_bytes(b"not a model %d" % index)


def test_an_engine_that_always_fails_stops_the_run_without_a_row(nursery, tmp_path):
    write_many(tmp_path / "objects", good=True, count=8)
    run = new_run(tmp_path, tmp_path / "objects", limits={"attempts": 1})
    said = stopped(nursery, replace(run, setup="test_faults:use_program", argument=ALWAYS_CRASHES))
    assert "Blender fails on a cube" in said
    assert {stage for stage, *_ in committed(run)} == {"catalog", "downloads"}
    assert not orphans(run)


def test_two_dozen_bad_files_in_a_row_are_rows_and_the_run_goes_on(nursery, tmp_path):
    write_many(tmp_path / "objects", good=False)
    write_box(tmp_path / "objects" / "good.obj")
    run = new_run(tmp_path, tmp_path / "objects")
    found = finish(nursery, run)
    assert found.pop("good.obj") == ("ok", "")
    assert [status for status, _ in found.values()] == ["import_error"] * 24
    assert "proving that the engine works" in Path(run.log).read_text()
    assert leftovers(run) == []
