"""The program that works inside a TRELLIS installation: requests in, files out.

It stands alone. TRELLIS pins a Python and a torch of its own, so this file imports nothing of GAP3D and runs on
Python 3.10 with numpy, torch, Pillow and TRELLIS. Requests are JSON lines on one descriptor, answers on another;
whatever TRELLIS prints goes to the log.

    python child.py REQUESTS ANSWERS METHOD MODEL
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

if not __package__:  # this file's folder is not where packages are looked for
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

import numpy as np
import torch
from PIL import Image

PATCHES, REGISTERS, WIDTH = 37 * 37, 4, 1024  # what TRELLIS's image models are conditioned on: DINOv2 ViT-L/14 at 518
DEPTH_NEAR, DEPTH_FAR, DEPTH_SSAA = 1.0, 100.0, 4
COVERED = 0.999  # of a pixel, from which on its depth is the mesh's alone
WATCH_S = 1.0


class Refused(Exception):
    """A known fault of one object: its status and a reason."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def conditions(tokens: np.ndarray, device: Any) -> dict[str, torch.Tensor]:
    """Tokens as the image pipeline's condition (docs/method.md 7); they are not normalised again.

    Args:
        tokens: [T, C]: CLS, registers, patches row by row.
        device: where the pipeline is.

    Returns:
        ``cond`` float32 [1, T, C] and its negative ``neg_cond``, zeros.

    Raises:
        Refused: T or C are not those that TRELLIS was trained with, or a number is not finite.
    """
    wanted = (1 + REGISTERS + PATCHES, WIDTH)
    if tuple(tokens.shape) != wanted:
        raise Refused("unsupported", f"tokens {tuple(tokens.shape)} are no condition of TRELLIS, which takes {wanted}")
    cond = torch.from_numpy(np.array(tokens, dtype=np.float32))[None].to(device)
    if not torch.isfinite(cond).all():
        raise Refused("unsupported", "the tokens are not all finite")
    return {"cond": cond, "neg_cond": torch.zeros_like(cond)}


def load(method: str, model: str) -> Any:
    """The pipeline of a method, on the GPU.

    Args:
        method: ``trellis-text``, else the image pipeline.
        model: a hub id or a folder.
    """
    os.environ.setdefault("SPCONV_ALGO", "native")  # else spconv times its algorithms first
    from trellis.pipelines import TrellisImageTo3DPipeline, TrellisTextTo3DPipeline

    kind = TrellisTextTo3DPipeline if method == "trellis-text" else TrellisImageTo3DPipeline
    pipeline = kind.from_pretrained(model)
    pipeline.cuda()
    return pipeline


def shaped(pipeline: Any, request: dict[str, Any]) -> dict[str, Any]:
    """What the pipeline makes of tokens, of a picture, or of a text: ``gaussian`` and, where it is wanted, ``mesh``."""
    seed, formats = int(request["seed"]), request["formats"]
    if "text" in request:
        return pipeline.run(request["text"], num_samples=1, seed=seed, formats=formats)
    if "image" in request:
        with Image.open(request["image"]) as image:
            image.load()
        return pipeline.run(image, num_samples=1, seed=seed, formats=formats, preprocess_image=True)
    cond = conditions(np.load(request["tokens"], allow_pickle=False), pipeline.device)
    with torch.no_grad():
        torch.manual_seed(seed)  # where the pipeline's own run() does it: after the condition, before the first noise
        coords = pipeline.sample_sparse_structure(cond, 1, {})
        if not len(coords):
            raise Refused("no_geometry", "TRELLIS's sparse structure is empty")
        return pipeline.decode_slat(pipeline.sample_slat(cond, coords, {}), formats)


def cameras(table: dict[str, Any]) -> tuple[Any, Any]:
    """Extrinsics and intrinsics of a turntable."""
    from trellis.utils import render_utils

    count = len(table["yaws"])
    return render_utils.yaw_pitch_r_fov_to_extrinsics_intrinsics(
        list(table["yaws"]), [table["pitch"]] * count, table["radius"], table["fov"]
    )


