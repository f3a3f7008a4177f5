"""A Ray of one machine as users start it, and its commands."""

import contextlib
import json
import subprocess
import urllib.request
from types import SimpleNamespace

from dagster_site import executable
from processes import alive, end, free_ports, tree, wait_for

LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@contextlib.contextmanager
def started(place, surroundings):
    """``ray start --head`` on this machine, ended by its process id."""
    gcs, dashboard, agent, client = free_ports(4)
    log = (place / "head.log").open("w")
    process = subprocess.Popen(
        [
            *(executable("ray"), "start", "--head", "--block", "--num-cpus=2", f"--port={gcs}"),
            *(
                f"--dashboard-port={dashboard}",
                f"--dashboard-agent-listen-port={agent}",
                f"--ray-client-server-port={client}",
            ),
        ],
        # The environment of the node has other settings: a job is not to listen to them.
        env={
            **surroundings,
            "RAY_TMPDIR": str(place / "ray"),
            "GAP3D_RENDERS__RESOLUTION": "32",
            "GAP3D_CATALOG__SHARDS": "8",
            "GAP3D_COMPUTE__MODE": "job",
        },
        cwd=place,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    made = SimpleNamespace(process=process, address=f"http://127.0.0.1:{dashboard}", log=place / "head.log")
    try:
        wait_for(lambda: process.poll() is not None or "block forever" in made.log.read_text(), 90, "ray start --head")
        wait_for(lambda: jobs(surroundings, made) is not None, 60, "its dashboard")
        yield made
    finally:
        family = tree(process.pid)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        end(alive(family))
        log.close()


def ray(surroundings, head, *words, **options):
    """The ``ray`` command."""
    return subprocess.run(
        [executable("ray"), *words],
        env={**surroundings, "RAY_API_SERVER_ADDRESS": head.address},
        capture_output=True,
        text=True,
        timeout=180,
        **options,
    )


def jobs(surroundings, head):
    """What ``ray job list`` lists, by name, without its seconds; None where nobody answers yet."""
    token = surroundings["RAY_AUTH_TOKEN"]
    request = urllib.request.Request(f"{head.address}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=30) as answer:
        return {job["submission_id"]: job for job in json.load(answer)}
    return None
