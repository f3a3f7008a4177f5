"""Many shards: how long the code location takes to load, the automation to tick, the sensors to look.

Each number of shards in a fresh process, in turns; medians of the repeats, and the ratio to the fewest shards.

python -m benchmarks.definitions [--shards 16,1024] [--files 100000]
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks._arguments import Arguments
from benchmarks._timing import ratio, timed
from gap3d.watched import look

SHARDED = ("downloads", "views", "renders", "targets")
WANTED = {"load": 2.0, "nothing changed": 1.0, "two changed": 1.0, "all changed": 1.0, "left_behind": 1.0}


def load() -> dict[str, float]:
    """Seconds of ``import dagster``, and then of the code location."""
    started = time.perf_counter()
    import dagster  # noqa: F401 - timed

    imported = time.perf_counter()
    from assets_defs.definitions import defs

    defs.get_repository_def().asset_graph  # noqa: B018 - what the code server builds before it answers
    return {"import dagster": imported - started, "load": time.perf_counter() - imported}


def measure() -> dict[str, float]:
    """Seconds of loading, of ticks, and of a look of left_behind, in this process; nothing was loaded before."""
    found = load()
    import dagster as dg

    from assets_defs.definitions import defs
    from assets_defs.left_behind import left_behind
    from assets_defs.partitions import SHARDS

    keys = SHARDS.get_partition_keys()
    cursor: dg.AssetDaemonCursor | None = None
    with dg.DagsterInstance.local_temp() as instance:

        def came(asset: str, shards: Sequence[str], version: str) -> None:
            for shard in shards:
                event = dg.AssetMaterialization(asset, partition=shard, tags={"dagster/data_version": version + shard})
                instance.report_runless_asset_event(event)

        def tick(name: str) -> None:
            nonlocal cursor
            started = time.perf_counter()
            result = dg.evaluate_automation_conditions(defs=defs, instance=instance, cursor=cursor)
            cursor, found[name] = result.cursor, time.perf_counter() - started

        tick("first tick")
        instance.report_runless_asset_event(dg.AssetMaterialization("catalog"))
        came("shard_manifest", keys, "a")
        tick("all changed")
        for asset in SHARDED:
            came(asset, keys, "a")
        tick("all made")
        instance.report_runless_asset_event(dg.AssetMaterialization("dataset"))
        tick("dataset made")
        tick("nothing changed")
        came("shard_manifest", keys[3:5], "b")
        tick("two changed")
        context = dg.build_sensor_context(instance=instance, definitions=defs)
        found["left_behind"] = timed(lambda: left_behind(context))
    return found


def watching(count: int) -> float:
    """Seconds that watch_source takes for a folder of so many files, from the page cache."""
    with TemporaryDirectory() as folder:
        for number in range(count):
            place = Path(folder, f"{number // 100:05d}")
            if number % 100 == 0:
                place.mkdir()
            (place / f"{number % 100:02d}.glb").touch()
        times = [timed(lambda: look([Path(folder)])) for _ in range(4)]
    return statistics.median(times[1:])


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_size("--shards", "16,1024", "2,4")
    parser.add_size("--files", 100_000, 1000)
    parser.add_size("--repeats", 1, 1)
    parser.add_argument("--one", action="store_true", help="measure in this process, and print JSON")
    known = parser.read()
    if known.one:
        print(json.dumps(measure()))
        return
    counts = known.shards.split(",")
    seconds: dict[str, dict[str, list[float]]] = {count: {} for count in counts}
    for _ in range(known.repeats):
        for count in counts:
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.definitions", "--one"]
            environment = {**os.environ, "GAP3D_COLLECTION": f"bench{count}", "GAP3D_CATALOG__SHARDS": count}
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            for name, value in json.loads(done.stdout).items():
                seconds[count].setdefault(name, []).append(value)
    print(f"{'seconds, median':>16} " + " ".join(f"{count + ' shards':>12}" for count in counts) + "   ratio  wanted")
    for name in seconds[counts[0]]:
        medians = [statistics.median(seconds[count][name]) for count in counts]
        wanted = f"{WANTED[name]:7.1f}" if name in WANTED else ""
        print(
            f"{name:>16} "
            + " ".join(f"{m:12.3f}" for m in medians)
            + f" {ratio([medians[-1]], [medians[0]]):7.1f} {wanted}"
        )
    print(f"watch_source looks at {known.files:,} files in {watching(known.files):.2f} s; wanted 2")


if __name__ == "__main__":
    main()
