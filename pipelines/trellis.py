"""trellis: 3D objects of generated token sets, by a frozen TRELLIS: Gaussians, textured mesh, frames; one row a prompt.

Needs a TRELLIS installation and a CUDA GPU. Baselines run TRELLIS's own pipelines on the same prompts.

    python -m pipelines.trellis --from NAME --trellis /path/to/TRELLIS --python /path/to/its/python
"""

import argparse
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

if not __package__:  # run as a file, here or copied by `ray submit`: its folder is not where packages are looked for
    sys.path.pop(0)

from gap3d import fingerprints
from gap3d.features.encoder import UNTRAINED
from gap3d.features.tokens import KINDS
from gap3d.manifest import LedgerRow, Manifest
from gap3d.records import Outcome, Status
from gap3d.schemas import SHAPES
from gap3d.settings import Settings
from gap3d.store import Store
from gap3d.target_parts import TargetPart
from gap3d.trellis.child import PATCHES, REGISTERS, WIDTH
from gap3d.trellis.process import START_S, Installation
from gap3d.trellis.seeds import Method, seed_of, view_of
from gap3d.trellis.turntable import PROTOCOLS, Turntable
from pipelines.command import parse, parser, refuse_job, say, sentences, stop
from pipelines.job import Item, Job, NotReady, Row, passed_on, require_complete
from pipelines.job import run as run_job
from pipelines.prompts import collection_of
from pipelines.report import Report
from pipelines.shaper import FOLDER, TIMES, Shaper, Source, Wanted, discard, stand
from pipelines.worker import Resources

STAGE = "shapes"  # followed by the method
METHODS: tuple[Method, ...] = get_args(Method)
MODELS: Mapping[Method, str] = {
    "gap3d": "microsoft/TRELLIS-image-large",
    "trellis-image": "microsoft/TRELLIS-image-large",
    "trellis-text": "microsoft/TRELLIS-text-xlarge",
}
CANDIDATES = 4  # views of an object, of which the image baseline sees one
SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Place:
    """A stored row, and what it depends on."""

    part: Path
    row: int
    digest: str


def stage_of(method: str) -> str:
    """The stage that has a method's rows."""
    return f"{STAGE}-{method}"


def name_of(key: str) -> str:
    """The name of an object's folder: its key, where that can be one."""
    return key if SAFE.fullmatch(key) else fingerprints.digest_of(key)


def require_condition(store: Store) -> dict[str, Any]:
    """What the generated sets say about themselves; they have to be what TRELLIS is conditioned on.

    Raises:
        NotReady: nothing is generated yet.
        ValueError: their tokens are of another number or width.
    """
    for shard in store.shards:
        held = require_complete(store, "generated", shard, "generate")
        for part in sorted(held.parts):
            with TargetPart(store.shard("generated", shard) / part) as opened:
                said = opened.metadata
            shapes = [said["tokens"][name]["shape"] for name in KINDS]
            (width,), (registers, _), (patches, _) = shapes
            require_layout(registers, patches, width, f"the token sets of {store.collection} are")
            return said
    return {}


def require_layout(registers: int, patches: int, width: int, whose: str) -> None:
    """Raises ValueError for tokens that TRELLIS is not conditioned on; ``whose`` begins the sentence."""
    if (registers, patches, width) != (REGISTERS, PATCHES, WIDTH):
        raise ValueError(
            f"{whose} [{1 + registers + patches}, {width}], and TRELLIS is conditioned "
            f"on [{1 + REGISTERS + PATCHES}, {WIDTH}]: generate with an aligner that was trained on targets of "
            "facebook/dinov2-with-registers-large at 518 pixels"
        )


def renders_of(settings: Settings, collection: str) -> dict[str, list[Place]]:
    """The good renders of every object of a collection that the image baseline may see, by object_id.

    They are the four of the protocol by their yaw, where an object has them among others; else its first ones.

    Raises:
        NotReady: it has none.
    """
    store = Store.open(settings.store, collection, settings.blobs)
    found: dict[str, dict[str, tuple[float | None, Place]]] = {}
    for shard in store.shards:
        held = store.manifest("renders", shard)
        yaws = store.read(held, ["yaw"])
        for key, row in held.rows.items():
            if row.status is Status.OK and row.part is not None:
                place = Place(store.shard("renders", shard) / row.part, row.part_row or 0, row.digest)
                found.setdefault(key.partition("/")[0], {})[key] = yaws[key]["yaw"], place
    if not found:
        raise NotReady(f"collection {collection} in {settings.store} has no renders")
    return {name: candidates([views[key] for key in sorted(views)]) for name, views in found.items()}


