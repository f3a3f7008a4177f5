"""What a collection holds: rows by status and reason, bytes and parts, by stage."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from gap3d import manifest
from gap3d.dataset_index import Row
from gap3d.manifest import Manifest
from gap3d.records import Status
from gap3d.schemas import STAGES
from gap3d.store import Store

REASONS = 12  # of a stage
SHORT = 400  # characters of a reason


def stages_of(store: Store) -> Iterator[tuple[str, list[Manifest]]]:
    """Every stage that something was committed to, in the order of the line, with its manifests."""
    found: dict[str, list[Manifest]] = {}
    for path in sorted(store.folder.glob(f"*/*/{manifest.NAME}")):
        stage, shard = path.parent.parent.name, path.parent.name
        found.setdefault(stage, []).append(store.manifest(stage, shard))
    order = {stage: number for number, stage in enumerate(STAGES)}
    yield from sorted(found.items(), key=lambda item: (order.get(item[0], len(order)), item[0]))


def statuses(stage: str, held: Sequence[Manifest]) -> dict[str, Any]:
    """Rows of a stage by status; of those that began to fail there, the reasons, the most frequent first."""
    counts: Counter[str] = Counter()
    reasons: Counter[tuple[str, str]] = Counter()
    passed = 0
    for one in held:
        counts.update(one.by_status())
        for row in one.rows.values():
            if row.status is Status.OK:
                continue
            if row.origin:
                passed += 1
            else:
                reasons[row.status.value, row.reason[:SHORT]] += 1
    return {
        "stage": stage,
        "rows": sum(counts.values()),
        "statuses": dict(counts.most_common()),
        "passed_on": passed,
        "complete": all(one.complete for one in held),
        "reasons": [
            {"status": status, "reason": reason, "count": count}
            for (status, reason), count in reasons.most_common(REASONS)
        ],
        "other_reasons": max(0, len(reasons) - REASONS),
    }


def storage(store: Store, stage: str, held: Sequence[Manifest]) -> dict[str, Any]:
    """Bytes of a stage: live parts, parts that were replaced and wait for gc, and the rest (manifests, locks)."""
    live = replaced = other = parts = 0
    rows = sum(row.part is not None for one in held for row in one.rows.values())
    for one in held:
        for path in store.shard(stage, one.shard).iterdir():
            size = path.stat().st_size
            if path.name in one.parts:
                live, parts = live + size, parts + 1
            elif path.name in one.retired:
                replaced += size
            else:
                other += size
    return {
        "stage": stage,
        "shards": len(held),
        "parts": parts,
        "rows": rows,
        "bytes": live,
        "replaced": replaced,
        "other": other,
        "row_bytes": live / rows if rows else None,
    }


def counts(rows: Sequence[Row]) -> dict[str, Any]:
    """What the index holds: images, objects, sides of the split, captions, licences."""
    captions = Counter(len(row.captions) for row in rows)
    words = [len(caption.split()) for row in rows for caption in row.captions]
    return {
        "images": len(rows),
        "objects": len({row.object_id for row in rows}),
        "splits": dict(Counter(row.split or "none" for row in rows).most_common()),
        "captions": sum(number * images for number, images in captions.items()),
        "captions_of_an_image": {str(number): images for number, images in sorted(captions.items())},
        "without_caption": captions[0],
        "words_of_a_caption": sum(words) / len(words) if words else None,
        "licences": dict(Counter(row.licence or "not stated" for row in rows).most_common(12)),
    }
