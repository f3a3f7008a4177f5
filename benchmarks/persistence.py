"""One Blender for many objects against one Blender process an object, which is what TRELLIS and objaverse-xl do.

Same files, same settings, same images (compared byte for byte); what counts is the time beside Cycles' own.

python -m benchmarks.persistence [--folder FOLDER] [--objects 40]
"""

import statistics
import sys
import time
from pathlib import Path

from benchmarks._arguments import Arguments
from benchmarks._objects import files, model, objects
from benchmarks._timing import ratio
from gap3d.cameras import look_at_origin
from gap3d.records import Failure
from gap3d.settings import Limits, RenderSettings
from render.job import View
from render.worker import Blender

SETTINGS = RenderSettings(resolution=64, samples=1, denoise=False)
VIEW = View(look_at_origin(0.0, 30.0, 2.0), 40.0)


def rendered(blender: Blender, path: Path) -> tuple[float, bytes]:
    """(seconds beside Cycles' render call, the picture)."""
    started = time.perf_counter()
    blender.load(model(path))
    image = blender.render(VIEW, SETTINGS)
    return time.perf_counter() - started - image.costs["render"], image.png


def measure(folder: Path, count: int) -> tuple[list[float], list[float]]:
    """(seconds with a process of its own, seconds in a kept one) of each object that renders."""
    apart, together = [], []
    kept = Blender(Limits(recycle_after=10**6), 2, trees=folder)
    alone = Blender(Limits(recycle_after=1), 2, trees=folder)
    with kept, alone:
        kept.version  # noqa: B018 - its start is paid once, whatever the number of objects
        for path in files(folder, count):
            try:
                # In turns, so that what else the machine does meets both alike.
                fresh, first = rendered(alone, path)
                warm, second = rendered(kept, path)
            except Failure:
                continue
            if first != second:
                raise RuntimeError(f"{path.name}: the pictures differ")
            apart.append(fresh)
            together.append(warm)
    if not apart:
        sys.exit(f"no object of {folder} could be rendered: name another folder with --folder")
    return apart, together


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_size("--objects", 40, 2, "at most so many")
    known = parser.read()
    with objects(known.folder) as folder:
        fresh, warm = measure(folder, known.objects)
    print(f"{len(fresh)} objects, the same bytes from both; seconds an object beside Cycles' render call")
    print(f"{'':>28} {'median':>8} {'mean':>8}")
    print(f"{'a process an object':>28} {statistics.median(fresh):8.3f} {statistics.fmean(fresh):8.3f}")
    print(f"{'one process for all':>28} {statistics.median(warm):8.3f} {statistics.fmean(warm):8.3f}")
    medians, means = (ratio([middle(fresh)], [middle(warm)]) for middle in (statistics.median, statistics.fmean))
    print(f"ratio of medians {medians:.1f}, of means {means:.1f}; wanted 4")


if __name__ == "__main__":
    main()
