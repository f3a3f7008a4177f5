"""The program around Blender: reads requests on one descriptor, answers on another, trusts its caller only.

Started by ``render.worker`` as ``python -m render.child REQUESTS ANSWERS PARENT_PID``; the two descriptors are
inherited, everything Blender prints goes to the log the parent gave as standard output.
"""

from __future__ import annotations  # Stage is known to type checkers only

import ctypes
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from gap3d.records import Failure, Status
from render.job import FACES_FILE, HEADER, IMAGE_FILE, VERTICES_FILE, encode, frame_length, last_words

if TYPE_CHECKING:
    from render.scene import Stage

PR_SET_PDEATHSIG = 1


def confine(parent: int) -> None:
    """Die with the parent, leave no core file, and keep standard output and error in the log.

    Blender (C code) holds the interpreter for minutes at a time, so only the kernel can end this process in time when
    its parent is killed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before the line above took hold
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(sys.stdout.fileno(), sys.stderr.fileno())


class Session:
    """The object that is loaded, and the operations on it.

    Args:
        scene: the module ``render.scene``, imported only after the process is confined.
    """

    def __init__(self, scene: ModuleType) -> None:
        self.scene = scene
        self.stage: Stage | None = None
        self.clean = False  # bpy starts with the factory cube, light and camera in its scene

    def hello(self, request: dict[str, Any]) -> dict[str, Any]:
        """Say which Blender this is."""
        return {"version": self.scene.VERSION}

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
        """Write one image of the loaded object."""
        if self.stage is None:
            raise Failure(Status.INTERNAL_ERROR, "render was asked before load")
        return self.stage.render(
            Path(request["out"]) / IMAGE_FILE,
            camera_to_world=request["camera_to_world"],
            fov=request["fov"],
            resolution=request["resolution"],
            samples=request["samples"],
            denoise=request["denoise"],
            threads=request["threads"],
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


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until ``quit`` or until the parent closes its end."""
    from render import scene  # slow, and prints: only now that the process is confined

    session = Session(scene)
    operations = {name: getattr(session, name) for name in ("hello", "reset", "load", "render")}
    while len(header := requests.read(HEADER.size)) == HEADER.size:
        request = json.loads(requests.read(frame_length(header)))
        if request["op"] == "quit":
            return
        reply = answer(operations[request["op"]], request)
        sys.stdout.flush()
        answers.write(encode(reply))
        answers.flush()


def main() -> None:
    """Confine this process, then serve on the descriptors named on the command line."""
    requests, answers, parent = map(int, sys.argv[1:])
    confine(parent)
    with os.fdopen(requests, "rb") as source, os.fdopen(answers, "wb") as sink:
        serve(source, sink)
    # Blender as a module may crash while the interpreter is torn down; nothing is left to save.
    os._exit(0)


if __name__ == "__main__":
    main()
