"""git as a child process: it asks nobody anything, runs nothing of a repository's, and ends with this process."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from gap3d.network.politeness import Trouble, Turn, discreet
from gap3d.records import Failure, Status, SystemicFault
from gap3d.settings import NetworkSettings

# git's own children outlive a git that is killed. The shell ends all of them, and itself, once the other end of the
# pipe is closed, which the kernel does for a process that ends in any way. (A shell's own descriptors have one digit.)
GUARD = 'exec 3<&0; { read -r _ <&3; kill -9 0; } & guard=$!; "$@" <"$0" 3<&-; code=$?; kill $guard; exit $code'
WATCH_S = 0.5  # how often the disk use is looked at
WORDS = 4096  # bytes of what git said
PRINTED_BYTES = 256 * 1024**2  # of what a command may print: some millions of paths; ten trees can list a milliard

# What a user has configured holds (proxies, mirrors, credentials) but for what asks somebody or runs something.
SETTINGS = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.attributesFile": os.devnull,
    "core.autocrlf": "false",  # the sha256 of a table are those of a plain checkout
    "core.eol": "lf",
    "credential.interactive": "false",
    "fetch.negotiationAlgorithm": "noop",  # nothing is here that the server could build on
    "fetch.recurseSubmodules": "false",
    "fetch.unpackLimit": "1",
    "gc.auto": "0",  # it would go on in the background
    "lfs.transfer.maxretries": "1",
    "maintenance.auto": "false",
    "protocol.ext.allow": "never",
    "submodule.recurse": "false",
    "transfer.bundleURI": "false",
}
ENVIRONMENT = {
    "GIT_ASKPASS": "",  # set and empty: no program, not that of core.askPass either
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_LFS_SKIP_SMUDGE": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_TEMPLATE_DIR": "",
    "GIT_TERMINAL_PROMPT": "0",
    "GCM_INTERACTIVE": "never",
    "LANGUAGE": "",
    "LC_ALL": "C",  # its words are read below
    "SSH_ASKPASS_REQUIRE": "never",
}
PLACES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_NAMESPACE")

TELLING = re.compile(r"(?i)fatal:|error[: ]|remote:")
REFUSED = re.compile(r"does not allow request for unadvertised object|dumb http transport|does not support shallow")
MACHINE = re.compile(
    r"No space left|Disk quota exceeded|Read-only file system|Input/output error|annot fork|malloc fail"
)
LOCKED = re.compile(r"could not read (?:Username|Password)|Authentication failed|error: 40[13]\b|Permission denied \(")
GONE = re.compile(
    r"not our ref|[Rr]epository (?:'.*' )?(?:not found|unavailable)|error: (?:404|410|451)\b"
    r"|does not appear to be a git repository|does not exist"
)


class Refused(Exception):
    """The server gives branches only, not commits by their id."""


class Git:
    """Runs git on one repository.

    Args:
        folder: a folder of its own: ``git`` and ``tree`` are made in it.
        network: when a transfer is given up.
        most: bytes that the folder may take.
    """

    def __init__(self, folder: Path, network: NetworkSettings, most: int) -> None:
        if not shutil.which("git"):
            raise SystemicFault("git is not installed: install it (Debian: apt-get install git), then run again")
        self.folder, self.most = folder, most
        self.directory, self.tree = folder / "git", folder / "tree"
        self.ssh = ""
        stall = f"{max(1, round(network.stall_s))}"
        slow = {"http.lowSpeedLimit": "1", "http.lowSpeedTime": stall, "lfs.activitytimeout": stall}
        self.settings = {**SETTINGS, **slow}

    def environment(self, changes: Mapping[str, str]) -> dict[str, str]:
        """All variables of the child."""
        found = {name: value for name, value in os.environ.items() if name not in PLACES} | ENVIRONMENT
        found |= {"GIT_DIR": str(self.directory), "GIT_WORK_TREE": str(self.tree), **changes}
        if self.ssh and "GIT_SSH" not in found:
            found.setdefault("GIT_SSH_COMMAND", self.ssh)
        return found

    def address(self, address: str, turn: Turn) -> str:
        """What the user's configuration has git ask in an address's place; from now on ssh does as it says, too."""
        ssh = self.run("config", "--default", "ssh -oBatchMode=yes", "--get", "core.sshCommand", turn=turn)
        self.ssh = ssh.decode().strip()
        return self.run("ls-remote", "--get-url", address, turn=turn).decode("utf-8", "replace").strip()

    def run(self, *words: str, turn: Turn, given: bytes = b"", output: Path | None = None, **changes: str) -> bytes:
        """Run a git command; what it printed, unless that goes to a file.

        Args:
            words: the command.
            turn: kept while it runs; ends it.
            given: its standard input.
            output: takes its standard output.
            changes: of its environment.

        Raises:
            Trouble: the network's; another try may do better.
            Refused: the server gives no single commits.
            Failure: ``missing``, ``too_large``.
            SystemicFault: the machine's.
        """
        said, stdin = self.folder / "said", self.folder / "given"
        printed = output or self.folder / "printed"
        stdin.write_bytes(given)
        options = [word for name, value in self.settings.items() for word in ("-c", f"{name}={value}")]
        with printed.open("wb") as stdout, said.open("wb") as stderr:
            command = ["sh", "-c", GUARD, str(stdin), "git", *options, *words]
            code = self.guarded(command, stdout, stderr, self.environment(changes), turn)
        self.require_room()
        if code:
            text = said.read_bytes()[-WORDS:].decode("utf-8", "replace")
            raise judged(text, words[0])
        return b"" if output else printed.read_bytes()

    def guarded(
        self, command: list[str], stdout: BinaryIO, stderr: BinaryIO, environment: Mapping[str, str], turn: Turn
    ) -> int:
        """Run a command in a process group of its own, which ends with it, with its turn or with this process."""
        guard, life = os.pipe()
        try:
            process = subprocess.Popen(
                command,
                stdin=guard,
                stdout=stdout,
                stderr=stderr,
                env=environment,
                cwd=self.tree,
                start_new_session=True,
            )
            looked = time.monotonic()
            try:
                while True:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        return process.wait(0.1)
                    turn.keep()
                    if time.monotonic() - looked > WATCH_S:
                        self.require_room()
                        looked = time.monotonic()
            finally:
                if process.returncode is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        finally:
            os.close(guard)
            os.close(life)

    def require_room(self) -> None:
        """Raises Failure where the folder takes more of the disk, or what git prints more of memory, than it may."""
        printed = self.folder / "printed"
        if printed.exists() and printed.stat().st_size > PRINTED_BYTES:
            raise Failure(Status.TOO_LARGE, f"the repository lists more files than {PRINTED_BYTES} bytes can name")
        taken = 0
        for place, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    taken += (Path(place) / name).lstat().st_blocks * 512
        if taken > self.most:
            raise Failure(
                Status.TOO_LARGE, f"the repository takes more than {self.most} bytes (limits.repository_bytes)"
            )


def judged(text: str, command: str) -> Exception:
    """What git's last words mean."""
    lines = [line.strip() for line in discreet(text).splitlines()]
    telling = [line for line in lines if TELLING.match(line)] or lines
    words = " | ".join(dict.fromkeys(telling[-3:]))[:400] or f"git {command} failed without a word"
    if MACHINE.search(text):
        return SystemicFault(f"git {command}: {words}")
    if REFUSED.search(text):
        return Refused(words)
    if LOCKED.search(text):
        return Failure(Status.MISSING, f"the repository is gone or private, git asks for a login: {words}")
    if GONE.search(text):
        return Failure(Status.MISSING, f"the repository or the commit is gone: {words}")
    return Trouble(f"git {command}: {words}")
