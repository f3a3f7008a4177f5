"""features of clouds: what PointNet++ sees of objects, from depth pictures all around them. Key: object_id.

python -m pipelines.cloud_features --of my-sets:gap3d
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

if not __package__:  # run as a file, here or copied by `ray submit`: its folder is not where packages are looked for
    sys.path.pop(0)

import numpy as np
import torch

from gap3d.evaluation.extractors import CLOUD_VIEWS, identity, load_points
from gap3d.evaluation.features import stage_of
from gap3d.evaluation.objects import objects_of
from gap3d.evaluation.pictured import Pictured
from gap3d.manifest import Manifest
from gap3d.metrics.extractors.pointnet import BATCH as ROUND
from gap3d.parts import read_rows
from gap3d.records import Failure, Outcome, Status, SystemicFault
from gap3d.schemas import CLOUD_FEATURES
from gap3d.settings import Settings
from gap3d.store import Store
from pipelines.around import parent_of
from pipelines.command import parse, parser
from pipelines.evaluation import clouds, pictured
from pipelines.featurizer import cuda_here
from pipelines.job import Item, Job, Row, parted, passed_on, require_complete
from pipelines.job import run as run_job
from pipelines.picture_features import common_inputs
from pipelines.report import Report, merge
from pipelines.worker import encoder_resources

CODE = "cloud_features"  # in gap3d/versions.toml
STAGE = stage_of("pointnet")
FEW = 32  # objects that need no Ray
ITEM = 16  # clouds that a worker takes at once: a second each on a CPU


@dataclass(frozen=True)
class Place:
    """A stored cloud.

    Attributes:
        key: its object.
        part: the file.
        row: position there.
        number: of the cloud in the whole set, which matters to the quirk ``batch_order`` alone.
    """

    key: str
    part: str
    row: int
    number: int = 0


class CloudExtractor:
    """The worker: one PointNet++, kept from batch to batch."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(settings.compute.encoder_threads)
        self.extractor = load_points(settings.evaluation)
        self.device = torch.cuda.get_device_name() if cuda_here() else "cpu"

    def process(self, payload: Sequence[Place]) -> list[Outcome]:
        """Some clouds of one part: a row for each, whatever becomes of the others."""
        found = read_rows(Path(payload[0].part), [place.row for place in payload], ["key", "points"])
        keys = found.column("key").to_pylist()
        if keys != [place.key for place in payload]:
            raise SystemicFault(f"{payload[0].part} holds other rows: run `python -m pipelines.verify`")
        stored = [np.frombuffer(each.as_py(), np.float32).reshape(-1, 3) for each in found.column("points")]
        return [outcome for place, cloud in zip(payload, stored, strict=True) for outcome in self.row(place, cloud)]

    def row(self, place: Place, cloud: np.ndarray) -> list[Outcome]:
        """The row of one cloud. Singly, so that its feature depends on it alone, to the last bit."""
        begun = time.perf_counter()
        try:
            feature = self.extractor.features([cloud], [place.number])[0].numpy()
        except Failure as known:
            return [Outcome(stage=STAGE, key=place.key, status=known.status, reason=known.reason)]
        except RuntimeError as error:
            raise SystemicFault(f"{self.extractor.name} fails on {self.device}: {error}") from error
        if not np.isfinite(feature).all():
            reason = f"{np.count_nonzero(~np.isfinite(feature))} of {len(feature)} numbers are not finite"
            return [Outcome(stage=STAGE, key=place.key, status=Status.INTERNAL_ERROR, reason=reason)]
        seconds = time.perf_counter() - begun
        data = {"object_id": place.key, "feature": feature}
        return [Outcome(stage=STAGE, key=place.key, data=data, seconds=seconds, device=self.device)]

    def probe(self) -> None:
        """Extract the features of some cloud."""
        (found,) = self.row(Place("probe", "", 0), np.random.default_rng(0).normal(size=(1024, 3)))
        if found.status is not Status.OK:
            raise SystemicFault(f"{self.extractor.name} makes no features of a plain cloud: {found.reason}")

    def close(self) -> None:
        """Nothing is held but memory."""


