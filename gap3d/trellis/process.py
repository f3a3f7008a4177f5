"""The child that holds a TRELLIS pipeline: started, asked, timed, ended."""

import contextlib
import json
import os
import select
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gap3d.piped import Piped
from gap3d.records import SystemicFault
from gap3d.trellis.seeds import Method

CHILD = Path(__file__).with_name("child.py")
START_S = 3600.0  # the models may have to be downloaded first
INSTALL = """TRELLIS is not installed for {python}. On a machine with a CUDA GPU of 16 GB or more:
  git clone --recurse-submodules https://github.com/microsoft/TRELLIS.git
  cd TRELLIS && . ./setup.sh --new-env --basic --xformers --flash-attn --diffoctreerast --spconv --mipgaussian \
--kaolin --nvdiffrast
then name both: --trellis /path/to/TRELLIS --python "$(conda run -n trellis which python)\""""


class Died(Exception):
    """The child ended without an answer; the message has its last words."""


class Late(Exception):
    """There was no answer in time."""


@dataclass(frozen=True)
class Installation:
    """Where TRELLIS is.

    Attributes:
        method: whose pipeline is wanted.
        model: hub id or folder of its weights.
        clone: folder of its repository, which has no installer; None where Python finds ``trellis`` by itself.
        python: the interpreter of its environment.
    """

    method: Method
    model: str
    clone: Path | None = None
    python: str = sys.executable


class TrellisProcess:
    """One child, for many objects.

    Raises:
        SystemicFault: TRELLIS is absent, incomplete, or finds no GPU; the message says what to do.
    """

    def __init__(self, installation: Installation) -> None:
        place = [str(installation.clone)] if installation.clone else []
        path = os.pathsep.join([*place, *filter(None, [os.environ.get("PYTHONPATH", "")])])
        self._piped = Piped(
            [installation.python, str(CHILD)],
            [installation.method, installation.model],
            {**os.environ, "PYTHONPATH": path},
        )
        self._received = b""
        try:
            said = self._receive(START_S)
        except (Died, Late) as error:
            self.close()
            raise SystemicFault(f"TRELLIS does not start: {error}") from error
        except BaseException:
            self.close()
            raise
        if "device" not in said:
            self.close()
            raise SystemicFault(INSTALL.format(python=installation.python) if "absent" in said else said["fault"])
        self.device = str(said["device"])

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """The child's answer; see ``child.made``.

        Raises:
            Died: it is gone; start another.
            Late: there is no answer yet; close this one and start another.
            SystemicFault: the disk is full or gone.
        """
        try:
            os.write(self._piped.requests, (json.dumps(request) + "\n").encode())
        except BrokenPipeError:
            raise Died(self._last_words()) from None
        said = self._receive(timeout_s)
        if "fault" in said:
            raise SystemicFault(said["fault"])
        return said

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._received:
            ready, _, _ = select.select([self._piped.answers], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise Late(f"no answer for {timeout_s:.0f} s")
            more = os.read(self._piped.answers, 1 << 16)
            if not more:
                raise Died(self._last_words())
            self._received += more
        line, _, self._received = self._received.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def _last_words(self) -> str:
        code = self._piped.process.wait()
        return f"exit code {code}; {self._piped.log_tail().strip()}"

    def close(self) -> None:
        """End it, and whatever it started."""
        process = self._piped.process
        if process.poll() is None:  # once it is waited for, its number may be another's
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()
        os.close(self._piped.requests)
        os.close(self._piped.answers)
        self._piped.close_log()