def candidates(views: Sequence[tuple[float | None, Place]]) -> list[Place]:
    """Of an object's renders, with their yaws in degrees, those that the image baseline may see."""
    by_yaw = {round(yaw, 3): place for yaw, place in reversed(views) if yaw is not None}
    wanted = [camera.yaw for camera in PROTOCOLS[CANDIDATES].cameras]
    if all(yaw in by_yaw for yaw in wanted):
        return [by_yaw[yaw] for yaw in wanted]
    return [place for _, place in views][:CANDIDATES]


@dataclass(frozen=True)
class Plan:
    """What a run makes its objects from.

    Attributes:
        store: the collection of the prompts.
        installation: where TRELLIS is.
        wanted: what is made of each.
        renders: of another collection, by object_id, for the image baseline; None takes the prompts' own pictures.
        said: what the generated sets say about themselves.
    """

    store: Store
    installation: Installation
    wanted: Wanted
    renders: Mapping[str, list[Place]] | None
    said: Mapping[str, Any]

    @property
    def method(self) -> Method:
        """Whose pipeline it is."""
        return self.installation.method

    @property
    def stage(self) -> str:
        """Of the rows."""
        return stage_of(self.method)

    def rows(self, shard: str) -> list[Row]:
        """The expected rows of a shard: one a prompt."""
        prompts = require_complete(self.store, "prompts", shard, "generate")
        texts = self.store.read(prompts, ["prompt", "image_name", "index", "caption_index"])
        present = self.store.read(self.store.manifest(self.stage, shard), ["folder", "files"])
        upstream = "prompts"
        held = prompts
        if self.method == "gap3d":
            upstream, held = "generated", require_complete(self.store, "generated", shard, "generate")
            asked = {key: fingerprints.digest_of(row["prompt"]) for key, row in texts.items()}
            answered = {key: row.inputs["text"] for key, row in held.rows.items() if not row.origin}
            if asked != answered:
                raise NotReady("the token sets are of other prompts: run `python -m pipelines.generate` first")
        made = []
        for key, row in held.rows.items():
            if row.status is not Status.OK:
                made.append(passed_on(self.stage, key, upstream, row))
                continue
            planned = self.row(shard, key, row, prompts.rows[key], texts[key])
            known = present.get(key)
            there = known is None or stand(self.store.folder, known["folder"], known["files"])
            made.append(replace(planned, stands=there))
        return made

    def row(self, shard: str, key: str, row: LedgerRow, prompt: LedgerRow, text: Mapping[str, Any]) -> Row:
        """The row of one good prompt."""
        index, choice = text["index"], text["caption_index"]
        part, place, column, given = None, 0, "", {"prompt": fingerprints.digest_of(text["prompt"])}
        about: dict[str, Any] = {"method": self.method, "model": self.installation.model, "index": index}
        if self.method == "gap3d":
            part, place = str(self.store.shard("generated", shard) / str(row.part)), row.part_row or 0
            given = {"tokens": row.digest}
            about |= {"label": self.said.get("label"), "aligner": self.said.get("aligner")}
        elif self.method == "trellis-image":
            found = self.picture(shard, key, prompt, text)
            if found is None:
                where = "the renders" if self.renders is not None else "its prompt"
                lacks = Outcome(stage=self.stage, key=key, status=Status.MISSING, reason=f"no picture in {where}")
                return Row(stage=self.stage, key=key, inputs={"picture": "none", **self.common}, decided=lacks)
            source, choice, column = found
            part, place, given = str(source.part), source.row, {"picture": source.digest}
            about["view"] = choice
        seed = seed_of(self.method, index, choice)
        payload = Source(key, text["prompt"], name_of(key), seed, part, place, column, about)
        return Row(stage=self.stage, key=key, inputs={**given, "seed": str(seed), **self.common}, payload=payload)

    def picture(
        self, shard: str, key: str, prompt: LedgerRow, text: Mapping[str, Any]
    ) -> tuple[Place, int, str] | None:
        """Where the picture of a prompt is, which view it is, and its column."""
        if self.renders is None:
            part = self.store.shard("prompts", shard) / str(prompt.part)
            return (Place(part, prompt.part_row or 0, prompt.digest), 0, "image") if text["image_name"] else None
        views = self.renders.get(key.partition("/")[0])
        if not views:
            return None
        chosen = view_of(text["index"], len(views))
        return views[chosen], chosen, "png"

    @property
    def digest(self) -> str:
        """Of what is wanted; the store keeps that under it."""
        return fingerprints.digest_of(asdict(self.wanted))

    @property
    def common(self) -> dict[str, str]:
        """The parts of every row's fingerprint that are the same."""
        return {
            "model": self.installation.model,
            "wanted": self.digest,
            "code": fingerprints.code_version(STAGE),
        }

    def job(self, settings: Settings) -> Job:
        """What is computed."""
        compute = settings.compute

        def items(shard: str, todo: list[Row], _held: Mapping[str, Manifest]) -> list[Item]:
            return [Item(shard=shard, rows=(row,), payload=row.payload) for row in todo]

        return Job(
            stages=(self.stage,),
            schema={self.stage: SHAPES},
            rows=self.rows,
            items=items,
            factory=partial(Shaper, self.stage, self.installation, self.wanted, self.store.folder, settings.limits),
            resources=Resources(max(1, compute.workers), gpus=compute.encoder_gpus, custom=compute.encoder_resources),
            unit="object",
            deadline_s=START_S + 2 * TIMES * settings.limits.timeout_s,
        )