def numbers_of(store: Store, order: Sequence[str]) -> dict[str, int]:
    """The place of every good cloud among the good ones: the released evaluation leaves out what failed.

    Args:
        store: the collection.
        order: of the objects; those that it does not name come after them, by key.
    """
    good = {key for shard in store.shards for key, row in store.manifest(clouds.STAGE, shard).rows.items() if row.part}
    ordered = [*(key for key in dict.fromkeys(order) if key in good), *sorted(good - set(order))]
    return {key: number for number, key in enumerate(ordered)}


def make_job(settings: Settings, source: Pictured, order: Sequence[str] = ()) -> Job:
    """What this stage computes, over any shards of the source's store.

    Args:
        settings: weights, quirks, workers.
        source: whose clouds.
        order: see ``numbers_of``.
    """
    store = source.store
    description = identity("pointnet", settings.evaluation)
    common = common_inputs(description, CODE)
    numbers = numbers_of(store, order) if "batch_order" in settings.evaluation.quirks else {}

    def rows(shard: str) -> list[Row]:
        held = require_complete(store, clouds.STAGE, shard, CODE)
        made = []
        for key, row in held.rows.items():
            if row.status is not Status.OK or row.part is None:
                made.append(passed_on(STAGE, key, clouds.STAGE, row))
                continue
            number = numbers.get(key, 0)
            inputs = {"cloud": row.digest, **common}
            if numbers:
                inputs["place"] = str(number % ROUND)
            place = Place(key, str(store.shard(clouds.STAGE, shard) / row.part), row.part_row or 0, number)
            made.append(Row(stage=STAGE, key=key, inputs=inputs, payload=place))
        return made

    def items(shard: str, todo: list[Row], _held: Mapping[str, Manifest]) -> list[Item]:
        by_part: dict[str, list[Row]] = {}
        for row in sorted(todo, key=lambda row: (row.payload.part, row.payload.row)):
            by_part.setdefault(row.payload.part, []).append(row)
        batches = [found[start : start + ITEM] for found in by_part.values() for start in range(0, len(found), ITEM)]
        return [Item(shard=shard, rows=tuple(batch), payload=[row.payload for row in batch]) for batch in batches]

    return Job(
        stages=(STAGE,),
        schema={STAGE: CLOUD_FEATURES},
        rows=rows,
        items=items,
        factory=partial(CloudExtractor, settings),
        singly=parted,
        resources=encoder_resources(settings),
        unit="cloud",
        metadata={STAGE: {"extractor": description, "source": dict(source.about), "views": CLOUD_VIEWS}},
    )


def run(
    settings: Settings,
    shards: Sequence[str] = (),
    *,
    source: Pictured | None = None,
    true: bool | None = None,
    order: Sequence[str] | None = None,
) -> Report:
    """Bring clouds and their features up to date.

    Args:
        settings: of the objects' own collection.
        shards: of the source's store; none takes all.
        source: whose depth; none takes the renders of the true objects (``pipelines.around``).
        true: whether the objects are the true ones, whose clouds the quirk ``ray_depth`` bends; None: where no other
            source is named.
        order: of the objects of the whole set, which the quirk ``batch_order`` asks for; none takes that of the
            protocol for true objects, and by object_id for others. Clouds of all shards have to be there for it.
    """
    found = source or pictured.true_objects(settings)
    real = source is None if true is None else true
    keys = list(shards) or found.store.shards
    settings = pictured.without_ray(settings, found, keys, CLOUD_VIEWS, FEW)
    made = clouds.run(settings, found, keys, true=real)
    if order is None:
        section = settings.evaluation
        # Of renders from all around, the protocol's order is that of all objects of the collection that they are of.
        order = objects_of(parent_of(settings, found.store), section.count, section.shuffle) if real else []
    return merge([made, run_job(make_job(settings, found, order), found.store, settings, keys)])


def main() -> None:
    """The program."""
    made = parser(__doc__ or "")
    pictured.add_flags(made)
    made.add_argument("--true", action="store_true", help="the objects that --of names are the true ones (ray_depth)")
    known, settings = parse(made)
    with pictured.program(made, known, settings) as (own, source, shards):
        report = run(own, shards, source=source, true=known.true or not known.of)
        pictured.finish(known, own, source, report, ["pointnet"])


if __name__ == "__main__":
    main()
