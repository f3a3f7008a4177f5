"""Looks at the source every half minute, and has the catalog made when it changed and has come to rest."""

import json

import dagster as dg

from assets_defs.partitions import SETTINGS, SHARDS
from gap3d import images
from gap3d.fingerprints import digest_of
from gap3d.records import SystemicFault
from gap3d.watched import look, watched
from pipelines.images import listed


@dg.sensor(
    target=dg.AssetSelection.assets("catalog"),
    minimum_interval_seconds=30,
    description="Makes the catalog when files of the source, or the tables beside it, changed and then stayed as they "
    "are from one tick to the next: a copy in progress is waited for. Reads names, sizes and times only.",
)
def watch_source(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """See the description. The cursor has what the source looked like at the last tick, and when last requested."""
    places = watched(SETTINGS)
    if not places:
        return dg.SensorResult(skip_reason=f"A source of kind {SETTINGS.source.kind!r} never changes by itself")
    if absent := [str(place) for place in places if not place.exists()]:
        # A disk that is not mounted, or a table that is being replaced.
        return dg.SensorResult(skip_reason=f"Not there: {', '.join(absent)}")
    before, requested = json.loads(context.cursor) if context.cursor else ("", "")
    now = look(places)
    if now == requested:
        return dg.SensorResult(skip_reason="Nothing changed", cursor=json.dumps([now, now]))
    if now != before:
        return dg.SensorResult(
            skip_reason="It changed: waits for a tick without a change", cursor=json.dumps([now, requested])
        )
    return dg.SensorResult(
        run_requests=[dg.RunRequest(asset_selection=[dg.AssetKey("catalog")], tags={"gap3d/source": now})],
        cursor=json.dumps([now, now]),
    )


@dg.sensor(
    target=dg.AssetSelection.assets("images"),
    minimum_interval_seconds=30,
    description="Makes the images of a shard when a tar or file of it, or the deny-list, changed and then stayed as it "
    "is from one tick to the next. Reads names, sizes and times only.",
)
def watch_images(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """See the description. The cursor has what each shard looked like at the last tick, and when last requested."""
    shards = SHARDS.get_partition_keys()
    try:
        found = listed(SETTINGS, shards)
    except (ValueError, OSError, SystemicFault) as error:  # a disk that is not mounted
        return dg.SensorResult(skip_reason=str(error))
    rules = SETTINGS.catalog.denied
    told = [look([rules])] if rules is not None and rules.exists() else []
    now = {
        shard: digest_of([*([images.shown(each.place), each.stamp] for each in found[shard]), *told])
        for shard in shards
    }
    before, requested = json.loads(context.cursor) if context.cursor else ({}, {})
    changed = [shard for shard in shards if now[shard] != requested.get(shard)]
    due = [shard for shard in changed if now[shard] == before.get(shard)]
    cursor = json.dumps([now, {**requested, **{shard: now[shard] for shard in due}}])
    if not due:
        words = "They changed: waits for a tick without a change" if changed else "Nothing changed"
        return dg.SensorResult(skip_reason=words, cursor=cursor)
    key = dg.AssetKey("images")
    return dg.SensorResult(
        run_requests=[dg.RunRequest(asset_selection=[key], partition_key=shard) for shard in due], cursor=cursor
    )
