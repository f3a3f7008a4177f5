"""Views and renders in one breath: an object is imported once, its view chosen, and that view rendered.

Either stage can be asked for alone: ``pipelines.views`` and ``pipelines.renders``.
"""

import importlib.metadata
import logging
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from gap3d import fingerprints, images
from gap3d.blobs import Blobs
from gap3d.cameras import Camera
from gap3d.embree import require_embree
from gap3d.manifest import Manifest
from gap3d.records import Failure, Outcome, Status, SystemicFault
from gap3d.schemas import RENDERS, VIEWS
from gap3d.settings import Settings
from gap3d.store import free_bytes
from gap3d.temporary import TemporaryFolder, sweep
from gap3d.visibility import ViewChoice, select_view
from pipelines import downloads
from pipelines.cluster import Resources
from pipelines.command import open_store, stage_main
from pipelines.job import Item, Job, NotReady, Row, follower, passed_on, require_complete
from pipelines.job import run as run_job
from pipelines.report import Report
from render.job import Mesh, Model, View
from render.worker import Blender

log = logging.getLogger(__name__)
STAGES = ("views", "renders")
SCRATCH = "gap3d-worker"
LITTLE_BYTES = 16 * 1024**2  # with so little space left, a failure is no object's fault

PROBE = (
    b"o cube\n"
    + b"".join(b"v %d %d %d\n" % (x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1))
    + (b"f 1 2 4 3\nf 5 7 8 6\nf 1 5 6 2\nf 3 4 8 7\nf 1 3 7 5\nf 2 6 8 4\n")
)


def view_key(object_id: str, view: int = 0) -> str:
    """Key of one image of an object."""
    return f"{object_id}/{view:03d}"


class Renderer:
    """The worker: one Blender, kept from object to object.

    Raises:
        SystemicFault: Blender or Embree is not there.
    """

    def __init__(self, settings: Settings, blobs: Path) -> None:
        require_embree()
        self.settings = settings
        self.blobs = Blobs(blobs)
        self.scratch = TemporaryFolder(Path(gettempdir()), SCRATCH)

    @cached_property
    def blender(self) -> Blender:
        """The child process, started at first use."""
        return Blender(self.settings.limits, self.settings.renders.threads, self.scratch.path)

    def process(self, payload: Mapping[str, Any]) -> list[Outcome]:
        """Views, renders or both of one object, as the payload asks.

        A crash is tried again in a fresh Blender until the attempts are used up.
        """
        attempt = 0
        while True:
            attempt += 1
            made = Attempt(self.settings, self.blender, payload)
            with self.unpacked(payload) as tree:
                outcomes = made.run(tree)
                failed = {outcome.status for outcome in outcomes if not outcome.origin}
                if failed & {Status.CRASHED, Status.INTERNAL_ERROR} and free_bytes(tree) < LITTLE_BYTES:
                    raise SystemicFault(
                        f"no space is left for Blender's files in {self.scratch.path.parent}: free some, or set TMPDIR"
                    )
            if Status.CRASHED not in failed or attempt >= self.settings.limits.attempts:
                break
        return [outcome if outcome.origin else with_attempts(outcome, attempt) for outcome in outcomes]

    @contextmanager
    def unpacked(self, payload: Mapping[str, Any]) -> Any:
        """The object's files as a tree of their own, gone afterwards."""
        with TemporaryDirectory(prefix="object-", dir=self.scratch.path) as folder:
            tree = Path(folder) / "tree"
            try:
                self.blobs.unpack({file["path"]: file["sha256"] for file in payload["files"]}, tree)
            except FileNotFoundError as error:
                raise SystemicFault(f"the store has lost {error.filename}: run downloads again") from error
            yield tree

    def probe(self) -> None:
        """Load a cube in a fresh Blender."""
        with TemporaryDirectory(prefix="probe-", dir=self.scratch.path) as folder:
            (Path(folder) / "cube.obj").write_bytes(PROBE)
            with Blender(self.settings.limits, 1, Path(folder) / "scratch") as blender:
                try:
                    mesh = blender.load(Model(Path(folder), "cube.obj", "obj"))
                    if len(mesh.faces) != 12:
                        raise SystemicFault(f"Blender gives {len(mesh.faces)} triangles for a cube")
                except Failure as failure:
                    raise SystemicFault(f"Blender fails on a cube: {failure}") from failure

    def close(self) -> None:
        """End the child and remove its files."""
        if "blender" in self.__dict__:
            self.blender.close()
        self.scratch.remove()


