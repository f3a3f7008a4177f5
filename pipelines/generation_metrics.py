"""generation_metrics: how far generated objects are from true ones, and how well they fit their prompts: Table 3.

    python -m pipelines.generation_metrics
    python -m pipelines.generation_metrics --generated trellis:COLLECTION[:METHOD] --model NAME
    python -m pipelines.generation_metrics --generated pictures:DIR --model NAME
    python -m pipelines.generation_metrics --generated meshes:DIR --model NAME

The first measures what the settings' trainings retrieve, and the objects that TRELLIS made of the evaluation's prompts;
the others measure objects of any generator. True objects are those of --collection, or of --evaluation.true. DIR has a
folder of pictures, or a mesh, for each object, named by object_id, SHA-256 or path.
"""

import argparse
import logging
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

if not __package__:  # run as a file, here or copied by `ray submit`: its folder is not where packages are looked for
    sys.path.pop(0)

from gap3d.evaluation.generation import KERNEL_SCALE, Measuring, Table, measure
from gap3d.evaluation.objects import described
from gap3d.evaluation.quirks import QUIRKS, of_table
from gap3d.evaluation.result import Result, find, known, save
from gap3d.features.encoder import UNTRAINED
from gap3d.fingerprints import code_version, digest_of
from gap3d.records import Status
from gap3d.settings import Settings
from gap3d.store import Store
from pipelines.command import as_job, parse, parser, refuse_job, say, sentences, stop
from pipelines.evaluation import printed, retrieved
from pipelines.evaluation.objects import Subject, TrueObjects, true_objects
from pipelines.evaluation.references import references
from pipelines.evaluation.sources import require, subject_of
from pipelines.evaluation.stated import renders_of
from pipelines.predictions import checkpoint_of
from pipelines.report import Report, ShardReport, merge
from pipelines.trellis import METHODS, stage_of

log = logging.getLogger(__name__)
STAGE = "generation_metrics"
TABLE: Final = "generation"


def run(settings: Settings, _shards: Sequence[str] = ()) -> Report:
    """Measure what the settings' trainings retrieve, and the objects that TRELLIS made of the evaluation's prompts.

    Renders and features of the true objects are brought up to date first; what is known is not measured again.

    Raises:
        NotReady: one of the models is not trained yet.
        SystemicFault: the weights of an extractor can't be had.
    """
    return of_settings(settings)[1]


def of_settings(settings: Settings) -> tuple[list[Result], Report]:
    """The rows that settings ask for, and what was done; see ``run``."""
    for model in settings.evaluation.models:
        checkpoint_of(settings, model)  # before hours of rendering
    true, report = true_objects(settings)
    rows = [measured(settings, true, retrieved.subject(settings, model, true)) for model in settings.evaluation.models]
    for spec in shaped(settings, true):
        subject, extracted = subject_of(settings, spec, "", true)
        rows.append(measured(settings, true, subject, any_name=True))
        report = merge([report, extracted])
    return [result for result, _ in rows], merge([report, Report(shards=tuple(row for _, row in rows))])


def of_objects(settings: Settings, spec: str, model: str) -> tuple[list[Result], Report]:
    """The row of anybody's objects, and what was done.

    Args:
        settings: of the run.
        spec: what was generated (``pipelines.evaluation.sources``).
        model: what the row is called; empty lets it name itself.
    """
    require(settings, spec)
    true, report = true_objects(settings)
    subject, extracted = subject_of(settings, spec, model, true)
    result, row = measured(settings, true, subject)
    return [result], merge([report, extracted, Report(shards=(row,))])


