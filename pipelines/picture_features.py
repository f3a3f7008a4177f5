"""features of pictures: what Inception, DINOv2 and CLIP see of objects from all around. Key: (object_id, view).

python -m pipelines.picture_features --of toys4k-around
python -m pipelines.picture_features --of my-sets:gap3d
python -m pipelines.picture_features --of FOLDER
"""

import importlib.metadata
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

if not __package__:  # run as a file, here or copied by `ray submit`: its folder is not where packages are looked for
    sys.path.pop(0)

from gap3d import fingerprints
from gap3d.evaluation.extractors import VIEWS, PictureName, identity
from gap3d.evaluation.features import stage_of
from gap3d.evaluation.pictured import Pictured
from gap3d.evaluation.views import Stored, View
from gap3d.manifest import Manifest
from gap3d.records import Outcome, Status
from gap3d.schemas import PICTURE_FEATURES
from gap3d.settings import Settings
from pipelines.command import parse, parser
from pipelines.evaluation import pictured
from pipelines.evaluation.picture_extractor import PictureExtractor
from pipelines.job import Item, Job, Row, parted
from pipelines.job import run as run_job
from pipelines.report import Report, merge
from pipelines.targets import AHEAD, BATCH, GPU_AHEAD, device_of
from pipelines.utilisation import Utilisation
from pipelines.worker import encoder_resources

STAGE = "picture_features"  # in gap3d/versions.toml
FEW = 32  # objects that need no Ray


def common_inputs(description: Mapping[str, Any], stage: str) -> dict[str, str]:
    """The parts of a fingerprint that an extractor's rows have in common."""
    return {
        "weights": description["weights"],
        "preprocessing": description["preprocessing"],
        "code": fingerprints.code_version(stage),
        "engine": f"transformers {importlib.metadata.version('transformers')}",
    }


def make_job(settings: Settings, source: Pictured, name: PictureName) -> Job:
    """What one extractor computes, over any shards of the source's store."""
    stage, description = stage_of(name), identity(name, settings.evaluation)
    common = common_inputs(description, STAGE)
    device = device_of(settings)
    size = settings.compute.batch_size or BATCH[device]

    def rows(shard: str) -> list[Row]:
        made = []
        for views in source.views(shard, VIEWS[name]).values():
            for view in views:
                inputs = {"picture": view.digest, **common}
                good = view.status is Status.OK
                row = Row(stage=stage, key=view.key, inputs=inputs, payload=view)
                made.append(row if good else pictured.failed(stage, view.key, [view]))
        return made

    def items(shard: str, todo: list[Row], _held: Mapping[str, Manifest]) -> list[Item]:
        # Rows of renders are read from front to back.
        todo = sorted(todo, key=lambda row: place_of(row.payload))
        batches = [todo[start : start + size] for start in range(0, len(todo), size)]
        return [Item(shard=shard, rows=tuple(batch), payload=[row.payload for row in batch]) for batch in batches]

    busy = Utilisation()

    def says(found: Sequence[Outcome]) -> str:
        return str(busy.add(outcome.costs for outcome in found))

    return Job(
        stages=(stage,),
        schema={stage: PICTURE_FEATURES},
        rows=rows,
        items=items,
        factory=partial(PictureExtractor, stage, name, settings),
        singly=parted,
        resources=encoder_resources(settings, GPU_AHEAD if device == "gpu" else AHEAD),
        unit="picture",
        says=says,
        metadata={stage: {"extractor": description, "source": dict(source.about), "views": VIEWS[name]}},
    )


def place_of(view: View) -> tuple[str, int]:
    """Where a picture lies, to be read in order."""
    return (view.place.part, view.place.row) if isinstance(view.place, Stored) else (view.key, 0)


def wanted(settings: Settings) -> list[PictureName]:
    """The extractors whose protocol is asked for (``evaluation.views``)."""
    return [name for name, count in VIEWS.items() if count in settings.evaluation.views]


def named(text: str) -> list[PictureName]:
    """The extractors of a comma-separated list.

    Raises:
        ValueError: there is none of a name.
    """
    asked = {name.strip() for name in text.split(",")}
    if unknown := sorted(asked - set(VIEWS)):
        raise ValueError(f"--features {', '.join(unknown)}: choose of {', '.join(VIEWS)}")
    return [name for name in VIEWS if name in asked]


def run(
    settings: Settings,
    shards: Sequence[str] = (),
    *,
    source: Pictured | None = None,
    names: Sequence[PictureName] | None = None,
) -> Report:
    """Bring the features of pictures up to date.

    Args:
        settings: of the objects' own collection.
        shards: of the source's store; none takes all.
        source: whose pictures; none takes the renders of the true objects (``pipelines.around``).
        names: of the extractors; none takes those whose protocol is asked for.
    """
    found = source or pictured.true_objects(settings)
    keys = list(shards) or found.store.shards
    reports = []
    for name in wanted(settings) if names is None else names:
        own = pictured.without_ray(settings, found, keys, VIEWS[name], FEW)
        reports.append(run_job(make_job(own, found, name), found.store, own, keys))
    return merge(reports)


def main() -> None:
    """The program."""
    made = parser(__doc__ or "")
    pictured.add_flags(made)
    made.add_argument("--features", help=f"of {', '.join(VIEWS)} (default: those whose views are asked for)")
    known, settings = parse(made)
    with pictured.program(made, known, settings) as (own, source, shards):
        names = named(known.features) if known.features else wanted(own)
        report = run(own, shards, source=source, names=names)
        pictured.finish(known, own, source, report, names)


if __name__ == "__main__":
    main()
