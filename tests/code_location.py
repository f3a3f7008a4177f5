"""The Dagster code location of a small collection, and the same stages as programs."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import dagster as dg
from folders import write_box

OBJECTS = ("table.obj", "slab.obj", "brick.obj", "cube.obj", "pole.obj")
"""Two objects fall into shard 1, one into each of 0, 2 and 3."""
SHARDS = ("0", "1", "2", "3")


def write_toys(folder: Path) -> None:
    """Five boxes that fill four shards."""
    for index, name in enumerate(OBJECTS):
        write_box(folder / name, 0.5 + 0.5 * index)


def environment(store: Path, folder: Path, **values: str) -> dict[str, str]:
    """Settings of a small collection as a user gives them; more of them as ``RENDERS__SAMPLES="4"``."""
    small = {
        "PRESET": "demo",
        "STORE": str(store),
        "COLLECTION": "toys",
        "SOURCE__KIND": "folder",
        "SOURCE__PATH": str(folder),
        "CATALOG__SHARDS": "4",
        "VIEWS__POINTS": "500",
        "RENDERS__RESOLUTION": "64",
        "RENDERS__SAMPLES": "1",
        "TARGETS__ENCODER": "random-small",
        "TARGETS__IMAGE_SIZE": "56",
        "COMPUTE__WORKERS": "0",
    }
    return {f"GAP3D_{name}": value for name, value in {**small, **values}.items()}


def load(monkeypatch, settings: dict[str, str]) -> dg.Definitions:
    """The definitions as a process with these settings loads them."""
    for name in [name for name in os.environ if name.startswith("GAP3D_")]:
        monkeypatch.delenv(name)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    for name in [name for name in sys.modules if name.partition(".")[0] == "assets_defs"]:
        monkeypatch.delitem(sys.modules, name)
    return import_module("assets_defs.definitions").defs


def materialize(defs, instance, *assets, shard=None, **options):
    """Run assets as the UI's Materialize does."""
    job = defs.resolve_implicit_global_asset_job_def().get_subset(
        asset_selection={dg.AssetKey(asset) for asset in assets}
    )
    return job.execute_in_process(partition_key=shard, instance=instance, **options)


def metadata(instance, asset, shard=None):
    """Plain metadata of an asset's latest materialisation."""
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[shard] if shard else None), limit=1
    )
    return {
        name: getattr(value, "value", value)
        for name, value in records.records[0].asset_materialization.metadata.items()
    }


def program(settings: dict[str, str], stage: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    """``python -m pipelines.<stage>``."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("GAP3D_")}
    return subprocess.run(
        [sys.executable, "-m", f"pipelines.{stage}", *arguments],
        env={**bare, **settings},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        **options,
    )


def digests(settings: dict[str, str]) -> dict[str, str]:
    """Content digest of every committed shard, by stage/shard."""
    from gap3d.store import Store

    store = Store(Path(settings["GAP3D_STORE"]), settings["GAP3D_COLLECTION"], 4)
    places = [path.parent for path in sorted(store.folder.glob("*/*/manifest.parquet"))]
    return {f"{p.parent.name}/{p.name}": store.manifest(p.parent.name, p.name).digest for p in places}
