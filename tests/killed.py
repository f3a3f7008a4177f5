"""Runs of the line in processes that die at a named point. The product has no hooks: this program wraps its functions.

``python killed.py`` imports the line once and then forks a process for each request, a JSON line on standard input:

    {"start": {...}}  answers with the process id of a new run (see ``Run``)
    {"wait": PID}     answers with its exit code, negative for a signal
"""

import contextlib
import functools
import importlib
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Point:
    """Where a run is killed.

    Attributes:
        where: ``module:qualified.name`` of the function that is wrapped.
        when: before or after the call.
        match: only calls whose arguments, as text, have this pattern.
        call: which of these calls, from 1.
        signal: what is sent; 0 raises the exception in ``error`` instead.
        whom: self, or blender: the child of the ``render.worker.Blender`` at work.
        pause: seconds between the point and the signal.
    """

    where: str
    when: str = "before"
    match: str = ""
    call: int = 1
    signal: int = signal.SIGKILL
    whom: str = "self"
    pause: float = 0.0


@dataclass(frozen=True)
class Run:
    """One process.

    Attributes:
        work: line, images_line, gc, or the name of a module that is run as a program with ``flags``.
        store: root of the store.
        source: folder of the objects.
        scratch: TMPDIR.
        log: what it prints; ``log`` + ``.started`` lists the rows whose work began, ``.report`` its report.
        errors: what it prints to standard error, where that is to be told apart.
        folder: where it is run.
        values: settings over those of ``folders.small``.
        setup: ``module:function`` called first, with ``argument``.
    """

    work: str
    store: str
    source: str
    scratch: str
    log: str
    values: dict[str, Any] = field(default_factory=dict)
    point: dict[str, Any] | None = None
    flags: list[str] = field(default_factory=list)
    setup: str = ""
    argument: Any = None
    environment: dict[str, str] = field(default_factory=dict)
    errors: str = ""
    folder: str = ""


def resolve(where: str) -> tuple[Any, str]:
    """The object that has a function, and the function's name in it."""
    module, _, qualified = where.partition(":")
    *path, name = qualified.split(".")
    return functools.reduce(getattr, path, importlib.import_module(module)), name


def wrap(where: str, around: Any) -> None:
    """Put ``around(original, *args, **kwargs)`` in a function's place."""
    owner, name = resolve(where)
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(owner, name, wrapped)


def text_of(args: tuple[Any, ...]) -> str:
    """Arguments as text; of an object with a folder, the folder."""
    return " ".join(str(getattr(arg, "folder", arg)) for arg in args)


def install(point: Point) -> None:
    """Kill when the point is reached."""
    count = 0
    lock = threading.Lock()

    def around(original: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        with lock:
            count += bool(re.search(point.match, text_of(args)))
            due = count == point.call and bool(re.search(point.match, text_of(args)))
        if due and point.when == "before":
            strike(point)
        result = original(*args, **kwargs)
        if due and point.when == "after":
            strike(point)
        return result

    wrap(point.where, around)


def strike(point: Point) -> None:
    """Send the signal."""
    sys.stdout.write(f"struck {point.when} {point.where}\n")
    sys.stdout.flush()
    time.sleep(point.pause)
    if point.whom == "self":
        os.kill(os.getpid(), point.signal)
        return
    os.kill(blender(), point.signal)


def blender() -> int:
    """The one Blender that is a child of this process."""
    children = [
        int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()
    ]
    (found,) = [pid for pid in children if b"render.child" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return found


def count_work(path: Path) -> None:
    """Write down every item that a worker begins."""

    def around(original: Any, worker: Any, payload: Any) -> Any:
        keys = payload.get("keys") or [payload.get("object_id") or payload["key"]]
        with path.open("a") as file:
            file.writelines(f"{type(worker).__name__} {key}\n" for key in keys)
        return original(worker, payload)

    for where in ("downloads:Copier", "rendering:Renderer", "targets:Featurizer"):
        wrap(f"pipelines.{where}.process", around)


def perform(run: Run) -> int:
    """The run itself; the exit code."""
    if run.setup:
        owner, name = resolve(run.setup)
        getattr(owner, name)(run.argument)
    if run.point:
        install(Point(**run.point))
    if run.work not in ("line", "images_line", "gc"):
        sys.argv = [run.work, *run.flags]
        warnings.filterwarnings("ignore", "'pipelines.*' found in sys.modules", RuntimeWarning)
        runpy.run_module(run.work, run_name="__main__", alter_sys=True)
        return 0
    from folders import run_line, small
    from pictures import run_images

    from gap3d import gc
    from pipelines.command import open_store

    settings = small(Path(run.store), Path(run.source), **run.values)
    count_work(Path(f"{run.log}.started"))
    if run.work in ("line", "images_line"):
        whole = run_line if run.work == "line" else run_images
        whole(settings).save(Path(f"{run.log}.report"))
        return 0
    gc.SMALL_PARTS = 2
    store = open_store(settings)
    gc.compact(store, settings.compute, dry_run=False)
    gc.collect(store, 0.0, 0.0, dry_run=False)
    return 0


def become(run: Run) -> None:
    """Do a run in this process and end it."""
    code: int | str | None = 1
    try:
        with Path(run.log).open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        if run.errors:
            with Path(run.errors).open("a") as errors:
                os.dup2(errors.fileno(), 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        Path(run.scratch).mkdir(exist_ok=True)
        os.environ.update({"TMPDIR": run.scratch, **run.environment})
        os.chdir(run.folder or HERE.parent)
        tempfile.tempdir = None
        # Whoever runs the tests in the background of a shell has this signal ignored, and so would this process.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = perform(run)
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - a process ends with a code, whatever happened
        traceback.print_exc()
    finally:
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()  # as at the end of a program, which the next line but two leaves out
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def serve() -> None:
    """Answer requests until standard input ends."""
    for module in ("line", "gc", "rendering", "why", "plan", "verify", "previews", "aligner"):
        importlib.import_module(f"pipelines.{module}")
    # What a run imports later; pyarrow takes pandas where there is one.
    for module in (
        "dagster._cli",
        "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers",
        "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
        "PIL.Image",
        "pandas",
    ):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            answer = os.fork()
            if not answer:
                become(Run(**request["start"]))
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


class Nursery:
    """The other end: starts runs and waits for them."""

    def __init__(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GAP3D_")}
        environment["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent)])
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "killed.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=HERE.parent,
        )

    def _ask(self, **request: Any) -> int:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def start(self, run: Run) -> int:
        """Begin a run; its process id."""
        return self._ask(start=asdict(run))

    def wait(self, pid: int) -> int:
        """How a run ended: its exit code, or minus the signal that killed it."""
        return self._ask(wait=pid)

    def run(self, run: Run) -> int:
        """A run from its beginning to its end."""
        return self.wait(self.start(run))

    def close(self) -> None:
        """End."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


if __name__ == "__main__":
    serve()
    os._exit(0)  # all that it has imported need not be taken apart
