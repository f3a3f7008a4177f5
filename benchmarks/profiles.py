"""What a cheaper render costs in accuracy: samples, denoiser and threshold against PSNR and Cycles' time.

The truth is a render of 4096 samples without denoiser and adaptive sampling, at another seed; its own noise floor comes
from a second such render of some objects. PSNR is over the foreground (where the truth is covered), composited on
black, 8 bit. The idle lamp is left out of the truth: it lights nothing (a test holds it), and costs half the samples.
Times are of the render call, one thread, the profiles in turns on each object.

python -m benchmarks.profiles [--folder FOLDER] [--objects 20 --resolution 160 --truths CACHE_FOLDER]
"""

import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks._arguments import Arguments
from benchmarks._objects import files, model, objects
from benchmarks._timing import ratio
from gap3d.cameras import look_at_origin
from gap3d.features.images import decode_png, without_alpha
from gap3d.records import Failure
from gap3d.settings import Limits, RenderSettings
from pipelines.command import load_settings
from render.job import View
from render.worker import Blender

VIEW = View(look_at_origin(30.0, 30.0, 2.0), 40.0)
PAPER = load_settings("paper").renders
TRUTH = RenderSettings(threshold=0.0, denoise=False, idle_light=False, seed=1)
EASY = {"prefilter": "fast", "denoise_quality": "balanced"}
PROFILES = {
    "paper": PAPER,
    "paper, no idle lamp": PAPER.model_copy(update={"idle_light": False}),
    "paper, not denoised": PAPER.model_copy(update={"denoise": False}),
    "64 samples": PAPER.model_copy(update={"samples": 64}),
    "32 samples": PAPER.model_copy(update={"samples": 32}),
    "32, fast prefilter": PAPER.model_copy(update={"samples": 32, "prefilter": "fast"}),
    "32, no prefilter": PAPER.model_copy(update={"samples": 32, "prefilter": "none"}),
    "64, no idle lamp, easy": PAPER.model_copy(update={"samples": 64, "idle_light": False, **EASY}),
    "48, no idle lamp, easy": PAPER.model_copy(update={"samples": 48, "idle_light": False, **EASY}),
    "fast": load_settings("paper,fast").renders,
    "24, no idle lamp, easy": PAPER.model_copy(update={"samples": 24, "idle_light": False, **EASY}),
    "16, no idle lamp, easy": PAPER.model_copy(update={"samples": 16, "idle_light": False, **EASY}),
    "64, threshold 0.05, no idle lamp, easy": PAPER.model_copy(
        update={"samples": 64, "threshold": 0.05, "idle_light": False, **EASY}
    ),
}
LIMITS = Limits(recycle_after=10**6, timeout_s=1800)


def psnr(png: bytes, truth: np.ndarray, seen: np.ndarray) -> float:
    """Peak signal to noise, dB, of 8-bit values where ``seen``."""
    error = colours(png)[seen] - truth[seen]
    return float(10 * np.log10(255**2 / max(float((error**2).mean()), 1e-9)))


def colours(png: bytes) -> np.ndarray:
    """On black, float64 [H, W, 3]."""
    return np.asarray(without_alpha(Image.fromarray(decode_png(png, 2**28)), "black"), np.float64)


def truth_of(blender: Blender, path: Path, truth: RenderSettings, cache: Path, seed: int) -> bytes:
    """The truth of the loaded object, kept in the cache."""
    kept = cache / f"{path.name}-{truth.resolution}-{truth.samples}-{seed}.png"
    if not kept.exists():
        settings = truth.model_copy(update={"seed": seed})
        kept.write_bytes(blender.render(VIEW, settings).png)
    return kept.read_bytes()


def measure(folder: Path, count: int, exact: RenderSettings, cache: Path) -> tuple[dict, dict, list[float], list[str]]:
    """(PSNR by profile, (Cycles seconds, total seconds) by profile, noise floors, names)."""
    noise: dict[str, list[float]] = defaultdict(list)
    times: dict[str, list[tuple[float, float]]] = defaultdict(list)
    floors: list[float] = []
    names: list[str] = []
    with Blender(LIMITS, 1, trees=folder) as blender:
        for path in files(folder, 48):  # the same ones, whatever their number
            if len(names) == count:
                break
            try:
                mesh = blender.load(model(path))
                imported = sum(seconds for name, seconds in mesh.costs.items() if not name.endswith("_cpu"))
                first = truth_of(blender, path, exact, cache, 1)
                if len(names) % 4 == 0:
                    second = truth_of(blender, path, exact, cache, 2)
            except Failure as failure:
                print(f"# {path.name}: {failure.status}", flush=True)
                continue
            truth, seen = colours(first), decode_png(first, 2**28)[..., 3] > 0
            if len(names) % 4 == 0:
                floors.append(psnr(second, truth, seen) + 10 * np.log10(2))  # both are as noisy
            names.append(path.name)
            for name, profile in PROFILES.items():
                image = blender.render(VIEW, profile.model_copy(update={"resolution": exact.resolution}))
                noise[name].append(psnr(image.png, truth, seen))
                spent = image.costs["render"]
                times[name].append((spent, spent + imported + image.costs["other"] + image.costs["check"]))
            print(f"# {path.name}: " + ", ".join(f"{noise[n][-1]:.1f}" for n in PROFILES), flush=True)
    if not names:
        sys.exit(f"no object of {folder} could be rendered: name another folder with --folder")
    return noise, times, floors, names


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_size("--objects", 20, 1, "at most so many")
    parser.add_size("--resolution", 160, 24)
    parser.add_size("--samples", 4096, 64, "of the truth")
    parser.add_argument("--truths", type=Path, help="keep the truths here")
    known = parser.read()
    exact = TRUTH.model_copy(update={"resolution": known.resolution, "samples": known.samples})
    with tempfile.TemporaryDirectory() as scratch, objects(known.folder) as folder:
        cache = known.truths or Path(scratch)
        cache.mkdir(parents=True, exist_ok=True)
        noise, times, floors, names = measure(folder, known.objects, exact, cache)
    print(f"{len(names)} objects at {known.resolution} px; the truth's noise floor: {statistics.median(floors):.1f} dB")
    heads = (("dB median", 9), ("least", 6), ("good", 5), ("Cycles s", 8), ("times", 6), ("total s", 8), ("times", 6))
    print(f"{'':>38} " + " ".join(f"{name:>{width}}" for name, width in heads))
    for name in PROFILES:
        # 40 dB, or within 1 dB of what the paper's own profile reaches.
        good = sum(each >= min(40.0, base - 1) for each, base in zip(noise[name], noise["paper"], strict=True))
        cycles, total = (statistics.median(each[column] for each in times[name]) for column in (0, 1))
        faster = [ratio([base[c] for base in times["paper"]], [each[c] for each in times[name]]) for c in (0, 1)]
        print(
            f"{name:>38} {statistics.median(noise[name]):9.1f} {min(noise[name]):6.1f} {good:3d}/{len(names)} "
            f"{cycles:8.2f} {faster[0]:6.1f} {total:8.2f} {faster[1]:6.1f}"
        )


if __name__ == "__main__":
    main()
