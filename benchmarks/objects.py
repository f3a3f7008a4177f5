"""CPU seconds of one object outside the engines: ``python -m benchmarks.objects [--folder FOLDER]``.

Everything that the line does for an object is counted (copy and hash, mesh, view selection, checks,
decode, pack, write), of all processes, except Cycles' render call, the import operator and the encoder's
forward pass. Times are CPU seconds, so other work on the machine moves them little.
"""

import statistics
import sys
import time
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil

from benchmarks._arguments import Arguments
from benchmarks._objects import objects
from benchmarks._timing import ratio
from benchmarks.parts import LAYOUT
from gap3d import catalog, schemas
from gap3d.features import images, tokens
from gap3d.records import Failure, Outcome, Status
from gap3d.settings import ComputeSettings, Limits, RenderSettings, Settings, TargetSettings
from pipelines.command import open_store
from pipelines.downloads import Copier
from pipelines.renderer import Renderer
from pipelines.rendering import common_inputs

GPU_RENDER_S = 0.6  # one 512-pixel image at 128 samples on a data-centre GPU, as users of TRELLIS report


def cpu(pid: int | None) -> float:
    """CPU seconds of this process and, where there is one, of its Blender."""
    child = psutil.Process(pid).cpu_times() if pid else None
    return time.process_time() + (child.user + child.system if child else 0.0)


def measure(folder: Path, most: int) -> list[dict[str, float]]:
    """Seconds by part for every object that comes through."""
    limits = Limits(timeout_s=120.0, recycle_after=10**6, memory_bytes=1 << 36)  # one Blender: its CPU time adds up
    target = np.random.default_rng(0).standard_normal((LAYOUT.count, LAYOUT.width)).astype(np.float32)
    several = 1 + LAYOUT.registers
    found = []
    with TemporaryDirectory() as scratch:
        settings = Settings(store=Path(scratch), renders=RenderSettings(samples=1, denoise=False), limits=limits)
        store = open_store(settings)
        common = common_inputs(settings, store)["renders"]
        copier = Copier(folder, store.blobs.place, settings.limits)
        renderer = Renderer(settings, store.blobs.place)
        schema = schemas.targets(LAYOUT.registers, LAYOUT.patches, LAYOUT.width)
        with store.writer("targets", "0", schema, ComputeSettings(), settings.limits) as writer:
            for path in islice(catalog.walk(folder), most):
                renderer.blender.version  # noqa: B018 - a child that has to start is not this object's cost
                started, base = cpu(renderer.blender.pid), time.process_time()
                try:
                    scanned = catalog.scan_object(folder, path, None)
                except Failure:
                    continue
                row = {"key": path, "identifier": path, "file_type": catalog.file_type_of(path), **scanned}
                fetched = copier.process(row)[0]
                copied = time.process_time() - base
                if fetched.status is not Status.OK or fetched.data is None:
                    continue
                payload = {"object_id": path, "view": None, "pinned_yaw": None, "up_axis": None, **fetched.data}
                inputs = {"bundle": fetched.data["bundle"], "up_axis": "", **common}
                payload |= {"render_inputs": inputs, "images": [0], "standing": {}}
                outcomes = renderer.process(payload)
                picture = outcomes[-1].data
                if any(outcome.status is not Status.OK for outcome in outcomes) or picture is None:
                    continue
                engines = outcomes[0].costs["import_cpu"] + outcomes[1].costs["render_cpu"]
                rendered = cpu(renderer.blender.pid) - started - copied - engines
                base = time.process_time()
                images.to_pixels(picture["png"], TargetSettings(), settings.limits.pixels)
                decoded = time.process_time() - base
                base = time.process_time()
                data = {
                    "object_id": path,
                    "view": 0,
                    "cls": target[0],
                    "registers": tokens.pack(target[1:several], "float16"),
                    "patches": tokens.pack(target[several:], "float16"),
                }
                writer.add(Outcome(stage="targets", key=path, data=data), {})
                written = time.process_time() - base
                parts = {"copy": copied, "mesh+select": rendered, "decode": decoded, "write": written}
                found.append({**parts, "all": sum(parts.values()), "import": outcomes[0].costs["import_cpu"]})
        renderer.close()
    if not found:
        sys.exit(f"no object of {folder} could be rendered: name another folder with --folder")
    return found


def table(rows: list[dict[str, float]]) -> str:
    """The result as text."""
    lines = [
        f"{len(rows)} objects, 512 px, tokens of ViT-L at 518; CPU seconds per object",
        f"{'part':>12} {'median':>8} {'p90':>8} {'mean':>8}",
    ]
    for part in rows[0]:
        values = sorted(row[part] for row in rows)
        p90 = values[int(0.9 * len(values))]
        lines.append(f"{part:>12} {statistics.median(values):8.3f} {p90:8.3f} {statistics.fmean(values):8.3f}")
    outside = statistics.median(row["all"] for row in rows)
    lines.append(f"target: all at most 0.35 -> {outside:.3f}")
    share = ratio([outside + statistics.median(row["import"] for row in rows)], [GPU_RENDER_S])
    lines.append(
        f"beside a render of {GPU_RENDER_S} s on a GPU: {share:.2f} CPU cores keep one GPU busy "
        f"({outside / GPU_RENDER_S:.2f} without the import operator)"
    )
    return "\n".join(lines)


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_size("--objects", 10_000, 2, "at most so many")
    known = parser.read()
    with objects(known.folder) as folder:
        print(table(measure(folder, known.objects)))


if __name__ == "__main__":
    main()
