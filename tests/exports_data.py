"""A finished line to export, and what the store's own readers and the hub's library make of it."""

import csv
import gc as garbage
import json
import warnings

from folders import write_box

from gap3d.target_parts import read_part

CAPTIONS = {
    "a.obj": ["a cube", "a plain grey cube", "a plain grén cube"],
    "b.obj": ["a tall box"],
    "c.obj": ["<b>bold</b> | pipe", 'a "quoted", long text\nof two lines'],
    "d.obj": [],
    "e.obj": ["a flat box"],
}
VALUES = {
    "views": {"protocol": "fixed", "yaws": (0.0, 90.0)},
    "catalog": {"shards": 2, "validation_share": 0.5},
}


def write_source(folder):
    for index, name in enumerate(CAPTIONS):
        write_box(folder / name, 1.0 + index)
    (folder / "broken.glb").write_bytes(b"not a model")
    with (folder / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "captions"), *((n, json.dumps(t)) for n, t in CAPTIONS.items())])


def read_held(store):
    """The index, the renders, the targets and the catalog, as the store's own readers give them, by key."""
    index = store.read(store.manifest("dataset", "all"))
    found = {"index": index, "store": store}
    for stage in ("renders", "catalog", "downloads"):
        found[stage] = {k: row for s in store.shards for k, row in store.read(store.manifest(stage, s)).items()}
    found["targets"] = {}
    for shard in store.shards:
        manifest = store.manifest("targets", shard)
        for part in manifest.parts:
            for batch in read_part(store.shard("targets", shard) / part, range(10**6)):
                for i, key in enumerate(batch.keys):
                    found["targets"][key] = (batch.cls[i], batch.registers[i], batch.patches[i])
    assert len(index) == 10 and {row["split"] for row in index.values()} == {"train", "validation"}
    return found


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def load(*args, **options):
    """What the library of the hub reads, without its cache of an earlier test."""
    import datasets

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        found = datasets.load_dataset(*args, **options)
        garbage.collect()
    return found


def captioned(held):
    return {key.replace("/", "_"): row for key, row in held["index"].items() if row["captions"]}
