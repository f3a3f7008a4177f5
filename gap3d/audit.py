"""Whether a dataset is what its stages say: the index against catalog and targets, and the numbers of the tokens."""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq
from torch import Tensor

from gap3d.features.tokens import KINDS
from gap3d.manifest import LedgerRow, Manifest
from gap3d.moments import round_off, sound, token_moments
from gap3d.records import Status
from gap3d.schemas import STAGES
from gap3d.store import ALL, Store
from gap3d.target_parts import read_part

NAMED = 3  # so many of the keys that share a fault are told
COPIED = ("captions", "split", "rank", "licence", "source", "identifier")
HEAD = (
    *("tokens", "rows", "number", "|mean| max", "variance min", "mean", "max", "norm", "not finite"),
    "rows that are no targets",
)


@dataclass
class Statistics:
    """Of the tokens of one kind; each token has a mean, a variance and a norm over its channels.

    Attributes:
        kind: cls, registers or patches.
        bound: see ``moments.round_off``.
    """

    kind: str
    bound: float
    rows: int = 0
    tokens: int = 0
    drift: float = 0.0  # greatest distance of a mean from 0
    variance: tuple[float, float] = (math.inf, -math.inf)
    variances: float = 0.0  # their sum
    norms: float = 0.0  # their sum
    not_finite: int = 0  # tokens with a NaN or an infinity
    strange: dict[str, None] = field(default_factory=dict)  # keys of rows with a token that is no target

    def add(self, keys: list[str], tokens: Tensor) -> None:
        """Take tokens [B, N, C] of rows with these keys."""
        seen = token_moments(tokens)
        good, finite = sound(self.bound).holds(seen), seen.finite
        self.strange |= {keys[i]: None for i in (~good).any(dim=-1).nonzero()[:, 0].tolist()}
        self.rows += len(keys)
        self.tokens += finite.numel()
        self.not_finite += int((~finite).sum())
        if finite.any():
            of = seen.variance[finite]
            self.drift = max(self.drift, float(seen.mean[finite].abs().max()))
            self.variance = (min(self.variance[0], float(of.min())), max(self.variance[1], float(of.max())))
            self.variances += float(of.sum())
            self.norms += float(seen.norm[finite].double().sum())

    def line(self) -> tuple[str, ...]:
        """A line of the table."""
        count = max(1, self.tokens - self.not_finite)
        numbers = (self.drift, self.variance[0], self.variances / count, self.variance[1], self.norms / count)
        return (
            *(self.kind, str(self.rows), str(self.tokens)),
            *(f"{number:.4f}" for number in numbers),
            *(str(self.not_finite), str(len(self.strange))),
        )


@dataclass
class Audit:
    """What was found.

    Attributes:
        stages: number of rows by stage and status.
        statistics: by kind of token.
        faults: sentences; none where all is as it should be.
    """

    stages: dict[str, Counter[str]] = field(default_factory=dict)
    statistics: dict[str, Statistics] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def note(self, keys: set[str], fault: str) -> None:
        """One sentence for all keys with the same fault; none where there are none."""
        if keys:
            named = ", ".join(sorted(keys)[:NAMED])
            self.faults.append(f"{len(keys)} {fault}: {named}{', ...' if len(keys) > NAMED else ''}")

    def lines(self) -> list[str]:
        """Two tables and the faults, for people."""
        made = table(
            ("stage", "rows", "ok", "others"),
            [
                (stage, str(sum(by.values())), str(by["ok"]), ", ".join(f"{n} {s}" for s, n in by.items() if s != "ok"))
                for stage, by in self.stages.items()
            ],
        )
        if self.statistics:
            made += ["", *table(HEAD, [each.line() for each in self.statistics.values()])]
        return [*made, "", *self.faults] if self.faults else made


def table(head: tuple[str, ...], lines: list[tuple[str, ...]]) -> list[str]:
    """Columns that line up."""
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in (head, *lines)]


def upstream(store: Store) -> str:
    """The stage that says what there is to be: catalog, or images for a collection of images."""
    return "images" if any(store.shard("images", shard).exists() for shard in store.shards) else "catalog"


