"""Workers for runs with Ray, one of which dies in the middle of a picture; in another one, its Blender does."""

import os
import signal
from pathlib import Path
from typing import Any

from killed import blender

from pipelines import rendering
from render.channel import Channel


def claim(path: Path) -> bool:
    """Whether this is the first to ask."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class DoomedRenderer(rendering.Renderer):
    """Kills itself in the first picture that any worker is asked for, its Blender in the second."""

    def process(self, payload: Any) -> Any:
        """See rendering.Renderer."""
        places = Path(os.environ["DOOM"])
        original = Channel.send

        def send(channel: Channel, message: Any) -> None:
            original(channel, message)
            if message["op"] == "render":
                if claim(places / "actor"):
                    os.kill(os.getpid(), signal.SIGKILL)
                if claim(places / "blender"):
                    os.kill(blender(), signal.SIGKILL)

        Channel.send = send
        try:
            return super().process(payload)
        finally:
            Channel.send = original


def doom(folder: str) -> None:
    """Called in the run's process: its workers are doomed ones."""
    os.environ["DOOM"] = folder
    rendering.Renderer = DoomedRenderer
