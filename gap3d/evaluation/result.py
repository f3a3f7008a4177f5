"""A result: what was measured of one model on one collection, and everything needed to measure it again.

``<store>/<collection>/evaluation/<table>/<model>-<fingerprint>/``: ``result.json``, ``samples.parquet`` with one row
for every sample that was expected, and pictures. A folder appears whole or not at all; what has the fingerprint of what
would be measured is not measured again.
"""

import errno
import importlib.metadata
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from gap3d.evaluation.quirks import Table
from gap3d.fingerprints import digest_of
from gap3d.metrics.bootstrap import Interval
from gap3d.parts import fsync_path
from gap3d.records import Status, SystemicFault
from gap3d.temporary import TemporaryFolder, sweep

FOLDER = "evaluation"
RESULT, SAMPLES = "result.json", "samples.parquet"
TABLES: tuple[Table, ...] = get_args(Table)
MAKING = ".making"  # no model's folder begins so
VERSION = 1  # of the JSON
REASONS = 20  # of failures, in the JSON; all are in the samples
SOFTWARE = ("torch", "transformers", "numpy", "pillow", "pyarrow")


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        value: None where it could not be measured.
        low: lower end of its confidence interval; None where there is none.
        high: upper end.
        samples: how many it was measured on.
        note: why there is no value, or what to know of it.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    samples: int = 0
    note: str = ""

    @classmethod
    def of(cls, interval: Interval, scale: float = 1.0) -> "Cell":
        """A mean with its interval; recalls are percentages."""
        low, high = (None if end is None else end * scale for end in (interval.low, interval.high))
        return cls(interval.mean * scale, low, high, interval.samples)


