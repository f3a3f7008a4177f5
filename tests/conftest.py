"""Fixtures of several modules."""

import itertools
import subprocess
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from folders import run_line, small, write_objects
from killed import Nursery, Run
from processes import alive, mentioning, wait_for
from remains import new_run

from gap3d.settings import Limits
from render.job import Model
from render.worker import Blender


@pytest.fixture
def ray_folder():
    """Where Ray keeps its sessions: sockets need a short path."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield folder
        wait_for(lambda: not alive(mentioning(folder)), 10, "every process of Ray has ended")


@pytest.fixture
def triangle(tmp_path):
    """An object of one triangle."""
    (tmp_path / "triangle.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0.5\nf 1 2 3\n")
    return Model(tmp_path, "triangle.obj", "obj")


@pytest.fixture(scope="session")
def blender(tmp_path_factory):
    """A Blender for whatever lies below the tests' folder."""
    with Blender(Limits(), threads=2, trees=tmp_path_factory.getbasetemp()) as shared:
        yield shared


@pytest.fixture(scope="module")
def one_thread():
    """Small models gain nothing from a second one, and wait for it where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def nursery():
    """Starts runs as processes that can be killed."""
    found = Nursery()
    yield found
    found.close()


@pytest.fixture(scope="session")
def walked(tmp_path_factory):
    """``folders.write_objects`` that went through the whole line once; its root and report. Never changed by a test."""
    root = tmp_path_factory.mktemp("walked")
    write_objects(root / "objects")
    return root, run_line(small(root / "store", root / "objects"))


@pytest.fixture(scope="session")
def unkilled(tmp_path_factory, nursery):
    """The same in a process that nobody killed, each row committed by itself: its run and its seconds."""
    root = tmp_path_factory.mktemp("unkilled")
    write_objects(root / "objects")
    run = new_run(root, root / "objects")
    pid, begun = nursery.start(run), time.monotonic()
    assert nursery.wait(pid) == 0, Path(run.log).read_text()
    return SimpleNamespace(root=root, run=run, seconds=time.monotonic() - begun)


@pytest.fixture(scope="session")
def program(nursery, tmp_path_factory):
    """Runs a module as a program, as a user does, less the seconds in which it is imported."""
    folder, numbers = tmp_path_factory.mktemp("programs"), itertools.count()

    def run(
        module: str, *arguments: object, within: Path | str = "", **environment: str
    ) -> subprocess.CompletedProcess:
        place = folder / str(next(numbers))
        place.mkdir()
        out, errors = place / "out", place / "errors"
        made = Run(
            work=module,
            store="",
            source="",
            scratch=str(place / "scratch"),
            log=str(out),
            errors=str(errors),
            flags=[str(word) for word in arguments],
            environment=environment,
            folder=str(within),
        )
        code = nursery.run(made)
        return subprocess.CompletedProcess(made.flags, code, out.read_text(), errors.read_text())

    return run
