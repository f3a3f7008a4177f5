"""Small pictures, tars and folders of them."""

import io
import tarfile
from pathlib import Path

import numpy as np
from folders import small
from PIL import Image

from pipelines import dataset, images, targets
from pipelines.command import open_store
from pipelines.report import merge


def picture(number, kind="PNG", size=(24, 20)):
    """The bytes of a picture of its own."""
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_tar(path: Path, members):
    """A tar of (name, bytes), in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def pairs(first, count=3):
    """Members of a plain tar: pictures with a text each."""
    for number in range(first, first + count):
        yield f"{number:04d}.png", picture(number)
        yield f"{number:04d}.txt", f"picture {number}".encode()


def of_images(store, path, kind="tars", **values):
    """Settings of a small collection of images, computed without Ray."""
    source = {"kind": kind, "path": path, **values.pop("images", {})}
    return small(store, path, images=source, **values)


def run_images(settings):
    """The line of a collection of images; the merged report."""
    shards = open_store(settings).shards
    return merge([images.run(settings, shards), targets.run(settings, shards), dataset.run(settings)])


def rows_of(settings, stage="images"):
    """Rows of a stage by identifier, or by reason's beginning where it has none: (status, reason, data)."""
    store = open_store(settings)
    names, found = {}, {}
    for shard in store.shards:
        held = store.manifest("images", shard)
        names |= {key: row["identifier"] for key, row in store.read(held, ["identifier"]).items()}
        names |= {key: row.reason.partition(": ")[0] for key, row in held.rows.items() if key not in names}
    for shard in ["all"] if stage == "dataset" else store.shards:
        held = store.manifest(stage, shard)
        data = store.read(held)
        found |= {names[key]: (row.status.value, row.reason, data.get(key)) for key, row in held.rows.items()}
    return found
