"""Small stores, written by the real writer."""

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from gap3d.records import Outcome, Status
from gap3d.schemas import SCHEMAS, StageSchema, targets
from gap3d.settings import ComputeSettings, Limits

PLAIN = StageSchema(
    pa.schema([pa.field("key", pa.string(), nullable=False), ("value", pa.string()), ("place", pa.string())]),
    exempt=("place",),
)
SCHEMAS["plain"] = PLAIN
ONE_BY_ONE = ComputeSettings(flush_rows=1, lease_wait_s=0)
TOGETHER = ComputeSettings(flush_rows=1000, lease_wait_s=0)


def write(store, content, compute=ONE_BY_ONE, stage="plain", schema=PLAIN):
    """Commit rows; a value of None is a failed row. The manifest."""
    with store.writer(stage, "0", schema, compute, Limits()) as writer:
        for key, value in content.items():
            data = value if isinstance(value, dict) or value is None else {"value": value, "place": ""}
            status = Status.OK if data else Status.IMPORT_ERROR
            writer.add(Outcome(stage=stage, key=key, status=status, data=data), {"code": "1", "value": str(value)})
        return writer.finish(set(content))


def values(store, held):
    return {key: row["value"] for key, row in store.read(held).items()}


def only_part(store, held):
    (part,) = held.parts
    return store.shard(held.stage, held.shard) / part


keys = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)


def flipped(content, position):
    changed = bytearray(content)
    changed[position] ^= 0x10
    return bytes(changed)


def target_row(number):
    return {
        "object_id": f"{number}",
        "view": 0,
        "cls": np.full(8, number, np.float32),
        "registers": np.full((2, 8), number, np.float16).view(np.uint16),
        "patches": np.full((4, 8), number, np.float16).view(np.uint16),
    }


def write_targets(store, numbers, compute=ONE_BY_ONE):
    return write(store, {f"{n}/000": target_row(n) for n in numbers}, compute, "targets", targets(2, 4, 8))
