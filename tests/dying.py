"""An extractor whose process dies of one picture."""

import os
import signal
from collections.abc import Sequence

from gap3d.evaluation.views import View
from gap3d.records import Outcome
from pipelines.evaluation import picture_extractor, pictured
from pipelines.evaluation.picture_extractor import PictureExtractor

KEY = "b/006"


class Dying(PictureExtractor):
    """Dies of ``KEY``, every time."""

    def process(self, payload: Sequence[View]) -> list[Outcome]:
        """See PictureExtractor."""
        if any(view.key == KEY for view in payload):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().process(payload)


def doom(_: object) -> None:
    """Called in the run's process: its extractors are such ones, and have a process of their own."""
    picture_extractor.PictureExtractor = Dying
    pictured.without_ray = lambda settings, *_: settings
