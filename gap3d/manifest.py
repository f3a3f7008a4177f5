"""The manifest of a shard: one row per expected key, and which part holds it. Replaced last, at once."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from gap3d import fingerprints
from gap3d.parts import write_atomically
from gap3d.records import ATTEMPTS_OF, LIMITS_OF, PERSISTENCE, Persistence, Status
from gap3d.schemas import LEDGER, REWRITTEN, SCHEMA_VERSION
from gap3d.settings import Limits

NAME = "manifest.parquet"
log = logging.getLogger(__name__)


def now() -> str:
    """The time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Newer(ValueError):
    """A newer version of this program wrote it."""


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """One row of a manifest: what became of a key, from what, and where its data lies."""

    key: str
    status: Status
    reason: str = ""
    origin: str = ""
    digest: str
    fingerprint: str
    inputs: Mapping[str, str]
    limits: Mapping[str, float] = field(default_factory=dict)
    part: str | None = None
    part_row: int | None = None
    attempts: int = 1
    seconds: float = 0.0
    host: str = ""
    device: str = ""
    sandboxed: bool | None = None
    finished_at: str = ""
    log_tail: str = ""
    costs: Mapping[str, float] = field(default_factory=dict)

    def needs(self, inputs: Mapping[str, str] | None, limits: Limits) -> str:
        """Why this row has to be computed again; empty where it has not.

        Args:
            inputs: the parts that its fingerprint would have now.
            limits: the limits in force now.
        """
        if inputs is not None and fingerprints.digest_of(dict(inputs)) != self.fingerprint:
            changed = sorted(k for k in {*inputs, *self.inputs} if inputs.get(k) != self.inputs.get(k))
            return "changed: " + ", ".join(changed)
        if self.origin:
            return ""  # passes on another stage's failure
        kind = PERSISTENCE[self.status]
        if kind is Persistence.LIMIT_BOUND and dict(self.limits) != limits_in_force(self.status, limits):
            return "changed limit: " + ", ".join(LIMITS_OF[self.status])
        if kind is Persistence.TRANSIENT and self.attempts < (most := getattr(limits, ATTEMPTS_OF[self.status])):
            return f"attempt {self.attempts + 1} of {most}"
        return ""


def limits_in_force(status: Status, limits: Limits) -> dict[str, float]:
    """The limits that bound a row of this status."""
    return {name: getattr(limits, name) for name in LIMITS_OF.get(status, ())}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All rows of one shard of one stage.

    Attributes:
        rows: by key.
        complete: whether every expected row is there (a run that was cut short leaves False).
        retired: parts that held rows once and may still be read, with the time they were replaced.
        left_out: the parts with the rows that a selection left out (``schemas.LEFT_OUT``); no later stage has a row
            of them, so they are outside the digest. Such a part is named by the digest of its bytes.
        left_digest: digest of those rows.
        left_counts: their number by status.
    """

    stage: str
    shard: str
    rows: Mapping[str, LedgerRow] = field(default_factory=dict)
    complete: bool = False
    sequence: int = 0
    retired: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    left_digest: str = ""
    left_counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Digest of the shard's content: the asset's data version."""
        return fingerprints.shard_digest((row.key, row.digest) for row in self.rows.values())

    @property
    def parts(self) -> set[str]:
        """File names of live parts."""
        return {part for part in (*self.left_out, *(row.part for row in self.rows.values())) if part}

    @property
    def count(self) -> int:
        """Number of rows, with those that were left out."""
        return len(self.rows) + sum(self.left_counts.values())

    def by_status(self) -> dict[str, int]:
        """Number of rows of each status."""
        return dict(
            sorted((Counter(row.status.value for row in self.rows.values()) + Counter(self.left_counts)).items())
        )

    def next(self, rows: Iterable[LedgerRow], *, complete: bool, now: str) -> "Manifest":
        """The manifest that replaces this one."""
        made = replace(self, rows={row.key: row for row in rows}, complete=complete, sequence=self.sequence + 1)
        return made.retire(self.parts, now)

    def retire(self, parts: Iterable[str], now: str) -> "Manifest":
        """The same, with those of the parts that it does not list any more noted as retired."""
        retired = {part: when for part, when in self.retired.items() if part not in self.parts}
        return replace(self, retired={**dict.fromkeys(set(parts) - self.parts, now), **retired})


