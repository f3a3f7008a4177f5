"""What a stage's run did, and the proof that no row was lost: expected = found."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gap3d.parts import write_atomically
from pipelines.utilisation import Utilisation


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """One shard of one stage after a run.

    Attributes:
        expected: rows that the stage's inputs ask for.
        found: rows in the manifest.
        computed: rows that this run worked on.
        decided: rows that this run wrote without work: they pass on an earlier stage's failure.
        retried: of the computed rows, those tried again after a transient failure.
        by_status: rows by status.
        digest: digest of the shard's content.
        seconds: work on this shard's rows in this run, summed over workers.
        costs: the same by kind of work, with what the run itself spent on writing and committing them.
    """

    stage: str
    shard: str
    expected: int
    found: int
    computed: int
    decided: int = 0
    retried: int = 0
    by_status: dict[str, int] = field(default_factory=dict)
    digest: str
    seconds: float = 0.0
    why: dict[str, int] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)

    def prove(self) -> None:
        """Raises RuntimeError unless every expected row is there."""
        if self.expected != self.found or sum(self.by_status.values()) != self.expected:
            raise RuntimeError(
                f"{self.stage}/{self.shard}: expected {self.expected} rows, found {self.found}: {self.by_status}"
            )


@dataclass(frozen=True, kw_only=True)
class Report:
    """A run over shards, of one stage or of stages computed together.

    Attributes:
        funnel: of a selection: each step with the rows that it left out, and those that it left.
    """

    shards: tuple[ShardReport, ...]
    wall_s: float = 0.0
    funnel: tuple[Mapping[str, Any], ...] = ()

    def of(self, stage: str, shard: str) -> ShardReport:
        """One shard of one stage."""
        return next(report for report in self.shards if (report.stage, report.shard) == (stage, shard))

    def stages(self) -> list[str]:
        """Stages in the order they ran."""
        return list(dict.fromkeys(report.stage for report in self.shards))

    def count(self, name: str, stage: str | None = None) -> int:
        """Sum of a counter over shards."""
        return sum(getattr(report, name) for report in self.shards if stage in (None, report.stage))

    def by_status(self, stage: str) -> dict[str, int]:
        """Rows of a stage by status."""
        total: Counter[str] = Counter()
        for report in self.shards:
            if report.stage == stage:
                total.update(report.by_status)
        return dict(sorted(total.items()))

    def save(self, path: Path) -> None:
        """Write as JSON."""
        write_atomically(path, json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def load(cls, path: Path) -> "Report":
        """Read what ``save`` wrote."""
        content = json.loads(path.read_text())
        shards = tuple(ShardReport(**shard) for shard in content["shards"])
        return cls(shards=shards, wall_s=content["wall_s"], funnel=tuple(content["funnel"]))

    def utilisation(self, stage: str) -> Utilisation:
        """How busy the encoders of a stage were in this run; without images where it has none."""
        return sum((Utilisation.of(each.costs, each.computed) for each in self.of_stage(stage)), Utilisation())

    def of_stage(self, stage: str) -> list[ShardReport]:
        """The shards of one stage."""
        return [report for report in self.shards if report.stage == stage]

    def lines(self) -> list[str]:
        """One line a stage, for a person."""
        found = []
        for stage in self.stages():
            states = ", ".join(f"{count} {status}" for status, count in self.by_status(stage).items()) or "no rows"
            retried = self.count("retried", stage)
            extra = f" ({retried} tried again)" if retried else ""
            work = f"computed {self.count('computed', stage)}{extra}"
            busy = self.utilisation(stage)
            work += f" ({busy})" if busy.images else ""
            found.append(f"{stage:>9}: {self.count('found', stage):5d} rows: {states}; {work}")
            if stage == "catalog":
                found += self.funnel_lines()
        return found

    def funnel_lines(self) -> list[str]:
        """The steps of a selection that left rows out, as bars of what remained."""
        most = max((step["rows"] for step in self.funnel), default=0)
        return [
            f"{'':>9}  {step['step']:<20} {step['rows']:>10}  {'#' * round(40 * step['rows'] / most) if most else ''}"
            for step in self.funnel
            if step["left_out"]
        ]


def merge(reports: Iterable[Report]) -> Report:
    """Several runs as one report."""
    taken = list(reports)
    return Report(
        shards=tuple(s for r in taken for s in r.shards),
        wall_s=sum(r.wall_s for r in taken),
        funnel=tuple(step for r in taken for step in r.funnel),
    )
