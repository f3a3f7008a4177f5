"""What hostile code in the child can do: nothing that it could do unconfined; each attempt by itself."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from attacks import FOR_ROOT, attempts

from render.sandbox import Cell

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What came of each attempt, by how the process was confined; each is run once."""
    found: dict[str, dict[str, str]] = {}

    def outcome(abi: str) -> dict[str, str]:
        if abi in found:
            return found[abi]
        place = tmp_path_factory.mktemp("attacked")
        outside, box, tree = (place / name for name in ("outside", "box", "tree"))
        for folder in (outside, box, tree):
            folder.mkdir()
        for path in (outside / "secret", outside / "other", outside / "spare", box / "own", tree / "model"):
            path.write_text("secret")
        (tree / "link").symlink_to(outside / "secret")
        cell = Cell(str(box), str(tree), str(outside / "secret"), 2**20, gpu=False)
        with (
            subprocess.Popen(["sleep", "60"]) as victim,
            socket.create_server(("127.0.0.1", 0)) as server,
        ):
            facts = {"outside": str(outside), "box": str(box), "tree": str(tree), "victim": victim.pid}
            facts["port"] = server.getsockname()[1]
            program = [sys.executable, str(Path(__file__).with_name("attacks.py"))]
            done = subprocess.run(
                [*program, cell.encode(), abi, json.dumps(facts)],
                env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            victim.kill()
        assert done.returncode == 0, done.stderr
        found[abi] = json.loads(done.stdout)
        return found[abi]

    return outcome


NAMES = tuple(attempts({"outside": "", "box": "", "tree": "", "victim": 0, "port": 0}, 0))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("abi", ["newest", "1"])
def test_hostile_code_in_the_child_is_refused(outcomes, abi, name):
    assert outcomes(abi)[name] == "refused"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_refused_works_without_the_confinement(outcomes, name):
    if name in FOR_ROOT and os.geteuid() != 0:
        pytest.skip("the kernel refuses this to everybody but root")
    assert outcomes("free")[name] != "refused"


READS_TWICE = """
import sys
from pathlib import Path
from render import sandbox
assert not sandbox.confine(sandbox.Cell.decode(sys.argv[1]))
for _ in range(2):
    found = [Path(path).read_bytes() != b"" for path in ("/proc/self/maps", "/proc/meminfo", "/proc/cpuinfo")]
    print(found, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make the kernel forget its entries")
def test_what_may_be_read_stays_readable_when_the_kernel_is_short_of_memory(tmp_path):
    cell = Cell(str(tmp_path), None, str(tmp_path / "canary"), 2**20, gpu=False)
    command = [sys.executable, "-c", READS_TWICE, cell.encode()]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        before = reader.stdout.readline()
        Path("/proc/sys/vm/drop_caches").write_text("2")
        after = reader.communicate("\n\n", timeout=30)[0]
    assert before == after == "[True, True, True]\n"
