"""What these settings have measured: results as they lie in the store, and those that a run reports."""

from pathlib import Path

from gap3d.evaluation.quirks import Table
from gap3d.evaluation.result import Result, find
from gap3d.records import SystemicFault
from gap3d.settings import Settings
from gap3d.store import Store
from pipelines.report import Report


def stage_of(table: Table) -> str:
    """The program, and the asset, that measures a table."""
    return f"{table}_metrics"


def homes(settings: Settings) -> list[Path]:
    """Folders of the collections whose results these settings can make."""
    section = settings.evaluation
    names = dict.fromkeys(filter(None, (settings.collection, *section.collections, section.true)))
    if section.true and Store.exists(settings.store, section.true):
        from pipelines.around import parent_of  # brings torch

        # Of renders from all around, results lie with the objects that they show.
        names[parent_of(settings, Store.open(settings.store, section.true, settings.blobs)).collection] = None
    return [settings.store / name for name in names]


def history_of(settings: Settings, table: Table) -> list[Result]:
    """All results of a table on the settings' collections, the oldest first.

    Raises:
        SystemicFault: one is damaged.
    """
    return sorted((one for home in homes(settings) for one in find(home, table)), key=lambda one: one.made_at)


def of_report(settings: Settings, table: Table, report: Report) -> list[Result]:
    """The results that a run reports, whether it measured them or found them measured.

    Raises:
        SystemicFault: one is not there, or damaged.
    """
    history, found = history_of(settings, table), []
    for row in report.of_stage(stage_of(table)):
        same = [
            one for one in history if (f"{one.collection}/{one.model}", one.samples_digest) == (row.shard, row.digest)
        ]
        if not same:
            raise SystemicFault(f"{row.stage} left no result of {row.shard}: its store is not the one seen from here")
        found.append(same[-1])
    return found
