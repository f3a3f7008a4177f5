"""clouds: points on the surface of every object, from depth pictures all around it. Key: object_id."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

if not __package__:  # run as a file, here or copied by `ray submit`: its folder is not where packages are looked for
    sys.path.pop(0)

import numpy as np

from gap3d import fingerprints
from gap3d.evaluation.extractors import CLOUD_VIEWS
from gap3d.evaluation.pictured import Pictured, contents
from gap3d.evaluation.views import View
from gap3d.evaluation_settings import EvaluationSettings
from gap3d.manifest import Manifest
from gap3d.metrics.pointclouds import DepthView, cloud_of, view_of
from gap3d.records import Failure, Outcome, Status
from gap3d.schemas import clouds
from gap3d.settings import Limits, Settings
from pipelines.evaluation.pictured import failed
from pipelines.job import Item, Job, Row
from pipelines.job import run as run_job
from pipelines.report import Report
from pipelines.worker import Resources

STAGE = "clouds"


@dataclass(frozen=True)
class Wanted:
    """An object, and the pictures that its cloud is made of."""

    key: str
    views: tuple[View, ...]


class Unprojector:
    """The worker: needs no engine but numpy.

    Args:
        settings: points, presample and seed.
        limits: bytes of a file.
        bent: make the errors of the released code (quirk ``ray_depth``); for true objects only.
    """

    def __init__(self, settings: EvaluationSettings, limits: Limits, bent: bool) -> None:
        self.settings = settings
        self.limits = limits
        self.bent = bent

    def process(self, payload: Wanted) -> list[Outcome]:
        """One object."""
        begun = time.perf_counter()
        try:
            data = {"object_id": payload.key, "points": self.cloud(payload).reshape(-1).view(np.uint8)}
        except Failure as known:
            return [Outcome(stage=STAGE, key=payload.key, status=known.status, reason=known.reason)]
        digest = fingerprints.row_digest("ok", data)
        seconds = time.perf_counter() - begun
        return [Outcome(stage=STAGE, key=payload.key, data=data, digest=digest, seconds=seconds, device="cpu")]

    def cloud(self, payload: Wanted) -> np.ndarray:
        """float32 [points, 3].

        Raises:
            Failure: a picture or its depth is damaged or not there, or too little is to be seen.
        """
        found = [self.depth(view, row) for view, row in self.rows(payload)]
        return cloud_of(
            found,
            payload.key,
            expected=CLOUD_VIEWS,
            points=self.settings.points,
            presample=self.settings.presample,
            seed=self.settings.seed,
            paper=self.bent,
        )

    def rows(self, payload: Wanted) -> list[tuple[View, Mapping[str, Any] | Failure]]:
        """The object's views with their content."""
        return list(zip(payload.views, contents(payload.views, self.limits, depth=True), strict=True))

    def depth(self, view: View, row: Mapping[str, Any] | Failure) -> DepthView:
        """One of its views.

        Raises:
            Failure: see ``cloud``.
        """
        try:
            if isinstance(row, Failure):
                raise row
            return view_of(row, self.limits.pixels)
        except Failure as known:
            raise Failure(known.status, f"{view.key}: {known.reason}") from known

    def probe(self) -> None:
        """There is no engine."""

    def close(self) -> None:
        """Nothing is held."""


def make_job(settings: Settings, source: Pictured, *, true: bool) -> Job:
    """What this stage computes, over any shards of the source's store.

    Args:
        settings: of the evaluation, limits, workers.
        source: whose depth.
        true: whether the objects are the true ones: the quirk ``ray_depth`` is one of theirs alone.
    """
    section = settings.evaluation
    bent = true and "ray_depth" in section.quirks
    made_with = {"points": section.points, "presample": section.presample, "seed": section.seed, "ray_depth": bent}
    common = {"cloud": fingerprints.digest_of(made_with), "code": fingerprints.code_version(STAGE)}

    def rows(shard: str) -> list[Row]:
        made = []
        for key, views in source.views(shard, CLOUD_VIEWS).items():
            if any(view.status is not Status.OK for view in views):
                made.append(failed(STAGE, key, views))
                continue
            inputs = {"views": fingerprints.digest_of([view.digest for view in views]), **common}
            made.append(Row(stage=STAGE, key=key, inputs=inputs, payload=Wanted(key, tuple(views))))
        return made

    def items(shard: str, todo: list[Row], _held: Mapping[str, Manifest]) -> list[Item]:
        return [Item(shard=shard, rows=(row,), payload=row.payload) for row in todo]

    return Job(
        stages=(STAGE,),
        schema={STAGE: clouds(section.points)},
        rows=rows,
        items=items,
        factory=partial(Unprojector, section, settings.limits, bent),
        resources=Resources(settings.compute.workers),
        unit="cloud",
        metadata={STAGE: {"cloud": made_with, "source": dict(source.about)}},
    )


def run(settings: Settings, source: Pictured, shards: Sequence[str] = (), *, true: bool) -> Report:
    """Bring the clouds of these shards up to date; none takes all."""
    job = make_job(settings, source, true=true)
    return run_job(job, source.store, settings, list(shards) or source.store.shards)