class Attempt:
    """One try at one object."""

    def __init__(self, settings: Settings, blender: Blender, payload: Mapping[str, Any]) -> None:
        self.settings = settings
        self.blender = blender
        self.payload = payload
        self.object_id: str = payload["object_id"]
        self.mesh: Mesh | None = None

    def run(self, tree: Path) -> list[Outcome]:
        """Outcomes of the stages asked for, in their order."""
        outcomes: list[Outcome] = []
        view = self.payload["view"]
        if "views" in self.payload["want"]:
            outcome = self.measured("views", self.object_id, lambda: self.choose(tree), None)
            outcomes.append(outcome)
            if outcome.status is not Status.OK:
                if "renders" in self.payload["want"]:
                    outcomes.append(follower("renders", view_key(self.object_id), "views", outcome))
                return outcomes
            view = outcome.data or {}
        if "renders" in self.payload["want"]:
            inputs = {**self.payload["render_inputs"], "camera": camera_digest(view)}
            if inputs == self.payload["render_current"]:
                return outcomes  # the camera came out as it was: the picture stands
            outcomes.append(
                self.measured("renders", view_key(self.object_id), lambda: self.picture(tree, view), inputs)
            )
        return outcomes

    def measured(self, stage: str, key: str, work: Any, inputs: Mapping[str, str] | None) -> Outcome:
        """Run one stage's work; a known fault becomes its row, an unknown one its internal_error."""
        started = time.monotonic()
        status, reason, data, costs, tail = Status.OK, "", None, {}, ""
        try:
            data, costs = work()
        except Failure as failure:
            status, reason, tail = failure.status, failure.reason, self.blender.last_log
        except (SystemicFault, OSError, MemoryError):
            raise
        except Exception as error:
            log.exception("%s %s", stage, self.object_id)
            status, reason, tail = (
                Status.INTERNAL_ERROR,
                f"{type(error).__name__}: {error}"[:500],
                traceback.format_exc()[-2048:],
            )
        return Outcome(
            stage=stage,
            key=key,
            status=status,
            reason=reason,
            data=data,
            seconds=time.monotonic() - started,
            device="cpu",
            log_tail=tail[-2048:],
            costs=costs,
            inputs=inputs,
        )

    def load(self, tree: Path) -> Mesh:
        """Import the object, once for both stages."""
        if self.mesh is None:
            axis = self.payload["up_axis"]
            self.mesh = self.blender.load(
                Model(tree, self.payload["main"], self.payload["file_type"], axis.upper() if axis else None)
            )
        return self.mesh

    def choose(self, tree: Path) -> tuple[dict[str, Any], dict[str, float]]:
        """Columns of the views row, and seconds by kind of work."""
        mesh = self.load(tree)
        started = time.monotonic()
        choice = select_view(mesh.vertices, mesh.faces, self.settings.views, self.object_id, self.payload["pinned_yaw"])
        selecting = time.monotonic() - started
        return view_columns(self.settings, mesh, choice), {**mesh.costs, "select": selecting}

    def picture(self, tree: Path, view: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
        """Columns of the renders row, and seconds by kind of work."""
        imported = self.mesh is None
        mesh = self.load(tree)
        camera = Camera(view["yaw"], view["pitch"], view["radius"], view["fov"])
        image = self.blender.render(View(camera.camera_to_world, camera.fov), self.settings.renders)
        columns = {
            "object_id": self.object_id,
            "view": 0,
            "png": image.png,
            "width": image.width,
            "height": image.height,
            "yaw": camera.yaw,
            "pitch": camera.pitch,
            "radius": camera.radius,
            "camera_angle_x": camera.fov_radians,
            "transform_matrix": camera.camera_to_world.reshape(-1).tolist(),
            "scale": mesh.scale,
            "offset": list(mesh.offset),
            "coverage": images.coverage(image.png, self.settings.limits.pixels),
        }
        return columns, {**(mesh.costs if imported else {}), **image.costs}


def with_attempts(outcome: Outcome, attempts: int) -> Outcome:
    """The outcome with the number of tries that it took."""
    return Outcome(**{**outcome.__dict__, "attempts": attempts})


def camera_digest(view: Mapping[str, Any]) -> str:
    """What a picture depends on of a views row: the chosen camera, not the scores."""
    return fingerprints.digest_of([view[name] for name in ("yaw", "pitch", "radius", "fov")])


def view_columns(settings: Settings, mesh: Mesh, choice: ViewChoice) -> dict[str, Any]:
    """Columns of the views row."""
    return {
        "yaws": list(settings.views.yaws),
        "counts": list(choice.counts),
        "points": choice.points,
        "chosen": -1 if choice.chosen is None else choice.chosen,
        "pinned": choice.pinned,
        "yaw": choice.camera.yaw,
        "pitch": choice.camera.pitch,
        "radius": choice.camera.radius,
        "fov": choice.camera.fov,
        "scale": mesh.scale,
        "offset": list(mesh.offset),
        "vertices": len(mesh.vertices),
        "triangles": len(mesh.faces),
        "objects": mesh.objects,
        "animated": mesh.animated,
        "missing_textures": list(mesh.missing_textures),
    }


def engine_versions() -> dict[str, str]:
    """Versions of what decides the results of both stages."""
    blender = importlib.metadata.version("bpy")
    return {"views": f"bpy {blender}, embreex {importlib.metadata.version('embreex')}", "renders": f"bpy {blender}"}


def make_job(settings: Settings, stages: Sequence[str] = STAGES) -> Job:
    """What these stages compute, over any shards.

    Args:
        settings: everything.
        stages: views, renders, or both.
    """
    store = open_store(settings)
    engines = engine_versions()
    common: dict[str, dict[str, str]] = {}
    for stage, section in (("views", settings.views), ("renders", settings.renders)):
        digest = fingerprints.settings_digest(section)
        store.save_settings(stage, digest, section.model_dump(mode="json"))
        common[stage] = {"settings": digest, "code": fingerprints.code_version(stage), "engine": engines[stage]}

    def rows(shard: str) -> list[Row]:
        held = require_complete(store, downloads.STAGE, shard, "downloads")
        files = store.read(held)
        wishes = store.read(store.manifest("catalog", shard), ["pinned_yaw", "up_axis"])
        views = store.manifest("views", shard)
        cameras = store.read(views, ["yaw", "pitch", "radius", "fov"])
        if "views" not in stages:
            require_complete(store, "views", shard, "views")
        made: list[Row] = []
        for key, row in held.rows.items():
            if row.status is not Status.OK:
                made += [
                    passed_on(stage, key if stage == "views" else view_key(key), downloads.STAGE, row)
                    for stage in stages
                ]
                continue
            if key not in wishes:
                raise NotReady(
                    f"downloads of shard {shard} are older than the catalog: run `python -m pipelines.downloads` first"
                )
            wish = wishes[key]
            shape = {"bundle": files[key]["bundle"], "up_axis": wish["up_axis"] or ""}
            payload = {"object_id": key, **files[key], **wish}
            view = views.rows.get(key)
            view_inputs = {
                **shape,
                "pinned_yaw": "" if wish["pinned_yaw"] is None else str(wish["pinned_yaw"]),
                **common["views"],
            }
            if "views" in stages:
                made.append(Row(stage="views", key=key, inputs=view_inputs, payload=payload))
            if "renders" not in stages:
                continue
            base = {**shape, **common["renders"]}
            payload = {**payload, "render_inputs": base}
            stale = "new" if view is None else view.needs(view_inputs, settings.limits)
            if "views" not in stages and stale.startswith(("new", "changed")):
                raise NotReady(f"the view of {key} is not up to date ({stale}): run `python -m pipelines.views` first")
            undecided = "views" in stages and bool(stale)
            if undecided or view is None:
                made.append(Row(stage="renders", key=view_key(key), inputs=None, after=("views", key), payload=payload))
            elif view.status is not Status.OK:
                made.append(passed_on("renders", view_key(key), "views", view))
            else:
                inputs = {**base, "camera": camera_digest(cameras[key])}
                made.append(Row(stage="renders", key=view_key(key), inputs=inputs, payload=payload))
        return made

    def items(shard: str, todo: list[Row], held: Mapping[str, Manifest]) -> list[Item]:
        by_object: dict[str, list[Row]] = {}
        for row in todo:
            by_object.setdefault(row.payload["object_id"], []).append(row)
        views: dict[str, dict[str, Any]] = {}
        if "renders" in stages:
            current = store.manifest("views", shard)
            only = [key for key, found in by_object.items() if all(row.stage == "renders" for row in found)]
            views = store.read(current, keys=only)
        made = []
        for object_id, found in by_object.items():
            payload = {**found[0].payload, **found[-1].payload}
            payload["want"] = [row.stage for row in found]
            payload["view"] = views.get(object_id)
            old = held["renders"].rows.get(view_key(object_id)) if "renders" in stages else None
            stands = old is not None and not old.needs(old.inputs, settings.limits)
            payload["render_current"] = dict(old.inputs) if old is not None and stands else None
            made.append(Item(shard=shard, rows=tuple(found), payload=payload))
        return made

    return Job(
        stages=tuple(stages),
        schema={"views": VIEWS, "renders": RENDERS},
        rows=rows,
        items=items,
        factory=partial(Renderer, settings, store.blobs.root),
        resources=Resources(settings.compute.workers, cpus=float(settings.renders.threads)),
        metadata={stage: {"settings": common[stage]["settings"], "engine": engines[stage]} for stage in stages},
    )


def run(settings: Settings, shards: Sequence[str], stages: Sequence[str] = STAGES) -> Report:
    """Bring these shards up to date."""
    sweep(Path(gettempdir()), f"{SCRATCH}-*")  # of a killed run, though this one may need no Blender
    return run_job(make_job(settings, stages), open_store(settings), settings, shards)


if __name__ == "__main__":
    stage_main("views and renders", __doc__, run)
