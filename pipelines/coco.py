"""coco: MS-COCO as image-text tars with one caption an image, the evaluation protocol's. Key: image id."""

import hashlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

if not __package__:  # run as a file, here or copied by `ray submit`: its folder is not where packages are looked for
    sys.path.pop(0)

from gap3d import fingerprints, tars
from gap3d.coco import Coco, Image, open_coco
from gap3d.records import Failure, Outcome, Status
from gap3d.schemas import COCO
from gap3d.settings import Settings
from gap3d.shard_writer import ShardWriter
from gap3d.store import ALL, Store
from pipelines.command import open_store, stage_main
from pipelines.progress import progress
from pipelines.report import Report, ShardReport

STAGE = "coco"


@dataclass
class Plan:
    """A tar and the images that are to be in it; ``inputs`` are the same for all its rows."""

    name: str
    images: list[Image] = field(default_factory=list)
    stamps: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> dict[str, str]:
        """The parts of its rows' fingerprints: an image that changes makes the whole tar anew."""
        content = [[asdict(image), stamp] for image, stamp in zip(self.images, self.stamps, strict=True)]
        return {"tar": fingerprints.digest_of([self.name, content]), "code": fingerprints.code_version(STAGE)}


def folder_of(settings: Settings) -> Path:
    """Where the tars lie."""
    return open_store(settings).folder / "tars"


def run(settings: Settings, _shards: Sequence[str] = ()) -> Report:
    """Bring the tars up to date; the report."""
    started = time.monotonic()
    store, section = open_store(settings), settings.coco
    store.save_settings(STAGE, fingerprints.settings_digest(section), section.model_dump(mode="json"))
    with open_coco(section) as coco, store.writer(STAGE, ALL, COCO, settings.compute, settings.limits) as writer:
        plans, failures, expected = planned(coco, settings)
        for outcome in failures:
            inputs = {"reason": outcome.reason, "code": fingerprints.code_version(STAGE)}
            known = writer.rows.get(outcome.key)
            if known is None or known.needs(inputs, settings.limits):
                writer.add(outcome, inputs)
        held = store.read(store.manifest(STAGE, ALL), ["tar", "stamp"])
        due = [plan for plan in plans if not stands(plan, writer, held, settings)]
        needed = sum(coco.size_of(image) for plan in due for image in plan.images)
        tars.require_room(folder_of(settings), needed, "name another disk (store)")
        with progress(total=sum(len(plan.images) for plan in due), desc=STAGE, unit="image") as bar:
            for plan in due:
                for outcome in made(plan, coco, settings):
                    writer.add(outcome, plan.inputs)
                    bar.update()
        found = writer.finish(expected)
        left = {row["tar"] for row in held.values()} - {plan.name for plan in plans}
        for name in left:  # images that are gone: their tars are ours, and can be made again
            (folder_of(settings) / name).unlink(missing_ok=True)
    tars.log_strangers(folder_of(settings), {plan.name for plan in plans})
    report = ShardReport(
        stage=STAGE,
        shard=ALL,
        expected=len(expected),
        found=len(found.rows),
        computed=writer.added,
        by_status=found.by_status(),
        digest=found.digest,
    )
    report.prove()
    return Report(shards=(report,), wall_s=time.monotonic() - started)


def planned(coco: Coco, settings: Settings) -> tuple[list[Plan], list[Outcome], set[str]]:
    """Which image goes into which tar; the rows of those that go into none; every key."""
    section = settings.coco
    plans: list[Plan] = []
    failures: list[Outcome] = []
    images = coco.images(section.seed)
    for image in images:
        try:
            if not image.captions:
                raise Failure(Status.MISSING, "the annotations have no caption for it")
            stamp = coco.stamp_of(image)
        except Failure as failure:
            failures.append(Outcome(stage=STAGE, key=image.key, status=failure.status, reason=failure.reason))
            continue
        if not plans or len(plans[-1].images) == section.tar_images:
            plans.append(Plan(f"coco-{section.split}-{len(plans):05d}.tar"))
        plans[-1].images.append(image)
        plans[-1].stamps.append(stamp)
    keys = {image.key for image in images}
    if len(keys) < len(images):
        raise ValueError(f"{coco.annotations} lists an image twice")
    return plans, failures, keys


def stands(plan: Plan, writer: ShardWriter, held: Mapping[str, Mapping[str, Any]], settings: Settings) -> bool:
    """Whether a tar and all its rows are as they would be made."""
    inputs, stamp = plan.inputs, tars.stamp_of(folder_of(settings) / plan.name)
    known = [writer.rows.get(image.key) for image in plan.images]
    if any(row is None or row.needs(inputs, settings.limits) for row in known):
        return False
    return all(held[image.key]["stamp"] == stamp for image in plan.images if image.key in held) and bool(stamp)


def made(plan: Plan, coco: Coco, settings: Settings) -> Iterator[Outcome]:
    """Write a tar; then the rows of its images."""
    path, failures, hashes = folder_of(settings) / plan.name, {}, {}

    def samples() -> Iterator[dict[str, Any]]:
        for image in plan.images:
            try:
                jpg = coco.jpg(image, settings.limits.object_bytes, settings.limits.pixels)
            except Failure as failure:
                failures[image.key] = failure
                continue
            hashes[image.key] = hashlib.sha256(jpg).hexdigest()
            yield image.sample(jpg)

    sha256 = tars.write(path, samples())
    for image in plan.images:
        if image.key in failures:
            failure = failures[image.key]
            yield Outcome(stage=STAGE, key=image.key, status=failure.status, reason=failure.reason)
            continue
        data = {
            "image_id": image.id,
            "file_name": image.about["file_name"],
            "sha256": hashes[image.key],
            "caption": image.caption,
            "captions": list(image.captions),
            "licence": image.about["licence"],
            "url": str(image.about.get("coco_url", "")),
            "tar": plan.name,
            "tar_sha256": sha256,
            "stamp": tars.stamp_of(path),
        }
        yield Outcome(stage=STAGE, key=image.key, data=data)


def damaged(settings: Settings, store: Store) -> list[str]:
    """What is wrong with the tars of a collection; reads every byte."""
    rows = store.read(store.manifest(STAGE, ALL), ["tar", "tar_sha256"]).values()
    return tars.damage(folder_of(settings), {row["tar"]: row["tar_sha256"] for row in rows})


if __name__ == "__main__":
    stage_main(STAGE, __doc__, run, sharded=False)
