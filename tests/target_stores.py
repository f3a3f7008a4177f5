"""Collections with targets and an index over them, written by the real writer."""

import numpy as np
import torch

from gap3d import schemas
from gap3d.features.tokens import TokenLayout, columns_of, targets_from_prenorm
from gap3d.records import Outcome, Status
from gap3d.settings import ComputeSettings, Limits
from gap3d.store import ALL, Store

LAYOUT = TokenLayout(registers=2, grid=(3, 5), width=8)


def tokens_of(number, layout=LAYOUT):
    """float32 [T, C] of one image."""
    return targets_from_prenorm(
        torch.randn(layout.count, layout.width, generator=torch.Generator().manual_seed(number))
    )


def write_part(store, shard, tokens, *, layout=LAYOUT, dtype="float16", compression="none", part_rows=10**6):
    """Commit tokens by key as the targets of a shard."""
    schema = schemas.targets(layout.registers, layout.patches, layout.width, dtype, compression)
    compute = ComputeSettings(flush_rows=part_rows, flush_s=1e6, lease_wait_s=0)
    metadata = {"tokens": layout.describe(dtype), "encoder": {"label": "UNTRAINED numbers of a test"}}
    with store.writer("targets", shard, schema, compute, Limits(), metadata) as writer:
        for key, row in tokens.items():
            object_id, _, view = key.partition("/")
            data = {"object_id": object_id, "view": int(view), **columns_of(row, layout, dtype)}
            writer.add(Outcome(stage="targets", key=key, data=data), {"dtype": dtype, "compression": compression})
        return writer.finish(set(tokens))


def write_index(
    store, captions=lambda number: [f"caption {number}.{i}" for i in range(number % 4)], rejected=(), failed=()
):
    """Commit the dataset index over all targets; every fifth row is of the validation split."""
    found = {}
    for shard in store.shards:
        found |= {key: (shard, row) for key, row in store.manifest("targets", shard).rows.items()}
    compute = ComputeSettings(flush_rows=10**6, flush_s=1e6, lease_wait_s=0)
    with store.writer("dataset", ALL, schemas.DATASET, compute, Limits()) as writer:
        for number, (key, (shard, row)) in enumerate(sorted(found.items())):
            data = {
                "object_id": key.partition("/")[0],
                "view": int(key.partition("/")[2]),
                "captions": captions(number),
                "split": "validation" if number % 5 == 4 else "train",
                "rank": number,
                "licence": "",
                "source": "test",
                "identifier": key,
                "target": row.digest,
                "target_shard": shard,
                "target_part": row.part,
                "target_row": row.part_row,
            }
            if key in rejected:
                outcome = Outcome(stage="dataset", key=key, status=Status.NOT_ADMITTED, reason="by the test")
            elif key in failed:
                outcome = Outcome(stage="dataset", key=key, status=Status.IMPORT_ERROR, reason="by the test")
            else:
                outcome = Outcome(stage="dataset", key=key, data=data)
            writer.add(outcome, {"target": row.digest, "place": f"{shard}/{row.part}/{row.part_row}"})
        return writer.finish(set(found))


def collection(root, rows=100, shards=2, *, part_rows=30, **how):
    """A collection of so many images: (store, tokens by key)."""
    store = Store(root, "test", shards)
    tokens = {f"{number:04d}/000": tokens_of(number, how.get("layout", LAYOUT)) for number in range(rows)}
    for index, shard in enumerate(store.shards):
        mine = {key: row for number, (key, row) in enumerate(tokens.items()) if number % shards == index}
        write_part(store, shard, mine, part_rows=part_rows, **how)
    write_index(store)
    return store, tokens


def as_stored(tokens, dtype="float16"):
    """What a reader gives back of float32 tokens."""
    exact = np.asarray(tokens)
    if dtype != "int8":
        return torch.from_numpy(exact).to(getattr(torch, dtype))
    scale = np.abs(exact).max(-1, keepdims=True) / np.float32(127)
    return torch.from_numpy((np.rint(exact / scale) * scale).astype(np.float16))
