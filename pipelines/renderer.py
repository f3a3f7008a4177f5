"""The worker of views and renders: one Blender, kept from object to object; each object is imported once for both."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from gap3d.embree import require_embree
from gap3d.records import Failure, Outcome, Status, SystemicFault
from gap3d.remote import blobs_at
from gap3d.settings import Settings
from gap3d.store import free_bytes
from gap3d.temporary import TemporaryFolder
from pipelines.attempt import Attempt
from render.job import Model
from render.worker import Blender

SCRATCH = "gap3d-worker"
LITTLE_BYTES = 16 * 1024**2  # with so little space left, a failure is no object's fault

PROBE = (
    b"o cube\n"
    + b"".join(b"v %d %d %d\n" % (x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1))
    + (b"f 1 2 4 3\nf 5 7 8 6\nf 1 5 6 2\nf 3 4 8 7\nf 1 3 7 5\nf 2 6 8 4\n")
)


class Renderer:
    """One Blender in this process's care.

    Raises:
        SystemicFault: Blender or Embree is not there.
    """

    def __init__(self, settings: Settings, blobs: str) -> None:
        require_embree()
        self.settings = settings
        self.blobs = blobs_at(blobs)
        self.scratch = TemporaryFolder(Path(gettempdir()), SCRATCH)
        self.trees = self.scratch.path / "trees"
        self.trees.mkdir()

    @cached_property
    def blender(self) -> Blender:
        """The child process, started at first use; of the user's files it can read those below ``trees`` only."""
        return self.start(self.scratch.path, self.trees)

    def start(self, scratch: Path, trees: Path) -> Blender:
        """A Blender as the settings want it."""
        return Blender(
            self.settings.limits,
            self.settings.renders.threads,
            scratch,
            trees=trees,
            device=self.settings.compute.render_device,
            allow_unsandboxed=self.settings.compute.allow_unsandboxed,
        )

    def process(self, payload: Mapping[str, Any]) -> list[Outcome]:
        """Views, renders or both of one object, as the payload asks.

        What crashed, or was sent back by a quality gate, is tried again in a fresh Blender until the attempts are
        used up; what came out well stands.
        """
        done: dict[str, Outcome] = {}
        sent_back: set[str] = set()
        attempt = 0
        while True:
            attempt += 1
            last = attempt >= self.settings.limits.attempts
            made = Attempt(self.settings, self.blender, payload, done, sent_back, last)
            with self.unpacked(payload) as tree:
                outcomes = made.run(tree)
                failed = {outcome.status for outcome in outcomes if not outcome.origin}
                if failed & {Status.CRASHED, Status.INTERNAL_ERROR} and free_bytes(tree) < LITTLE_BYTES:
                    raise SystemicFault(
                        f"no space is left for Blender's files in {self.scratch.path.parent}: free some, or set TMPDIR"
                    )
            again = made.again | {f"{o.stage} {o.key}" for o in outcomes if o.status is Status.CRASHED}
            for outcome in outcomes:
                attempts = outcome.attempts if outcome.origin else attempt
                done[f"{outcome.stage} {outcome.key}"] = replace(outcome, attempts=attempts)
            if last or not again:
                return list(done.values())
            sent_back |= made.again
            for name in again:
                del done[name]
            self.blender.close()

    @contextmanager
    def unpacked(self, payload: Mapping[str, Any]) -> Iterator[Path]:
        """The object's files as a tree of their own, gone afterwards."""
        with TemporaryDirectory(prefix="object-", dir=self.trees) as folder:
            tree = Path(folder) / "tree"
            try:
                self.blobs.unpack({file["path"]: file["sha256"] for file in payload["files"]}, tree)
            except FileNotFoundError as error:
                raise SystemicFault(f"the store has lost {error.filename}: run downloads again") from error
            yield tree

    def probe(self) -> None:
        """Load a cube in a fresh Blender."""
        with TemporaryDirectory(prefix="probe-", dir=self.scratch.path) as folder:
            trees = Path(folder) / "trees"
            trees.mkdir()
            (trees / "cube.obj").write_bytes(PROBE)
            with self.start(Path(folder), trees) as blender:
                try:
                    mesh = blender.load(Model(trees, "cube.obj", "obj"))
                    if len(mesh.faces) != 12:
                        raise SystemicFault(f"Blender gives {len(mesh.faces)} triangles for a cube")
                except Failure as failure:
                    raise SystemicFault(f"Blender fails on a cube: {failure}") from failure

    def close(self) -> None:
        """End the child and remove its files."""
        if "blender" in self.__dict__:
            self.blender.close()
        self.scratch.remove()
