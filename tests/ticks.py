"""Ticks of the automation, as the daemon evaluates them, over a history that can be kept and copied."""

import copy
import os
import shutil
from collections.abc import Collection
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
from code_location import environment, load
from dagster._core.instance.ref import InstanceRef

from gap3d import fingerprints
from pipelines import downloads, rendering, targets
from pipelines.command import load_settings, open_store

ROOT = Path(__file__).resolve().parents[1]
SHARDED = ("downloads", "views", "renders", "targets")


def every(stages, shards):
    """All pairs."""
    return {(stage, shard) for stage in stages for shard in shards}


def bump(monkeypatch, stage: str) -> None:
    """A new version of a stage's code."""
    table = copy.deepcopy(fingerprints.stage_versions())
    table[stage]["version"] += 1
    monkeypatch.setattr(fingerprints, "stage_versions", lambda: table)


@contextmanager
def history(folder: Path):
    """The history that ``dagster dev`` keeps when it is started in this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "dagster.yaml", folder / "dagster.yaml")
    before = Path.cwd()
    os.chdir(folder)  # dagster.yaml has relative paths
    try:
        with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(folder))) as instance:
            yield instance
    finally:
        os.chdir(before)


class Automation:
    """A code location, its history, and the cursor of its ticks.

    Args:
        monkeypatch: for the environment of the code location.
        instance: the history.
        root: holds ``store`` and ``objects``.
        settings: more settings, as ``code_location.environment`` takes them.
    """

    def __init__(self, monkeypatch, instance, root: Path, **settings: str) -> None:
        self.monkeypatch = monkeypatch
        self.instance = instance
        self.root = root
        self.cursor = None
        self.runs: dict[str | None, dg.DagsterRun] = {}
        self.load(**settings)

    def load(self, **settings: str) -> None:
        """The definitions as a process with these settings loads them."""
        # The folder as seen from where Dagster was started: a copy of the whole place has equal settings.
        self.settings = environment(self.root / "store", Path("../objects"), **settings)
        self.defs = load(self.monkeypatch, self.settings)

    @property
    def shards(self) -> list[str]:
        return self.defs.resolve_asset_graph().get(dg.AssetKey("targets")).partitions_def.get_partition_keys()

    def tick(self) -> set[tuple[str, str | None]]:
        """(asset, shard) that one tick requests."""
        result = dg.evaluate_automation_conditions(defs=self.defs, instance=self.instance, cursor=self.cursor)
        self.cursor = result.cursor
        found = set()
        for one in result.results:
            asset, subset = one.key.to_user_string(), one.true_subset
            if subset.is_partitioned:
                found |= every([asset], subset.expensively_compute_partition_keys())
            elif subset.size:
                found.add((asset, None))
        return found

    # --- with real runs

    def make(self, *assets: str, shard: str | None = None, **options):
        """Materialise assets in this process, without the checks that can be executed alone."""
        keys = {dg.AssetKey(asset) for asset in assets}
        checks = {key for key in self.defs.resolve_asset_graph().asset_check_keys if key.asset_key in keys}
        own = {key for key in checks if key.name in ("one_row_each", "no_internal_errors")}
        job = self.defs.resolve_implicit_global_asset_job_def().get_subset(
            asset_selection=keys, asset_check_selection=own
        )
        return job.execute_in_process(partition_key=shard, instance=self.instance, **options)

    def settle(self, empty: Collection[str] = ()) -> list[set[tuple[str, str | None]]]:
        """Tick and run what is requested, as the daemon does, until nothing is; what each tick requested.

        Args:
            empty: shards without objects, for which the programs are enough: they are made all at once and reported.
        """
        ticks = []
        while found := self.tick():
            ticks.append(found)
            assert len(ticks) < 5, ticks
            asked = {shard: {asset for asset, of in found if of == shard} for _, shard in found}
            for shard in sorted(set(asked) - set(empty), key=str):
                assert self.make(*asked[shard], shard=shard).success
            if told := sorted(set(asked) & set(empty)):
                for stage in (downloads, rendering, targets):
                    stage.run(load_settings(), told)
                store = open_store(load_settings())
                for shard in told:
                    for asset in sorted(asked[shard], key=SHARDED.index):
                        self.came(asset, shard=shard, version=store.manifest(asset, shard).digest)
        return ticks

    # --- with nothing but the events of runs, for what happens while they run

    def came(self, *assets: str, shard: str | None = None, version: str = "0") -> None:
        """Materialisations with this content."""
        for asset in assets:
            tags = {"dagster/data_version": version}
            event = dg.AssetMaterialization(asset, partition=shard, tags=tags)
            self.instance.report_runless_asset_event(event)

    def finish_all(self) -> None:
        """Everything but the model was made once, and the automation knows."""
        self.finish_line()
        assert self.tick() == set()

    def finish_line(self) -> None:
        """Everything up to the dataset was made once; the tick after it is not looked at."""
        self.tick()
        self.came("catalog")
        for shard in self.shards:
            self.came("shard_manifest", shard=shard)
        assert self.tick() == every(SHARDED, self.shards)
        for shard in self.shards:
            self.came(*SHARDED, shard=shard)
        assert self.tick() == {("dataset", None)}
        self.came("dataset")

    def start(self, *assets: str, shard: str | None = None) -> None:
        """A run begins."""
        keys = {dg.AssetKey(asset) for asset in assets}
        job = self.defs.resolve_implicit_global_asset_job_def().get_subset(asset_selection=keys)
        tags = {"dagster/partition": shard} if shard else {}
        run = self.instance.create_run_for_job(job, asset_selection=keys, tags=tags)
        self.instance.report_dagster_event(dg.DagsterEvent("PIPELINE_START", run.job_name), run.run_id)
        self.runs[shard] = run

    def end(self, shard: str | None = None, how: str = "PIPELINE_SUCCESS") -> None:
        """The run of this shard ends."""
        run = self.runs.pop(shard)
        self.instance.report_dagster_event(dg.DagsterEvent(how, run.job_name), run.run_id)
