"""The HTML report of a shard or a collection: what became of every object, with its pictures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gap3d.contact_sheet import candidate_labels
from gap3d.entries import Entry, Fault
from gap3d.pages import document

OBJECTS = 2000  # cards on one page
PICTURE_BYTES = 22_000_000  # pictures on one page, as they are embedded
BYTES_PER_PIXEL = 0.12  # of an embedded thumbnail: 0.08 in the mean, more where there is much detail
ROWS_OF_A_REASON = 40
REASONS_OF_A_STATUS = 60
BODY = "pages/gallery.html"
STYLES, SCRIPTS = ("pages/elements.css", "pages/gallery.css"), ("pages/elements.js", "pages/gallery.js")
SCALARS = ("licence", "split")


@dataclass(frozen=True)
class Size:
    """How many pictures of an object a page can hold, and how large: pixels of a side."""

    shots: int
    side: int


@dataclass(frozen=True)
class Shot:
    """Small pictures of one view, as data URIs; ``fault`` where the render can't be read."""

    picture: str = ""
    depth: str = ""
    fault: str = ""


@dataclass(frozen=True)
class Counts:
    """Objects in all, by status and by flag, and those that were opened unconfined."""

    objects: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    unsandboxed: int = 0

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> "Counts":
        """Counts of these objects."""
        return cls(
            len(entries),
            Counter(entry.status for entry in entries),
            Counter(flag for entry in entries for flag in entry.flags),
            sum(entry.sandboxed is False for entry in entries),
        )

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.objects + other.objects,
            self.statuses + other.statuses,
            self.flags + other.flags,
            self.unsandboxed + other.unsandboxed,
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON, the most frequent first."""
        return {
            "objects": self.objects,
            "statuses": dict(self.statuses.most_common()),
            "flags": dict(self.flags.most_common()),
            "unsandboxed": self.unsandboxed,
        }


def size_for(objects: int, views: int, *, depth: bool) -> Size:
    """What keeps a page of so many objects with so many views below ``PICTURE_BYTES``."""
    side = 256 if views <= 1 else 160
    each = side * side * BYTES_PER_PIXEL * (1.6 if depth else 1.0)
    shots = next((n for n in (8, 4, 2) if n <= max(views, 2) and n * each * objects <= PICTURE_BYTES), 1)
    return Size(min(shots, max(views, 1)), side)


def sample(entries: Sequence[Entry], most: int) -> list[Entry]:
    """All objects, or of too many a half that wants a look and a half that is good."""
    if len(entries) <= most:
        return list(entries)
    bad = [entry for entry in entries if not entry.good]
    good = [entry for entry in entries if entry.good]
    taken = bad[: max(most // 2, most - len(good))]
    return sorted([*taken, *good[: most - len(taken)]], key=lambda entry: (not entry.good, entry.name))


def page(
    head: Mapping[str, Any],
    counts: "Counts",
    faulty: Sequence[Entry],
    shown: Sequence[Entry],
    shots: Mapping[str, Shot],
    state: str = "",
) -> bytes:
    """The page.

    Args:
        head: what stands at its top; see ``pipelines.pages``.
        counts: of all objects, shown or not.
        faulty: the objects whose failures are listed.
        shown: the objects that get a card.
        shots: small pictures by key of renders.
        state: what it was made from, for ``state_of``.
    """
    data = {
        "head": {**head, **counts.as_dict()},
        "failures": failures(faulty),
        "objects": [record(entry, shots) for entry in shown],
    }
    return document.document(BODY, STYLES, SCRIPTS, str(head["title"]), data, state)


def failures(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Failures by status, then by reason: each reason once, with the objects that it befell."""
    groups: dict[str, dict[tuple[str, str], list[tuple[Entry, Fault]]]] = {}
    for entry in entries:
        for fault in entry.faults:
            groups.setdefault(fault.status, {}).setdefault((fault.stage, fault.reason), []).append((entry, fault))
    made = []
    for status, reasons in sorted(groups.items(), key=lambda item: -sum(map(len, item[1].values()))):
        ordered = sorted(reasons.items(), key=lambda item: -len(item[1]))
        made.append(
            {
                "status": status,
                "count": sum(map(len, reasons.values())),
                "left": len(ordered) - REASONS_OF_A_STATUS,
                "reasons": [
                    {"stage": stage, "reason": reason, "count": len(found), "rows": rows_of(found)}
                    for (stage, reason), found in ordered[:REASONS_OF_A_STATUS]
                ],
            }
        )
    return made


def rows_of(found: Sequence[tuple[Entry, Fault]]) -> list[dict[str, str]]:
    """The objects of one reason, with Blender's last words."""
    return [
        {"id": entry.object_id, "name": entry.name, "key": fault.key, "tail": fault.log_tail.replace("\0", "").strip()}
        for entry, fault in found[:ROWS_OF_A_REASON]
    ]


def record(entry: Entry, shots: Mapping[str, Shot]) -> dict[str, Any]:
    """One object as the page's program reads it."""
    catalog, views = entry.catalog, entry.views
    coverages = [row["coverage"] for row in entry.renders.values()]
    made: dict[str, Any] = {
        "id": entry.object_id,
        "name": entry.name,
        "shard": entry.shard,
        "status": entry.status,
        "captions": catalog.get("captions") or [],
        "type": catalog.get("file_type"),
        **{name: catalog.get(name) for name in SCALARS},
        "rank": None if catalog.get("rank") is None else str(catalog["rank"]),  # 64 bits, of which a browser keeps 53
        "flags": entry.flags,
        "missing": entry.missing_textures,
        **{name: views.get(name) for name in ("triangles", "vertices", "objects", "animated", "pinned", "protocol")},
        "labels": candidate_labels(views),
        "scores": [round(score, 4) for score in entry.scores],
        "chosen": views.get("chosen", -1),
        "coverage": round(sum(coverages) / len(coverages), 4) if coverages else None,
        "seconds": round(entry.seconds, 3),
        "devices": sorted({row.device for row in entry.ledger if row.device}),
        "attempts": max((row.attempts for row in entry.ledger), default=0),
        "sandboxed": entry.sandboxed,
        "images": len(entry.renders),
        "shots": [shot_record(key, row, shots[key]) for key, row in entry.renders.items() if key in shots],
    }
    return {name: value for name, value in made.items() if value is not None}


def shot_record(key: str, row: Mapping[str, Any], shot: Shot) -> dict[str, Any]:
    """One view as the page's program reads it."""
    angles = {name: round(row[name], 1) for name in ("yaw", "pitch") if row[name] is not None}
    return {"key": key, **angles, "src": shot.picture, "depth": shot.depth, "fault": shot.fault}


def version() -> str:
    """Digest of the page's own files: a page of an older make is made again."""
    return document.version("pages/gallery.py", BODY, *STYLES, *SCRIPTS)
