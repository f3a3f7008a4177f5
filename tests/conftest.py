"""Fixtures of several modules."""

import itertools
import subprocess
import tempfile

import pytest
from killed import Nursery, Run
from processes import alive, mentioning, wait_for


@pytest.fixture
def ray_folder():
    """Where Ray keeps its sessions: sockets need a short path."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield folder
        wait_for(lambda: not alive(mentioning(folder)), 10, "every process of Ray has ended")


@pytest.fixture(scope="session")
def nursery():
    """Starts runs as processes that can be killed."""
    found = Nursery()
    yield found
    found.close()


@pytest.fixture(scope="session")
def program(nursery, tmp_path_factory):
    """Runs a program of the project as a user does, less the seconds in which it is imported."""
    folder, numbers = tmp_path_factory.mktemp("programs"), itertools.count()

    def run(module: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
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
        )
        code = nursery.run(made)
        return subprocess.CompletedProcess(made.flags, code, out.read_text(), errors.read_text())

    return run
