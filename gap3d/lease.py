"""One writer per shard: a lock that the kernel lets go when its holder dies, however it dies."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

NAME = "lease.lock"
OWNER = "lease.json"


class LeaseHeld(Exception):
    """Another run writes this shard."""


@contextmanager
def lease(folder: Path, wait_s: float) -> Iterator[None]:
    """Hold the right to write a shard.

    Args:
        folder: the shard's folder; made where it is not there.
        wait_s: how long to wait for another run; 0 refuses at once.

    Raises:
        LeaseHeld: another run still holds it, named in the message.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / NAME)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout:
        raise LeaseHeld(
            f"{folder} is being written by {owner(folder)}; wait for that run to end or stop it, then run again"
        ) from None
    try:
        note = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        (folder / OWNER).write_text(json.dumps(note))
        yield
    finally:
        (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def owner(folder: Path) -> str:
    """Who holds a shard, for a message."""
    try:
        note = json.loads((folder / OWNER).read_text())
        return f"process {note['pid']} on {note['host']} since {note['since']}"
    except (OSError, ValueError, KeyError):
        return "another run"
