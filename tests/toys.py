"""A collection of four drawn objects seen from all around, for what Table 3 measures."""

import io
import json

import numpy as np
import target_stores
from balls import render_of
from generated_sets import settings_at
from PIL import Image
from stores import TOGETHER, write

from gap3d.evaluation.views import AROUND
from gap3d.evaluation_settings import EvaluationSettings
from gap3d.schemas import CATALOG, RENDERS
from gap3d.store import Store
from gap3d.transforms import transforms

SIZE, OBJECTS = 32, 4
SMALL = dict.fromkeys(("inception", "dinov2", "clip", "clip_large", "pointnet"), "random-small")
IDS = [f"{number:032x}" for number in range(OBJECTS)]
CAPTIONS = {
    key: [] if key == IDS[3] else [f"a thing of colour {number}", f"thing {number}"] for number, key in enumerate(IDS)
}


def sha_of(number):
    return f"{(number * 7) % OBJECTS:064x}"


def settings_of(root, **evaluation):
    section = EvaluationSettings(
        **{"true": "toys", "count": None, "points": 64, "dinov2_size": 56, **SMALL, **evaluation}
    )
    return settings_at(root, collection="toys", evaluation=section)


def rendered(number, view):
    """A renders row: a disc that is nearer in the middle, its colour and size those of object and view."""
    source = np.random.default_rng(100 * number + view)
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2 + 0.5
    inside = np.hypot(x, y) < 8 + number
    pixels = np.zeros((SIZE, SIZE, 4), np.uint8)
    pixels[inside] = [*source.integers(0, 256, 3), 255]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    depth = np.where(inside, 1.8 + 0.02 * np.hypot(x, y) / (number + 1), np.inf).astype(np.float32)
    return render_of(IDS[number], view, AROUND[view], file.getvalue(), depth)


def made(root):
    """A store with a collection of four objects seen from all around, three of them with captions; its renders."""
    store = Store(root, "toys", 1)
    catalog = {
        key: dict.fromkeys(CATALOG.columns.names[1:])
        | {"sha256": sha_of(number), "identifier": f"toys/o{number}.blend", "captions": CAPTIONS[key], "stamp": ""}
        for number, key in enumerate(IDS)
    }
    write(store, catalog, TOGETHER, "catalog", CATALOG)
    rows = {
        f"{key}/{view:03d}": rendered(number, view) for number, key in enumerate(IDS) for view in range(len(AROUND))
    }
    write(store, rows, TOGETHER, "renders", RENDERS)
    tokens = {f"{key}/000": target_stores.tokens_of(number) for number, key in enumerate(IDS)}
    target_stores.write_part(store, "0", tokens)
    target_stores.write_index(store, captions=lambda number: CAPTIONS[IDS[number]])
    return rows


def as_folder(rows, place, name=lambda key: key, depth=True):
    """Renders rows as a folder of pictures."""
    for key in IDS:
        folder = place / name(key)
        folder.mkdir(parents=True)
        mine = [rows[f"{key}/{view:03d}"] for view in range(len(AROUND))]
        for row in mine:
            (folder / f"{row['view']:03d}.png").write_bytes(row["png"])
            if depth:
                (folder / f"{row['view']:03d}_depth.png").write_bytes(row["depth"])
        (folder / "transforms.json").write_text(json.dumps(transforms(mine)))
    return place
