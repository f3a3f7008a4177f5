"""Fixtures of several modules."""

import pytest
from killed import Nursery


@pytest.fixture(scope="session")
def nursery():
    """Starts runs as processes that can be killed."""
    found = Nursery()
    yield found
    found.close()
