"""CPU seconds of one object outside the engines: ``python -m benchmarks.objects FOLDER``.

Everything that the line does for an object is counted (copy and hash, mesh, view selection, checks,
decode, pack, write), of all processes, except Cycles' render call, the import operator and the encoder's
forward pass. Times are CPU seconds, so other work on the machine moves them little.
"""

import argparse
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil

from gap3d import catalog, schemas
from gap3d.features import images, tokens
from gap3d.records import Outcome, Status
from gap3d.settings import ComputeSettings, Limits, RenderSettings, Settings, TargetSettings
from gap3d.store import Store
from pipelines.downloads import Copier
from pipelines.rendering import Renderer

GPU_RENDER_S = 0.6  # one 512-pixel image at 128 samples on a data-centre GPU, as users of TRELLIS report


def cpu(pid: int | None) -> float:
    """CPU seconds of this process and, where there is one, of its Blender."""
    child = psutil.Process(pid).cpu_times() if pid else None
    return time.process_time() + (child.user + child.system if child else 0.0)


def measure(folder: Path) -> list[dict[str, float]]:
    """Seconds by part for every object that comes through."""
    layout = tokens.TokenLayout(registers=4, grid=(37, 37), width=1024)
    limits = Limits(timeout_s=120.0, recycle_after=10**6, memory_bytes=1 << 36)  # one Blender: its CPU time adds up
    settings = Settings(renders=RenderSettings(samples=1, denoise=False), limits=limits)
    target = np.random.default_rng(0).standard_normal((layout.count, layout.width)).astype(np.float32)
    found = []
    with TemporaryDirectory() as scratch:
        store = Store(Path(scratch), "bench", 1)
        copier = Copier(folder, store.blobs.root, settings.limits)
        renderer = Renderer(settings, store.blobs.root)
        schema = schemas.targets(layout.registers, layout.patches, layout.width)
        with store.writer("targets", "0", schema, ComputeSettings(), settings.limits) as writer:
            for path in catalog.walk(folder):
                renderer.blender.version  # noqa: B018 - a child that has to start is not this object's cost
                started, base = cpu(renderer.blender.pid), time.process_time()
                scanned = catalog.scan_object(folder, path, None)
                row = {"key": path, "identifier": path, "file_type": catalog.file_type_of(path), **scanned}
                fetched = copier.process(row)[0]
                copied = time.process_time() - base
                if fetched.status is not Status.OK:
                    continue
                payload = {
                    "object_id": path,
                    "view": None,
                    "pinned_yaw": None,
                    "up_axis": None,
                }
                payload |= {"render_inputs": {}, "images": [0], "standing": {}, **fetched.data}
                outcomes = renderer.process(payload)
                if any(outcome.status is not Status.OK for outcome in outcomes):
                    continue
                engines = outcomes[0].costs["import_cpu"] + outcomes[1].costs["render_cpu"]
                rendered = cpu(renderer.blender.pid) - started - copied - engines
                base = time.process_time()
                images.to_pixels(outcomes[1].data["png"], TargetSettings(), settings.limits.pixels)
                decoded = time.process_time() - base
                base = time.process_time()
                data = {
                    "object_id": path,
                    "view": 0,
                    "cls": target[0],
                    "registers": tokens.pack(target[1:5], "float16"),
                    "patches": tokens.pack(target[5:], "float16"),
                }
                writer.add(Outcome(stage="targets", key=path, data=data), {})
                written = time.process_time() - base
                parts = {"copy": copied, "mesh+select": rendered, "decode": decoded, "write": written}
                found.append({**parts, "all": sum(parts.values()), "import": outcomes[0].costs["import_cpu"]})
        renderer.close()
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
    share = outside + statistics.median(row["import"] for row in rows)
    lines.append(
        f"beside a render of {GPU_RENDER_S} s on a GPU: {share / GPU_RENDER_S:.2f} CPU cores keep one GPU busy "
        f"({outside / GPU_RENDER_S:.2f} without the import operator)"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder of 3D files")
    print(table(measure(parser.parse_args().folder)))


if __name__ == "__main__":
    main()
