"""views: the least-occluded view of every object, with all scores and the normalisation. Key: object_id."""

from functools import partial

from pipelines.command import stage_main
from pipelines.rendering import run

if __name__ == "__main__":
    stage_main("views", __doc__, partial(run, stages=("views",)))
