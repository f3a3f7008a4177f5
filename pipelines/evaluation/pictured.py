"""Which objects with pictures from all around a run means: the true ones, or those that a flag names."""

import argparse
import json
import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from gap3d import fingerprints
from gap3d.evaluation.extractors import Name, identity
from gap3d.evaluation.picture_folders import objects_in
from gap3d.evaluation.pictured import Pictured, Pictures, Shaped
from gap3d.evaluation.views import Rendered, View
from gap3d.parts import write_atomically
from gap3d.records import Outcome, Status
from gap3d.settings import Settings
from gap3d.store import Store
from pipelines import around
from pipelines.command import open_store, resolved, say, sentences, stop
from pipelines.job import Row, follower, require_complete
from pipelines.prompts import NAME
from pipelines.report import Report
from pipelines.trellis import stage_of

SHARD_OBJECTS = 1024
NOTE = "pictures.json"  # in a collection of features alone: whose they are


def rendered(store: Store) -> Rendered:
    """The renders of a collection.

    Raises:
        NotReady: they are not complete.
    """
    for shard in store.shards:
        require_complete(store, "renders", shard, "around")
    return Rendered(store)


def true_objects(settings: Settings) -> Rendered:
    """The renders of the true objects from all around (``pipelines.around``).

    Raises:
        NotReady: they are not complete.
    """
    return rendered(open_store(around.true_settings(settings)))


def source_of(settings: Settings, place: str, into: str = "") -> Pictured:
    """The objects that somebody names.

    Args:
        settings: of the store.
        place: a collection that was rendered from all around; ``COLLECTION:METHOD``, what TRELLIS made of a
            collection's prompts; or a folder of pictures (``gap3d.evaluation.picture_folders``).
        into: the collection that takes what is made of pictures that are no renders; by default named after them.

    Raises:
        ValueError: it is none of them, or the collection is one of something else.
        NotReady: a stage has to run first.
    """
    if NAME.fullmatch(place) and Store.exists(settings.store, place):
        return rendered(Store.open(settings.store, place, settings.blobs))
    name, _, method = place.rpartition(":")
    if NAME.fullmatch(name) and Store.exists(settings.store, name):
        made, stage = Store.open(settings.store, name, settings.blobs), stage_of(method)
        for shard in made.shards:
            require_complete(made, stage, shard, "trellis")
        count = sum(len(made.manifest(stage, shard).rows) for shard in made.shards)
        note = {"kind": stage, "name": name}
        return Shaped(made, stage, taking(settings, into or f"{name}-{method}", count, note))
    root = Path(place).expanduser().absolute()
    if not root.is_dir():
        others = ", ".join(Store.collections(settings.store))
        raise ValueError(
            f"{place} is no collection of {settings.store} (there are: {others or 'none'}), no COLLECTION:METHOD "
            "with objects of TRELLIS, and no folder of pictures"
        )
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", root.name).strip("-.") or "pictures"
    own = into or f"{slug}-{fingerprints.digest_of(str(root))[:8]}"
    return Pictures(root, taking(settings, own, len(objects_in(root)), {"kind": "folder", "name": str(root)}))


def taking(settings: Settings, name: str, objects: int, note: Mapping[str, str]) -> Store:
    """The collection that takes what is made of pictures; a new one, or the one that took it before.

    Raises:
        ValueError: the name can't be one, or it is a collection of something else.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} can't name a collection: letters, digits, '.', '_' and '-', the first no sign")
    path = settings.store / name / NOTE
    if path.exists():
        if (said := json.loads(path.read_text())) != note:
            raise ValueError(
                f"collection {name} holds features of {said['kind']} {said['name']}: choose another name (--into NAME)"
            )
        return Store.open(settings.store, name, settings.blobs)
    if (settings.store / name).exists() and any(each.is_dir() for each in (settings.store / name).iterdir()):
        raise ValueError(f"collection {name} is one of something else: choose another name (--into NAME)")
    store = Store(settings.store, name, 1 << max(0, -(-objects // SHARD_OBJECTS) - 1).bit_length(), settings.blobs)
    write_atomically(store.folder / NOTE, json.dumps(note, indent=1).encode())
    return store


def failed(stage: str, key: str, views: Sequence[View]) -> Row:
    """The row of what has no picture, or lacks one of several: the first one's status goes on."""
    first = next(view for view in views if view.status is not Status.OK)
    if first.origin:
        outcome = follower(stage, key, first.origin, first)
    else:
        reason = first.reason if len(views) == 1 else f"{first.key}: {first.reason}"
        inputs = {"status": first.status.value, "reason": reason}
        outcome = Outcome(stage=stage, key=key, status=first.status, reason=reason, inputs=inputs)
    return Row(stage=stage, key=key, inputs=outcome.inputs, decided=outcome)


def without_ray(settings: Settings, source: Pictured, shards: Sequence[str], views: int, few: int) -> Settings:
    """Settings for so few objects that they are computed in this process before Ray's actors would have started.

    Args:
        settings: of the run.
        source: whose objects.
        shards: of its store.
        views: of an object.
        few: objects, at most.
    """
    if os.environ.get("RAY_ADDRESS") or sum(len(source.views(shard, views)) for shard in shards) > few:
        return settings
    return settings.model_copy(update={"compute": settings.compute.model_copy(update={"workers": 0})})


def add_flags(made: argparse.ArgumentParser) -> None:
    """Flags that say whose features are wanted."""
    made.add_argument(
        "--of",
        metavar="PLACE",
        help="a collection rendered from all around, COLLECTION:METHOD for objects of TRELLIS, or a folder with a "
        "folder of pictures for every object (default: the true objects, see pipelines.around)",
    )
    made.add_argument("--into", default="", help="collection that takes the features of pictures that are no renders")
    made.add_argument("--shards", help="comma-separated shard keys (default: all)")
    made.add_argument("--report", type=Path, help="write the run's report (JSON) here")


@contextmanager
def program(
    made: argparse.ArgumentParser, known: argparse.Namespace, settings: Settings
) -> Iterator[tuple[Settings, Pictured, Sequence[str]]]:
    """Resolved settings, whose features are wanted, and the shards; known faults are sentences."""
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)
    with sentences(made):
        own = resolved(settings)
        source = source_of(own, known.of, known.into) if known.of else true_objects(own)
        keys = source.store.shards
        shards = sorted(set(known.shards.split(","))) if known.shards else keys
        if unknown := sorted(set(shards) - set(keys)):
            raise ValueError(f"no shard {', '.join(unknown)}: the collection has {keys[0]} to {keys[-1]}")
        yield own, source, shards


def finish(
    known: argparse.Namespace, settings: Settings, source: Pictured, report: Report, names: Sequence[Name]
) -> None:
    """Say what was done, and by which extractors."""
    if known.report:
        report.save(known.report)
    labels = [f"{name}: {identity(name, settings.evaluation)['label']}" for name in names]
    say(*report.lines(), *labels, f"collection: {source.store.folder}")
