"""``dagster dev`` as the README starts it, in a folder of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
from processes import alive, end, free_ports, tree

ROOT = Path(__file__).resolve().parents[1]
ENDED = ("SUCCESS", "FAILURE", "CANCELED")

LAUNCH = """mutation ($parameters: ExecutionParams!) { launchRun(executionParams: $parameters) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
  ... on RunConfigValidationInvalid { errors { message } } } }"""
STATUS = "query ($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }"
TERMINATE = (
    "mutation ($run: String!) { terminateRun(runId: $run) { __typename ... on TerminateRunFailure { message } } }"
)
EVENTS = """query ($run: ID!) { logsForRun(runId: $run, limit: 1000) { ... on EventConnection { events {
  ... on MessageEvent { message } ... on ExecutionStepFailureEvent { error { message } } } } } }"""


def executable(name: str) -> str:
    """A program of this environment."""
    return str(Path(sys.executable).with_name(name))


class Site:
    """A running ``dagster dev``; started again on the same folder, it has the same history.

    Args:
        folder: gets copies of workspace.yaml and dagster.yaml, and the history.
        environment: settings of the code location.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("workspace.yaml", "dagster.yaml"):
            shutil.copy(ROOT / name, folder / name)
        bare = {name: value for name, value in os.environ.items() if not name.startswith(("GAP3D_", "DAGSTER_"))}
        self.environment = {**bare, **environment}
        self.port = free_ports(1)[0]
        self.address = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None
        self.family: list[psutil.Process] = []

    def __enter__(self) -> "Site":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        if self.process is not None:
            self.stop()
        end(alive(self.family))

    @property
    def log(self) -> str:
        """What it printed."""
        return (self.folder / "dev.log").read_text()

    def start(self, wait_s: float = 90.0) -> None:
        """Start, and wait until the code location is loaded."""
        with (self.folder / "dev.log").open("a") as log:
            self.process = subprocess.Popen(
                [executable("dagster"), "dev", "-w", "workspace.yaml", "--port", str(self.port)],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"dagster dev ended with {self.process.returncode}:\n{self.log[-3000:]}")
            try:
                names = self.ask("{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }")
                if names["repositoriesOrError"].get("nodes"):
                    return
            except OSError:
                pass
            time.sleep(0.3)
        raise AssertionError(f"dagster dev is not ready after {wait_s:g} s:\n{self.log[-3000:]}")

    def stop(self, wait_s: float = 30.0) -> list[psutil.Process]:
        """Ctrl-C, which a terminal sends to the whole process group; the processes that are left."""
        self.family = tree(self.process.pid)
        os.killpg(self.process.pid, signal.SIGINT)
        try:
            self.process.wait(wait_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline and alive(self.family):
            time.sleep(0.1)
        self.process = None
        return alive(self.family)

    def ask(self, query: str, **variables) -> dict:
        """GraphQL, as the UI speaks it."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.address}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            content = json.load(answer)
        assert not content.get("errors"), content["errors"]
        return content["data"]

    def launch(self, *assets: str, shard: str | None = None, **compute: str) -> str:
        """Materialize these assets as the button does, with ``compute`` changed in the launchpad; the run's id."""
        config = {"resources": {"compute": {"config": compute}}} if compute else {}
        made = self.ask(
            LAUNCH,
            parameters={
                "selector": {
                    "repositoryLocationName": "gap3d",
                    "repositoryName": "__repository__",
                    "jobName": "__ASSET_JOB",
                    "assetSelection": [{"path": [asset]} for asset in assets],
                },
                "runConfigData": config,
                "executionMetadata": {"tags": [{"key": "dagster/partition", "value": shard}] if shard else []},
            },
        )["launchRun"]
        assert made["__typename"] == "LaunchRunSuccess", made
        return made["run"]["runId"]

    def status(self, run: str) -> str:
        """A run's status."""
        return self.ask(STATUS, run=run)["runOrError"]["status"]

    def wait(self, run: str, wait_s: float = 120.0) -> str:
        """The status with which a run ended."""
        deadline = time.monotonic() + wait_s
        while (status := self.status(run)) not in ENDED:
            assert time.monotonic() < deadline, f"run {run} is {status} after {wait_s:g} s"
            time.sleep(0.2)
        return status

    def terminate(self, run: str) -> None:
        """The Terminate button."""
        answer = self.ask(TERMINATE, run=run)["terminateRun"]
        assert answer["__typename"] == "TerminateRunSuccess", answer

    def events(self, run: str) -> str:
        """All messages and errors of a run."""
        found = self.ask(EVENTS, run=run)["logsForRun"]["events"]
        return "\n".join(
            event.get("message") or (event.get("error") or {}).get("message", "") for event in found if event
        )
