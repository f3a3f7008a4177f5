"""One child process: its pipes, its log, its memory, its end."""

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence

import psutil

from gap3d.records import SystemicFault
from render.channel import Channel
from render.sandbox import Cell
from render.scratch import Scratch

FAMILY_SECONDS = 1.0
"""Looking for a child's children reads all of /proc: less often than its own memory."""
SCRATCH_SECONDS = 1.0
LOG_BYTES = 2048


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
        requests, answers = os.pipe(), os.pipe()
        self._log = tempfile.TemporaryFile(dir=scratch.path)  # noqa: SIM115 - closed by kill()
        try:
            self._process = subprocess.Popen(
                [*program, str(requests[0]), str(answers[1]), str(os.getpid()), cell.encode()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                cwd=scratch.box,
                pass_fds=(requests[0], answers[1]),
                start_new_session=True,
            )
        except OSError as error:
            os.close(requests[1])
            os.close(answers[0])
            self._log.close()
            raise SystemicFault(f"cannot start {program[0]}: {error.strerror}") from error
        finally:
            os.close(requests[0])
            os.close(answers[1])
        self.pid = self._process.pid
        self.channel = Channel(requests[1], answers[0])
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
            self._written = self._scratch.bytes() + os.fstat(self._log.fileno()).st_blocks * 512
            self._written_read = time.monotonic()
        return self._written

    def clear_log(self) -> None:
        """Begin the log anew."""
        os.ftruncate(self._log.fileno(), 0)
        os.lseek(self._log.fileno(), 0, os.SEEK_SET)  # else the child goes on where it was, after a hole of zeros

    def log_tail(self) -> str:
        """The last LOG_BYTES of what it printed."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), LOG_BYTES, max(0, size - LOG_BYTES)).decode("utf-8", "replace")

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
        code = self._process.wait()
        self.channel.close()
        tail = self.log_tail()
        self._log.close()
        return code, tail

    def _has_ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
