"""Fixtures of several modules."""

import tempfile

import pytest
from killed import Nursery
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
