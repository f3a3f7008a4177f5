"""Checks that can be run at any time: is what was committed still what lies there?"""

from collections.abc import Iterable

import dagster as dg

from assets_defs.resources import Compute
from gap3d.store import ALL
from pipelines.command import open_store

STAGES = ("catalog", "downloads", "views", "renders", "targets", "dataset")


def intact(stage: str) -> dg.AssetChecksDefinition:
    """The check of one stage: every part of every shard is read against its page checksums and its manifest."""

    @dg.asset_check(
        asset=stage,
        name="parts_intact",
        description="Every part is there, undamaged (page checksums), and holds the rows that its manifest lists.",
        pool="checks",
    )
    def check(compute: Compute) -> dg.AssetCheckResult:
        store = open_store(compute.settings())
        shards: Iterable[str] = [ALL] if stage == "dataset" else store.shards
        faults, parts, rows = [], 0, 0
        for shard in shards:
            try:
                held = store.manifest(stage, shard)
            except ValueError as error:
                faults.append(str(error))
                continue
            parts, rows = parts + len(held.parts), rows + len(held.rows)
            faults += store.verify(held)
        remedy = "remove the damaged part's shard folder and materialise that shard again" if faults else ""
        return dg.AssetCheckResult(
            passed=not faults, metadata={"parts": parts, "rows": rows, "faults": dg.MetadataValue.json(faults), "remedy": remedy}
        )

    return check


CHECKS = [intact(stage) for stage in STAGES]
