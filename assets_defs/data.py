"""The data assets: catalog, downloads, views, renders, or images in their place; targets, dataset."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import BaseModel

from assets_defs import events
from assets_defs.automation import AFTER_TARGETS, FIRST, FIRST_HOP, ON_CHANGE, ON_NEW_VERSION, WHEN_SETTLED
from assets_defs.partitions import SETTINGS, SHARDS
from assets_defs.resources import Compute
from assets_defs.tokens import metadata_of as token_metadata
from gap3d import fingerprints
from gap3d.store import ALL
from pipelines import rendering

OWNERS = ["team:gap3d"]
DATA_VERSION = "dagster/data_version"
ENGINES = rendering.engine_versions()
RENDERED = SETTINGS.pictures == "renders"


def version(stage: str, *parts: str) -> str:
    """An asset's code version: a change of code, result settings or engine is seen as one."""
    return fingerprints.digest_of([fingerprints.code_version(stage), *parts])[:16]


def where_it_lies(section: BaseModel) -> str:
    """Digest of settings that name files: a store that is copied with the files beside it has the same."""

    def seen_from_there(value: Any) -> Any:
        if isinstance(value, Path):
            beside = SETTINGS.store.parent
            return str(value.relative_to(beside) if value.is_relative_to(beside) else value)
        if isinstance(value, dict):
            return {name: seen_from_there(each) for name, each in value.items()}
        return [seen_from_there(each) for each in value] if isinstance(value, tuple | list) else value

    return fingerprints.digest_of(seen_from_there(section.model_dump()))


@dg.asset(
    group_name="objects",
    kinds={"python", "parquet"},
    owners=OWNERS,
    code_version=version("catalog", where_it_lies(SETTINGS.source), where_it_lies(SETTINGS.catalog)),
    automation_condition=ON_NEW_VERSION,
    check_specs=events.check_specs("catalog"),
    pool="catalog",
)
def catalog(context: dg.AssetExecutionContext, compute: Compute) -> dg.MaterializeResult:
    """Which objects take part: captions, licence, split, rank and shard.

    Reads the source folder, or the tables that list objects elsewhere; unchanged files are not read again, and `funnel`
    counts what each step of the selection left out. Start here: materialise the catalog, then downloads,
    views, renders and targets of the shards you want, then the dataset. What is up to date is never computed twice.
    """
    report = compute.run(context, "catalog")
    known = context.instance.event_log_storage.get_latest_tags_by_partition(
        dg.AssetKey("shard_manifest"), dg.DagsterEventType.ASSET_MATERIALIZATION, [DATA_VERSION]
    )  # of all shards at once: one by one takes seconds where there are a thousand
    for shard in report.shards:
        if known.get(shard.shard, {}).get(DATA_VERSION) != shard.digest:
            context.log_event(
                dg.AssetMaterialization(
                    "shard_manifest",
                    partition=shard.shard,
                    metadata={"rows": shard.found},
                    tags={DATA_VERSION: shard.digest},
                )
            )
    whole: dict[str, Any] = {
        "objects": report.count("found"),
        "shards": len(report.shards),
        "changed": report.count("computed"),
        "statuses": dg.MetadataValue.json(report.by_status("catalog")),
        "funnel": dg.MetadataValue.md(events.funnel(report)),
        "seconds": round(report.wall_s, 3),
        "digest": fingerprints.digest_of([shard.digest for shard in report.shards]),
    }
    expected, found = report.count("expected"), report.count("found")
    faults = report.by_status("catalog").get("internal_error", 0)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(str(whole["digest"])),
        metadata={**whole, "dagster/row_count": found},
        check_results=[
            dg.AssetCheckResult(
                check_name="one_row_each", passed=expected == found, metadata={"expected": expected, "found": found}
            ),
            dg.AssetCheckResult(
                check_name="no_internal_errors", passed=faults == 0, severity=dg.AssetCheckSeverity.WARN
            ),
        ],
    )


shard_manifest = dg.AssetSpec(
    "shard_manifest",
    deps=[catalog],
    partitions_def=SHARDS,
    group_name="objects",
    kinds={"parquet"},
    owners=OWNERS,
    description="The catalog's shards: nothing to materialise here. "
    "The catalog reports an event for each shard that changed; downloads follow those.",
)


