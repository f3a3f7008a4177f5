"""renders: an image of the chosen view of every object, with its camera. Key: (object_id, view)."""

import sys
from functools import partial

if not __package__:  # run as a file, here or copied by `ray submit`: its folder is not where packages are looked for
    sys.path.pop(0)

from pipelines.command import stage_main
from pipelines.rendering import run

if __name__ == "__main__":
    stage_main("renders", __doc__, partial(run, stages=("renders",)))
