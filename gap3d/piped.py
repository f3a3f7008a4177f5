"""A program that is asked over one pipe and answers over another."""

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from gap3d.records import SystemicFault

LOG_BYTES = 2048


class Piped:
    """A process in a session of its own that inherits two pipe ends and no other descriptor. Whoever starts it ends it.

    Args:
        program: what to run; two arguments are added: the descriptors of requests and answers.
        arguments: what follows those.
        environment: all the variables it gets.
        folder: where it works. Default: where this process does.
        log_folder: on whose disk its log is, a file without a name. Default: the system's place for temporary files.

    Attributes:
        process: it; its id is that of its session.
        requests: descriptor of this side, to write to; whoever uses it closes it.
        answers: descriptor of this side, to read from; whoever uses it closes it.

    Raises:
        SystemicFault: the program can't be executed.
    """

    def __init__(
        self,
        program: Sequence[str],
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        folder: Path | None = None,
        log_folder: Path | None = None,
    ) -> None:
        requests, answers = os.pipe(), os.pipe()
        self._log = tempfile.TemporaryFile(dir=log_folder)  # noqa: SIM115 - closed by close_log()
        try:
            self.process = subprocess.Popen(
                [*program, str(requests[0]), str(answers[1]), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                cwd=folder,
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
        self.requests, self.answers = requests[1], answers[0]

    def log_bytes(self) -> int:
        """What its log takes on the disk."""
        return os.fstat(self._log.fileno()).st_blocks * 512

    def log_tail(self) -> str:
        """The last LOG_BYTES of what it printed."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), LOG_BYTES, max(0, size - LOG_BYTES)).decode("utf-8", "replace")

    def clear_log(self) -> None:
        """Begin the log anew."""
        os.ftruncate(self._log.fileno(), 0)
        os.lseek(self._log.fileno(), 0, os.SEEK_SET)  # else the child goes on where it was, after a hole of zeros

    def close_log(self) -> None:
        """Give the log's room back, once the process has ended."""
        self._log.close()
