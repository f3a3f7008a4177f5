"""comparison: several runs over one file of prompts, each in a collection of its own, and picture grids of them.

python -m pipelines.comparison --runs table4                                   # the evaluation's prompts
python -m pipelines.comparison --runs figure4 --prompts edits.csv --into edits
python -m pipelines.comparison --runs table3 --trellis /path/to/TRELLIS --python /path/to/its/python --measure
"""

import argparse
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

if not __package__:  # run as a file, here or copied by `ray submit`: its folder is not where packages are looked for
    sys.path.pop(0)

from gap3d.evaluation.result import FOLDER as EVALUATION
from gap3d.evaluation.runs import PROMPTS, TRUE, Run, Sheet, bundled, read_sheet
from gap3d.parts import write_atomically
from gap3d.prompts import of_file
from gap3d.records import Status, SystemicFault
from gap3d.settings import Settings
from gap3d.store import Store, free_bytes
from gap3d.trellis.process import Installation
from pipelines import around, generate, generation_metrics, prompts, trellis
from pipelines.command import RESOLVED, parse, parser, resolved, say, sentences, stop
from pipelines.evaluation.comparison_pictures import Column, Pictures
from pipelines.evaluation_prompts import evaluation_prompts
from pipelines.generate import Checkpoint, trained_in
from pipelines.generator import STAGE as TOKENS
from pipelines.job import NotReady
from pipelines.predictions import STAGE_OF, bytes_of
from pipelines.report import Report, merge
from pipelines.shaper import Wanted

FIGURES = "figures"  # below the evaluation's folder: what comparisons show
RESERVE = 1.1  # the disk has to hold so many times the token sets


@dataclass(frozen=True)
class Shaping:
    """How objects are made.

    Attributes:
        trellis: the clone of TRELLIS's repository; None lets python find it.
        python: the interpreter of its environment.
        wanted: what is made of every prompt.
    """

    trellis: Path | None
    python: str
    wanted: Wanted


def checkpoint_of(run: Run, settings: Settings, vlm: str | None) -> Checkpoint:
    """The aligner of a run.

    Raises:
        NotReady: the collection has none of that stage.
        SystemicFault: the folder is no checkpoint.
    """
    stage = STAGE_OF.get(run.model)
    folder = trained_in(settings.store, settings.collection, (stage,)) if stage else Path(run.model)
    found = Checkpoint(folder.absolute(), vlm)
    found.digest  # noqa: B018  read now: a folder that is no checkpoint stops the comparison before it begins
    return found


def planned(
    settings: Settings, sheet: Sheet, file: Path, prefix: str, *, vlm: str | None, true: str, shaping: Shaping | None
) -> list[Column]:
    """The runs with all that they need; nothing is computed, and nothing made unless all of them can begin.

    Args:
        settings: of the aligners' collection.
        sheet: the runs.
        file: of the prompts.
        prefix: of the collections' names.
        vlm: where the vision-language model lies, if not where it lay in training.
        true: the collection of true objects.
        shaping: how objects are made; None where none are.

    Raises:
        NotReady: a run's aligner, or the renders that it sees, are not there.
        ValueError: the prompts can't be read, TRELLIS takes no such tokens, the disk is too small.
    """
    aligners = {run.model: checkpoint_of(run, settings, vlm) for run in sheet.runs if run.method == "gap3d"}
    if shaping:
        for name, checkpoint in aligners.items():
            layout = checkpoint.layout
            trellis.require_layout(layout.registers, layout.patches, layout.width, f"the aligner {name} makes")
    renders, sources = {}, {}
    for run in sheet.runs:
        if run.method == "trellis-image" and run.pictures != PROMPTS:
            sources[run.name] = true if run.pictures == TRUE else run.pictures
            try:
                renders[run.name] = trellis.renders_of(settings, sources[run.name])
            except (NotReady, ValueError):
                if shaping:
                    raise
    texts = {run.name: of_file(file, run.suffix) for run in sheet.runs}
    made = []
    for run in sheet.runs:
        found = texts[run.name]
        store, own = prompts.collection_of(settings, f"{prefix}-{run.name}", len(found))
        own = own.model_copy(update={"sampling": own.sampling.model_copy(update={"steps": run.steps})})
        aligner = aligners[run.model] if run.method == "gap3d" else None
        made.append(Column(run, store, own, found, aligner, renders.get(run.name), sources.get(run.name, "")))
    require_room(made)
    return made


def require_room(columns: Sequence[Column]) -> None:
    """Raises SystemicFault where the disk can't hold the token sets that are not there yet."""
    needed = 0
    for column in columns:
        if column.checkpoint:
            there = sum(row.status is Status.OK for row in column.rows(TOKENS).values())
            size = bytes_of(column.checkpoint.layout, column.settings.targets.store_dtype)
            needed += max(0, len(column.prompts) - there) * size
    free = free_bytes(columns[0].store.root)
    if needed * RESERVE > free:
        raise SystemicFault(
            f"the token sets of these runs take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free: free some, "
            "set another --store, or give fewer prompts"
        )


def make_tokens(column: Column) -> Report:
    """Bring a run's prompts, and its token sets where it has an aligner, up to date."""
    read = prompts.run(column.settings, column.store, column.prompts)
    write_atomically(column.store.folder / "settings.json", column.settings.model_dump_json(indent=1).encode())
    if column.checkpoint is None:
        return read
    return merge([read, generate.run(column.settings, column.store, column.checkpoint)])


