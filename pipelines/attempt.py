"""One try at one object: its import, its cameras, its images, its gates; each stage's rows from it."""

import logging
import time
import traceback
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from gap3d import depth, fingerprints, protocols, quality
from gap3d.cameras import Camera
from gap3d.parts import read_rows
from gap3d.records import Failure, Outcome, Status, SystemicFault
from gap3d.schemas import RENDERS, VIEWS
from gap3d.settings import Settings
from gap3d.visibility import select_view
from pipelines.job import follower
from render.job import Mesh, Model, View
from render.worker import Blender

log = logging.getLogger(__name__)
CAMERA = ("yaw", "pitch", "radius", "fov")
SCHEMAS = {"views": VIEWS, "renders": RENDERS}


def view_key(object_id: str, view: int) -> str:
    """Key of one image of an object."""
    return f"{object_id}/{view:03d}"


def camera_digest(camera: Mapping[str, float]) -> str:
    """What a picture depends on of a views row: its camera, not the scores."""
    return fingerprints.digest_of([camera[name] for name in CAMERA])


def image_inputs(common: Mapping[str, str], cameras: Sequence[Mapping[str, float]], number: int) -> dict[str, str]:
    """The parts of an image's fingerprint.

    Its gates compare it with the object's earlier views, so their cameras count, for the gates alone.

    Args:
        common: what all images of the object have in common.
        cameras: of the views row.
        number: which image.
    """
    digests = [camera_digest(camera) for camera in cameras[: number + 1]]
    gates = fingerprints.digest_of([common["quality"], digests[:-1]])
    return {**common, "camera": digests[-1], "quality": gates}


def only_gates_differ(standing: Mapping[str, Any], inputs: Mapping[str, str]) -> bool:
    """Whether a picture stands, and only what is thought of it may not."""
    return {**standing["inputs"], "quality": ""} == {**inputs, "quality": ""}


def check_fits(stage: str, data: Mapping[str, Any]) -> None:
    """A row that its part could not hold is a fault of its object, not of the writer that meets it later."""
    columns = SCHEMAS[stage].columns
    pa.RecordBatch.from_pylist([data], schema=pa.schema([field for field in columns if field.name != "key"]))


