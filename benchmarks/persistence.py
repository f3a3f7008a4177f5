"""One Blender for many objects against one Blender process an object, which is what TRELLIS and objaverse-xl do.

Same files, same settings, same images (compared byte for byte); what counts is the time beside Cycles' own.

python -m benchmarks.persistence FOLDER [--objects 24]
"""

import argparse
import statistics
import time
from pathlib import Path

from gap3d.cameras import look_at_origin
from gap3d.records import Failure
from gap3d.settings import Limits, RenderSettings
from render.job import FILE_TYPES, Model, View
from render.worker import Blender

SETTINGS = RenderSettings(resolution=64, samples=1, denoise=False)
VIEW = View(look_at_origin(0.0, 30.0, 2.0), 40.0)


def files(folder: Path, count: int) -> list[Path]:
    """So many 3D files, spread evenly over the folder's sorted list."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower().removeprefix(".") in FILE_TYPES)
    return [found[index * len(found) // count] for index in range(min(count, len(found)))]


def timed(blender: Blender, path: Path) -> tuple[float, float, bytes]:
    """(seconds beside Cycles' render call, seconds of that call, the picture)."""
    started = time.perf_counter()
    blender.load(Model(path.parent, path.name, path.suffix.lower().removeprefix(".")))
    image = blender.render(VIEW, SETTINGS)
    cycles = image.costs["render"]
    return time.perf_counter() - started - cycles, cycles, image.png


def measure(folder: Path, count: int) -> list[tuple[str, float, float]]:
    """(name, seconds with a process of its own, seconds in a kept one) of each object that renders."""
    rows = []
    kept = Blender(Limits(recycle_after=10**6), 2, trees=folder)
    alone = Blender(Limits(recycle_after=1), 2, trees=folder)
    with kept, alone:
        kept.version  # noqa: B018 - its start is paid once, whatever the number of objects
        for path in files(folder, count):
            try:
                # In turns, so that what else the machine does meets both alike.
                fresh, _, first = timed(alone, path)
                warm, _, second = timed(kept, path)
            except Failure:
                continue
            if first != second:
                raise RuntimeError(f"{path.name}: the pictures differ")
            rows.append((path.name, fresh, warm))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--objects", type=int, default=40)
    known = parser.parse_args()
    rows = measure(known.folder.resolve(), known.objects)
    fresh, warm = ([row[column] for row in rows] for column in (1, 2))
    print(f"{len(rows)} objects, the same bytes from both; seconds an object beside Cycles' render call")
    print(f"{'':>28} {'median':>8} {'mean':>8}")
    print(f"{'a process an object':>28} {statistics.median(fresh):8.3f} {statistics.fmean(fresh):8.3f}")
    print(f"{'one process for all':>28} {statistics.median(warm):8.3f} {statistics.fmean(warm):8.3f}")
    ratio = statistics.median(fresh) / statistics.median(warm)
    print(f"ratio of medians {ratio:.1f}, of means {statistics.fmean(fresh) / statistics.fmean(warm):.1f}; wanted 4")


if __name__ == "__main__":
    main()