@dg.asset(
    deps=[shard_manifest],
    partitions_def=SHARDS,
    group_name="objects",
    kinds={"python", "ray"},
    owners=OWNERS,
    code_version=version("downloads"),
    automation_condition=FIRST_HOP,
    check_specs=events.check_specs("downloads"),
    pool="downloads",
)
def downloads(context: dg.AssetExecutionContext, compute: Compute) -> dg.MaterializeResult:
    """Bytes and companions of every object, checked against their sha256 and stored once by content."""
    shard = context.partition_key
    return events.result("downloads", compute.run(context, "downloads", [shard]), shard)


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            "views",
            deps=[downloads],
            group_name="images",
            kinds={"python", "ray", "blender"},
            owners=OWNERS,
            skippable=True,
            code_version=version("views", fingerprints.settings_digest(SETTINGS.views), ENGINES["views"]),
            automation_condition=ON_CHANGE,
            description="The cameras of every object: the least occluded of the candidates, with all scores (paper "
            "A.1.2), or those of another protocol. `contact_sheet` of a materialisation opens a picture: each object "
            "in its chosen view, and below it the share of its surface that each candidate sees; the chosen one is "
            "lit.",
        ),
        dg.AssetSpec(
            "renders",
            deps=[downloads, "views"],
            group_name="images",
            kinds={"python", "ray", "blender"},
            owners=OWNERS,
            skippable=True,
            code_version=version(
                "renders",
                fingerprints.settings_digest(SETTINGS.renders),
                fingerprints.settings_digest(SETTINGS.quality),
                ENGINES["renders"],
            ),
            automation_condition=ON_CHANGE,
            description="An RGBA image of every view that the protocol asks for, with its camera and its flags. "
            "Materialise it together with views: each object is then imported once. `contact_sheet` of a "
            "materialisation opens a picture.",
        ),
    ],
    can_subset=True,
    partitions_def=SHARDS,
    check_specs=[*events.check_specs("views"), *events.check_specs("renders")],
    pool="rendering",
)
def views_and_renders(context: dg.AssetExecutionContext, compute: Compute) -> Iterator[dg.MaterializeResult]:
    """Import every object once, choose its view, render it."""
    shard = context.partition_key
    asked = [
        stage for stage in rendering.STAGES if dg.AssetKey(stage) in context.op_execution_context.selected_asset_keys
    ]
    report = compute.run(context, "rendering", [shard], asked)
    shown = events.shard_metadata(compute.settings(), shard)
    for stage in asked:
        yield events.result(stage, report, shard, shown)


@dg.asset(
    partitions_def=SHARDS,
    group_name="images",
    kinds={"python", "ray"},
    owners=OWNERS,
    code_version=version("images", where_it_lies(SETTINGS.images), where_it_lies(SETTINGS.catalog)),
    automation_condition=FIRST,
    check_specs=events.check_specs("images"),
    pool="images",
)
def images(context: dg.AssetExecutionContext, compute: Compute) -> dg.MaterializeResult:
    """Images of tars or of a folder, with captions, split and rank: where a collection has no objects to render.

    Start here. A tar or file that is as it was is not read again; every sample has a row.
    """
    shard = context.partition_key
    return events.result("images", compute.run(context, "images", [shard]), shard)


@dg.asset(
    deps=[SETTINGS.pictures],
    partitions_def=SHARDS,
    group_name="features",
    kinds={"pytorch", "ray", "parquet"},
    owners=OWNERS,
    code_version=version("targets", fingerprints.settings_digest(SETTINGS.targets)),
    automation_condition=ON_CHANGE,
    check_specs=events.check_specs("targets"),
    pool="targets",
)
def targets(context: dg.AssetExecutionContext, compute: Compute) -> dg.MaterializeResult:
    """CLS, register and patch tokens of every render, or image: the tensors that the aligner learns to generate.

    `encoder_busy` of a materialisation is the share of the encoders' time in which they had something to encode."""
    from pipelines.targets import label

    shard = context.partition_key
    report = compute.run(context, "targets", [shard])
    extra = {"encoder": label(compute.settings()), **events.shard_metadata(compute.settings(), shard)}
    return events.result("targets", report, shard, extra)


@dg.asset(
    deps=[targets, "catalog" if RENDERED else "images"],
    group_name="features",
    kinds={"python", "parquet"},
    owners=OWNERS,
    code_version=version("dataset", fingerprints.settings_digest(SETTINGS.dataset)),
    automation_condition=WHEN_SETTLED if RENDERED else AFTER_TARGETS,
    check_specs=events.check_specs("dataset"),
    pool="dataset",
)
def dataset(context: dg.AssetExecutionContext, compute: Compute) -> dg.MaterializeResult:
    """The index of good rows: captions, split, and which part holds which target.

    `preview` of a materialisation opens a picture: images beside their patch tokens, whose first three principal
    components are shown as colours. `report` is the path of an HTML page: token statistics, nearest neighbours,
    outliers, near duplicates, storage.
    """
    report = compute.run(context, "dataset")
    return events.result("dataset", report, ALL, token_metadata(compute.settings()))


OF_OBJECTS: Sequence[dg.AssetsDefinition | dg.AssetSpec] = [catalog, shard_manifest, downloads, views_and_renders]
ASSETS: Sequence[dg.AssetsDefinition | dg.AssetSpec] = [*(OF_OBJECTS if RENDERED else [images]), targets, dataset]