class Attempt:
    """One try at one object.

    The payload holds ``object_id``, ``files``, ``main``, ``file_type``, ``up_axis``, ``pinned_yaw``; ``view`` (the
    views row in force, None if it is to be made), ``images`` (numbers of the images that are wanted),
    ``render_inputs`` (parts of their fingerprint without the cameras), ``standing`` (number -> what is known of an
    image in force that no limit or transient failure sends back: its ``inputs``, its ``picture``, and its ``place``:
    part, row, device and sandboxed, None unless ok).

    Args:
        settings: everything.
        blender: what opens the object.
        payload: see above.
        done: outcomes of earlier tries, by stage and key; they are not made again.
        sent_back: what a gate sent back in an earlier try: it is rendered, whatever stands.
        last: no other try follows.
    """

    def __init__(
        self,
        settings: Settings,
        blender: Blender,
        payload: Mapping[str, Any],
        done: Mapping[str, Outcome],
        sent_back: Collection[str],
        last: bool,
    ) -> None:
        self.settings = settings
        self.blender = blender
        self.payload = payload
        self.done = done
        self.sent_back = sent_back
        self.last = last
        self.again: set[str] = set()
        self.object_id: str = payload["object_id"]
        self.mesh: Mesh | None = None
        self.failure: Failure | None = None
        self.facts: tuple[str, bool | None] = ("", None)  # device and sandboxed of the row at hand
        self.pictures: dict[int, str] = {
            number: standing["picture"] for number, standing in payload["standing"].items() if standing["picture"]
        }
        self.pictures |= {o.data["view"]: o.data["picture"] for o in done.values() if o.stage == "renders" and o.data}

    def run(self, tree: Path) -> list[Outcome]:
        """Outcomes of what is wanted and not done, views first."""
        outcomes: list[Outcome] = []
        view = self.payload["view"]
        if view is None:
            made = self.done.get(f"views {self.object_id}")
            if made is None:
                made = self.measured("views", self.object_id, lambda: self.choose(tree), None)
                outcomes.append(made)
            if made.status is not Status.OK:
                keys = [view_key(self.object_id, number) for number in self.payload["images"]]
                return outcomes + [follower("renders", key, "views", made) for key in keys]
            view = made.data or {}
        fallen: tuple[int, Outcome] | None = None
        for number in self.payload["images"]:
            key = view_key(self.object_id, number)
            camera = view["cameras"][number]
            inputs = image_inputs(self.payload["render_inputs"], view["cameras"], number)
            standing = self.payload["standing"].get(number)
            if f"renders {key}" in self.done or (standing and standing["inputs"] == inputs):
                continue  # made by an earlier try, or the camera came out as it was: the picture stands
            if fallen is not None:
                # What ended Blender in one view would end it in the next: one limit an object, not one a view.
                number_of, first = fallen
                reason = f"as view {number_of}: {first.reason}"
                outcomes.append(replace(first, key=key, reason=reason, seconds=0.0, costs={}, inputs=inputs))
                continue
            self.pictures.pop(number, None)
            work = partial(self.picture, tree, number, camera)
            if (
                standing
                and standing["place"]
                and f"renders {key}" not in self.sent_back
                and only_gates_differ(standing, inputs)
            ):
                work = partial(self.regate, number, *standing["place"])
            outcome = self.measured("renders", key, work, inputs)
            outcomes.append(outcome)
            if outcome.data is not None:
                self.pictures[number] = outcome.data["picture"]
            elif outcome.status not in (Status.EMPTY_RENDER, Status.REJECTED):
                fallen = number, outcome
        return outcomes

    def measured(self, stage: str, key: str, work: Any, inputs: Mapping[str, str] | None) -> Outcome:
        """Run one stage's work; a known fault becomes its row, an unknown one its internal_error."""
        started = time.monotonic()
        status, reason, data, costs, tail = Status.OK, "", None, {}, ""
        self.facts = ("", None)
        try:
            data, costs = work()
            check_fits(stage, data)
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
            device=self.facts[0] if stage == "renders" or not self.facts[0] else "CPU",
            sandboxed=self.facts[1],
            log_tail=tail[-2048:],
            costs=costs,
            inputs=inputs,
        )

    def load(self, tree: Path) -> Mesh:
        """Import the object, once for all that is wanted; what fails once fails for all."""
        self.facts = (self.blender.device, self.blender.sandboxed)
        if self.failure is not None:
            raise self.failure
        if self.mesh is None:
            axis = self.payload["up_axis"]
            model = Model(tree, self.payload["main"], self.payload["file_type"], axis.upper() if axis else None)
            try:
                self.mesh = self.blender.load(model)
            except Failure as failure:
                self.failure = failure
                raise
        return self.mesh

    def choose(self, tree: Path) -> tuple[dict[str, Any], dict[str, float]]:
        """Columns of the views row, and seconds by kind of work."""
        mesh = self.load(tree)
        started = time.monotonic()
        settings = self.settings.views
        scores: dict[str, Any] = {"candidates": [], "counts": [], "points": 0, "chosen": -1, "pinned": False}
        if settings.protocol == "least_occluded":
            pinned = self.payload["pinned_yaw"]
            choice = select_view(mesh.vertices, mesh.faces, settings, self.object_id, pinned)
            cameras = [choice.camera]
            scores = {
                "candidates": [columns_of(camera) for camera in protocols.grid(settings)],
                "counts": list(choice.counts),
                "points": choice.points,
                "chosen": -1 if choice.chosen is None else choice.chosen,
                "pinned": choice.pinned,
            }
        else:
            cameras = protocols.cameras(settings, self.object_id)
        columns = {
            "protocol": settings.protocol,
            "cameras": [columns_of(camera) for camera in cameras],
            **scores,
            "scale": mesh.scale,
            "offset": list(mesh.offset),
            "vertices": len(mesh.vertices),
            "triangles": len(mesh.faces),
            "objects": mesh.objects,
            "animated": mesh.animated,
            "missing_textures": list(mesh.missing_textures),
        }
        return columns, {**mesh.costs, "select": time.monotonic() - started}

    def picture(self, tree: Path, number: int, place: Mapping[str, float]) -> tuple[dict[str, Any], dict[str, float]]:
        """Columns of a renders row, and seconds by kind of work."""
        imported = self.mesh is None
        mesh = self.load(tree)
        camera = Camera(**{name: place[name] for name in CAMERA})
        image = self.blender.render(View(camera.camera_to_world, camera.fov), self.settings.renders)
        low, high = depth.depth_range(camera.radius)
        columns = {
            "object_id": self.object_id,
            "view": number,
            "png": image.png,
            "width": image.width,
            "height": image.height,
            **{name: place[name] for name in ("yaw", "pitch", "radius")},
            "camera_angle_x": camera.fov_radians,
            "transform_matrix": camera.camera_to_world.reshape(-1).tolist(),
            "scale": mesh.scale,
            "offset": list(mesh.offset),
            "missing_textures": list(mesh.missing_textures),
            "depth": None if image.depth is None else depth.encode_depth(image.depth, low, high),
            "depth_min": None if image.depth is None else low,
            "depth_max": None if image.depth is None else high,
        }
        self.gate(number, columns)
        return columns, {**(mesh.costs if imported else {}), **image.costs}

    def regate(
        self, number: int, part: str, row: int, device: str, sandboxed: bool | None
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """The row in force with its gates passed anew."""
        self.facts = (device, sandboxed)
        (columns,) = read_rows(Path(part), [row]).to_pylist()
        del columns["key"]
        self.gate(number, columns)
        return columns, {}

    def gate(self, number: int, columns: dict[str, Any]) -> None:
        """Set a picture's flags.

        Raises:
            Failure: rejected, where a gate drops it, or sends it back and this is the last try.
        """
        seen = quality.look(columns["png"], self.settings.limits.pixels)
        earlier = [digest for other, digest in self.pictures.items() if other < number]
        found = quality.flags(seen, self.settings.quality, columns["missing_textures"], earlier)
        columns |= {"coverage": seen.coverage, "picture": seen.digest, "flags": found}
        action = quality.verdict(found, self.settings.quality)
        if action == "retry" and not self.last:
            self.again.add(f"renders {view_key(self.object_id, number)}")
        elif action != "flag":
            raise Failure(Status.REJECTED, f"quality gates: {', '.join(found)}")


def columns_of(camera: Camera) -> dict[str, float]:
    """A camera as it stands in a views row."""
    return {name: getattr(camera, name) for name in CAMERA}
