"""targets: DINOv2 CLS, register and patch tokens of every render. Key: (object_id, view)."""

import importlib.metadata
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:  # run as a file, here or copied by `ray submit`: its folder is not where packages are looked for
    sys.path.pop(0)

from gap3d import fingerprints, schemas
from gap3d.features.encoders import Encoder, identity, layout_of, load_encoder
from gap3d.features.images import to_uint8
from gap3d.features.tokens import columns_of
from gap3d.manifest import Manifest
from gap3d.parts import read_rows
from gap3d.records import Failure, Outcome, Status
from gap3d.settings import Settings
from pipelines.cluster import Resources
from pipelines.command import open_store, stage_main
from pipelines.job import Item, Job, Row, passed_on, require_complete
from pipelines.job import run as run_job
from pipelines.report import Report

STAGE = "targets"
log = logging.getLogger(__name__)


class Featurizer:
    """The worker: one encoder, kept from batch to batch."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.encoder: Encoder = load_encoder(settings.targets, threads=settings.compute.encoder_threads)

    def process(self, payload: Mapping[str, Any]) -> list[Outcome]:
        """One batch of renders: a row each, whatever becomes of the others."""
        started = time.monotonic()
        part = Path(payload["part"])
        table = read_rows(part, payload["positions"], ["png"])
        outcomes: dict[str, Outcome] = {}
        pixels, keys = [], []
        for key, png in zip(payload["keys"], table.column("png").to_pylist(), strict=True):
            try:
                pixels.append(to_uint8(png, self.settings.targets, self.settings.limits.pixels))
                keys.append(key)
            except Failure as failure:
                outcomes[key] = Outcome(stage=STAGE, key=key, status=failure.status, reason=failure.reason)
        decoded = time.monotonic() - started
        if keys:
            tokens = self.encoder.encode(np.stack(pixels))
            forward = time.monotonic() - started - decoded
            layout = self.encoder.layout
            for key, row in zip(keys, tokens, strict=True):
                object_id, _, view = key.partition("/")
                data = {
                    "object_id": object_id,
                    "view": int(view),
                    **columns_of(row, layout, self.settings.targets.store_dtype),
                }
                costs = {"forward": forward / len(keys), "decode": decoded / len(keys)}
                outcomes[key] = Outcome(
                    stage=STAGE,
                    key=key,
                    data=data,
                    seconds=sum(costs.values()),
                    device=self.encoder.device,
                    costs=costs,
                )
        return [outcomes[key] for key in payload["keys"]]

    def probe(self) -> None:
        """Encode a grey image."""
        side = self.settings.targets.image_size
        self.encoder.encode(np.zeros((1, side, side, 3), dtype=np.uint8))

    def close(self) -> None:
        """Nothing is held beyond memory."""


def make_job(settings: Settings) -> Job:
    """What this stage computes, over any shards."""
    store = open_store(settings)
    section = settings.targets
    who = identity(section)
    if not who["trained"]:
        log.warning("%s: the tokens of encoder %r mean nothing", who["label"], section.encoder)
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

    def rows(shard: str) -> list[Row]:
        held = require_complete(store, "renders", shard, "rendering")
        made = []
        for key, row in held.rows.items():
            if row.status is not Status.OK:
                made.append(passed_on(STAGE, key, "renders", row))
            else:
                made.append(
                    Row(stage=STAGE, key=key, inputs={"render": row.digest, **common}, payload=(row.part, row.part_row))
                )
        return made

    def items(shard: str, todo: list[Row], _held: Mapping[str, Manifest]) -> list[Item]:
        made = []
        folder = store.shard("renders", shard)
        by_part: dict[str, list[Row]] = {}
        for row in todo:
            by_part.setdefault(row.payload[0], []).append(row)
        for part, found in by_part.items():
            size = settings.compute.batch_size
            for start in range(0, len(found), size):
                batch = tuple(found[start : start + size])
                payload = {
                    "part": str(folder / part),
                    "keys": [r.key for r in batch],
                    "positions": [r.payload[1] for r in batch],
                }
                made.append(Item(shard=shard, rows=batch, payload=payload))
        return made

    threads, gpus = settings.compute.encoder_threads, settings.compute.encoder_gpus
    custom = settings.compute.encoder_resources
    return Job(
        stages=(STAGE,),
        schema={STAGE: schema},
        rows=rows,
        items=items,
        factory=partial(Featurizer, settings),
        resources=Resources(max(1, settings.compute.workers // threads), cpus=float(threads), gpus=gpus, custom=custom),
        metadata={
            STAGE: {
                "tokens": layout.describe(section.store_dtype),
                "encoder": who,
                "settings": section.model_dump(mode="json"),
            }
        },
    )


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