def write(folder: Path, manifest: Manifest) -> None:
    """Replace a shard's manifest."""
    columns: dict[str, list[object]] = {name: [] for name in LEDGER.names}
    for key in sorted(manifest.rows):
        row = manifest.rows[key]
        for name, cells in columns.items():
            value = getattr(row, name)
            if name in ("inputs", "limits", "costs"):
                value = json.dumps(dict(value), sort_keys=True) if value else ""
            cells.append(str(value) if name == "status" else value)
    head: dict[str, object] = {
        "stage": manifest.stage,
        "shard": manifest.shard,
        "schema_version": SCHEMA_VERSION,
        "complete": manifest.complete,
        "sequence": manifest.sequence,
        "retired": dict(manifest.retired),
        "left_out": list(manifest.left_out),
        "left_digest": manifest.left_digest,
        "left_counts": dict(manifest.left_counts),
        "digest": manifest.digest,
    }
    head["checksum"] = fingerprints.digest_of([head, columns])  # pages have checksums, their headers have none
    table = pa.table(columns, schema=LEDGER.with_metadata({"gap3d": json.dumps(head)}))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    write_atomically(folder / NAME, sink.getvalue().to_pybytes())


@cache
def tell_once(path: str) -> None:
    """Warn of a manifest that is read many times in a run."""
    log.warning("%s is of an older version: its rows will be made again", path)


def read(folder: Path, stage: str, shard: str) -> Manifest:
    """A shard's manifest; an empty one where none was committed.

    Raises:
        ValueError: the manifest is damaged or of a newer schema.
    """
    path = folder / NAME
    if not path.exists():
        return Manifest(stage=stage, shard=shard)
    return parse(path, str(path), stage, shard)


def parse(source: Path | BinaryIO, path: str, stage: str, shard: str) -> Manifest:
    """A manifest from its file or its bytes.

    Args:
        source: where it is read from.
        path: what it is called in messages.
        stage: whose manifest it is.
        shard: and of which shard.

    Raises:
        ValueError: see ``read``.
    """
    try:
        table = pq.read_table(source, page_checksum_verification=True)
        head = json.loads(table.schema.metadata[b"gap3d"])
        checksum = head.pop("checksum")
        if checksum != fingerprints.digest_of([head, table.to_pydict()]):
            raise ValueError("it is not what was written")
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        words = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged ({words}): remove its folder and run the stage again") from error
    if head["schema_version"] > SCHEMA_VERSION:
        raise Newer(
            f"{path} has schema version {head['schema_version']}, this program reads {SCHEMA_VERSION}: a newer one "
            "wrote it, use that"
        )
    rows = {}
    for record in table.to_pylist():
        for name in ("inputs", "limits", "costs"):
            record[name] = json.loads(record[name]) if record[name] else {}
        rows[record["key"]] = LedgerRow(**{**record, "status": Status(record["status"])})
    if head["schema_version"] < REWRITTEN.get(stage, 0):
        tell_once(path)
        retired = {**head["retired"], **{row.part: row.finished_at for row in rows.values() if row.part}}
        return Manifest(stage=stage, shard=shard, sequence=head["sequence"], retired=retired)
    return Manifest(
        stage=stage,
        shard=shard,
        rows=rows,
        complete=head["complete"],
        sequence=head["sequence"],
        retired=head["retired"],
        left_out=tuple(head.get("left_out", ())),
        left_digest=head.get("left_digest", ""),
        left_counts=head.get("left_counts", {}),
    )