def shaped(settings: Settings, true: TrueObjects) -> Iterator[str]:
    """What TRELLIS made of these prompts, in any collection of the store; what is left out is told in the log.

    A prompt is known by its object and caption, whatever was appended to it: the result tells the suffix.
    """
    wanted = {key: (asked.index, asked.caption_index) for key, asked in true.asked.items()}
    for folder in sorted({path.parent for path in settings.store.glob(f"*/{stage_of('*')}") if path.is_dir()}):
        store = Store.open(settings.store, folder.name, settings.blobs)
        found: dict[str, tuple[int, int]] = {}
        for shard in store.shards:
            rows = store.read(store.manifest("prompts", shard), ["index", "caption_index"])
            found |= {key: (row["index"], row["caption_index"]) for key, row in rows.items()}
        methods = [method for method in METHODS if (store.folder / stage_of(method)).is_dir()]
        if found != wanted:
            log.warning(
                "what TRELLIS made in collection %s is not measured: of the %d prompts of this evaluation it has %d, "
                "and %d others; `python -m pipelines.evaluation_prompts` writes them, and --generated trellis:%s:%s "
                "measures what is there",
                *(store.collection, len(wanted), len(found.items() & wanted.items())),
                *(len(found.items() - wanted.items()), store.collection, methods[0] if methods else "METHOD"),
            )
            continue
        for method in methods:
            if all(store.manifest(stage_of(method), shard).complete for shard in store.shards):
                yield f"trellis:{store.collection}:{method}"
            else:
                log.warning(
                    "%s of collection %s is not measured: it is not complete, run `python -m pipelines.trellis --from "
                    "%s` to the end",
                    *(stage_of(method), store.collection, store.collection),
                )


def measured(
    settings: Settings, true: TrueObjects, subject: Subject, *, any_name: bool = False
) -> tuple[Result, ShardReport]:
    """The result of one row, measured now or known, and what was done for it.

    Args:
        settings: of the run.
        true: the true objects.
        subject: what is measured.
        any_name: whether a result of the same inputs under another model's name will do.

    Raises:
        SystemicFault: the weights of an extractor can't be had.
    """
    section, quirks = settings.evaluation, of_table(settings.evaluation.quirks, TABLE)
    how = Measuring(section.seed, section.level, section.resamples, "unpaired" in quirks)
    inputs = inputs_of(true, subject)
    named = {"collection": true.base.collection}  # by the name that the result says, which may be another one since
    fingerprint = digest_of({"code": code_version(TABLE), "quirks": quirks, "how": vars(how), **named, **inputs})
    folder = true.base.folder
    result = known(folder, TABLE, subject.model, fingerprint)
    if result is None and any_name:
        result = next((each for each in find(folder, TABLE) if each.fingerprint == fingerprint), None)
    computed = 0 if result else len(subject.pairs)
    if result is None:
        begun = time.monotonic()
        names = [name for name in subject.side if name in ("clip", "clip_large")]
        texts = references(settings, subject.captions, subject.pictures, names)
        table = measure(subject.pairs, true.side, subject.side, texts, how)
        untrained = untrained_of(true, subject)
        made = Result(
            table=TABLE,
            model=subject.model,
            collection=true.base.collection,
            cells=table.cells,
            fingerprint=fingerprint,
            trained=not untrained,
            label=f"{UNTRAINED}: {', '.join(untrained)}: the numbers mean nothing" if untrained else "trained",
            checkpoint=subject.checkpoint,
            quirks=quirks,
            protocol=protocol_of(settings, true, subject, how, inputs),
            checks=checks_of(table),
            settings=settings.model_dump(mode="json"),
            seconds=time.monotonic() - begun,
        )
        result = save(folder, made, table.samples)
    if not result.trained:
        log.warning("%s on %s: %s", result.model, result.collection, result.label)
    return result, report_of(result, computed)


def inputs_of(true: TrueObjects, subject: Subject) -> dict[str, Any]:
    """Digests of all that the numbers depend on, or that says how they were made, beside the settings of measuring."""
    pairs = sorted(subject.pairs, key=lambda pair: pair.key)
    made = [pair.generated for pair in pairs if pair.failure is None]
    return {
        "pairs": digest_of([[each.key, each.generated, str(each.failure or ""), dict(each.values)] for each in pairs]),
        "checkpoint": subject.checkpoint.get("digest", ""),
        "made": digest_of({name: subject.about.get(name) for name in ("shapes", "prompts", "renders")}),
        "captions": digest_of(dict(subject.captions)),
        "pictures": digest_of({key: picture.digest for key, picture in subject.pictures.items()}),
        "true": {name: rows.digest([pair.key for pair in pairs]) for name, rows in true.side.items()},
        "generated": {name: rows.digest(made) for name, rows in subject.side.items()},
        "extractors": {
            name: [rows.description.get(each, "") for each in ("weights", "preprocessing")]
            for name, rows in {**subject.side, **true.side}.items()
        },
    }


