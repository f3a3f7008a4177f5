"""Looks at the source every half minute, and has the catalog made when it changed and has come to rest."""

import json

import dagster as dg

from assets_defs.partitions import SETTINGS
from gap3d.watched import look, watched


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