def write_frames(gaussian: Any, mesh: Any, table: dict[str, Any], folder: Path, resolution: int) -> None:
    """Write the frames of a turntable: ``NNN.png``, RGB on black, and ``NNN_depth.npy``, float32 [H, W] planar depth of
    the mesh, +inf where it is not seen.
    """
    from trellis.utils import render_utils

    folder.mkdir(parents=True)
    extrinsics, intrinsics = cameras(table)
    options = {"resolution": resolution, "bg_color": (0, 0, 0), "ssaa": table["ssaa"]}
    frames = render_utils.render_frames(gaussian, extrinsics, intrinsics, options, verbose=False)["color"]
    for view, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{view:03d}.png")
    if not table["depth"]:
        return
    from trellis.renderers import MeshRenderer

    renderer = MeshRenderer(
        {"resolution": resolution, "near": DEPTH_NEAR, "far": DEPTH_FAR, "ssaa": DEPTH_SSAA},
        device=mesh.vertices.device,
    )
    for view, (extrinsic, intrinsic) in enumerate(zip(extrinsics, intrinsics)):  # noqa: B905 - one of each a camera
        seen = renderer.render(mesh, extrinsic, intrinsic, return_types=["mask", "depth"])
        depth, mask = (seen[name].detach().float().cpu().numpy().reshape(resolution, -1) for name in ("depth", "mask"))
        np.save(folder / f"{view:03d}_depth.npy", np.where(mask > COVERED, depth, np.inf).astype(np.float32))


def write_glb(gaussian: Any, mesh: Any, path: Path) -> None:
    """Write the mesh with the Gaussians' colours baked into a texture; simplified as in TRELLIS's own example."""
    from trellis.utils import postprocessing_utils

    postprocessing_utils.to_glb(gaussian, mesh, simplify=0.95, texture_size=1024, verbose=False).export(str(path))


def made(pipeline: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Make one object and write its files: ``model.ply``, frames, ``model.glb``; the answer.

    Without a GLB the object is an object still: what went wrong with it is said in ``lacking``.
    """
    folder = Path(request["folder"])
    outputs = shaped(pipeline, request)
    gaussian = outputs["gaussian"][0]
    mesh = outputs["mesh"][0] if "mesh" in request["formats"] else None
    gaussian.save_ply(str(folder / "model.ply"))
    for table in request["turntables"]:
        with torch.no_grad():
            write_frames(gaussian, mesh, table, folder / table["name"], int(request["resolution"]))
    lacking = []
    if request["glb"]:
        try:
            write_glb(gaussian, mesh, folder / "model.glb")
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - postprocessing fails on meshes in ways of its own
            (folder / "model.glb").unlink(missing_ok=True)
            lacking.append(f"glb: {type(error).__name__}: {error}"[:300])
    return {"status": "ok", "gaussians": int(gaussian.get_xyz.shape[0]), "lacking": lacking}


def answer_to(pipeline: Any, request: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request, whatever becomes of it."""
    try:
        return made(pipeline, request)
    except Refused as known:
        return {"status": known.status, "reason": str(known)}
    except torch.cuda.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        return {"status": "out_of_memory", "reason": str(error).splitlines()[0]}
    except OSError as error:  # the disk is full or gone: no object is at fault
        return {"fault": f"{type(error).__name__}: {error}"}
    except Exception as error:  # noqa: BLE001 - TRELLIS raises whatever it likes; it costs this object
        reason = f"{type(error).__name__}: {error}"[:500]
        return {"status": "internal_error", "reason": reason, "log": traceback.format_exc()[-2048:]}


def begun(method: str, model: str) -> tuple[Any, dict[str, Any]]:
    """The pipeline, or None, and what is said of it."""
    try:
        pipeline = load(method, model)
    except ModuleNotFoundError as error:
        absent = (error.name or "").partition(".")[0] == "trellis"
        return None, {"absent": True} if absent else {"fault": f"TRELLIS lacks a module of its own: {error}"}
    except Exception as error:  # noqa: BLE001 - whatever it is, there is no pipeline
        traceback.print_exc()
        without = "" if torch.cuda.is_available() else "this torch sees no CUDA device, and TRELLIS needs one; "
        return None, {"fault": f"{without}{model} can't be loaded: {type(error).__name__}: {error}"[:800]}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return pipeline, {"device": device}


def follow(parent: int) -> None:
    """End with the parent, even in the midst of an object."""
    while os.getppid() == parent:
        time.sleep(WATCH_S)
    os._exit(1)


def main() -> None:
    """The program."""
    requests, answers, method, model = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    threading.Thread(target=follow, args=(os.getppid(),), daemon=True).start()
    with os.fdopen(requests, "r") as asked, os.fdopen(answers, "w") as told:

        def tell(message: dict[str, Any]) -> None:
            told.write(json.dumps(message) + "\n")
            told.flush()

        pipeline, said = begun(method, model)
        tell(said)
        if pipeline is None:
            return
        for line in asked:
            tell(answer_to(pipeline, json.loads(line)))


if __name__ == "__main__":
    main()
