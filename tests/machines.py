"""Machines within this one: each has a network, processes, a home and a name of its own, and an ssh server.

They are namespaces of this kernel, joined by a cable that leads nowhere else; root can make them.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from processes import wait_for

HOME = Path.home()
SSHD = "/usr/sbin/sshd"
NAMESPACES = ("unshare", "--net", "--pid", "--mount", "--uts", "--fork")
TOOLS = ("setpriv", "unshare", "nsenter", "ip", "rsync", "ssh", "ssh-keygen", SSHD)

BOOT = """set -e
hostname {name}
mkdir -p /run/sshd /tmp/ray {kept}
mount -t tmpfs tmpfs /tmp/ray
mount -t tmpfs tmpfs /dev/shm
mount --bind {python} {kept}
mount --bind {home} {HOME}
case {python}/ in {HOME}/*) mkdir -p {python}; mount --bind {kept} {python};; esac
ip link set lo up
ip address add {address}/32 dev lo
ip route add default dev lo src {address}
exec {SSHD} -D -e -f {folder}/sshd_config
"""
SSHD_CONFIG = """ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {key}.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
"""


def why_not() -> str:
    """Why machines can't be made here; empty where they can."""
    if os.geteuid():
        return "machines of their own networks need root"
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        return f"not installed: {', '.join(missing)}"
    tried = subprocess.run(
        [*NAMESPACES, "ip", "link", "add", "one", "type", "veth"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no network of its own: {tried.stderr.strip()}" if tried.returncode else ""


class Machine:
    """One machine, running until it is closed or its plug is pulled.

    Args:
        folder: where its files are; its home is the folder ``home`` in it.
        name: its host name.
        address: its only address besides 127.0.0.1.
        key: path of the private key that opens it; the public one lies beside it.
    """

    def __init__(self, folder: Path, name: str, address: str, key: Path) -> None:
        self.name, self.address = name, address
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        (folder / "tmp").mkdir()
        (self.home / ".profile").write_text(f"export TMPDIR={folder}/tmp\n")
        places = {"folder": folder, "name": name, "address": address, "key": key, "home": self.home}
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "host_key"], check=True)
        (folder / "sshd_config").write_text(SSHD_CONFIG.format(**places))
        boot = BOOT.format(**places, kept=folder / "python", python=sys.base_prefix, HOME=HOME, SSHD=SSHD)
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *NAMESPACES, "--mount-proc", "--kill-child", "sh", "-c", boot],
                env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(self.up, 10, f"{name} is up")

    def up(self) -> bool:
        """Whether its ssh server listens."""
        assert self.process.poll() is None, self.log.read_text()
        return "Server listening" in self.log.read_text()

    @property
    def pid(self) -> int:
        """Its first process, as seen from here: with that, all of them end."""
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0])

    def inside(self, *words: str) -> list[str]:
        """A command line that runs in its network, with the files and processes of here."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *words]

    def ip(self, *words: str) -> None:
        """Change its network."""
        subprocess.run(self.inside("ip", *words), check=True)

    def pull_the_plug(self) -> None:
        """All its processes end at once, and nobody on the network is told."""
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait(10)

    def close(self) -> None:
        """End it."""
        if self.process.poll() is None:
            self.pull_the_plug()


def join(one: Machine, other: Machine) -> None:
    """A cable between two machines."""
    names = f"to{other.pid}", f"to{one.pid}"
    subprocess.run(["ip", "link", "add", names[0], "type", "veth", "peer", "name", names[1]], check=True)
    for machine, peer, name in ((one, other, names[0]), (other, one, names[1])):
        subprocess.run(["ip", "link", "set", name, "netns", str(machine.pid)], check=True)
        machine.ip("link", "set", name, "up")
        machine.ip("route", "add", peer.address, "dev", name, "src", machine.address)
