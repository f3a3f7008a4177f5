"""Process trees, the sockets they listen on, and free ports."""

import contextlib
import ipaddress
import re
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

LISTEN = "0A"


def tree(root: int) -> list[psutil.Process]:
    """A process and all its descendants."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(root)
        return [process, *process.children(recursive=True)]
    return []


def mentioning(text: str) -> list[psutil.Process]:
    """Processes whose command line or environment names this, their parents gone or not."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if any(text in word for word in process.cmdline()) or any(
                text in word for word in process.environ().values()
            ):
                found.append(process)
    return found


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that run still; a zombie does not."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def end(processes: Iterable[psutil.Process]) -> None:
    """Kill these and no others."""
    processes = list(processes)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def blenders(mark: str) -> list[psutil.Process]:
    """Blender children of runs that carry ``mark`` (their scratch folder) in their environment."""
    return [process for process in alive(mentioning(mark)) if "render.child" in named(process)]


def named(process: psutil.Process) -> str:
    """The command line as text."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def listening(processes: Iterable[psutil.Process]) -> dict[str, str]:
    """Addresses on which these processes accept connections, with who does; read from /proc."""
    owners: dict[str, str] = {}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, PermissionError, FileNotFoundError):
            for descriptor in (Path("/proc") / str(process.pid) / "fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if match := re.fullmatch(r"socket:\[(\d+)\]", str(descriptor.readlink())):
                        owners[match[1]] = f"{process.pid} {named(process)[:120]}"
    found = {}
    for table in ("tcp", "tcp6"):
        for line in (Path("/proc/net") / table).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == LISTEN and words[9] in owners:
                found[address(words[1])] = owners[words[9]]
    return found


def address(text: str) -> str:
    """``0100007F:1F90`` as ``127.0.0.1:8080``: words of 4 bytes in the machine's order."""
    host, _, port = text.partition(":")
    raw = b"".join(bytes.fromhex(host[start : start + 8])[::-1] for start in range(0, len(host), 8))
    return f"{ipaddress.ip_address(raw)}:{int(port, 16)}"


def beyond_loopback(found: dict[str, str]) -> dict[str, str]:
    """The addresses that others on the network could reach."""

    def local(text: str) -> bool:
        host = ipaddress.ip_address(text.rpartition(":")[0])
        mapped = getattr(host, "ipv4_mapped", None)
        return (mapped or host).is_loopback

    return {where: who for where, who in found.items() if not local(where)}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below those that Ray gives to its workers and those that the kernel gives away."""
    found: list[int] = []
    start = 20000 + (time.monotonic_ns() // 1000) % 10000
    for port in range(start, 32000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports")


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> object:
    """The first true value of a condition."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds:g} s: {what}")
