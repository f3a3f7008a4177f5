"""The owner of one Blender: starts it, asks it, watches it, kills it, replaces it, and believes nothing it says."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from pydantic import TypeAdapter, ValidationError

from gap3d.records import Failure, Status, SystemicFault
from gap3d.settings import GIB, Limits, RenderSettings
from render import sandbox
from render.channel import Closed
from render.job import (
    DEPTH_FILE,
    FACES_FILE,
    FILE_TYPES,
    IMAGE_FILE,
    VERTICES_FILE,
    Facts,
    Garbled,
    Hello,
    Image,
    Mesh,
    Model,
    Reply,
    View,
    last_words,
)
from render.process import Child
from render.results import check_image, check_mesh, critical_chunks, take_array, take_bytes, take_depth
from render.scratch import Scratch

PROGRAM = (sys.executable, "-s", "-P", "-B", "-m", "render.child")
START_SECONDS = 120.0
"""A cold file cache may hold up the import of bpy; the time of an object starts later."""
GPU_START_SECONDS = 900.0
"""A GPU interface compiles its kernels at the first picture."""
POLL_SECONDS = 0.05
GRACE_SECONDS = 1.0
"""For a child that closed its pipes to finish dying, so that its own signal is seen."""
OUT_OF_MEMORY_WORDS = ("bad_alloc", "Malloc returns null", "Calloc returns null")
INHERITED = ("PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")

ADMITTED = frozenset(
    {
        Status.OK,
        Status.UNSUPPORTED,
        Status.IMPORT_ERROR,
        Status.NO_GEOMETRY,
        Status.POINT_CLOUD,
        Status.DEGENERATE,
        Status.TOO_LARGE,
        Status.OUT_OF_MEMORY,
        Status.INTERNAL_ERROR,
    }
)
"""What a child may report of itself; the other outcomes are seen from outside."""
FATAL = frozenset({Status.OUT_OF_MEMORY, Status.INTERNAL_ERROR})
"""After these a child is not used again."""

_reply = TypeAdapter(Reply)
_hello = TypeAdapter(Hello)
_facts = TypeAdapter(Facts)
_costs = TypeAdapter(dict[str, float])


def identity(folder: Path | None) -> tuple[int, int] | None:
    """What the kernel knows a folder by: another one made under the same name is not open to a child that runs."""
    try:
        state = folder.stat() if folder else None
    except OSError:
        return None
    return (state.st_dev, state.st_ino) if state else None


class Blender:
    """One Blender in a child process, used for one object after another; a context manager.

    The child starts with the first ``load``. A ``load`` has the time ``limits.timeout_s``, and so has each ``render``.
    Whatever ends the child, the next ``load`` starts a fresh one. The kernel confines it (``render.sandbox``).

    The kernel kills the child when the *thread* that started it ends: use a Blender in a thread that lives as long.

    Args:
        limits: bounds of one object: time, resident memory (children of the child included), triangles.
        threads: CPU threads of Cycles.
        scratch_root: where the scratch folder is made; default: the system's place for temporary files.
        program: what to run as the child; four arguments are added: the descriptors of requests and answers, the
            parent's process id, and the cell.
        trees: the folder below which all objects lie, one at a time: all that the child may read of the user's files.
            Default: the tree of the object itself, for which an object with another tree gets a fresh child.
        device: what Cycles renders on (``ComputeSettings.render_device``), proven when the child starts.
        allow_unsandboxed: go on where the kernel can't confine the child.
    """

    def __init__(
        self,
        limits: Limits,
        threads: int,
        scratch_root: Path | None = None,
        program: Sequence[str] = PROGRAM,
        *,
        trees: Path | None = None,
        device: str = "auto",
        allow_unsandboxed: bool = False,
    ) -> None:
        self.limits = limits
        self.threads = threads
        self.last_log = ""
        self._program = tuple(program)
        self._scratch_root = scratch_root
        self._trees = trees.resolve() if trees else None
        self._wanted_device = device
        self._allow_unsandboxed = allow_unsandboxed
        self._scratch: Scratch | None = None
        self._child: Child | None = None
        self._readable: tuple[int, int] | None = None
        self._hello: Hello | None = None
        self._served = 0
        self._left = 0.0
        self._loaded = False
        self._hidden: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def version(self) -> str:
        """Blender's version, such as "4.5.15 LTS". Raises SystemicFault if it cannot start."""
        return self._greeted().version

    @property
    def device(self) -> str:
        """What Cycles was proven to render on, such as "CPU". Raises SystemicFault if Blender cannot start."""
        return self._greeted().device

    @property
    def sandboxed(self) -> bool:
        """Whether the kernel confines the child. Raises SystemicFault if Blender cannot start."""
        return not self._greeted().unconfined

    @property
    def pid(self) -> int | None:
        """Process id of the child, None when there is none."""
        return self._child.pid if self._child else None

    def load(self, model: Model) -> Mesh:
        """Import one object, normalise it and give its mesh (docs/method.md 2.1).

        Raises Failure(unsupported, import_error, no_geometry, point_cloud, degenerate, too_large, timeout,
        out_of_memory, crashed or internal_error), SystemicFault if Blender cannot start at all, is not confined or has
        not the device asked for, and ValueError for an object that does not lie below ``trees``.
        """
        self._loaded = False
        if model.file_type not in FILE_TYPES:
            raise Failure(Status.UNSUPPORTED, f"file type {model.file_type!r} is none of {', '.join(FILE_TYPES)}")
        tree = model.tree.resolve()
        if self._trees and not tree.is_relative_to(self._trees):
            raise ValueError(f"{tree} does not lie below {self._trees}")
        scratch = self._ready(self._trees or tree)
        self._hidden = (str(model.tree), str(tree), str(scratch.path), sys.prefix)
        body = self._ask(
            "load",
            tree=str(tree),
            main=model.main,
            file_type=model.file_type,
            up_axis=model.up_axis,
            triangles=self.limits.triangles,
            out=str(scratch.out),
        )
        answered = time.perf_counter()
        with self._distrust():
            facts = _facts.validate_python(body)
            out, most = scratch.out_descriptor, 1024 + 12 * self.limits.triangles  # a header, and three numbers each
            vertices = take_array(out, VERTICES_FILE, np.float32, (None, 3), 3 * most)
            faces = take_array(out, FACES_FILE, np.int32, (None, 3), most)
            mesh = Mesh(**vars(facts), vertices=vertices, faces=faces)
            check_mesh(mesh)
        mesh.costs["check"] = time.perf_counter() - answered
        self._loaded = True
        return mesh

    def render(self, view: View, settings: RenderSettings) -> Image:
        """Render the loaded object: a square RGBA PNG, straight alpha (docs/method.md 2.1), and its depth if wanted.

        Raises Failure(empty_render, timeout, out_of_memory, crashed or internal_error); RuntimeError without a load.
        """
        if not self._loaded or self._scratch is None:
            raise RuntimeError("no object is loaded: call load first, and again after a failure")
        size = settings.resolution
        device = self.device
        self._left = self.limits.timeout_s
        body = self._ask(
            "render",
            camera_to_world=np.asarray(view.camera_to_world, dtype=np.float64).tolist(),
            fov=view.fov,
            settings=settings.model_dump(mode="json", exclude={"depth", "threads"}),
            depth=settings.depth,
            threads=self.threads,
            out=str(self._scratch.out),
        )
        answered = time.perf_counter()
        with self._distrust():
            costs = _costs.validate_python(body.get("costs"))
            if body.get("device", "") != device:
                raise Garbled(f"a picture by {body.get('device')} instead of {device}")
            folder = self._scratch.out_descriptor
            png = critical_chunks(take_bytes(folder, IMAGE_FILE, 8 * size * size + 2**20))
            check_image(png, size)
            depth = take_depth(folder, DEPTH_FILE, size) if settings.depth else None
        costs["check"] = time.perf_counter() - answered
        return Image(png, size, size, costs, device, depth)

    def close(self) -> None:
        """End the child and remove every file of it."""
        self._kill()
        if self._scratch is not None:
            self._scratch.remove()
            self._scratch = None

    def _ready(self, readable: Path) -> Scratch:
        """A child that may read this folder, with an empty scene and the whole time of one object ahead of it."""
        if self._child is not None and (
            self._served >= self.limits.recycle_after or self._readable != identity(readable)
        ):
            self._kill()
        if self._child is not None:
            self._left = self.limits.timeout_s
            # A failing reset is the last object's fault, and no concern of the next one: it ended the child.
            with contextlib.suppress(Failure):
                self._ask("reset")
        if self._child is not None and self._child.resident_bytes() > self.limits.memory_bytes // 2:
            self._kill()
        child = self._child or self._start(readable)
        child.clear_log()
        self._served += 1
        self._left = self.limits.timeout_s
        return self._room()

    def _room(self) -> Scratch:
        if self._scratch is None:
            self._scratch = Scratch(self._scratch_root)
        return self._scratch

    def _greeted(self) -> Hello:
        if self._hello is None:
            self._start(self._trees)
        assert self._hello is not None
        return self._hello

    def _start(self, readable: Path | None) -> Child:
        """A new child that may read this folder."""
        gpu = self._wanted_device != "cpu" and bool(sandbox.cards())
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        inherited |= {
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
            "PYTHONHASHSEED": "0",  # importers iterate over sets
            "LANG": "C.UTF-8",
            "TZ": "UTC",
        }
        for again in (True, False):  # twice: a kill from outside during a start is no fault of the installation
            scratch = self._room()
            cell = sandbox.Cell(
                scratch=str(scratch.box),
                tree=str(readable) if readable else None,
                canary=str(scratch.canary),
                file_bytes=self.limits.memory_bytes,  # it could not hold in memory what makes a larger one
                gpu=gpu,
            )
            child = self._child = Child(self._program, inherited | scratch.environment(), scratch, cell)
            self._served, self._left = 0, GPU_START_SECONDS if gpu else START_SECONDS
            self._hidden, self._readable = (str(scratch.path), sys.prefix), identity(readable)
            try:
                body = self._ask("hello", device=self._wanted_device)
                with self._distrust():
                    self._hello = self._approved(_hello.validate_python(body), child)
                break
            except Failure as failure:
                self._kill()
                if not again:
                    raise SystemicFault(
                        f"Blender does not start ({failure.reason}). "
                        "Is it installed, and are its libraries? Python 3.11: pip install 'bpy>=4.5,<4.6'"
                    ) from failure
        return child

    def _approved(self, hello: Hello, child: Child) -> Hello:
        """Raises SystemicFault for a child that is not confined, or has not the device asked for."""
        # What it says of itself, before it has opened anything of a stranger's, and what the kernel says of it.
        open_to = "; ".join(filter(None, (hello.unconfined, sandbox.seen_from_outside(child.pid))))
        if open_to and not self._allow_unsandboxed:
            self._kill()
            raise SystemicFault(
                f"the kernel can't confine Blender here ({last_words(open_to)}). "
                "Set compute.allow_unsandboxed = true to go on without: then a file can read and send what you can"
            )
        if hello.no_device:
            self._kill()
            raise SystemicFault(
                f"Cycles can't render on {self._wanted_device} here ({hello.no_device}). Set compute.render_device to "
                "what this machine has, or to auto; is the driver installed, and CUDA_VISIBLE_DEVICES right?"
            )
        return replace(hello, unconfined=open_to)

    def _ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """One request and the body of its answer. Raises Failure; after most of them the child is gone."""
        child = self._child
        if child is None:
            raise RuntimeError("no Blender runs")
        with self._distrust():
            try:
                child.channel.send({"op": operation, **arguments})
                while (answer := self._receive(child)) is None:
                    self._check_limits(child)
            except Closed:
                raise self._obituary() from None
            reply = _reply.validate_json(answer)
            if reply.status not in ADMITTED:
                raise Garbled(f"a child cannot know status {reply.status}")
        self.last_log = child.log_tail()
        if reply.status is Status.OK:
            return reply.body
        self._loaded = False
        if reply.status in FATAL or operation == "reset":
            self._kill()
        raise Failure(reply.status, last_words(reply.reason, self._hidden) or self._last_line())

    def _receive(self, child: Child) -> bytes | None:
        begun = time.monotonic()
        try:
            return child.channel.receive(min(POLL_SECONDS, self._left))
        finally:
            self._left -= time.monotonic() - begun

    def _check_limits(self, child: Child) -> None:
        if self._left <= 0:
            self._kill()
            raise Failure(Status.TIMEOUT, f"not done after {self.limits.timeout_s:g} s{self._after_colon()}")
        if (resident := child.resident_bytes()) > self.limits.memory_bytes:
            self._kill()
            limit = self.limits.memory_bytes / GIB
            raise Failure(Status.OUT_OF_MEMORY, f"used {resident / GIB:.2f} GiB, {limit:.2f} GiB are allowed")
        if child.scratch_bytes() > self.limits.memory_bytes:
            self._kill()
            raise Failure(
                Status.OUT_OF_MEMORY, f"wrote more than {self.limits.memory_bytes / GIB:.2f} GiB to its scratch"
            )

    @contextlib.contextmanager
    def _distrust(self) -> Iterator[None]:
        """Turn an answer that cannot come from our child into a failure, and end whoever gave it."""
        try:
            yield
        except (Garbled, ValidationError) as error:
            self._kill()
            words = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise Failure(Status.CRASHED, f"unusable answer: {last_words(words, self._hidden)}") from error

    def _obituary(self) -> Failure:
        """Why the child is gone."""
        code = self._kill(GRACE_SECONDS)
        if any(words in self.last_log for words in OUT_OF_MEMORY_WORDS):
            return Failure(Status.OUT_OF_MEMORY, self._last_line())
        end = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Failure(Status.CRASHED, end + self._after_colon())

    def _kill(self, grace: float = 0.0) -> int:
        self._loaded = False
        child, self._child = self._child, None
        if child is None:
            return 0
        code, self.last_log = child.kill(grace)
        if self._scratch is not None:  # what it left there could pass for the next one's results
            self._scratch.remove()
            self._scratch = None
        return code

    def _last_line(self) -> str:
        lines = [line for line in self.last_log.splitlines() if line.strip()]
        return last_words(lines[-1], self._hidden) if lines else ""

    def _after_colon(self) -> str:
        line = self._last_line()
        return f": {line}" if line else ""
