"""What a Blender that opens a stranger's file may do, held by the kernel. Standard library alone.

It reads its installation and one folder of objects, writes one folder, and has no network, no other process, no
program to run and no capability. It still sees whether a path exists and how large a file is: Landlock has no right for
that. Used in the child, before numpy or Blender start threads; ``seen_from_outside`` is for the parent.
"""

import contextlib
import ctypes
import json
import os
import resource
import sys
import sysconfig
from dataclasses import asdict, dataclass
from pathlib import Path

from render import landlock, seccomp

PR_SET_NO_NEW_PRIVS = 38
CAPABILITY_VERSION = 0x20080522

LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
TEXTS = ("/usr/share/locale", "/usr/share/zoneinfo")
MACHINE = (  # how many cores and how much memory there are: the allocator, TBB, Cycles and the denoiser ask
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/sys/vm",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
    "/sys/kernel/mm/transparent_hugepage",
)
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
GPU_DEVICES = ("nvidia*", "dri", "kfd")  # under /dev
GPU_READS = (  # of the drivers of NVIDIA, AMD and Intel
    "/proc/driver/nvidia",
    "/proc/devices",
    "/proc/modules",
    "/sys/bus/pci",
    "/sys/class/drm",
    "/sys/class/kfd",
    "/sys/dev/char",
    "/sys/devices",
    "/sys/module",
    "/usr/local/cuda",
    "/usr/local/nvidia",
    "/usr/share/nvidia",
    "/usr/share/libdrm",
    "/opt/rocm",
    "/opt/intel",
    "/etc/OpenCL",
)


@dataclass(frozen=True)
class Cell:
    """What one Blender may touch.

    Args:
        scratch: the folder it may write.
        tree: the folder of objects it may read; None for none.
        canary: a file that it must not be able to read, in a folder that it must not be able to write.
        file_bytes: largest file it may write.
        gpu: whether the devices and drivers of GPUs are open to it.
    """

    scratch: str
    tree: str | None
    canary: str
    file_bytes: int
    gpu: bool

    def encode(self) -> str:
        """As a word of a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> "Cell":
        """The inverse of ``encode``."""
        return cls(**json.loads(text))


def cards() -> list[Path]:
    """The device files of GPUs that this machine has."""
    return [path for pattern in GPU_DEVICES for path in Path("/dev").glob(pattern)]


def rights(cell: Cell) -> dict[Path, int]:
    """What may be done at and below which path."""
    packages = Path(__file__).resolve().parents[1]
    python = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    python |= {Path(prefix) / name for prefix in (sys.prefix, sys.base_prefix) for name in ("lib", "lib64")}
    # Not the project's folder: the store may lie in it.
    read = [packages / "gap3d", packages / "render", *python, *map(Path, (*LIBRARIES, *TEXTS, *MACHINE, "/proc/self"))]
    read += [Path(folder) for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder.startswith("/")]
    device = [Path(name) for name in DEVICES]
    if cell.tree is not None:
        read.append(Path(cell.tree))
    found = dict.fromkeys(read, landlock.READ)
    found |= dict.fromkeys(device, landlock.DEVICE & ~landlock.IOCTL_DEV)
    if cell.gpu:
        found |= dict.fromkeys(map(Path, GPU_READS), landlock.READ)
        found |= dict.fromkeys(cards(), landlock.DEVICE)
    return found | {Path(cell.scratch): landlock.WRITE}


def confine(cell: Cell, abi: int | None = None) -> str:
    """Confine this process for good; it must have one thread. Returns what could not be done, "" if all was.

    Args:
        cell: what it may touch.
        abi: at most this version of Landlock's interface, for tests; default: the kernel's.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    most = cell.file_bytes if most == resource.RLIM_INFINITY else min(cell.file_bytes, most)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    if len(os.listdir("/proc/self/task")) != 1:  # noqa: PTH208 - a name each, and nothing of Path is wanted
        return "threads ran before"
    missing = []
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        missing.append("no_new_privs")
    try:
        landlock.restrict(rights(cell), abi)
    except OSError as error:
        missing.append(f"Landlock: {error.strerror}")
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    if libc.capset(header, (ctypes.c_uint32 * 6)()):
        missing.append("capabilities")
    try:
        seccomp.install(seccomp.blender_filter(os.getpid(), cell.gpu))
    except OSError as error:
        missing.append(f"seccomp: {error.strerror}")
    return "; ".join(missing)


def volunteer() -> None:
    """Let the kernel end this process first when memory runs out."""
    with contextlib.suppress(OSError):  # where /proc is read-only
        Path("/proc/self/oom_score_adj").write_text("1000")


def escapes(cell: Cell) -> str:
    """What this process can do and must not, tried out; "" if nothing."""
    canary = Path(cell.canary)
    # Whoever keeps objects in the place for temporary files has the canary among them.
    readable = cell.tree is not None and canary.is_relative_to(cell.tree)
    found = []
    for act, name in (
        ((lambda: list(Path("/").iterdir())) if readable else canary.read_bytes, "a file outside can be read"),
        (canary.with_name("written").touch, "a file outside can be written"),
        (_open_socket, "a socket can be opened"),
        (_fork, "a process can be started"),
    ):
        try:
            act()
        except PermissionError:
            continue
        except OSError as error:
            name = f"{name.replace('can be', 'cannot be')}, but for another reason: {error.strerror}"
        found.append(name)
    return "; ".join(found)


def _open_socket() -> None:
    import _socket

    _socket.socket().close()


def _fork() -> None:
    if child := os.fork():
        os.waitpid(child, 0)
    else:
        os._exit(0)


def seen_from_outside(pid: int) -> str:
    """What the kernel says that a confined process is not; "" if it is. Landlock's part cannot be seen."""
    try:
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
        )
    except OSError as error:
        return f"it cannot be looked at: {error.strerror}"
    wanted = {"NoNewPrivs": "1", "Seccomp": "2", "CapEff": "0" * 16, "CapPrm": "0" * 16}
    wrong = [
        f"{name} is {status.get(name, 'not there')}" for name, value in wanted.items() if status.get(name) != value
    ]
    return "; ".join(wrong)
