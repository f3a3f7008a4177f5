"""A committed dataset with planted tokens: pictures by Pillow, parts and manifests by the store's own writer."""

from pathlib import Path

import numpy as np
import torch
from gallery_data import Collection, object_id, settings_of

from gap3d import schemas
from gap3d.features.tokens import TokenLayout, pack, targets_from_prenorm
from gap3d.records import Outcome, Status
from gap3d.settings import ComputeSettings, Limits
from pipelines import dataset

LAYOUT = TokenLayout(registers=3, grid=(4, 6), width=24)
COUNT = 18
KINDS = 3  # image i is of kind i % KINDS
COPY, ORIGINAL = 10, 2  # nearly the same CLS, on both sides of the split
STRANGE = 16


def tokens_of(count: int = COUNT, seed: int = 0) -> np.ndarray:
    """Targets float32 [count, T, C] with planted neighbours, a near duplicate and an outlier."""
    random = np.random.default_rng(seed)
    kinds = 2 * random.normal(size=(KINDS, 1, LAYOUT.width))
    raw = np.concatenate([kinds[index % KINDS][None] for index in range(count)]) + random.normal(
        size=(count, LAYOUT.count, LAYOUT.width)
    )
    raw[:, 0] += 3 * random.normal(size=LAYOUT.width)
    if count > max(COPY, STRANGE):
        raw[COPY, 0] = raw[ORIGINAL, 0] + 0.01 * random.normal(size=LAYOUT.width)
        raw[STRANGE, 0] *= -1
    return targets_from_prenorm(torch.from_numpy(raw)).numpy()


def write_dataset(root: Path, tokens: np.ndarray, captions: dict[int, str] | None = None, *, trained: bool = True):
    """A dataset of these targets, one object an image, and one that failed; (store, settings)."""
    collection = Collection(root)
    for index in range(len(tokens)):
        named = {"captions": [captions[index]]} if captions and index in captions else {}
        split = "validation" if index in (3, COPY) else "train"
        collection.add(index, catalog={**named, "split": split})
    collection.fail(900, "views", Status.NO_GEOMETRY, "nothing <b>to see</b>")
    store = collection.commit()
    made = {
        "tokens": LAYOUT.describe("float16"),
        "encoder": {
            "encoder": "planted",
            "label": "planted tokens" if trained else "UNTRAINED random weights",
            "weights": "0" * 64,
            "trained": trained,
        },
        "settings": {},
    }
    schema = schemas.targets(LAYOUT.registers, LAYOUT.patches, LAYOUT.width)
    with store.writer("targets", "0", schema, ComputeSettings(), Limits(), made) as writer:
        for index, row in enumerate(torch.from_numpy(tokens)):
            cls, registers, patches = LAYOUT.split(row[None])
            data = {
                "object_id": object_id(index),
                "view": 0,
                "cls": cls[0].numpy(),
                "registers": pack(registers[0], "float16"),
                "patches": pack(patches[0], "float16"),
            }
            writer.add(Outcome(key=f"{object_id(index)}/000", data=data), {"settings": "1" * 32})
        key = f"{object_id(900)}/000"
        writer.add(Outcome(key=key, status=Status.NO_GEOMETRY, reason="nothing", origin="views"), {})
        writer.finish({key, *(f"{object_id(index)}/000" for index in range(len(tokens)))})
    settings = settings_of(root)
    dataset.run(settings)
    return store, settings
