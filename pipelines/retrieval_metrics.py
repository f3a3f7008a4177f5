"""retrieval_metrics: at which rank predicted tokens find the true image of their text (the paper's Table 2, Figure 2).

python -m pipelines.retrieval_metrics
python -m pipelines.retrieval_metrics --checkpoint DIR --model NAME
python -m pipelines.retrieval_metrics --predicted PLACE --true PLACE --model NAME --queries FILE

The first measures the settings' trainings on their collections, the last any model's token sets: PLACE is a collection
of the store by name, or a folder of shards. FILE (CSV, Parquet or JSON Lines) has the columns key (of the predicted
set), truth (of the true one) and caption; without it keys are those of the collection's queries, or equal, or equal up
to #<number>.
"""

import logging
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

if not __package__:  # run as a file, here or copied by `ray submit`: its folder is not where packages are looked for
    sys.path.pop(0)

from gap3d.evaluation.encoder_check import encoder_check
from gap3d.evaluation.quirks import QUIRKS, Table, of_table
from gap3d.evaluation.result import Result, known, save
from gap3d.evaluation.retrieval import ROUNDED, Found, Pooled, database_of, kinds_of, measure, pool
from gap3d.evaluation.retrieval_figure import chosen, figure, rows_of
from gap3d.evaluation.rounding import note_of, noted
from gap3d.evaluation.tokens import worth
from gap3d.fingerprints import code_version, digest_of
from gap3d.metrics.retrieval import Precision
from gap3d.records import Failure, SystemicFault
from gap3d.settings import Settings
from pipelines.command import as_job, parse, parser, refuse_job, say, sentences, stop
from pipelines.evaluation import printed
from pipelines.evaluation.subjects import Subject, of_aligner, of_places
from pipelines.evaluation.true_pictures import true_pictures
from pipelines.job import NotReady
from pipelines.predictions import checkpoint_of
from pipelines.progress import progress
from pipelines.report import Report, ShardReport

log = logging.getLogger(__name__)

STAGE = "retrieval_metrics"
TABLE: Table = "retrieval"


def run(settings: Settings, _shards: Sequence[str] = ()) -> Report:
    """Measure what is not measured yet, of the settings' trainings on their collections.

    Raises:
        NotReady: one of them is not trained yet.
        ValueError: see ``predictions``.
    """
    begun = time.monotonic()
    reports = tuple(report for _, report in of_aligners(settings))
    return Report(shards=reports, wall_s=time.monotonic() - begun)


def of_aligners(
    settings: Settings, checkpoint: Path | None = None, name: str = "", vlm: str | None = None
) -> Iterator[tuple[Result, ShardReport]]:
    """Measure the settings' trainings, or one checkpoint, on the settings' collections."""
    models: Sequence[str | Path] = [checkpoint] if checkpoint else settings.evaluation.models
    for model in models:
        checkpoint_of(settings, model, vlm)  # before hours with another one
    for collection in settings.evaluation.collections or (settings.collection,):
        for model in models:
            with ExitStack() as closing:
                yield measured(settings, of_aligner(settings, model, collection, closing, name, vlm))


def measured(settings: Settings, subject: Subject) -> tuple[Result, ShardReport]:
    """The result, which may be known, and what was done for it.

    Raises:
        ValueError: the tokens can't be compared.
    """
    section = settings.evaluation
    quirks = of_table(section.quirks, TABLE)
    images = database_of(subject.queries, subject.images)
    bootstrap = {name: getattr(section, name) for name in ("seed", "level", "resamples")}
    inputs = {
        "queries": digest_of([[each.key, each.truth, each.caption] for each in subject.queries]),
        "images": digest_of(images),
        "predicted": subject.predicted.description["digest"],
        "true": subject.true.description["digest"],
    }
    fingerprint = digest_of(
        {
            "code": code_version(TABLE),
            "quirks": quirks,
            "model": subject.model,
            "collection": subject.collection,  # by the name that the result says, which may be another one since
            **bootstrap,
            **inputs,
        }
    )
    if held := known(subject.home, TABLE, subject.model, fingerprint):
        return held, report_of(subject, held, computed=False)
    begun = time.monotonic()
    kinds = kinds_of(subject.predicted, subject.true)
    precision: Precision = "float16" if ROUNDED in quirks else "float32"
    for sets in (subject.predicted, subject.true):
        if sets.unread:
            with progress(total=sets.unread, desc=f"reading {sets.description['name']}", unit="set") as bar:
                sets.prepare(bar.update)
    with progress(total=len(subject.queries) + len(images), desc=STAGE, unit="set") as bar:
        predicted = pool(subject.predicted, [each.key for each in subject.queries], kinds, precision, bar.update)
        true = pool(subject.true, images, kinds, precision, bar.update)
    found = measure(subject.queries, predicted, true, section)
    trained, label = worth(subject.predicted, subject.true)
    untrained = "" if trained else label
    pictures, note = figures(settings, subject, found, predicted, true, untrained)
    result = Result(
        table=TABLE,
        model=subject.model,
        collection=subject.collection,
        cells=noted(found.cells, note_of(subject.predicted, subject.true), lambda name: name.startswith("patches")),
        fingerprint=fingerprint,
        trained=trained,
        label=label,
        checkpoint=subject.checkpoint,
        quirks=quirks,
        protocol={
            "captions": subject.captions,
            "ranks": "1 + images more similar + images equally similar that stand before; failed queries not counted",
            "inputs": inputs,
            "predicted": subject.predicted.description,
            "true": subject.true.description,
            "figure": note,
            "bootstrap": {**bootstrap, "drawn": "images, with all their queries"},
            "quirks": {name: QUIRKS[name].sentence for name in quirks},
        },
        checks={
            "queries": counted(len(found.queries), len(subject.queries)),
            "database": counted(len(true.keys), len(images)),
            **encoder_check(subject.predicted, subject.true),
        },
        settings=settings.model_dump(mode="json"),
        seconds=time.monotonic() - begun,
    )
    made = save(subject.home, result, found.samples, pictures)
    if untrained:
        log.warning("%s on %s: %s: the numbers mean nothing", subject.model, subject.collection, untrained)
    return made, report_of(subject, made, computed=True)


