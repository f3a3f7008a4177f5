"""What the child does for its parent: one operation per request, on the object that is loaded."""

from __future__ import annotations  # Stage is known to type checkers only

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from gap3d.records import Failure, Status
from render.job import DEPTH_FILE, FACES_FILE, HEADER, IMAGE_FILE, VERTICES_FILE, encode, frame_length, last_words

if TYPE_CHECKING:
    from render.blender.scene import Stage


class Session:
    """The object that is loaded, and the operations on it.

    Args:
        scene: the module ``render.blender.scene``.
        unconfined: why the kernel does not hold this process, "" if it does.
    """

    def __init__(self, scene: ModuleType, unconfined: str) -> None:
        self.scene = scene
        self.unconfined = unconfined
        self.stage: Stage | None = None
        self.clean = False  # bpy starts with the factory cube, light and camera in its scene

    def hello(self, request: dict[str, Any]) -> dict[str, Any]:
        """Say which Blender this is, and prove the device that is asked for."""
        device, no_device = "", ""
        try:
            device = self.scene.use_device(request["device"])
        except RuntimeError as error:
            no_device = last_words(str(error)) or "RuntimeError"
        self.clean = False
        return {
            "version": self.scene.VERSION,
            "device": device,
            "no_device": no_device,
            "unconfined": self.unconfined,
        }

    def reset(self, request: dict[str, Any]) -> dict[str, Any]:
        """Forget the object."""
        self.stage = None
        self.scene.reset()
        self.clean = True
        return {}

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Import an object into an empty Blender, normalise it, write its mesh, tell its facts."""
        if not self.clean:
            self.reset(request)
        self.clean = False
        self.stage, geometry, facts = self.scene.load(
            Path(request["tree"]), request["main"], request["file_type"], request["up_axis"], request["triangles"]
        )
        out = Path(request["out"])
        np.save(out / VERTICES_FILE, geometry.vertices)
        np.save(out / FACES_FILE, geometry.faces)
        return facts

    def render(self, request: dict[str, Any]) -> dict[str, Any]:
        """Write one image of the loaded object, and its depth if that is asked for."""
        if self.stage is None:
            raise Failure(Status.INTERNAL_ERROR, "render was asked before load")
        out = Path(request["out"])
        depth = out / DEPTH_FILE if request["depth"] else None
        return self.stage.render(
            out / IMAGE_FILE,
            depth,
            camera_to_world=request["camera_to_world"],
            fov=request["fov"],
            threads=request["threads"],
            **request["settings"],
        )


def answer(operation: Callable[[dict[str, Any]], dict[str, Any]], request: dict[str, Any]) -> dict[str, Any]:
    """Run one operation; its failure is an answer like any other."""
    try:
        return {"status": Status.OK, "reason": "", "body": operation(request)}
    except Failure as failure:
        status, reason = failure.status, failure.reason
    except MemoryError as error:
        status, reason = Status.OUT_OF_MEMORY, str(error) or "MemoryError"
    except Exception as error:  # noqa: BLE001 - the boundary of the process: the parent decides what a fault means
        traceback.print_exc()
        status, reason = Status.INTERNAL_ERROR, f"{type(error).__name__}: {error}"
    return {"status": status, "reason": last_words(reason, (str(request.get("tree", "")), os.getcwd())), "body": {}}  # noqa: PTH109


def serve(requests: BinaryIO, answers: BinaryIO, unconfined: str) -> None:
    """Answer requests until ``quit`` or until the parent closes its end."""
    from render.blender import scene  # slow, and prints

    session = Session(scene, unconfined)
    operations = {name: getattr(session, name) for name in ("hello", "reset", "load", "render")}
    while len(header := requests.read(HEADER.size)) == HEADER.size:
        request = json.loads(requests.read(frame_length(header)))
        if request["op"] == "quit":
            return
        reply = answer(operations[request["op"]], request)
        sys.stdout.flush()
        answers.write(encode(reply))
        answers.flush()
