"""A stage's report as what the UI shows: counts by status, seconds, throughput, digest, picture, checks."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg

from gap3d.contact_sheet import contact_sheet
from gap3d.settings import Settings
from gap3d.store import Store
from pipelines.command import open_store
from pipelines.previews import image_tiles, shard_report, shard_tiles
from pipelines.report import Report, ShardReport
from pipelines.utilisation import DECODE, FEED, FORWARD, Utilisation

FAULTS = ("internal_error",)
SHOWN = 18  # objects on a contact sheet


def metadata(report: ShardReport, wall_s: float) -> dict[str, Any]:
    """Metadata of one materialisation."""
    rate = report.computed / wall_s if wall_s else 0.0
    statuses = "\n".join(f"| {status} | {count} |" for status, count in report.by_status.items())
    found: dict[str, Any] = {
        "dagster/row_count": report.found,
        "statuses": dg.MetadataValue.md(f"| status | rows |\n|---|---|\n{statuses}"),
        **{f"rows_{status}": count for status, count in report.by_status.items()},
        "computed": report.computed,
        "passed_on": report.decided,
        "retried": report.retried,
        "seconds": round(wall_s, 3),
        "worker_seconds": round(report.seconds, 3),
        "rows_per_second": round(rate, 3),
        "digest": report.digest,
    }
    busy = Utilisation.of(report.costs, report.computed)
    if busy.images:
        found["encoder_busy"] = round(busy.share(FORWARD), 4)  # the rest is waiting
        found["encoder_waits_for_decoding"] = round(busy.share(DECODE), 4)
        found["encoder_waits_for_work"] = round(busy.share(FEED), 4)
    if report.costs:
        found["seconds_by_work"] = dg.MetadataValue.json(report.costs)
    if report.why:
        found["why_computed"] = dg.MetadataValue.json(report.why)
    return found


def funnel(report: Report) -> str:
    """The steps of a selection as a table."""
    lines = [f"| {step['step']} | {step['left_out']} | {step['rows']} |" for step in report.funnel]
    return "\n".join(["| step | left out | rows |", "|---|---|---|", *lines])


def picture(store: Store, settings: Settings, shard: str) -> dg.MetadataValue:
    """The shard's contact sheet: objects, their views, visibility scores; or its images.

    The UI shows markdown of less than 1000 characters at once and folds the rest; a picture is longer.

    Raises:
        dg.Failure: a part that the sheet is made from is damaged.
    """
    with damage_told(shard):
        rendered = settings.pictures == "renders"
        sheet = contact_sheet(
            shard_tiles(store, shard, SHOWN) if rendered else image_tiles(store, settings, shard, SHOWN)
        )
    return dg.MetadataValue.md(f"![contact sheet](data:image/jpeg;base64,{base64.b64encode(sheet).decode()})")


def shard_metadata(settings: Settings, shard: str) -> dict[str, dg.MetadataValue]:
    """What a person can look at: the shard's contact sheet, and of objects the path of the HTML report, up to date.

    A path, not a link: a browser follows none from http:// to file://; the UI copies a path with one click.

    Raises:
        dg.Failure: a part that they are made from is damaged.
    """
    store = open_store(settings)
    found = {"contact_sheet": picture(store, settings, shard)}
    if settings.pictures == "renders":
        with damage_told(shard):
            found["report"] = dg.MetadataValue.path(shard_report(store, settings, shard))
    return found


@contextmanager
def damage_told(shard: str, stages: str = "views and renders") -> Iterator[None]:
    """What can't be read, as a sentence that names the remedy."""
    try:
        yield
    except (OSError, ValueError) as error:
        words = (
            f"shard {shard} can't be shown: {error}\n"
            f"Execute the check parts_intact of {stages}: it names damaged parts and the remedy."
        )
        raise dg.Failure(words) from error


def check_results(asset: str, report: ShardReport) -> list[dg.AssetCheckResult]:
    """The checks that every run of a stage makes."""
    faults = sum(report.by_status.get(status, 0) for status in FAULTS)
    return [
        dg.AssetCheckResult(
            check_name="one_row_each",
            asset_key=asset,
            passed=report.expected == report.found,
            metadata={"expected": report.expected, "found": report.found, "shard": report.shard},
        ),
        dg.AssetCheckResult(
            check_name="no_internal_errors",
            asset_key=asset,
            passed=faults == 0,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"internal_error": faults, "shard": report.shard},
        ),
    ]


def check_specs(asset: str) -> list[dg.AssetCheckSpec]:
    """What ``check_results`` answers to."""
    return [
        dg.AssetCheckSpec("one_row_each", asset=asset, description="Every expected row is there, once."),
        dg.AssetCheckSpec("no_internal_errors", asset=asset, description="No row failed by a fault of this program."),
    ]


def result(asset: str, report: Report, shard: str, extra: dict[str, Any] | None = None) -> dg.MaterializeResult:
    """One asset's materialisation, with its content digest as data version."""
    one = report.of(asset, shard)
    return dg.MaterializeResult(
        asset_key=asset,
        data_version=dg.DataVersion(one.digest),
        metadata={**(extra or {}), **metadata(one, report.wall_s)},  # the picture first: the UI keeps this order
        check_results=check_results(asset, one),
    )
