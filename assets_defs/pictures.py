"""Quality gates as checks of the renders: how many pictures do not pass each, and which."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dagster as dg

from assets_defs.resources import Compute
from gap3d.quality import GATES
from gap3d.settings import Settings
from gap3d.store import Store
from pipelines.command import open_store

NAMED = 20  # pictures that a failing check names
DESCRIPTIONS = {
    "all_black": "No picture whose object is black all over (a missing light, flipped normals, a broken material).",
    "one_colour": "No picture of one flat colour.",
    "cut_off": "No object reaches the frame's edge. The paper's camera cuts what fills its unit cube.",
    "coverage": "The covered share of every frame is within quality.covered.",
    "missing_textures": "No object refers to images that are not there.",
    "duplicate_view": "No two views of an object have the same pixels.",
    "right_size": "Every picture has renders.resolution pixels a side.",
}


def tally(store: Store, settings: Settings, shards: Sequence[str]) -> tuple[int, Mapping[str, Sequence[str]]]:
    """(number of pictures, keys of those that do not pass, by gate) over the committed renders."""
    found: dict[str, list[str]] = defaultdict(list)
    count = 0
    for shard in shards:
        held = store.manifest("renders", shard)
        rows: Mapping[str, Mapping[str, Any]] = store.read(held, ["flags", "width", "height"])
        count += sum(row.status in ("ok", "rejected") for row in held.rows.values())
        for key, row in sorted(rows.items()):
            for gate in row["flags"]:
                found[gate].append(key)
            if not row["width"] == row["height"] == settings.renders.resolution:
                found["right_size"].append(key)
        for key, ledger in sorted(held.rows.items()):
            if ledger.status == "rejected":
                for gate in ledger.reason.rpartition(": ")[2].split(", "):
                    found[gate].append(key)
    return count, found


@dg.multi_asset_check(
    name="quality_gates",
    specs=[
        dg.AssetCheckSpec(f"quality_{gate}", asset="renders", description=DESCRIPTIONS[gate])
        for gate in (*GATES, "right_size")
    ],
    can_subset=True,
    pool="checks",
)
def quality_gates(context: dg.AssetCheckExecutionContext, compute: Compute) -> Iterator[dg.AssetCheckResult]:
    """One check per gate; along with a shard it looks at that shard, alone at all of them."""
    settings = compute.settings()
    store = open_store(settings)
    inner = context.op_execution_context
    shards = [inner.partition_key] if inner.has_partition_key else store.shards
    count, found = tally(store, settings, shards)
    for key in sorted(inner.selected_asset_check_keys, key=lambda key: key.name):
        gate = key.name.removeprefix("quality_")
        bad = found.get(gate, [])
        named = ", ".join(bad[:NAMED]) + (f" and {len(bad) - NAMED} more" if len(bad) > NAMED else "")
        yield dg.AssetCheckResult(
            check_name=key.name,
            asset_key="renders",
            passed=not bad,
            severity=dg.AssetCheckSeverity.ERROR if gate == "right_size" else dg.AssetCheckSeverity.WARN,
            description=f"{len(bad)} of {count} pictures",
            metadata={
                "pictures": count,
                "flagged": len(bad),
                "keys": dg.MetadataValue.text(named or "none"),
                "shards": dg.MetadataValue.text(", ".join(shards)),
                **({"action": str(getattr(settings.quality, gate))} if gate in GATES else {}),
            },
        )