def counted(found: int, expected: int) -> dict[str, Any]:
    """A check that nothing is missing."""
    return {"passed": found == expected, "measured": found, "expected": expected}


def figures(
    settings: Settings, subject: Subject, found: Found, predicted: Pooled, true: Pooled, untrained: str
) -> tuple[dict[str, bytes], str]:
    """Figure 2 for each kind of token, of the same queries; and why there is none."""
    if subject.store is None:
        return {}, "none: the true tokens are no collection's, so there are no pictures of their images"
    if not found.queries:
        return {}, "none: no query was measured"
    numbers = chosen(next(iter(found.ranks.values())), settings.evaluation.seed)
    rows = {kind: rows_of(found, predicted, true, kind, numbers) for kind in found.ranks}
    keys = {key for each in rows.values() for row in each for key in row.keys}
    try:
        pictures = true_pictures(settings, subject.store, keys)
    except (NotReady, OSError, ValueError, SystemicFault) as error:
        return {}, f"none: the pictures can't be read: {error}"
    if all(isinstance(picture, Failure) for picture in pictures.values()):
        return {}, f"none: no picture can be read: {next(iter(pictures.values()))}"
    about = (subject.model, subject.collection, len(true.keys), untrained)
    made = {f"figure_{kind}.png": figure(rows[kind], pictures, kind, *about) for kind in rows}
    return made, f"{len(numbers)} queries, drawn with the seed, half of them failures so far as there are such"


def report_of(subject: Subject, result: Result, *, computed: bool) -> ShardReport:
    """What a run did for one result."""
    rows = sum(result.counts.values())
    report = ShardReport(
        stage=STAGE,
        shard=f"{result.collection}/{result.model}",
        expected=len(subject.queries),
        found=rows,
        computed=rows if computed else 0,
        by_status=dict(result.counts),
        digest=result.samples_digest,
        seconds=result.seconds if computed else 0.0,
    )
    report.prove()
    return report


def lines_of(result: Result) -> list[str]:
    """A result for a person."""
    made = printed.heading(result, "queries")
    made += [f"  {name:<12} {printed.format_cell(cell, 2, ' %')}" for name, cell in result.cells.items()]
    return [*made, *printed.failed_checks(result), f"  {result.folder}"]


def main() -> None:
    """The program."""
    made = parser(__doc__ or "")
    made.add_argument("--predicted", metavar="PLACE", help="any model's token sets: a collection or a folder of shards")
    made.add_argument("--true", metavar="PLACE", help="the true ones, likewise (default: --collection)")
    made.add_argument(
        "--queries", type=Path, metavar="FILE", help="file that says which predicted set means which true one"
    )
    made.add_argument("--checkpoint", type=Path, metavar="DIR", help="an aligner, in the place of evaluation.models")
    made.add_argument("--vlm", help="the aligner's vision-language model (default: where training found it)")
    made.add_argument("--model", metavar="NAME", help="what the row is called")
    made.add_argument("--report", type=Path, help="write the run's report (JSON) here")
    flags, settings = parse(made)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)
    with sentences(made), ExitStack() as closing:
        if flags.predicted or flags.checkpoint or flags.vlm:
            refuse_job(settings)
        if flags.predicted and flags.checkpoint:
            raise ValueError("--predicted and --checkpoint are two models: name one of them")
        if (flags.true or flags.queries) and not flags.predicted:
            raise ValueError("--true and --queries go with --predicted PLACE")
        if flags.model and not (flags.predicted or flags.checkpoint):
            raise ValueError("--model names the row of --predicted or --checkpoint: name one of them too")
        if settings.compute.mode == "job":
            as_job(made, STAGE, settings, report=flags.report)
            return
        name, reports = flags.model or "", []
        if flags.predicted:
            true = flags.true or settings.collection
            subject = of_places(settings, flags.predicted, true, closing, name, flags.queries)
            found = iter([measured(settings, subject)])
        else:
            found = of_aligners(settings, flags.checkpoint, name, flags.vlm)
        for result, report in found:
            say(*lines_of(result))
            reports.append(report)
        whole = Report(shards=tuple(reports))
        if flags.report:
            whole.save(flags.report)
        say(*whole.lines())


if __name__ == "__main__":
    main()