def audit(store: Store, count: int | None, done: Callable[[int], object]) -> Audit:
    """Hold the dataset against what it was made from, and look at every token.

    Args:
        store: the collection.
        count: most good rows that the index takes; none takes all.
        done: called with numbers of rows as their tokens are read.
    """
    made, first = Audit(), upstream(store)
    index = store.manifest("dataset", ALL)
    listed = store.read(index)
    targets: dict[str, LedgerRow] = {}
    entries: dict[str, dict[str, Any]] = {}
    for shard in store.shards:
        for stage in (first, "targets") if first == "images" else STAGES[:-1]:
            held = store.manifest(stage, shard)
            made.stages.setdefault(stage, Counter()).update(row.status.value for row in held.rows.values())
            if not held.complete:
                made.faults.append(f"{stage} of shard {shard} is not complete: run `python -m pipelines.line`")
        held, source = store.manifest("targets", shard), store.manifest(first, shard)
        made.note(objects(source) - objects(held), f"objects of {first}/{shard} have no row in targets")
        made.note(objects(held) - objects(source), f"objects of targets/{shard} are not in {first}")
        entries |= store.read(source)
        targets |= held.rows
        look_at_tokens(made, store, held, done)
    made.stages["dataset"] = Counter(row.status.value for row in index.rows.values())
    compare_with_targets(made, index.rows, listed, targets)
    compare_with_source(made, listed, entries, first)
    if count is not None and len(listed) > count:
        made.faults.append(f"the index has {len(listed)} good rows, dataset.count is {count}")
    for each in made.statistics.values():
        made.note(set(each.strange), f"rows have {each.kind} tokens that are no targets (mean 0, variance 1)")
    return made


def objects(held: Manifest) -> set[str]:
    """object_ids of a shard's rows."""
    return {key.partition("/")[0] for key in held.rows}


def compare_with_targets(
    made: Audit,
    index: Mapping[str, LedgerRow],
    listed: Mapping[str, Mapping[str, Any]],
    targets: Mapping[str, LedgerRow],
) -> None:
    """Every row of targets is in the index, with its status, and the index names the place where it is."""
    made.note(set(targets) - set(index), "rows of targets are not in the index")
    made.note(set(index) - set(targets), "rows of the index have no target")
    passed = {Status.OK: {Status.OK, Status.NOT_ADMITTED}}
    both = set(index) & set(targets)
    other = {k for k in both if index[k].status not in passed.get(targets[k].status, {targets[k].status})}
    made.note(other, "rows of the index have another status than their target")
    moved = {
        key
        for key, row in listed.items()
        if key in targets
        and (row["target"], row["target_part"], row["target_row"])
        != (targets[key].digest, targets[key].part, targets[key].part_row)
    }
    made.note(moved, "rows of the index name another content or place than targets have")


def compare_with_source(
    made: Audit, listed: Mapping[str, Mapping[str, Any]], entries: Mapping[str, Mapping[str, Any]], first: str
) -> None:
    """The index says of a row what the catalog says of it; no cluster of near duplicates is on both sides."""
    stale = set()
    for key, row in listed.items():
        entry = entries.get(key if first == "images" else row["object_id"])
        if entry is None or any(row[name] != entry[name] for name in COPIED if name in entry):
            stale.add(key)
    made.note(stale, f"rows of the index are not as {first} has them")
    sides: dict[str, set[str]] = {}
    for entry in entries.values():
        sides.setdefault(entry.get("cluster") or entry["sha256"], set()).add(entry["split"])
    made.note({name for name, of in sides.items() if len(of) > 1}, "clusters are on both sides of the split")


def look_at_tokens(made: Audit, store: Store, held: Manifest, done: Callable[[int], object]) -> None:
    """Add a shard's tokens to the statistics, a row group at a time; every row is where the manifest says."""
    by_part: dict[str, dict[int, str]] = {}
    for row in held.rows.values():
        if row.part is not None and row.part_row is not None:
            by_part.setdefault(row.part, {})[row.part_row] = row.key
    for part, rows in sorted(by_part.items()):
        path = store.shard(held.stage, held.shard) / part
        layout = json.loads(pq.read_schema(path).metadata[b"gap3d"])["tokens"]
        found: list[str] = []
        for batch in read_part(path, rows):
            for kind in KINDS:
                tokens = getattr(batch, kind)
                tokens = tokens[:, None] if kind == "cls" else tokens
                bound = round_off(layout[kind]["dtype"], tokens.shape[-1])
                each = made.statistics.setdefault(kind, Statistics(kind, bound))
                each.bound = max(each.bound, bound)
                each.add(batch.keys, tokens)
            found += batch.keys
            done(len(batch.keys))
        wanted = [rows[position] for position in sorted(rows)]
        if found != wanted:
            made.note(set(found) ^ set(wanted) or set(wanted), f"rows of {path} are not those of the manifest")
