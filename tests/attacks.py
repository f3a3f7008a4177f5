"""What hostile code in the child would try, each attempt by itself; run as ``python attacks.py CELL ABI FACTS``.

ABI is the version of Landlock's interface that is used at most, ``newest``, or ``free`` for no confinement at all.
Prints a JSON object: what came of each attempt.
"""

import ctypes
import errno
import fcntl
import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

from render import sandbox

REFUSALS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EXDEV, errno.EFBIG}
FOR_ROOT = {
    "read the list of mounts of another",
    "mount",
    "load a program into the kernel",
    "trace another",
    "read another's memory",
}
LIBC = ctypes.CDLL(None, use_errno=True)


def system_call(number, *arguments):
    if LIBC.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)) < 0:
        raise OSError(ctypes.get_errno(), "")


def open_with(path, flags):
    os.close(os.open(path, flags))


def fork():
    if child := os.fork():
        os.waitpid(child, 0)
    else:
        os._exit(0)


def with_open(path, act):
    with path.open("rb") as file:
        act(file.fileno())


def past_the_limit(path, size):
    with path.open("wb") as file:
        os.pwrite(file.fileno(), b"x", size)
    path.unlink()


def dial(address, kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as found:
        found.connect(address)


def attempts(facts, size):
    """Each attempt by its name. Facts: folders ``outside``, ``box`` and ``tree``, a process ``victim``, a ``port``."""
    outside, box, tree = (Path(facts[name]) for name in ("outside", "box", "tree"))
    victim, here = facts["victim"], ("127.0.0.1", facts["port"])
    secret = outside / "secret"
    core = resource.RLIMIT_CORE
    return {
        "read a file outside": secret.read_bytes,
        "list a folder outside": lambda: list(outside.iterdir()),
        "read by way of /proc/self/root": Path(f"/proc/self/root{secret}").read_bytes,
        "follow a link in the tree": (tree / "link").read_bytes,
        "read the project's folder": Path(sandbox.__file__).parents[1].joinpath("pyproject.toml").read_bytes,
        "read the parent's environment": Path(f"/proc/{os.getppid()}/environ").read_bytes,
        "read another's environment": Path(f"/proc/{victim}/environ").read_bytes,
        "read another's memory map": Path(f"/proc/{victim}/maps").read_bytes,
        "read the list of mounts of another": Path("/proc/1/mountinfo").read_bytes,
        "make a file outside": (outside / "new").touch,
        "append to a file outside": lambda: open_with(secret, os.O_WRONLY | os.O_APPEND),
        "truncate a file outside": lambda: os.truncate(secret, 3),
        "truncate by opening": lambda: open_with(secret, os.O_RDONLY | os.O_TRUNC),
        "truncate in the tree by opening": lambda: open_with(tree / "model", os.O_RDONLY | os.O_TRUNC),
        "open for ioctl and truncate": lambda: open_with(tree / "model", 3 | os.O_TRUNC),
        "write in the tree": lambda: open_with(tree / "model", os.O_WRONLY),
        "make a file in the tree": (tree / "new").touch,
        "make a folder outside": (outside / "folder").mkdir,
        "link a file outside into the box": lambda: os.link(secret, box / "hard"),
        "make a link in the box": lambda: (box / "soft").symlink_to(secret),
        "make a pipe in the box": lambda: os.mkfifo(box / "pipe"),
        "move a file out": lambda: (box / "own").rename(outside / "own"),
        "change a mode": lambda: secret.chmod(0o600),
        "change a time": lambda: os.utime(secret),
        "change an owner": lambda: os.chown(secret, -1, -1),
        "fill the disk": lambda: past_the_limit(box / "huge", size),
        "save itself from the lack of memory": lambda: Path("/proc/self/oom_score_adj").write_text("1000"),
        "outlive the parent": lambda: system_call(157, 1, 0, 0, 0, 0),
        "fork": fork,
        "clone3": lambda: system_call(435, 0, 0),
        "run a program": lambda: subprocess.run(["/bin/true"], check=True),
        "spawn a program": lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0),
        "become a program": lambda: os.execv("/nowhere/program", ["program"]),
        "open a TCP connection": lambda: dial(here),
        "open a UDP socket": lambda: dial(here, socket.SOCK_DGRAM),
        "open a Unix socket": lambda: socket.socket(socket.AF_UNIX).close(),
        "open a pair of sockets": lambda: [end.close() for end in socket.socketpair()],
        "set up io_uring": lambda: system_call(425, 8, 0),
        "open by openat2": lambda: system_call(437, 0, 0, 0, 0),
        "make an anonymous file": lambda: os.close(os.memfd_create("memory")),
        "find shared memory": lambda: system_call(29, 0x6A703364, 0, 0),
        "attach another's shared memory": lambda: system_call(30, 2**31 - 1, 0, 0),
        "remove another's shared memory": lambda: system_call(31, 2**31 - 1, 0, 0),
        "change another's semaphore": lambda: system_call(66, 2**31 - 1, 0, 0, 0),
        "read another's message": lambda: system_call(70, 2**31 - 1, 0, 0, 0, 0),
        "remove another's message queue": lambda: system_call(71, 2**31 - 1, 0, 0),
        "remove a queue by its name": lambda: system_call(241, 0),
        "reach for a file's flags": lambda: with_open(tree / "model", lambda fd: fcntl.ioctl(fd, 0x80086601, bytes(8))),
        "take a lease on a file": lambda: with_open(tree / "model", lambda fd: fcntl.fcntl(fd, 1024, fcntl.F_RDLCK)),
        "watch files": lambda: system_call(294, 0),
        "use the key ring": lambda: system_call(250, 6, 0, 0),
        "enter a new name space": lambda: system_call(272, 0),
        "mount": lambda: system_call(165, 0, 0, 0, 0, 0),
        "load a program into the kernel": lambda: system_call(321, -1, 0, 0),
        "trace another": lambda: system_call(101, 0x4206, victim, 0, 0),
        "read another's memory": lambda: system_call(310, victim, 0, 0, 0, 0, 0),
        "take a handle on another": lambda: system_call(434, victim, 0),
        "limit another": lambda: resource.prlimit(victim, core, resource.prlimit(victim, core)),
        "pin another": lambda: os.sched_setaffinity(victim, os.sched_getaffinity(victim)),
        "slow another down": lambda: os.setpriority(os.PRIO_PROCESS, victim, 1),
        "remove a file outside": (outside / "spare").unlink,
        "move a file in": lambda: (outside / "other").rename(box / "other"),
        "signal the parent": lambda: os.kill(os.getppid(), 0),
        "signal everybody": lambda: os.kill(-victim, 0),
        "kill another": lambda: os.kill(victim, 9),
    }


def main():
    cell, abi, facts = sandbox.Cell.decode(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    held = "" if abi == "free" else sandbox.confine(cell, None if abi == "newest" else int(abi))
    if held:
        sys.exit(held)
    found = {}
    for name, attempt in attempts(facts, cell.file_bytes).items():
        try:
            attempt()
        except OSError as error:
            found[name] = "refused" if error.errno in REFUSALS else f"not refused: {error}"
        else:
            found[name] = "done"
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
