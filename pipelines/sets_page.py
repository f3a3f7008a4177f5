"""Writes the page of generated token sets from what is committed of them."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from gap3d.atlas import pictures
from gap3d.atlas.palette import Palette
from gap3d.features.decoding import decode_image
from gap3d.features.images import without_alpha
from gap3d.manifest import Manifest
from gap3d.pages import generated
from gap3d.pages.generated import Failed, Shown
from gap3d.parts import write_atomically
from gap3d.records import Failure, Status
from gap3d.settings import Settings
from gap3d.store import Store
from gap3d.target_parts import TargetPart, read_part
from pipelines.generator import STAGE

PAGE = "reports/generated.html"
MOST = 300  # sets on the page
SIDE = 224  # pixels of a picture that is edited


def write_page(store: Store, settings: Settings, label: str) -> Path:
    """Write the page; its path.

    Args:
        store: the collection of the sets.
        settings: limits of pictures.
        label: what the aligner is worth.
    """
    held = {shard: store.manifest(STAGE, shard) for shard in store.shards}
    rows = [row for one in held.values() for row in one.rows.values()]
    asked: dict[str, dict[str, Any]] = {}
    for shard in store.shards:
        asked |= store.read(store.manifest("prompts", shard), ["prompt", "index", "image_name"])
    good = sorted((row.key for row in rows if row.status is Status.OK), key=lambda key: (asked[key]["index"], key))
    chosen = set(good[:MOST])
    palette = Palette(grid_of(store, held), len(chosen))
    for key, patches in sets(store, held, chosen):
        palette.fit(key, patches, None)
    palette.settle(3)
    for key, patches in sets(store, held, chosen):
        palette.project(key, patches, None, paint=True)
    painted = {key: pictures.exact(each.tokens) for key, each in palette.paintings().items()}
    images = thumbnails(store, settings, {key for key in chosen if asked[key]["image_name"]})
    shown = [Shown(key, asked[key]["prompt"], painted[key], images.get(key, "")) for key in good if key in painted]
    failed = [Failed(row.key, str(row.status), row.reason) for row in rows if row.status is not Status.OK]
    head = {
        "title": f"{store.collection}: generated token sets",
        "untrained": label if "UNTRAINED" in label else "",
        "facts": facts(store, held),
        "left": len(good) - len(shown),
    }
    path = store.folder / PAGE
    write_atomically(path, generated.page(head, shown, failed[:MOST]))
    return path


def said(store: Store, held: dict[str, Manifest]) -> dict[str, Any]:
    """What a part says about its sets; empty where there is none."""
    for shard, one in held.items():
        for part in sorted(one.parts):
            with TargetPart(store.shard(STAGE, shard) / part) as opened:
                return opened.metadata
    return {}


def grid_of(store: Store, held: dict[str, Manifest]) -> tuple[int, int]:
    """Rows and columns of patch tokens."""
    rows, columns = said(store, held).get("tokens", {"grid": (1, 1)})["grid"]
    return rows, columns


def facts(store: Store, held: dict[str, Manifest]) -> dict[str, Any]:
    """What stands at the top of the page."""
    about = said(store, held)
    counts = Counter(str(row.status) for one in held.values() for row in one.rows.values())
    sampling = about.get("sampling", {})
    return {
        "prompts": ", ".join(f"{count} {status}" for status, count in sorted(counts.items())),
        "checkpoint": about.get("checkpoint", ""),
        **{name: sampling[name] for name in ("steps", "guidance", "method", "seed") if name in sampling},
    }


def sets(store: Store, held: dict[str, Manifest], chosen: set[str]) -> Iterator[tuple[str, Tensor]]:
    """Keys and patch tokens [N, C] of some sets, a row group in memory at a time."""
    for shard, one in held.items():
        for part in sorted(one.parts):
            live = {row.part_row for row in one.rows.values() if row.part == part and row.key in chosen}
            for batch in read_part(store.shard(STAGE, shard) / part, live):
                yield from zip(batch.keys, batch.patches, strict=True)


def thumbnails(store: Store, settings: Settings, keys: set[str]) -> dict[str, str]:
    """The pictures that are edited, small, by key."""
    found = {}
    for shard in store.shards if keys else ():
        held = store.manifest("prompts", shard)
        for key, row in store.read(held, ["image"], keys & set(held.rows)).items():
            try:
                image = without_alpha(decode_image(row["image"], settings.limits.pixels), "black")
            except Failure:
                continue
            found[key] = pictures.small(np.asarray(image), SIDE)
    return found
