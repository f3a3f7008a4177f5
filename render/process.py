"""One child process: its pipes, its log, its memory, its end."""

import contextlib
import os
import time
from collections.abc import Mapping, Sequence

import psutil

from gap3d.piped import Piped
from render.channel import Channel
from render.sandbox import Cell
from render.scratch import Scratch

FAMILY_SECONDS = 1.0
"""Looking for a child's children reads all of /proc: less often than its own memory."""
SCRATCH_SECONDS = 1.0


class Child:
    """A process in its own session that serves framed requests and logs what it prints; ``kill`` must end it.

    Args:
        program: what to run; the descriptors of requests and answers, this process's id and the cell are added.
        environment: all the variables it gets.
        scratch: where it works; its log is a file without a name there.
        cell: what it shall let the kernel confine it to.

    Raises SystemicFault if the program cannot be executed.
    """

    def __init__(self, program: Sequence[str], environment: Mapping[str, str], scratch: Scratch, cell: Cell) -> None:
        self._piped = Piped(
            program, [str(os.getpid()), cell.encode()], environment, folder=scratch.box, log_folder=scratch.path
        )
        self.pid = self._piped.process.pid
        self.channel = Channel(self._piped.requests, self._piped.answers)
        self._family: list[psutil.Process] = []
        self._family_read = 0.0
        self._scratch = scratch
        self._written, self._written_read = 0, time.monotonic()

    def resident_bytes(self) -> int:
        """Resident memory of the child and its descendants."""
        total = 0
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            total = process.memory_info().rss
            if time.monotonic() - self._family_read > FAMILY_SECONDS:
                self._family, self._family_read = process.children(recursive=True), time.monotonic()
        for descendant in self._family:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += descendant.memory_info().rss
        return total

    def scratch_bytes(self) -> int:
        """What it wrote: its scratch and its log, as of at most SCRATCH_SECONDS ago."""
        if time.monotonic() - self._written_read > SCRATCH_SECONDS:
            self._written = self._scratch.bytes() + self._piped.log_bytes()
            self._written_read = time.monotonic()
        return self._written

    def clear_log(self) -> None:
        """Begin the log anew."""
        self._piped.clear_log()

    def log_tail(self) -> str:
        """The end of what it printed."""
        return self._piped.log_tail()

    def kill(self, grace: float = 0.0) -> tuple[int, str]:
        """End it and its descendants, after ``grace`` seconds to end by itself: exit code (-signal) and log tail."""
        # Until wait() reaps it, its id cannot become another process's: look without reaping.
        deadline = time.monotonic() + grace
        while not self._has_ended() and time.monotonic() < deadline:
            time.sleep(0.005)
        with contextlib.suppress(psutil.NoSuchProcess):
            self._family += psutil.Process(self.pid).children(recursive=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, 9)
        for descendant in self._family:
            with contextlib.suppress(psutil.NoSuchProcess):
                descendant.kill()
        code = self._piped.process.wait()
        self.channel.close()
        tail = self.log_tail()
        self._piped.close_log()
        return code, tail

    def _has_ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