def run(plan: Plan, settings: Settings) -> Report:
    """Bring the objects up to date, and remove those whose prompts are gone."""
    if not settings.compute.encoder_gpus:  # one TRELLIS, on the GPU that this process sees
        settings = settings.model_copy(update={"compute": settings.compute.model_copy(update={"workers": 0})})
    plan.store.save_settings(plan.stage, plan.digest, asdict(plan.wanted))
    report = run_job(plan.job(settings), plan.store, settings, plan.store.shards)
    names = {name_of(key) for shard in plan.store.shards for key in plan.store.manifest(plan.stage, shard).rows}
    discard(plan.store.folder, plan.method, names)
    return report


def model_of(given: str | None, method: Method) -> str:
    """The weights: as given, a folder by its full path, else the paper's."""
    if given is None:
        return MODELS[method]
    return str(Path(given).absolute()) if Path(given).exists() else given


def turntables_of(counts: str, ssaa: int | None) -> tuple[Turntable, ...]:
    """The turntables that a flag names.

    Raises:
        ValueError: there is none of that number.
    """
    try:
        found = [PROTOCOLS[int(each)] for each in counts.split(",") if each.strip()]
    except (ValueError, KeyError):
        raise ValueError(f"--turntables {counts}: choose of {', '.join(map(str, PROTOCOLS))}") from None
    return tuple(each if ssaa is None else replace(each, ssaa=ssaa) for each in found)


def main() -> None:
    """The program."""
    made = parser(__doc__ or "")
    made.add_argument("--from", dest="name", required=True, help="the collection that pipelines.generate made")
    made.add_argument("--baseline", choices=METHODS[1:], help="TRELLIS's own pipeline in place of generated tokens")
    made.add_argument(
        "--pictures-of", metavar="COLLECTION", help="baseline trellis-image: sees its renders, by id (default: --image)"
    )
    made.add_argument("--black", action="store_true", help="baseline trellis-image: pictures on black, without alpha")
    made.add_argument("--trellis", type=Path, help="the clone of TRELLIS's repository (default: python finds it)")
    made.add_argument("--python", default=sys.executable, help="the interpreter of TRELLIS's environment")
    made.add_argument("--model", help="TRELLIS's weights, a hub id or a folder (default: as in the paper)")
    made.add_argument(
        "--turntables",
        default="4,8,20",
        help="turntables to render, by their frames: of 4, 8 and 20 (default: all three)",
    )
    made.add_argument(
        "--ssaa", type=int, help="supersampling: samples per side of a pixel, for all turntables (default: 1, 4, 4)"
    )
    made.add_argument("--frame-size", type=int, default=512, help="pixels of a frame's side (default: 512)")
    made.add_argument("--glb", action=argparse.BooleanOptionalAction, default=True, help="bake a textured mesh")
    made.add_argument("--report", type=Path, help="write the run's report (JSON) here")
    known, settings = parse(made)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)
    with sentences(made):
        refuse_job(settings)
        store, own = collection_of(settings, known.name)
        method: Method = known.baseline or "gap3d"
        plan = Plan(
            store,
            Installation(
                method, model_of(known.model, method), known.trellis and known.trellis.absolute(), known.python
            ),
            Wanted(turntables_of(known.turntables, known.ssaa), known.frame_size, known.glb, known.black),
            renders_of(settings, known.pictures_of) if known.pictures_of else None,
            require_condition(store) if method == "gap3d" else {},
        )
        report = run(plan, own)
        if known.report:
            report.save(known.report)
        label = str(plan.said.get("label", ""))
        worth = f" ({label})" if UNTRAINED in label else ""
        say(*report.lines(), f"objects: {store.folder / FOLDER / method}{worth}")


if __name__ == "__main__":
    main()
