"""targets: DINOv2 CLS, register and patch tokens of every render, or image. Key: (object_id, view)."""

import importlib.metadata
import sys
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from functools import partial
from typing import Any

if not __package__:  # run as a file, here or copied by `ray submit`: its folder is not where packages are looked for
    sys.path.pop(0)

from gap3d import fingerprints, schemas
from gap3d.features.encoders import identity, layout_of, warn_untrained
from gap3d.images import Place
from gap3d.manifest import Manifest
from gap3d.records import Outcome, Status
from gap3d.settings import Settings
from pipelines import images
from pipelines.command import open_store, stage_main
from pipelines.featurizer import STAGE, Featurizer, cuda_here
from pipelines.job import Item, Job, Row, passed_on, require_complete
from pipelines.job import run as run_job
from pipelines.report import Report
from pipelines.utilisation import Utilisation
from pipelines.worker import encoder_resources

AHEAD = 3  # items at work at an encoder: one in it, one that is decoded, one that is handed over
GPU_AHEAD = 4  # ... and one that the GPU goes on with
BATCH = {"cpu": 4, "gpu": 64}
PROGRAMS = {"renders": "rendering", "images": "images"}


def make_job(settings: Settings) -> Job:
    """What this stage computes, over any shards."""
    store = open_store(settings)
    section = settings.targets
    who = identity(section)
    if not who["trained"]:
        warn_untrained(section.encoder)
    layout = layout_of(section)
    digest = fingerprints.settings_digest(section)
    store.save_settings(STAGE, digest, section.model_dump(mode="json"))
    common = {
        "settings": digest,
        "code": fingerprints.code_version(STAGE),
        "encoder": who["fingerprint"],
        "engine": f"transformers {importlib.metadata.version('transformers')}",
    }
    schema = schemas.targets(layout.registers, layout.patches, layout.width, section.store_dtype, section.compression)

    upstream = settings.pictures
    device = device_of(settings)
    size = settings.compute.batch_size or BATCH[device]

    def rows(shard: str) -> list[Row]:
        held = require_complete(store, upstream, shard, PROGRAMS[upstream])
        columns = ["place", "offset", "bytes", "sha256"]
        found = store.read(held, columns) if upstream == "images" else {}
        made = []
        for key, row in held.rows.items():
            if row.status is not Status.OK:
                made.append(passed_on(STAGE, key, upstream, row))
                continue
            if upstream == "images":  # its bytes alone: a new caption, or another tar, makes no new tokens
                entry = found[key]
                place = astuple(Place(*(entry[name] for name in columns)))
                made.append(Row(stage=STAGE, key=key, inputs={"image": entry["sha256"], **common}, payload=place))
                continue
            inputs = {"render": row.digest, **common}
            made.append(Row(stage=STAGE, key=key, inputs=inputs, payload=(row.part, row.part_row)))
        return made

    def payload_of(shard: str, batch: Sequence[Row]) -> dict[str, Any]:
        keys = [row.key for row in batch]
        if upstream == "images":
            return {"keys": keys, "root": str(images.root_of(settings)), "places": [row.payload for row in batch]}
        part = store.shard(upstream, shard) / batch[0].payload[0]
        return {"keys": keys, "part": str(part), "positions": [row.payload[1] for row in batch]}

    def singly(item: Item) -> list[Item]:
        return [replace(item, rows=(row,), payload=payload_of(item.shard, [row])) for row in item.rows]

    def items(shard: str, todo: list[Row], _held: Mapping[str, Manifest]) -> list[Item]:
        made = []
        by_file: dict[str, list[Row]] = {}
        for row in todo:
            # Image files are many: they go together as they come.
            by_file.setdefault("" if upstream == "images" else row.payload[0], []).append(row)
        for found in by_file.values():
            found.sort(key=lambda row: row.payload[:2])  # files are read from front to back
            for start in range(0, len(found), size):
                batch = tuple(found[start : start + size])
                made.append(Item(shard=shard, rows=batch, payload=payload_of(shard, batch)))
        return made

    busy = Utilisation()

    def says(found: Sequence[Outcome]) -> str:
        return str(busy.add(outcome.costs for outcome in found))

    return Job(
        stages=(STAGE,),
        schema={STAGE: schema},
        rows=rows,
        items=items,
        factory=partial(Featurizer, settings),
        singly=singly,
        resources=encoder_resources(settings, GPU_AHEAD if device == "gpu" else AHEAD),
        unit="image",
        says=says,
        metadata={
            STAGE: {
                "tokens": layout.describe(section.store_dtype),
                "encoder": who,
                "settings": section.model_dump(mode="json"),
            }
        },
    )


def device_of(settings: Settings) -> str:
    """Where the encoders are going to run, as far as it can be told here: gpu or cpu."""
    return "gpu" if settings.compute.encoder_gpus or (settings.compute.workers == 0 and cuda_here()) else "cpu"


def run(settings: Settings, shards: Sequence[str]) -> Report:
    """Bring these shards up to date."""
    return run_job(make_job(settings), open_store(settings), settings, shards)


def label(settings: Settings) -> str:
    """What the encoder's weights are; loud where they are random."""
    return str(identity(settings.targets)["label"])


def row_bytes(settings: Settings) -> int:
    """Bytes of one target row, before compression."""
    layout = layout_of(settings.targets)
    token = layout.width + 4 if settings.targets.store_dtype == "int8" else 2 * layout.width
    return 4 * layout.width + token * (layout.count - 1)


if __name__ == "__main__":
    stage_main(STAGE, __doc__, run)
