"""evaluate: the paper's tables of the settings' aligners, one after the other, and the report that compares them.

What was measured of the same checkpoints, data and settings is not measured again; stopped, it goes on where it was.
"""

import sys
from collections.abc import Sequence

if not __package__:  # run as a file, here or copied by `ray submit`: its folder is not where packages are looked for
    sys.path.pop(0)

from gap3d.settings import Settings
from gap3d.store import Store
from pipelines import alignment_metrics, evaluation_report, generation_metrics, retrieval_metrics
from pipelines.command import say, stage_main
from pipelines.evaluation.measured import of_report
from pipelines.predictions import checkpoint_of
from pipelines.report import Report, merge

PROGRAMS = {"alignment": alignment_metrics, "retrieval": retrieval_metrics, "generation": generation_metrics}


def run(settings: Settings, _shards: Sequence[str] = ()) -> Report:
    """Bring every table up to date, then the report.

    Raises:
        NotReady: a training is missing, before anything is measured.
        ValueError: ``evaluation.published`` is none, before anything is measured; and see the tables' programs.
        SystemicFault: see the tables' programs.
    """
    evaluation_report.published_of(settings)
    for model in settings.evaluation.models:
        checkpoint_of(settings, model)
    for collection in settings.evaluation.collections:
        Store.open(settings.store, collection, settings.blobs)
    report = merge(PROGRAMS[table].run(settings) for table in settings.tables)
    say(f"wrote {evaluation_report.of_settings(settings)}")
    return report


def run_and_print(settings: Settings, _shards: Sequence[str] = ()) -> Report:
    """``run``, and its numbers for a person."""
    report = run(settings)
    for table in settings.tables:
        say(*(line for result in of_report(settings, table, report) for line in PROGRAMS[table].lines_of(result)))
    say(f"the report of all tables: {evaluation_report.page_of(settings)}")
    return report


if __name__ == "__main__":
    stage_main("evaluate", __doc__ or "", run_and_print, sharded=False)
