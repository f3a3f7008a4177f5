"""The writer of one shard: outcomes become parts and a manifest that lists them, under its lease (gap3d.store)."""

import json
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from gap3d import fingerprints, manifest
from gap3d.manifest import LedgerRow, Manifest, now
from gap3d.parts import PartWriter, publish
from gap3d.records import Outcome
from gap3d.schemas import StageSchema
from gap3d.settings import ComputeSettings, Limits
from gap3d.signals import unbroken


class ShardWriter:
    """Collects outcomes of one shard and commits them as parts and a new manifest."""

    def __init__(
        self,
        folder: Path,
        held: Manifest,
        schema: StageSchema,
        compute: ComputeSettings,
        limits: Limits,
        metadata: Mapping[str, Any],
    ) -> None:
        self.folder = folder
        self.schema = schema
        self.compute = compute
        self.limits = limits
        self.rows = dict(held.rows)
        self.added = 0
        self.complete = held.complete
        self.left_digest = held.left_digest
        self._held = held
        self._metadata = {"gap3d": json.dumps({"stage": held.stage, **metadata}, sort_keys=True)}
        self._part: PartWriter | None = None
        self._open: list[LedgerRow] = []
        self._changed = False
        self._flushed = time.monotonic()

    @cached_property
    def host(self) -> str:
        """This machine's name."""
        return socket.gethostname()

    def add(self, outcome: Outcome, inputs: Mapping[str, str]) -> LedgerRow:
        """Take one finished row.

        Args:
            outcome: what became of it.
            inputs: the parts of its fingerprint.
        """
        digest = outcome.digest or fingerprints.row_digest(outcome.status.value, outcome.data, self.schema.exempt)
        bound = {} if outcome.origin else manifest.limits_in_force(outcome.status, self.limits)
        row = LedgerRow(
            key=outcome.key,
            status=outcome.status,
            reason=outcome.reason,
            origin=outcome.origin,
            digest=digest,
            fingerprint=fingerprints.digest_of(dict(inputs)),
            inputs=dict(inputs),
            limits=bound,
            attempts=outcome.attempts,
            seconds=float(outcome.seconds),
            host=outcome.host or self.host,
            device=outcome.device,
            sandboxed=outcome.sandboxed,
            finished_at=now(),
            log_tail=outcome.log_tail,
            costs=dict(outcome.costs),
        )
        with unbroken():
            position = None
            if outcome.data is not None:
                if self._part is None:
                    self._part = PartWriter(self.folder, self.schema, self._metadata)
                position = self._part.add(outcome.key, digest, outcome.data)
            self._open.append(replace(row, part_row=position))
        self.added += 1
        due = time.monotonic() - self._flushed >= self.compute.flush_s or len(self._open) >= self.compute.flush_rows
        if due or (self._part is not None and self._part.bytes >= self.compute.part_bytes):
            self.flush()
        return row

    def keep_only(self, keys: set[str]) -> None:
        """Forget rows whose objects are gone from the catalog."""
        gone = set(self.rows) - keys
        for key in gone:
            del self.rows[key]
        self._changed = self._changed or bool(gone)

    def leave_out(self, files: Sequence[Path], digest: str, counts: Mapping[str, int]) -> None:
        """Replace the rows that a selection left out.

        Args:
            files: with the columns of ``schemas.LEFT_OUT``; they are moved in.
            digest: of the rows.
            counts: their number by status.
        """
        names = tuple(sorted(publish(path, self.folder) for path in files))
        made = replace(self._held, left_out=names, left_digest=digest, left_counts=dict(counts))
        self._held = made.retire(self._held.parts, now())
        self._changed = True

    def finish(self, expected: set[str]) -> Manifest:
        """Commit, and prove that every expected row is there, once.

        Raises:
            RuntimeError: rows are missing: a fault of this program, never of the input.
        """
        self.keep_only(expected)
        missing = expected - set(self.rows) - {row.key for row in self._open}
        if missing:
            raise RuntimeError(
                f"{self._held.stage}/{self._held.shard}: no outcome for {len(missing)} rows, e.g. {sorted(missing)[:3]}"
            )
        self.flush(complete=True)
        return self._held

    def flush(self, *, complete: bool = False) -> None:
        """Publish the open part, then the manifest that lists it."""
        with unbroken():
            self._flush(complete)

    def _flush(self, complete: bool) -> None:
        if self._part is not None:
            part = self._part.close()
            self._open = [replace(row, part=part if row.part_row is not None else None) for row in self._open]
            self._part = None
        self.rows.update((row.key, row) for row in self._open)
        if self._open or self._changed or complete != self.complete or self._held.sequence == 0:
            held = self._held.next(self.rows.values(), complete=complete, now=now())
            manifest.write(self.folder, held)
            self._held = held
            self._changed = False
            self.complete = complete
        self._open = []
        self._flushed = time.monotonic()

    def flush_open(self) -> None:
        """Commit rows that are finished, if any are not committed yet; the shard stays incomplete."""
        if self._open:
            self.flush()

    def discard(self) -> None:
        """Drop what is not committed."""
        if self._part is not None:
            self._part.discard()
        self._part, self._open = None, []
