"""finetune: stage 2 of the aligner: from pretrained weights, on a collection's targets (section finetuning)."""

import sys
from collections.abc import Sequence

if not __package__:  # run as a file, here or copied by `ray submit`: its folder is not where packages are looked for
    sys.path.pop(0)

from gap3d.settings import Settings
from gap3d.training.run import Stage
from pipelines import aligner
from pipelines.report import Report

STAGE: Stage = "finetune"


def run(settings: Settings, _shards: Sequence[str] = ()) -> Report:
    """Bring the training to its end; see ``aligner.run``."""
    return aligner.run(settings, STAGE)


if __name__ == "__main__":
    aligner.main(STAGE, __doc__)
