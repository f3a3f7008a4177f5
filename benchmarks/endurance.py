"""A long life: the same real objects in rounds through one worker setting; time, memory, and what is left in scratch.

python -m benchmarks.endurance [--folder FOLDER] [--objects 100 --rounds 10]
"""

import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks._arguments import Arguments
from benchmarks._objects import files, model, objects
from benchmarks._timing import ratio
from benchmarks.persistence import SETTINGS, VIEW
from gap3d.records import Failure
from gap3d.settings import GIB, Limits
from render.worker import Blender


@dataclass
class Life:
    """What one setting gave.

    Attributes:
        rounds: CPU seconds of Blender over all objects, by round: what else the machine does moves them less.
        resident: resident bytes after each round.
        peak: most resident bytes seen after an object.
        left: files in scratch after the last round, with Blender closed.
    """

    rounds: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    peak: int = 0
    left: int = 0
    objects: int = 0


def cpu(pid: int | None) -> float:
    """CPU seconds of a process so far."""
    if pid is None:
        return 0.0
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def live(folder: Path, paths: list[Path], rounds: int, limits: Limits) -> Life:
    """Send the objects through one Blender setting, round after round."""
    life = Life()
    with tempfile.TemporaryDirectory() as scratch:
        with Blender(limits, 2, Path(scratch), trees=folder) as blender:
            for _ in range(rounds):
                spent, done = 0.0, 0
                for path in paths:
                    child, started = blender.pid, cpu(blender.pid)
                    try:
                        blender.load(model(path))
                        blender.render(VIEW, SETTINGS)
                        done += 1
                    except Failure:
                        continue
                    if blender.pid is None:
                        continue
                    # A fresh child's start is in: it is what recycling costs.
                    spent += cpu(blender.pid) - (started if blender.pid == child else 0.0)
                    life.peak = max(life.peak, psutil.Process(blender.pid).memory_info().rss)
                life.rounds.append(spent)
                life.resident.append(psutil.Process(blender.pid).memory_info().rss if blender.pid else 0)
                life.objects = done
        life.left = sum(1 for _ in Path(scratch).rglob("*"))
    return life


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_size("--objects", 100, 2, "at most so many")
    parser.add_size("--rounds", 10, 2)
    known = parser.read()
    with objects(known.folder) as folder:
        table(folder, files(folder, known.objects), known.rounds)


def table(folder: Path, paths: list[Path], rounds: int) -> None:
    print(f"{len(paths)} objects, {rounds} rounds, {SETTINGS.resolution} px, {SETTINGS.samples} sample")
    names = (("recycled after", 15), ("first", 9), ("last", 9), ("ratio", 6), ("MiB/object", 11), ("peak GiB", 9))
    print("".join(f"{name:>{width}} " for name, width in names) + " left")
    for name, limits in (("never", 10**6), ("100 objects", 100)):
        # As generous with memory as possible, so that nothing but the setting recycles.
        life = live(folder, paths, rounds, Limits(recycle_after=limits, memory_bytes=64 * GIB))
        # From the second round on: the first also fills caches that stay.
        grown = (life.resident[-1] - life.resident[0]) / max(1, life.objects * (rounds - 1)) / 2**20
        first, last = statistics.fmean(life.rounds[:1]), life.rounds[-1]
        print(
            f"{name:>15} {first:7.1f}s {last:7.1f}s {ratio([last], [first]):6.2f} {grown:11.3f} {life.peak / GIB:9.2f} "
            f"{life.left:5d}"
        )
        print("   rounds: " + " ".join(f"{seconds:.1f}" for seconds in life.rounds) + f"; {life.objects} objects ok")


if __name__ == "__main__":
    main()
