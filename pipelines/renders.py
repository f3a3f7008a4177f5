"""renders: an image of the chosen view of every object, with its camera. Key: (object_id, view)."""

from functools import partial

from pipelines.command import stage_main
from pipelines.rendering import run

if __name__ == "__main__":
    stage_main("renders", __doc__, partial(run, stages=("renders",)))
