"""What nobody works on and is not up to date: shards whose run failed, and what ``on_change`` could not see."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import dagster as dg
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus

from assets_defs.partitions import SETTINGS, SHARDS

TRIES = 3  # of the same work on the same inputs
AT_ONCE = 32  # what one tick requests: what failed for one reason may fail for it again
RENDERED = SETTINGS.pictures == "renders"
SHARDED = (
    {"downloads": "shard_manifest", "views": "downloads", "renders": "views", "targets": "renders"}
    if RENDERED
    else {"images": "", "targets": "images"}  # the first is made from nothing here
)
ENDED = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}
BACKFILLING = [BulkActionStatus.REQUESTED, BulkActionStatus.CANCELING, BulkActionStatus.FAILING]
MADE = dg.DagsterEventType.ASSET_MATERIALIZATION


@dataclass(frozen=True)
class Work:
    """Something to run again.

    Attributes:
        assets: the first that is behind, and what follows it.
        shard: None for an asset without shards.
        state: what it would be made from; equal states are the same work.
        run: the run that failed, where one did.
    """

    assets: tuple[str, ...]
    shard: str | None
    state: str
    run: str | None = None

    @property
    def name(self) -> str:
        """A name that stays."""
        return f"{self.assets[0]}/{self.shard or 'all'}"


def shards_behind(instance: dg.DagsterInstance, versions: Mapping[str, str | None]) -> Iterator[Work]:
    """Shards with a stage that was never made, is older than what it is made from, or failed.

    Order of events stands for content: what came out as it was may be run once more, and computes nothing.
    """
    first = next(iter(SHARDED))
    made = {
        asset: instance.get_latest_storage_id_by_partition(dg.AssetKey(asset), MADE)
        for asset in (*SHARDED, *SHARDED.values())
        if asset
    }
    failed = {
        asset: instance.event_log_storage.get_latest_asset_partition_materialization_attempts_without_materializations(
            dg.AssetKey(asset)
        )
        for asset in SHARDED
    }
    made[""] = {shard: 0 for tried in (made, failed) for shard in tried[first]} if not RENDERED else {}
    for shard in sorted(made[SHARDED[first]]):
        for number, (asset, source) in enumerate(SHARDED.items()):
            run, _ = failed[asset].get(shard, (None, 0))
            if run is not None or made[asset].get(shard, 0) < made[source][shard]:
                state = f"{made[source][shard]} {versions[asset]}"
                yield Work(tuple(SHARDED)[number:], shard, state, run)
                break


def failed_run(instance: dg.DagsterInstance, asset: str, made: int) -> str | None:
    """The latest run of an asset without shards, if it ended without making it."""
    planned = instance.get_latest_planned_materialization_info(dg.AssetKey(asset))
    return planned.run_id if planned is not None and planned.storage_id > made else None


def latest(instance: dg.DagsterInstance, asset: str) -> int:
    """Storage id of an asset's latest materialisation, of any shard; 0 where there is none."""
    records = instance.fetch_materializations(dg.AssetKey(asset), limit=1).records
    return records[0].storage_id if records else 0


def behind(instance: dg.DagsterInstance, versions: Mapping[str, str | None], shards: int) -> list[Work]:
    """All that is not up to date, whether or not somebody works on it."""
    catalog = latest(instance, "catalog") if RENDERED else 0
    if RENDERED and (run := failed_run(instance, "catalog", catalog)):
        return [Work(("catalog",), None, f"{catalog} {versions['catalog']}", run)]  # what follows would be older again
    found = list(shards_behind(instance, versions))
    made, source = latest(instance, "dataset"), latest(instance, "targets")
    run = failed_run(instance, "dataset", made)
    whole = len(instance.get_materialized_partitions(dg.AssetKey("targets"))) == shards
    if whole and not found and (run is not None or made < source):
        found.append(Work(("dataset",), None, f"{source} {versions['dataset']}", run))
    return found


def quiet(instance: dg.DagsterInstance, found: list[Work]) -> list[Work] | None:
    """Those of ``found`` that nobody works on and nobody cancelled; None where all have to wait."""
    if instance.get_backfills(filters=BulkActionsFilter(statuses=BACKFILLING), limit=1):
        return None
    busy = set()
    for run in instance.get_runs(dg.RunsFilter(statuses=[*(set(dg.DagsterRunStatus) - ENDED)])):
        shard = run.tags.get("dagster/partition")
        if shard is None:
            return None  # a catalog that is being made may change any shard
        busy.add(shard)
    tried = [work.run for work in found if work.run is not None]
    ended = instance.get_runs(dg.RunsFilter(run_ids=tried, statuses=[dg.DagsterRunStatus.CANCELED])) if tried else []
    cancelled = {run.run_id for run in ended}
    return [work for work in found if work.shard not in busy and work.run not in cancelled]


@dg.sensor(
    target=dg.AssetSelection.assets(*(["catalog"] if RENDERED else []), *SHARDED, "dataset"),
    minimum_interval_seconds=600,
    description=f"Runs again what is not up to date and nobody works on: shards whose run failed or was lost, and what "
    f"on_change missed. At most {TRIES} times for the same inputs and the same code; what a person cancelled, never.",
)
def left_behind(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """See the description. The cursor has the state and the tries of everything that was seen behind."""
    graph = context.repository_def.asset_graph  # type: ignore[union-attr]
    versions = {key.to_user_string(): graph.get(key).code_version for key in graph.get_all_asset_keys()}
    found = behind(context.instance, versions, len(SHARDS.get_partition_keys()))
    free = quiet(context.instance, found)
    if free is None:
        return dg.SensorResult(skip_reason="Waits until no backfill is under way, and no catalog or dataset is made")
    seen: dict[str, list] = json.loads(context.cursor or "{}")
    kept: dict[str, list] = {}
    requests: list[dg.RunRequest] = []
    given_up = []
    for work in sorted(found, key=lambda work: seen.get(work.name, ["", 0])[1]):
        state, tries = seen.get(work.name, ["", 0])
        if state != work.state:
            tries = 0  # seen for the first time: on_change may be about to request it
        elif work not in free:
            pass
        elif tries == TRIES:
            given_up.append(work.name)
        elif len(requests) < AT_ONCE:
            tries += 1
            requests.append(
                dg.RunRequest(
                    asset_selection=[dg.AssetKey(asset) for asset in work.assets],
                    partition_key=work.shard,
                    tags={"gap3d/left_behind": f"try {tries} of {TRIES}"},
                )
            )
        kept[work.name] = [work.state, tries]
    words = f"{len(found)} behind, {len(given_up)} of them given up: {', '.join(given_up[:10]) or 'none'}"
    return dg.SensorResult(run_requests=requests, cursor=json.dumps(kept), skip_reason=None if requests else words)
