"""The image-text assets: shown where the settings name repositories of the hub, or a copy of COCO."""

from importlib import import_module
from typing import Any

import dagster as dg

from assets_defs import events
from assets_defs.data import OWNERS, version
from assets_defs.partitions import SETTINGS
from assets_defs.resources import Compute
from gap3d import fingerprints
from gap3d.store import ALL
from pipelines.command import open_store


@dg.asset(
    name="image_text",
    group_name="pairs",
    kinds={"huggingface", "python"},
    owners=OWNERS,
    code_version=version("image_text", fingerprints.settings_digest(SETTINGS.image_text)),
    check_specs=events.check_specs("image_text"),
    pool="downloads",
)
def hub_tars(context: dg.AssetExecutionContext, compute: Compute) -> dg.MaterializeResult:
    """The hub's tars of image-text pairs, checked against their sha256, in one flat folder."""
    report = compute.run(context, "image_text")
    settings = compute.settings()
    store = open_store(settings)
    rows = store.read(store.manifest("image_text", ALL), ["bytes", "samples"]).values()
    extra = {
        "folder": dg.MetadataValue.path(program("image_text").folder_of(settings)),
        "gigabytes": sum(row["bytes"] for row in rows) / 1e9,
        "pairs": sum(row["samples"] for row in rows),
    }
    return events.result("image_text", report, ALL, extra)


@dg.asset(
    name="coco",
    group_name="pairs",
    kinds={"python"},
    owners=OWNERS,
    code_version=version("coco", fingerprints.settings_digest(SETTINGS.coco)),
    check_specs=events.check_specs("coco"),
    pool="downloads",
)
def coco_tars(context: dg.AssetExecutionContext, compute: Compute) -> dg.MaterializeResult:
    """MS-COCO as image-text tars: the original images, each with the caption that the evaluation protocol draws."""
    report = compute.run(context, "coco")
    extra = {"folder": dg.MetadataValue.path(program("coco").folder_of(compute.settings()))}
    return events.result("coco", report, ALL, extra)


def program(stage: str) -> Any:
    """A stage's module: what it imports is only wanted where it is in use."""
    return import_module(f"pipelines.{stage}")


def intact(stage: str) -> dg.AssetChecksDefinition:
    """The check of one asset: its parts, and every byte of its tars."""

    @dg.asset_check(
        asset=stage,
        name="tars_intact",
        description="Every tar has the sha256 that its rows say, and the rows are undamaged. Reads all of them.",
        pool="checks",
    )
    def check(compute: Compute) -> dg.AssetCheckResult:
        settings = compute.settings()
        store = open_store(settings)
        faults = [*store.verify(store.committed(stage, ALL)), *program(stage).damaged(settings, store)]
        return dg.AssetCheckResult(passed=not faults, metadata={"faults": dg.MetadataValue.json(faults)})

    return check


ASSETS: list[dg.AssetsDefinition] = []
CHECKS: list[dg.AssetChecksDefinition] = []
if SETTINGS.image_text.repositories:
    ASSETS.append(hub_tars)
    CHECKS.append(intact("image_text"))
if SETTINGS.coco.path is not None:
    ASSETS.append(coco_tars)
    CHECKS.append(intact("coco"))
