"""Checks that can be run at any time: is what was committed still what lies there?"""

from collections.abc import Iterable

import dagster as dg

from assets_defs.partitions import SETTINGS
from assets_defs.resources import Compute
from gap3d.schemas import IMAGE_STAGES, STAGES
from gap3d.store import ALL
from pipelines.command import open_store


def known_damage(context: dg.AssetCheckExecutionContext, key: dg.AssetCheckKey) -> list[str]:
    """Shards that the last evaluation of a check found damaged."""
    for record in context.instance.event_log_storage.get_asset_check_execution_history(key, limit=10):
        event = record.event.dagster_event if record.event else None
        if event is not None and event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            told = event.asset_check_evaluation_data.metadata.get("damaged_shards")
            return str(told.value).split(", ") if told is not None else []
    return []


def intact(stage: str) -> dg.AssetChecksDefinition:
    """The check of one stage: every part is read against its page checksums and its manifest.

    Within the run of a shard that shard is read, and those known to be damaged; on its own it reads all.
    """

    @dg.asset_check(
        asset=stage,
        name="parts_intact",
        description="Every part is there, undamaged (page checksums), and holds the rows that its manifest lists. "
        "Execute it alone to read all shards; along with a shard it reads that shard, and those known to be damaged.",
        pool="checks",
    )
    def check(context: dg.AssetCheckExecutionContext, compute: Compute) -> dg.AssetCheckResult:
        store = open_store(compute.settings())
        shards: Iterable[str] = [ALL] if stage == "dataset" else store.shards
        if context.op_execution_context.has_partition_key:
            key = dg.AssetCheckKey(dg.AssetKey(stage), "parts_intact")
            shards = sorted({context.op_execution_context.partition_key, *known_damage(context, key)})
        faults, damaged, parts, rows = [], [], 0, 0
        for shard in shards:
            try:
                held = store.committed(stage, shard)
                found = store.verify(held)
                parts, rows = parts + len(held.parts), rows + len(held.rows)
            except ValueError as error:
                found = [str(error)]
            faults += found
            damaged += [shard] if found else []
        metadata: dict[str, dg.MetadataValue] = {
            "parts": dg.MetadataValue.int(parts),
            "rows": dg.MetadataValue.int(rows),
            "shards": dg.MetadataValue.text(", ".join(shards)),
        }
        if not damaged:
            return dg.AssetCheckResult(
                passed=True, metadata=metadata, description=f"{parts} parts with {rows} rows are sound."
            )
        folders = " ".join(str(store.shard(stage, shard)) for shard in damaged)
        return dg.AssetCheckResult(
            passed=False,
            description=f"{len(faults)} damaged: shard {', '.join(damaged)} of {stage}.",
            metadata={
                **metadata,
                "damaged_shards": dg.MetadataValue.text(", ".join(damaged)),
                "faults": dg.MetadataValue.json(faults),
                "remedy": dg.MetadataValue.text(
                    f"rm -r {folders}  # then materialise shard {', '.join(damaged)} of {stage} again"
                ),
            },
        )

    return check


CHECKS = [intact(stage) for stage in (STAGES if SETTINGS.pictures == "renders" else IMAGE_STAGES)]
