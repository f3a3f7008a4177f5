"""A committed collection without Blender: parts and manifests by the store's own writer, pictures by Pillow."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from gap3d import schemas
from gap3d.depth import depth_range, encode_depth
from gap3d.records import Outcome, Status
from gap3d.settings import ComputeSettings, Limits
from gap3d.store import Store
from pipelines.command import load_settings

YAWS = (0.0, 90.0, 180.0, 270.0)
POINTS = 1000


def settings_of(root: Path):
    """Settings of a ``Collection``."""
    return load_settings("demo", store=root, collection="toys", catalog={"shards": 1})


def object_id(index: int) -> str:
    """As long as a real one."""
    return f"{index:032x}"


def picture(index: int, side: int = 64) -> bytes:
    """A disc of its own colour and size on nothing, RGBA."""
    image = Image.new("RGBA", (side, side))
    inset = side // 8 + index % (side // 6)
    colour = (40 + 37 * index % 200, 40 + 71 * index % 200, 40 + 113 * index % 200, 255)
    ImageDraw.Draw(image).ellipse((inset, inset, side - inset, side - inset), fill=colour)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def ramp(side: int = 64) -> dict:
    """Depth columns: a plane that recedes to the right, background at the border."""
    low, high = depth_range(2.0)
    depth = np.full((side, side), np.inf, dtype=np.float32)
    depth[8:-8, 8:-8] = np.linspace(1.5, 2.5, side - 16, dtype=np.float32)
    return {"depth": encode_depth(depth, low, high), "depth_min": low, "depth_max": high}


def catalog_row(index: int, **values) -> dict:
    row = {
        "source": "folder",
        "identifier": f"kit/object_{index:04d}.glb",
        "file_type": "glb",
        "licence": "CC0",
        "captions": [f"a thing number {index}"],
        "split": "validation" if index % 7 == 3 else "train",
        "rank": (1 << 62) + index,
        "stamp": "",
    }
    return {**row, **values}


def views_row(counts: tuple[int, ...], **values) -> dict:
    cameras = [{"yaw": yaw, "pitch": 30.0, "radius": 2.0, "fov": 40.0} for yaw in YAWS]
    chosen = int(np.argmax(counts))
    row = {
        "protocol": "least_occluded",
        "cameras": [cameras[chosen]],
        "candidates": cameras,
        "counts": list(counts),
        "points": POINTS,
        "chosen": chosen,
        "pinned": False,
        "scale": 1.0,
        "offset": [0.0, 0.0, 0.0],
        "vertices": 8,
        "triangles": 12,
        "objects": 1,
        "animated": False,
        "missing_textures": [],
    }
    return {**row, **values}


def render_row(owner: str, view: int, values: dict) -> dict:
    row = {
        "object_id": owner,
        "view": view,
        "yaw": YAWS[view % 4],
        "pitch": 30.0,
        "radius": 2.0,
        "coverage": 0.3,
        "flags": [],
        "missing_textures": [],
    }
    return {**row, **values}


class Collection:
    """One shard, filled by a test and then committed."""

    SCHEMAS = {"catalog": schemas.CATALOG, "downloads": schemas.DOWNLOADS, "views": schemas.VIEWS}  # noqa: RUF012

    def __init__(self, root: Path) -> None:
        self.store = Store(root, "toys", 1)
        self.rows: dict[str, list[Outcome]] = {stage: [] for stage in ("catalog", "downloads", "views", "renders")}

    def add(self, index: int, *, catalog=None, views=None, renders=({},), **facts) -> str:
        """A good object; ``renders`` holds the columns of each view that are not the usual ones."""
        key = object_id(index)
        facts = {"seconds": 0.5, "device": "CPU", "sandboxed": True, **facts}
        counts = tuple(300 + (index * step) % 400 for step in (17, 29, 43, 61))
        self.put("catalog", key, catalog_row(index, **(catalog or {})))
        self.put("downloads", key, {"file_type": "glb", "files": [], "missing": []})
        self.put("views", key, views_row(counts, **(views or {})), **facts)
        for view, values in enumerate(renders):
            self.put(
                "renders", f"{key}/{view:03d}", render_row(key, view, {"png": picture(index + view), **values}), **facts
            )
        return key

    def fail(self, index: int, stage: str, status: Status, reason: str, tail: str = "", catalog=None) -> str:
        """An object that fails at a stage; later stages pass that on."""
        key = object_id(index)
        self.put("catalog", key, catalog_row(index, **(catalog or {})))
        stages = ("downloads", "views", "renders")
        for each in stages[: stages.index(stage)]:
            data = {"files": []} if each == "downloads" else views_row((500, 400, 300, 200))
            self.put(each, key, data)
        for each in stages[stages.index(stage) :]:
            row = f"{key}/000" if each == "renders" else key
            own = {"log_tail": tail} if each == stage else {"origin": stage}
            self.rows[each].append(Outcome(key=row, status=status, reason=reason, **own))
        return key

    def put(self, stage: str, key: str, data: dict, **facts) -> None:
        self.rows[stage].append(Outcome(key=key, data=data, **facts))

    def commit(self) -> Store:
        """Write everything."""
        compute, limits = ComputeSettings(), Limits()
        for stage, outcomes in self.rows.items():
            schema = schemas.RENDERS if stage == "renders" else self.SCHEMAS[stage]
            with self.store.writer(stage, "0", schema, compute, limits) as writer:
                for outcome in outcomes:
                    writer.add(outcome, {"settings": "0" * 32})
                writer.finish({outcome.key for outcome in outcomes})
        return self.store