def untrained_of(true: TrueObjects, subject: Subject) -> list[str]:
    """What of a row is untrained."""
    sides = {name: rows.description for side in (true.side, subject.side) for name, rows in side.items()}
    return [*subject.untrained, *(name for name, said in sides.items() if not_trained(said))]


def not_trained(said: Mapping[str, Any]) -> bool:
    """Whether an extractor has random weights."""
    return said.get("trained") is False


def protocol_of(
    settings: Settings, true: TrueObjects, subject: Subject, how: Measuring, inputs: Mapping[str, Any]
) -> dict[str, Any]:
    """All that is needed to repeat the numbers, and to know what they are."""
    section = settings.evaluation
    return {
        "objects": {
            "collection": true.base.collection,
            "expected": len(true.asked),
            "count": section.count,
            "shuffle": section.shuffle,
            "order": "by SHA-256, shuffled by that seed, those with captions, the first so many (docs/method.md 8.3)",
            "shuffled": "all files that source.described_by describes"
            if described(true.base)
            else "all objects of the catalog",
        },
        "generated": dict(subject.about),
        "true": {
            "pictures": true.source.store.collection,
            "views": list(section.views),
            "renders": renders_of(true.source.store),
        },
        "captions": "a prompt's own, or drawn by the evaluation's seeds (gap3d.trellis.seeds)",
        "sets": "the true set has objects that were not generated"
        if how.unpaired
        else "a distance is between sets of the same objects: those that both sides have",
        "kernel_distance": f"unbiased, all samples at once, times {KERNEL_SCALE}",
        "clip": "mean over objects of the mean cosine of 8 views, times 100; intervals by bootstrap over objects",
        "extractors": {
            name: {
                "true": true.side[name].features.about if name in true.side else {},
                "generated": rows.features.about,
            }
            for name, rows in subject.side.items()
        },
        "quirks": {name: QUIRKS[name].sentence for name in of_table(section.quirks, TABLE)},
        "bootstrap": {"seed": how.seed, "level": how.level, "resamples": how.resamples},
        "inputs": dict(inputs),
    }


def checks_of(table: Table) -> dict[str, Any]:
    """What was found to hold."""
    good = sum(sample.status is Status.OK for sample in table.samples)
    return {"objects": {"passed": good == len(table.samples), "measured": good, "expected": len(table.samples)}}


def report_of(result: Result, computed: int) -> ShardReport:
    """What a run did for one result."""
    count = sum(result.counts.values())
    report = ShardReport(
        stage=STAGE,
        shard=f"{result.collection}/{result.model}",
        expected=count,
        found=count,
        computed=computed,
        by_status=dict(result.counts),
        digest=result.samples_digest,
        seconds=result.seconds if computed else 0.0,
    )
    report.prove()
    return report


def lines_of(result: Result) -> list[str]:
    """A result for a person."""
    made = printed.heading(result, "objects")
    made += printed.found(result.protocol.get("generated", {}), sum(result.counts.values()))
    made += [f"  {name:<16} {printed.format_cell(cell, 3)}" for name, cell in result.cells.items()]
    return [*made, *printed.failed_checks(result), f"  {result.folder}"]


def add_flags(made: argparse.ArgumentParser) -> None:
    """Flags that are not settings."""
    made.add_argument(
        "--generated",
        metavar="SPEC",
        help="trellis:COLLECTION[:METHOD], collection:NAME, pictures:DIR, meshes:DIR or retrieved:MODEL",
    )
    made.add_argument("--model", default="", metavar="NAME", help="what the row of --generated is called")
    made.add_argument("--report", type=Path, help="write the run's report (JSON) here")


def main() -> None:
    """The program."""
    made = parser(__doc__ or "")
    add_flags(made)
    flags, settings = parse(made)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)
    with sentences(made):
        if flags.model and not flags.generated:
            raise ValueError("--model names the row of --generated: say what was generated too")
        if flags.generated:
            refuse_job(settings)
        elif settings.compute.mode == "job":
            as_job(made, STAGE, settings, report=flags.report)
            return
        rows, report = of_objects(settings, flags.generated, flags.model) if flags.generated else of_settings(settings)
        if flags.report:
            report.save(flags.report)
        say(*report.lines(), *(line for row in rows for line in lines_of(row)))


if __name__ == "__main__":
    main()
