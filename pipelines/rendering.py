"""Views and renders in one breath: an object is imported once, its cameras chosen, and their images rendered.

Either stage can be asked for alone: ``pipelines.views`` and ``pipelines.renders``.
"""

import importlib.metadata
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import Any

if not __package__:  # run as a file, here or copied by `ray submit`: its folder is not where packages are looked for
    sys.path.pop(0)

from gap3d import fingerprints
from gap3d.manifest import Manifest
from gap3d.records import Status
from gap3d.settings import Settings
from gap3d.store import Store
from gap3d.temporary import sweep
from pipelines import downloads
from pipelines.attempt import SCHEMAS, image_inputs, view_key
from pipelines.cluster import Resources
from pipelines.command import open_store, stage_main
from pipelines.job import Item, Job, NotReady, Row, passed_on, require_complete
from pipelines.job import run as run_job
from pipelines.renderer import SCRATCH, Renderer
from pipelines.report import Report

STAGES = ("views", "renders")


def engine_versions() -> dict[str, str]:
    """Versions of what decides the results of both stages."""
    blender = importlib.metadata.version("bpy")
    return {"views": f"bpy {blender}, embreex {importlib.metadata.version('embreex')}", "renders": f"bpy {blender}"}


def common_inputs(settings: Settings, store: Store) -> dict[str, dict[str, str]]:
    """By stage, what the fingerprints of all its rows have in common; saves the settings they stand for."""
    engines = engine_versions()
    made: dict[str, dict[str, str]] = {}
    for stage, section in (("views", settings.views), ("renders", settings.renders)):
        digest = fingerprints.settings_digest(section)
        store.save_settings(stage, digest, section.model_dump(mode="json"))
        made[stage] = {"settings": digest, "code": fingerprints.code_version(stage), "engine": engines[stage]}
    made["renders"]["quality"] = fingerprints.settings_digest(settings.quality)
    store.save_settings("renders", made["renders"]["quality"], settings.quality.model_dump(mode="json"))
    return made


def make_job(settings: Settings, stages: Sequence[str] = STAGES) -> Job:
    """What these stages compute, over any shards.

    Args:
        settings: everything.
        stages: views, renders, or both.
    """
    store = open_store(settings)
    common = common_inputs(settings, store)
    numbers = range(settings.views.images)

    def rows(shard: str) -> list[Row]:
        held = require_complete(store, downloads.STAGE, shard, "downloads")
        files = store.read(held)
        wishes = store.read(store.manifest("catalog", shard), ["pinned_yaw", "up_axis"])
        views = store.manifest("views", shard)
        cameras = store.read(views, ["cameras"])
        if "views" not in stages:
            require_complete(store, "views", shard, "views")
        made: list[Row] = []
        for key, row in held.rows.items():
            if row.status is not Status.OK:
                keys = {"views": [key], "renders": [view_key(key, number) for number in numbers]}
                made += [passed_on(stage, each, downloads.STAGE, row) for stage in stages for each in keys[stage]]
                continue
            if key not in wishes:
                raise NotReady(
                    f"downloads of shard {shard} are older than the catalog: run `python -m pipelines.downloads` first"
                )
            wish = wishes[key]
            shape = {"bundle": files[key]["bundle"], "up_axis": wish["up_axis"] or ""}
            payload = {"object_id": key, **files[key], **wish}
            view = views.rows.get(key)
            view_inputs = {
                **shape,
                "pinned_yaw": "" if wish["pinned_yaw"] is None else str(wish["pinned_yaw"]),
                **common["views"],
            }
            if "views" in stages:
                made.append(Row(stage="views", key=key, inputs=view_inputs, payload=payload))
            if "renders" not in stages:
                continue
            base = {**shape, **common["renders"]}
            payload = {**payload, "render_inputs": base}
            stale = "new" if view is None else view.needs(view_inputs, settings.limits)
            if "views" not in stages and stale.startswith(("new", "changed")):
                raise NotReady(f"the view of {key} is not up to date ({stale}): run `python -m pipelines.views` first")
            undecided = "views" in stages and bool(stale)
            for number in numbers:
                image, inputs = view_key(key, number), None
                after = ("views", key) if undecided or view is None else None
                if after is None and view is not None and view.status is not Status.OK:
                    made.append(passed_on("renders", image, "views", view))
                    continue
                if after is None:
                    inputs = image_inputs(base, cameras[key]["cameras"], number)
                made.append(
                    Row(stage="renders", key=image, inputs=inputs, after=after, payload={**payload, "image": number})
                )
        return made

    def items(shard: str, todo: list[Row], held: Mapping[str, Manifest]) -> list[Item]:
        by_object: dict[str, list[Row]] = {}
        for row in todo:
            by_object.setdefault(row.payload["object_id"], []).append(row)
        only = [key for key, found in by_object.items() if all(row.stage == "renders" for row in found)]
        views = store.read(store.manifest("views", shard), keys=only) if only else {}
        pictures: dict[str, dict[str, Any]] = {}
        if "renders" in stages:
            images = [view_key(key, number) for key in by_object for number in numbers]
            pictures = store.read(held["renders"], ["picture"], images)
        folder = store.shard("renders", shard)
        made = []
        for object_id, found in by_object.items():
            payload = {**found[0].payload, **found[-1].payload}
            payload["images"] = [row.payload["image"] for row in found if row.stage == "renders"]
            payload["view"] = views.get(object_id)
            payload["standing"] = {}
            for number in numbers if "renders" in stages else ():
                key = view_key(object_id, number)
                old = held["renders"].rows.get(key)
                if old is not None and not old.needs(old.inputs, settings.limits):
                    place = (str(folder / old.part), old.part_row, old.device, old.sandboxed) if old.part else None
                    picture = pictures.get(key, {}).get("picture")
                    payload["standing"][number] = {"inputs": dict(old.inputs), "picture": picture, "place": place}
            made.append(Item(shard=shard, rows=tuple(found), payload=payload))
        return made

    compute = settings.compute
    gpus = compute.render_gpus or float(compute.render_device not in ("auto", "cpu"))  # one process a GPU
    return Job(
        stages=tuple(stages),
        schema=SCHEMAS,
        rows=rows,
        items=items,
        factory=partial(Renderer, settings, store.blobs.place),
        resources=Resources(
            compute.workers, cpus=float(settings.renders.threads), gpus=gpus, custom=compute.render_resources
        ),
        metadata={
            stage: {"settings": common[stage]["settings"], "engine": common[stage]["engine"]} for stage in stages
        },
        deadline_s=deadline_s(settings),
    )


def deadline_s(settings: Settings) -> float:
    """Longest that one object may take a worker: its import, all of its images, and every try of them."""
    return settings.limits.timeout_s * (1 + settings.views.images) * settings.limits.attempts + 300


def run(settings: Settings, shards: Sequence[str], stages: Sequence[str] = STAGES) -> Report:
    """Bring these shards up to date."""
    leftovers = Path(gettempdir()), f"{SCRATCH}-*"
    sweep(*leftovers)  # of a killed run, though this one may need no Blender
    try:
        return run_job(make_job(settings, stages), open_store(settings), settings, shards)
    finally:
        sweep(*leftovers)  # of a worker that was killed in this one, after which no other came


if __name__ == "__main__":
    stage_main("rendering", __doc__, run)