def make_objects(column: Column, shaping: Shaping) -> Report:
    """Bring a run's objects up to date."""
    run = column.run
    installation = Installation(run.method, trellis.model_of(run.weights, run.method), shaping.trellis, shaping.python)
    said = trellis.require_condition(column.store) if column.checkpoint else {}
    wanted = Wanted(shaping.wanted.turntables, shaping.wanted.resolution, shaping.wanted.glb, run.black)
    return trellis.run(trellis.Plan(column.store, installation, wanted, column.renders, said), column.settings)


def make(columns: Sequence[Column], shaping: Shaping | None) -> dict[str, Report]:
    """Bring all runs up to date, all tokens before the first object; what was done, by the run's name."""
    reports = {column.run.name: make_tokens(column) for column in columns}
    if shaping is None:
        return reports
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what the aligners have let go of is TRELLIS's, another process
    for column in columns:
        reports[column.run.name] = merge([reports[column.run.name], make_objects(column, shaping)])
    return reports


def true_collection(settings: Settings) -> str:
    """The collection whose renders the image baseline sees: those from all around, where they are made."""
    name = settings.evaluation.true or around.settings_of(settings).collection
    return name if Store.exists(settings.store, name) else settings.collection


def spec_of(column: Column) -> str:
    """A run's objects, as ``pipelines.generation_metrics`` is told of them."""
    return f"trellis:{column.store.collection}:{column.run.method}"


def add_flags(made: argparse.ArgumentParser) -> None:
    """Flags that are not settings."""
    made.add_argument("--runs", required=True, help=f"a sheet of runs: {', '.join(bundled())}, or a .toml file")
    made.add_argument("--prompts", type=Path, help="a file of prompts (default: the evaluation's, of the collection)")
    made.add_argument("--into", help="begins the names of the runs' collections (default: made of the names)")
    made.add_argument("--vlm", help="the aligners' vision-language model, a hub id or folder (default: as in training)")
    made.add_argument("--pictures-of", metavar="COLLECTION", help="of true objects (default: the evaluation's)")
    made.add_argument("--trellis", type=Path, help="the clone of TRELLIS's repository (default: python finds it)")
    made.add_argument("--python", help="the interpreter of TRELLIS's environment; without both, no objects are made")
    made.add_argument("--turntables", default="4,8,20", help="frames of objects: of 4, 8 and 20 (default: all three)")
    made.add_argument("--frame-size", type=int, default=512, help="pixels of a frame's side (default: 512)")
    made.add_argument("--glb", action=argparse.BooleanOptionalAction, default=True, help="bake textured meshes")
    made.add_argument("--measure", action="store_true", help="measure the objects: rows of generation_metrics")
    made.add_argument("--report", type=Path, help="write the run's report (JSON) here")


def shaping_of(known: argparse.Namespace) -> Shaping | None:
    """How flags want objects made.

    Raises:
        ValueError: objects are to be measured, and none are made.
    """
    if not known.trellis and not known.python:
        if known.measure:
            raise ValueError("--measure needs objects: say where TRELLIS is (--trellis DIR, --python PYTHON)")
        return None
    wanted = Wanted(trellis.turntables_of(known.turntables, None), known.frame_size, known.glb)
    return Shaping(known.trellis and known.trellis.absolute(), known.python or sys.executable, wanted)


def named(*parts: str | None) -> str:
    """The beginning of collections' names."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", "-".join(part for part in parts if part))


def main() -> None:
    """The program."""
    made = parser(__doc__ or "")
    add_flags(made)
    known, given = parse(made)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)
    with sentences(made):
        settings, sheet, shaping = resolved(given), read_sheet(known.runs), shaping_of(known)
        file = known.prompts or evaluation_prompts(settings)
        prefix = known.into or named(
            settings.collection, *([file.stem] if known.prompts else []), Path(known.runs).stem
        )
        vlm = str(Path(known.vlm).absolute()) if known.vlm and Path(known.vlm).exists() else known.vlm
        true = known.pictures_of or true_collection(settings)
        columns = planned(settings, sheet, file, prefix, vlm=vlm, true=true, shaping=shaping)
        reports = make(columns, shaping)
        if known.report:
            merge(reports.values()).save(known.report)
        folder = settings.store / settings.collection / EVALUATION / FIGURES / prefix
        preset = folder / RESOLVED
        write_atomically(preset, settings.model_dump_json(indent=1).encode())
        pictures = Pictures(sheet, columns, of_file(file), shaping is not None)
        grids = pictures.write(folder)
        for column in columns:
            say(f"{column.run.head} ({column.store.collection}):", *reports[column.run.name].lines())
        say(*([f"WARNING:  {pictures.warning}"] if pictures.warning else []), *(f"picture:  {path}" for path in grids))
        if shaping is None:
            say("no TRELLIS was given: the pictures show token sets, and nothing is an object (--trellis, --python)")
            return
        for column in columns:
            command = ["python", "-m", "pipelines.generation_metrics", "--preset", str(preset)]
            say(f"measure:  {shlex.join([*command, '--generated', spec_of(column), '--model', column.run.name])}")
        for column in columns if known.measure else ():
            results, report = generation_metrics.of_objects(settings, spec_of(column), column.run.name)
            say(*report.lines(), *(line for result in results for line in generation_metrics.lines_of(result)))


if __name__ == "__main__":
    main()
