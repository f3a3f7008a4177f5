"""The HTML reports of shards and of the whole collection, put together from what is committed."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import join
from typing import Any

from gap3d import fingerprints
from gap3d.entries import STAGES, Entry, pictures, shard_entries
from gap3d.manifest import now
from gap3d.pages import document, gallery
from gap3d.pages.gallery import Counts, Shot, Size
from gap3d.parts import write_atomically
from gap3d.records import Failure
from gap3d.settings import RANDOM_ENCODERS, Settings
from gap3d.store import Store
from gap3d.thumbnails import depth_thumbnail, thumbnail

FOLDER = "reports"  # below the collection's
INDEX = "index.html"
DATASET = "dataset.html"  # see pipelines.dataset_report
CARDS = 800  # on the collection's page
UNTRAINED = "The encoder is {!r}: UNTRAINED random weights, whose tokens mean nothing."


@dataclass(frozen=True)
class Page:
    """What a page shows of a shard, or of several."""

    counts: Counts
    faulty: tuple[Entry, ...]
    shown: tuple[Entry, ...]
    stages: Mapping[str, Counter[str]]
    settings: Counter[tuple[str, str]]

    def __add__(self, other: "Page") -> "Page":
        return Page(
            self.counts + other.counts,
            self.faulty + other.faulty,
            self.shown + other.shown,
            {stage: self.stages[stage] + other.stages[stage] for stage in STAGES},
            self.settings + other.settings,
        )


def shard_page(store: Store, shard: str, most: int) -> Page:
    """What there is to show of a shard, of at most so many objects."""
    entries = shard_entries(store, shard)
    held = {stage: store.manifest(stage, shard) for stage in STAGES}
    digests = Counter(
        (stage, row.inputs["settings"])
        for stage in ("views", "renders")
        for row in held[stage].rows.values()
        if "settings" in row.inputs
    )
    return Page(
        Counts.of(entries),
        tuple(entry for entry in entries if entry.faults),
        tuple(gallery.sample(entries, most)),
        {stage: Counter(held[stage].by_status()) for stage in STAGES},
        digests,
    )


def shots_of(store: Store, settings: Settings, page: Page) -> dict[str, Shot]:
    """Small pictures of the objects that are shown, until the page is full."""
    views = max((len(entry.renders) for entry in page.shown), default=0)
    size = gallery.size_for(len(page.shown), views, depth=settings.renders.depth)
    by_shard: dict[str, list[str]] = {}
    for entry in page.shown:
        by_shard.setdefault(entry.shard, []).extend(entry.keys(size.shots))
    made: dict[str, Shot] = {}
    left = gallery.PICTURE_BYTES
    for shard, keys in by_shard.items():
        for row in pictures(store.manifest("renders", shard), store, keys):
            shot = shot_of(row, size, settings.limits.pixels)
            left -= len(shot.picture) + len(shot.depth)
            if left < 0:
                return made
            made[row["key"]] = shot
    return made


def shot_of(row: Mapping[str, Any], size: Size, pixel_limit: int) -> Shot:
    """One view, made small."""
    try:
        depth = row["depth"]
        return Shot(
            thumbnail(row["png"], size.side, pixel_limit),
            depth_thumbnail(depth, row["depth_min"], row["depth_max"], size.side) if depth else "",
        )
    except Failure as failure:
        return Shot(fault=str(failure))


def summaries(store: Store, digests: Counter[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Settings that rows were made with, the most frequent first."""
    names = {
        "views": ("protocol", "yaws", "pitches", "points"),
        "renders": ("resolution", "samples", "denoise", "depth"),
    }
    for (stage, digest), rows in digests.most_common():
        saved = store.settings(stage, digest)
        words = ", ".join(f"{name} {saved[name]}" for name in names[stage] if name in saved)
        yield {"stage": stage, "digest": digest, "summary": words, "rows": rows}


def head_of(store: Store, settings: Settings, page: Page, title: str) -> dict[str, Any]:
    """The top of a page."""
    saved = store.folder / "settings.json"
    preset = ["--preset", str(saved)] if saved.exists() else []
    made_with = list(summaries(store, page.settings))
    digests = list(dict.fromkeys(f"{each['stage']} settings {each['digest'][:12]}" for each in made_with))
    notes = []
    if len(page.shown) < page.counts.objects:
        notes.append(
            f"{len(page.shown)} of {page.counts.objects} objects have a card: up to a half of them failed or carry a "
            "flag. The counts and the failures are of all."
        )
    return {
        "title": title,
        "summary": ", ".join(digests[:4]) or "nothing is rendered yet",
        "made": now(),
        "untrained": UNTRAINED.format(settings.targets.encoder) if settings.targets.encoder in RANDOM_ENCODERS else "",
        "notes": notes,
        "stages": page.stages,
        "settings": made_with,
        "shards": [],
        "why": join(["python", "-m", "pipelines.why", *preset]),
    }


def state_of(store: Store, shard: str, up: str) -> str:
    """What a shard's page depends on: it is made again when a manifest changed, or this program."""
    held = [store.manifest(stage, shard) for stage in STAGES]
    return fingerprints.digest_of([gallery.version(), up, *([one.stage, one.sequence, one.digest] for one in held)])


def report_path(folder: Path, shard: str) -> Path:
    """Where a shard's page is."""
    return folder / f"shard-{shard}.html"


def write_shard(store: Store, settings: Settings, shard: str, folder: Path, up: str = "") -> Path:
    """A shard's page; nothing is done where it is up to date.

    Args:
        store: the collection.
        settings: limits, and what the encoder is.
        shard: shard key.
        folder: where to.
        up: name of the collection's page; empty where there is none.

    Returns:
        The page's path.
    """
    path = report_path(folder, shard)
    state = state_of(store, shard, up)
    if path.exists():
        with path.open("rb") as file:
            if document.state_of(file.read(4096)) == state:
                return path
    page = shard_page(store, shard, gallery.OBJECTS)
    head = {**head_of(store, settings, page, f"{store.collection}, shard {shard}"), "up": up}
    shots = shots_of(store, settings, page)
    write_atomically(path, gallery.page(head, page.counts, page.faulty, page.shown, shots, state))
    return path


def write_index(store: Store, settings: Settings, folder: Path) -> Path:
    """The collection's page: counts, failures and shards of all, and cards of as many objects as it can hold."""
    pages = {shard: shard_page(store, shard, max(2, CARDS // len(store.shards))) for shard in store.shards}
    page = sum(list(pages.values())[1:], pages[store.shards[0]])
    head = head_of(store, settings, page, store.collection)
    head["shards"] = [
        {"key": shard, "file": report_path(folder, shard).name, **one.counts.as_dict()}
        for shard, one in pages.items()
        if report_path(folder, shard).exists()
    ]
    head["dataset"] = DATASET if (folder / DATASET).exists() else ""
    path = folder / INDEX
    shots = shots_of(store, settings, page)
    write_atomically(path, gallery.page(head, page.counts, page.faulty, page.shown, shots))
    return path