@dataclass(frozen=True)
class Sample:
    """What became of one sample.

    Attributes:
        key: of the sample; no two of a result have the same.
        status: ok, or why it was not measured, or not in all that others were.
        reason: empty where it was.
        values: its measures, as far as it has them.
    """

    key: str
    status: Status = Status.OK
    reason: str = ""
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Result:
    """A row of a table.

    Attributes:
        table: alignment, retrieval or generation.
        model: what the row is called.
        collection: what it was measured on.
        cells: by column.
        fingerprint: of all that the numbers depend on.
        trained: whether all that made and measured it is trained; else the numbers mean nothing.
        label: what is untrained, loudly; else "trained", or that nobody says so.
        checkpoint: of the aligner (``stage``, ``run``, ``step``, ``digest``, and ``trained_on`` where it was trained on
            what it is measured on); empty for other models.
        quirks: of the released evaluation, by name.
        protocol: seeds, steps, extractors, sources: all that is needed to repeat it.
        checks: what was found to hold: name to whether it passed, and the numbers.
        counts: samples by status.
        reasons: of some failures, "key: status: reason".
        samples_digest: of every sample's key, status and values.
        settings: of the run, resolved.
        software: versions.
        seconds: that it took.
        made_at: UTC.
    """

    table: Table
    model: str
    collection: str
    cells: Mapping[str, Cell]
    fingerprint: str
    trained: bool
    label: str
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    quirks: tuple[str, ...] = ()
    protocol: Mapping[str, Any] = field(default_factory=dict)
    checks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    samples_digest: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    software: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    made_at: str = ""
    folder: Path | None = field(default=None, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; where it lies is not part of it."""
        content = asdict(self)
        del content["folder"]
        return {"version": VERSION, **content}


def name_of(model: str, fingerprint: str) -> str:
    """The name of a result's folder."""
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", model).strip("-.")[:60] or "model"
    return f"{slug}-{fingerprint[:12]}"


def save(
    collection: Path, result: Result, samples: Sequence[Sample], pictures: Mapping[str, bytes] | None = None
) -> Result:
    """Write a result, with counts, reasons, digest, software and time filled in.

    Args:
        collection: its folder in the store.
        result: the row.
        samples: one for every sample that was expected, each key once.
        pictures: files by name, beside it.

    Returns:
        The result as it was written; where a sound one of the same name and fingerprint is there already, that.

    Raises:
        ValueError: a key stands twice, or a number is not finite: a cell without value says why.
    """
    keys = Counter(sample.key for sample in samples)
    if twice := sorted(key for key, count in keys.items() if count > 1):
        raise ValueError(f"{len(twice)} samples stand twice, e.g. {twice[0]!r}")
    failed = [sample for sample in samples if sample.status is not Status.OK]
    content = {
        **vars(result),
        "counts": dict(sorted(Counter(str(sample.status) for sample in samples).items())),
        "reasons": tuple(f"{each.key}: {each.status}: {each.reason}" for each in failed[:REASONS]),
        "samples_digest": digest_of_samples(samples),
        "software": {name: importlib.metadata.version(name) for name in SOFTWARE},
        "made_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    parent = collection / FOLDER / result.table
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / name_of(result.model, result.fingerprint)
    made = Result(**{**content, "folder": folder})
    scratch = TemporaryFolder(parent, MAKING)
    try:
        files = {
            RESULT: json.dumps(made.as_dict(), indent=1, allow_nan=False).encode(),
            SAMPLES: parquet(samples),
            **(pictures or {}),
        }
        for name, data in files.items():
            (scratch.path / name).write_bytes(data)
            fsync_path(scratch.path / name)
        fsync_path(scratch.path)
        scratch.path.chmod(0o755)
        while True:
            if there := known(collection, result.table, result.model, result.fingerprint):
                return there  # made at the same time elsewhere, of the same inputs: others may be reading it
            try:
                with suppress(FileNotFoundError):  # damaged: whoever reads it sees all of it, or nothing
                    folder.rename(scratch.path.with_name(f"{scratch.path.name}-old"))
                scratch.path.rename(folder)
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        fsync_path(parent)
        sweep(parent, f"{scratch.path.name}-old")
    finally:
        scratch.remove()
    return made


def digest_of_samples(samples: Iterable[Sample]) -> str:
    """Of keys, statuses and values, in whatever order they come."""
    return digest_of(
        sorted(
            [sample.key, str(sample.status), sorted((name, float(value)) for name, value in sample.values.items())]
            for sample in samples
        )
    )


def parquet(samples: Sequence[Sample]) -> bytes:
    """The samples as a table: key, status, reason, and a column for every measure, empty where there is none."""
    names = list(dict.fromkeys(name for sample in samples for name in sample.values))
    columns = {
        "key": pa.array([sample.key for sample in samples], pa.string()),
        "status": pa.array([str(sample.status) for sample in samples], pa.string()),
        "reason": pa.array([sample.reason for sample in samples], pa.string()),
        **{name: pa.array([sample.values.get(name) for sample in samples], pa.float64()) for name in names},
    }
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, write_page_checksum=True)
    return sink.getvalue()


def read(folder: Path) -> Result:
    """The result in a folder.

    Raises:
        SystemicFault: it is damaged.
    """
    path = folder / RESULT
    try:
        content = json.loads(path.read_text())
        if content.pop("version") != VERSION:
            raise ValueError("it was written by another version of this program")
        cells = {name: Cell(**cell) for name, cell in content.pop("cells").items()}
        content |= {name: tuple(content[name]) for name in ("quirks", "reasons")}
        return Result(**content, cells=cells, folder=folder)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise SystemicFault(
            f"{path} can't be read ({type(error).__name__}: {error}): remove its folder, then measure again"
        ) from error


def read_samples(folder: Path) -> list[Sample]:
    """The samples of a result, as they were given to ``save``.

    Raises:
        SystemicFault: they are damaged.
    """
    path = folder / SAMPLES
    try:
        rows = pq.read_table(path, page_checksum_verification=True).to_pylist()
        return [
            Sample(
                key=row.pop("key"),
                status=Status(row.pop("status")),
                reason=row.pop("reason"),
                values={name: value for name, value in row.items() if value is not None},
            )
            for row in rows
        ]
    except (OSError, ValueError, LookupError) as error:
        raise SystemicFault(
            f"{path} can't be read ({type(error).__name__}: {error}): remove its folder, then measure again"
        ) from error


def known(collection: Path, table: Table, model: str, fingerprint: str) -> Result | None:
    """The result of this fingerprint, where it was measured already; one that is damaged is as none."""
    folder = collection / FOLDER / table / name_of(model, fingerprint)
    try:
        found = read(folder)
    except SystemicFault:
        return None
    same = (found.fingerprint, found.model) == (fingerprint, model)  # several names can be one folder's
    return found if same and (folder / SAMPLES).is_file() else None


def find(collection: Path, table: Table) -> list[Result]:
    """All results of a table on a collection, the oldest first: the history of its models and their checkpoints.

    Raises:
        SystemicFault: one is damaged.
    """
    folders = (collection / FOLDER / table).glob(f"[!.]*/{RESULT}")
    return sorted((read(path.parent) for path in folders), key=lambda result: (result.made_at, result.model))
