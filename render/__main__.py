"""Load and render one file, and say what became of it: the command that repeats a failed row.

python -m render FILE [--yaw 0 --pitch 30 --radius 2 --fov 40 --resolution 256 --samples 16 --out out.png
    --depth depth.npy]
"""

import argparse
import sys
from pathlib import Path
from typing import get_args

import numpy as np
from pydantic import BaseModel

from gap3d.cameras import look_at_origin
from gap3d.records import Failure, Status, SystemicFault
from gap3d.settings import GIB, ComputeSettings, Limits, RenderSettings
from render.job import UP_AXES, Model, View, printable
from render.worker import Blender


def main() -> int:
    """Exit code 0 for status ok, 1 for any other, 2 when Blender cannot run."""
    defaults = RenderSettings()
    parser = argparse.ArgumentParser(prog="python -m render", description="Load and render one 3D file.")
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--version", action="store_true", help="start Blender, say its version, and end")
    parser.add_argument("--tree", type=Path, help="folder with the companions (default: the file's)")
    parser.add_argument("--type", help="file type (default: the file name's ending)")
    parser.add_argument("--up-axis", choices=UP_AXES)
    parser.add_argument("--yaw", type=float, default=0.0, help="degrees")
    parser.add_argument("--pitch", type=float, default=30.0, help="degrees")
    parser.add_argument("--radius", type=float, default=2.0)
    parser.add_argument("--fov", type=float, default=40.0, help="degrees")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--threshold", type=float, default=defaults.threshold, help="noise of adaptive sampling")
    parser.add_argument("--no-denoise", dest="denoise", action="store_false")
    parser.add_argument("--prefilter", choices=choices(RenderSettings, "prefilter"), default=defaults.prefilter)
    parser.add_argument("--denoise-quality", choices=choices(RenderSettings, "denoise_quality"), default="high")
    parser.add_argument("--no-idle-light", dest="idle_light", action="store_false")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=choices(ComputeSettings, "render_device"), default="auto")
    parser.add_argument("--allow-unsandboxed", action="store_true", help="go on where the kernel can't confine Blender")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=Limits().timeout_s, help="seconds")
    parser.add_argument("--memory", type=float, default=Limits().memory_bytes / GIB, help="GiB")
    parser.add_argument("--triangles", type=int, default=Limits().triangles)
    parser.add_argument("--out", type=Path, help="where to write the PNG")
    parser.add_argument("--depth", type=Path, help="where to write planar z, an .npy of float32, inf: background")
    arguments = parser.parse_args()
    if arguments.version:
        return say_version()
    if arguments.file is None:
        parser.error("name a file")

    tree = (arguments.tree or arguments.file.parent).resolve()
    main_file = str(arguments.file.resolve().relative_to(tree))
    file_type = arguments.type or arguments.file.suffix.lower().removeprefix(".")
    limits = Limits(
        timeout_s=arguments.timeout, memory_bytes=int(arguments.memory * GIB), triangles=arguments.triangles
    )
    view = View(look_at_origin(arguments.yaw, arguments.pitch, arguments.radius), arguments.fov)
    settings = RenderSettings(
        resolution=arguments.resolution,
        samples=arguments.samples,
        threshold=arguments.threshold,
        denoise=arguments.denoise,
        prefilter=arguments.prefilter,
        denoise_quality=arguments.denoise_quality,
        idle_light=arguments.idle_light,
        seed=arguments.seed,
        depth=arguments.depth is not None,
        threads=arguments.threads,
    )
    with Blender(
        limits,
        arguments.threads,
        trees=tree,
        device=arguments.device,
        allow_unsandboxed=arguments.allow_unsandboxed,
    ) as blender:
        try:
            mesh = blender.load(Model(tree, main_file, file_type, arguments.up_axis))
            image = blender.render(view, settings)
            held = "sandboxed" if blender.sandboxed else "not sandboxed"
        except Failure as failure:
            sys.stdout.write(printable(f"{failure.status}: {failure.reason}\n"))
            sys.stderr.write(printable(blender.last_log))
            return 1
        except SystemicFault as fault:
            sys.stderr.write(printable(f"{fault}\n{blender.last_log}\n"))
            return 2
    if arguments.out:
        arguments.out.write_bytes(image.png)
    if arguments.depth and image.depth is not None:
        np.save(arguments.depth, image.depth)
    costs = ", ".join(f"{part} {seconds:.3f} s" for part, seconds in (mesh.costs | image.costs).items())
    sys.stdout.write(
        f"{Status.OK}: {mesh.objects} objects, {mesh.triangles} triangles; {image.device}, {held}; {costs}\n"
    )
    for name in mesh.missing_textures:
        sys.stdout.write(printable(f"missing texture: {name}\n"))
    return 0


def choices(section: type[BaseModel], field: str) -> tuple[str, ...]:
    """The words that a setting takes."""
    return get_args(section.model_fields[field].annotation)


def say_version() -> int:
    """Exit code 0 if Blender starts, else 2."""
    with Blender(Limits(), 1) as blender:
        try:
            sys.stdout.write(f"Blender {blender.version}\n")
        except SystemicFault as fault:
            sys.stderr.write(printable(f"{fault}\n{blender.last_log}\n"))
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
