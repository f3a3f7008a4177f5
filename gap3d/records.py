"""What one row can be: its status, its outcome, and the exception that becomes a row.

One input row gives exactly one output row at every stage. A row is ``ok`` or carries one of the
statuses below with a reason; nothing is dropped.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class Status(enum.StrEnum):
    """The closed set of outcomes of a row."""

    OK = "ok"
    EXCLUDED = "excluded"  # by the user's overrides
    DUPLICATE = "duplicate"
    NOT_ADMITTED = "not_admitted"  # a good row beyond the wanted count
    MISSING = "missing"
    UNREACHABLE = "unreachable"  # the network, or the machine at its other end
    HASH_MISMATCH = "hash_mismatch"
    LFS_POINTER = "lfs_pointer"
    TOO_LARGE = "too_large"
    FORBIDDEN_REFERENCE = "forbidden_reference"
    UNSUPPORTED = "unsupported"
    IMPORT_ERROR = "import_error"
    NO_GEOMETRY = "no_geometry"
    POINT_CLOUD = "point_cloud"  # points, and nothing that has a face
    DEGENERATE = "degenerate"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out_of_memory"
    CRASHED = "crashed"
    EMPTY_RENDER = "empty_render"
    REJECTED = "rejected"  # by a quality gate whose action is not to flag
    INTERNAL_ERROR = "internal_error"


class Persistence(enum.StrEnum):
    """What makes a row worth computing again when none of its inputs changed."""

    PERMANENT = "permanent"  # nothing
    TRANSIENT = "transient"  # the next run, until the attempts are used up
    LIMIT_BOUND = "limit_bound"  # a change of one of the limits that caused it


PERSISTENCE: Mapping[Status, Persistence] = {
    **dict.fromkeys(Status, Persistence.PERMANENT),
    Status.CRASHED: Persistence.TRANSIENT,
    Status.INTERNAL_ERROR: Persistence.TRANSIENT,
    Status.UNREACHABLE: Persistence.TRANSIENT,
    Status.TIMEOUT: Persistence.LIMIT_BOUND,
    Status.OUT_OF_MEMORY: Persistence.LIMIT_BOUND,
    Status.TOO_LARGE: Persistence.LIMIT_BOUND,
}

# The fields of settings.Limits whose change retries a row of this status.
LIMITS_OF: Mapping[Status, tuple[str, ...]] = {
    Status.TIMEOUT: ("timeout_s",),
    Status.OUT_OF_MEMORY: ("memory_bytes",),
    Status.TOO_LARGE: ("object_bytes", "repository_bytes", "triangles", "pixels"),
}

# The field of settings.Limits that bounds the tries of a transient status.
ATTEMPTS_OF: Mapping[Status, str] = {
    Status.CRASHED: "attempts",
    Status.INTERNAL_ERROR: "attempts",
    Status.UNREACHABLE: "network_attempts",
}


class Failure(Exception):
    """A known fault of one object: it becomes that row's status and reason.

    Args:
        status: any status but ``ok``.
        reason: one short text for the user; the engine's last words, not a traceback.
    """

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.status, self.reason))


class SystemicFault(Exception):
    """A fault of the machine or the installation: the run aborts and writes no failure rows."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What computing one row gave: the row itself and, apart from it, facts about the run."""

    stage: str = ""
    key: str
    status: Status = Status.OK
    reason: str = ""
    origin: str = ""  # the earlier stage whose failure this row passes on
    data: Mapping[str, Any] | None = None  # the stage's columns; None unless ok
    digest: str = ""  # the row's, where the worker has computed it already
    seconds: float = 0.0
    attempts: int = 1
    device: str = ""
    host: str = ""  # where it was computed; empty: where the run was started
    sandboxed: bool | None = None  # whether the kernel confined what opened the object; None where nothing was opened
    log_tail: str = ""
    costs: Mapping[str, float] = field(default_factory=dict)  # seconds by kind of work
    inputs: Mapping[str, str] | None = None  # parts of the fingerprint that only the work could tell

    def __post_init__(self) -> None:
        if (self.status is Status.OK) != (self.data is not None):
            raise ValueError(f"row {self.key}: data goes with status ok, and only with it")
