"""alignment_metrics: Table 1, how well predicted tokens agree with true ones; one result a collection and model.

python -m pipelines.alignment_metrics
python -m pipelines.alignment_metrics --checkpoint DIR --model NAME
python -m pipelines.alignment_metrics --predicted PLACE --true PLACE --model NAME
"""

import argparse
import logging
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

if not __package__:  # run as a file, here or copied by `ray submit`: its folder is not where packages are looked for
    sys.path.pop(0)

from gap3d import fingerprints
from gap3d.evaluation.alignment import cells_of, checks_of, kinds_of, measure
from gap3d.evaluation.queries import Which, queries_of, usual
from gap3d.evaluation.quirks import QUIRKS, of_table
from gap3d.evaluation.result import Result, known, save
from gap3d.evaluation.rounding import note_of, noted
from gap3d.evaluation.tokens import TokenSets, collection_at, of_dataset, open_tokens, worth
from gap3d.metrics.alignment import MEASURES, TABLE_KINDS
from gap3d.settings import Settings
from gap3d.store import Store
from pipelines.command import as_job, parse, parser, refuse_job, say, sentences, stop
from pipelines.evaluation import printed
from pipelines.evaluation.subjects import place_of
from pipelines.predictions import Predictions, checkpoint_of, predictions
from pipelines.progress import progress
from pipelines.report import Report, ShardReport

log = logging.getLogger(__name__)

STAGE = "alignment_metrics"


@dataclass(frozen=True)
class Wanted:
    """A row of the table.

    Attributes:
        model: what it is called.
        collection: what it is measured on.
        folder: of the collection that keeps the result.
        predicted: token sets.
        true: targets.
        pairs: (key of the predicted set, key of the true one).
        checkpoint: of an aligner; empty for other models.
        captions: which were asked for; empty where nobody knows.
    """

    model: str
    collection: str
    folder: Path
    predicted: TokenSets
    true: TokenSets
    pairs: Sequence[tuple[str, str]]
    checkpoint: dict[str, Any] = field(default_factory=dict)
    captions: str = ""


def run(settings: Settings, _shards: Sequence[str] = ()) -> Report:
    """Measure every model of the settings on every collection of the settings; what is known is not measured again.

    Raises:
        NotReady: one of the models is not trained yet.
        ValueError: see ``predictions``.
    """
    started = time.monotonic()
    rows = of_aligners(settings)
    return Report(shards=tuple(report for _, report in rows), wall_s=time.monotonic() - started)


def of_aligners(
    settings: Settings, checkpoint: Path | None = None, name: str = "", vlm: str | None = None
) -> list[tuple[Result, ShardReport]]:
    """Measure the models of the settings, or one checkpoint, on the collections of the settings."""
    models: Sequence[str | Path] = [checkpoint] if checkpoint else settings.evaluation.models
    for model in models:
        checkpoint_of(settings, model, vlm)  # before hours with another one
    collections = settings.evaluation.collections or (settings.collection,)
    return [of_model(settings, model, each, name, vlm) for each in collections for model in models]


def of_model(
    settings: Settings, model: str | Path, collection: str, name: str = "", vlm: str | None = None
) -> tuple[Result, ShardReport]:
    """Measure an aligner on a collection, with Table 1's captions.

    Args:
        settings: of the run.
        model: see ``predictions``.
        collection: its name.
        name: of the row; default: the model's.
        vlm: see ``predictions``.
    """
    store = Store.open(settings.store, collection, settings.blobs)
    captions = usual(store, "alignment")
    found: Predictions = predictions(settings, model, collection, captions, vlm)
    with found.sets as predicted, of_dataset(store) as true:
        pairs = [(query.key, query.truth) for query in found.queries]
        row = Wanted(
            name or Path(model).name, collection, store.folder, predicted, true, pairs, found.checkpoint, captions
        )
        return measured(row, settings)


def of_places(
    settings: Settings, predicted: str | Path, true: str | Path, model: str, captions: Which | None = None
) -> tuple[Result, ShardReport]:
    """Measure anybody's token sets.

    Args:
        settings: of the run.
        predicted: where they are (``open_tokens``), or the name of a collection.
        true: where the true ones are, likewise. Of a collection every query is expected; of other
            places every key.
        model: the row's name.
        captions: which of a collection's captions were asked for; None takes Table 1's.

    Raises:
        ValueError: they do not fit together.
    """
    place = place_of(settings, str(true))
    with open_tokens(place_of(settings, str(predicted))) as ours, open_tokens(place) as theirs:
        if theirs.description["source"] == "dataset" and (store := collection_at(place)):
            asked = captions or usual(store, "alignment")
            pairs = [(query.key, query.truth) for query in queries_of(store, asked)]
            folder, which = store.folder, str(asked)
        else:
            folder, which = settings.store / settings.collection, ""
            wanted = [*theirs.keys, *theirs.failures, *ours.keys, *ours.failures]
            pairs = [(key, key) for key in dict.fromkeys(wanted)]
        together(ours, theirs, pairs)
        return measured(Wanted(model, theirs.description["name"], folder, ours, theirs, pairs, {}, which), settings)


def together(predicted: TokenSets, true: TokenSets, pairs: Sequence[tuple[str, str]]) -> None:
    """Prove that keys of one are keys of the other.

    Raises:
        ValueError: no pair is there.
    """
    if not any(key in predicted and truth in true for key, truth in pairs):
        raise ValueError(
            f"no predicted key is one of the true: predicted are {predicted.keys[0]!r} and others, true are "
            f"{true.keys[0]!r}: a prediction has the key of its query, which `python -m pipelines.predictions "
            "--measured COLLECTION --write FILE` lists"
        )
    if strange := set(predicted.keys) - {key for key, _ in pairs}:
        log.warning("%d predicted sets are not asked for, e.g. %s: they are not measured", len(strange), min(strange))


def measured(row: Wanted, settings: Settings) -> tuple[Result, ShardReport]:
    """Measure a row and keep the result, or find it."""
    section, quirks = settings.evaluation, of_table(settings.evaluation.quirks, "alignment")
    kinds = kinds_of(row.predicted, row.true)
    bootstrap: dict[str, Any] = {"seed": section.seed, "level": section.level, "resamples": section.resamples}
    fingerprint = fingerprints.digest_of(
        {
            "code": fingerprints.code_version("alignment"),
            "collection": row.collection,  # a result says what it was measured on, which may be called otherwise since
            "predicted": row.predicted.description["digest"],
            "true": row.true.description["digest"],
            "pairs": row.pairs,
            "quirks": quirks,
            **bootstrap,
        }
    )
    result = known(row.folder, "alignment", row.model, fingerprint)
    computed = 0 if result else len(row.pairs)
    if result is None:
        started = time.monotonic()
        for sets in (row.predicted, row.true):
            if not sets.unread:
                continue
            with progress(total=sets.unread, desc=f"reading {sets.description['name']}", unit="set") as bar:
                sets.prepare(bar.update)
        with progress(total=len(row.pairs), desc=f"alignment of {row.model}", unit="pair") as bar:
            samples = measure(row.predicted, row.true, row.pairs, bar.update)
        cells = cells_of(samples, kinds, quirks=quirks, **bootstrap)
        cells = noted(cells, note_of(row.predicted, row.true), lambda name: not name.endswith("_cls"))
        trained, label = worth(row.predicted, row.true)
        made = Result(
            table="alignment",
            model=row.model,
            collection=row.collection,
            cells=cells,
            fingerprint=fingerprint,
            trained=trained,
            label=label,
            checkpoint=row.checkpoint,
            quirks=quirks,
            protocol={
                "captions": row.captions,
                "predicted": row.predicted.description,
                "true": row.true.description,
                "bootstrap": bootstrap,
                "quirks": {name: QUIRKS[name].sentence for name in quirks},
            },
            checks=checks_of(samples, kinds, row.predicted, row.true),
            settings=settings.model_dump(mode="json"),
            seconds=time.monotonic() - started,
        )
        result = save(row.folder, made, samples)
    if not result.trained:
        log.warning("%s on %s: %s: the numbers mean nothing", row.model, row.collection, result.label)
    report = ShardReport(
        stage=STAGE,
        shard=f"{row.collection}/{row.model}",
        expected=len(row.pairs),
        found=sum(result.counts.values()),
        computed=computed,
        by_status=dict(result.counts),
        digest=result.samples_digest,
        seconds=result.seconds if computed else 0.0,
    )
    report.prove()
    return result, report


def lines_of(result: Result) -> list[str]:
    """A result for a person."""
    made = printed.heading(result, "pairs")
    for kind in TABLE_KINDS:
        cells = {measure: result.cells.get(f"{measure}_{kind}") for measure in MEASURES}
        texts = [f"{name} {printed.format_cell(cell, 4)}" for name, cell in cells.items() if cell is not None]
        if texts:
            made.append(f"  {kind:<9}  " + "  ".join(texts))
    return [*made, *printed.failed_checks(result), f"  {result.folder}"]


def add_flags(made: argparse.ArgumentParser) -> None:
    """Flags that are not settings."""
    made.add_argument("--predicted", type=Path, metavar="PLACE", help="anybody's token sets: a collection or a folder")
    made.add_argument("--true", metavar="PLACE", help="true ones: a collection, or a folder (default: --collection)")
    made.add_argument(
        "--captions", choices=get_args(Which), help="captions of the collection that the sets are predicted of"
    )
    made.add_argument("--checkpoint", type=Path, metavar="DIR", help="an aligner, in the place of evaluation.models")
    made.add_argument("--vlm", help="the aligner's vision-language model (default: where training found it)")
    made.add_argument("--model", metavar="NAME", help="what the row is called")
    made.add_argument("--report", type=Path, help="write the run's report (JSON) here")


def main() -> None:
    """The program."""
    made = parser(__doc__ or "")
    add_flags(made)
    known, settings = parse(made)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)
    with sentences(made):
        if known.predicted or known.checkpoint or known.vlm or known.captions:
            refuse_job(settings)
        if known.predicted and known.checkpoint:
            raise ValueError("--predicted and --checkpoint are two models: name one of them")
        if known.true and not known.predicted:
            raise ValueError("--true goes with --predicted: collections to measure on are evaluation.collections")
        if known.predicted:
            true = known.true or settings.collection
            name = known.model or known.predicted.name
            rows = [of_places(settings, known.predicted, true, name, known.captions)]
        else:
            if known.model and not known.checkpoint:
                raise ValueError("--model names the row of --predicted or --checkpoint: name one of them too")
            if settings.compute.mode == "job":
                as_job(made, STAGE, settings, report=known.report)
                return
            rows = of_aligners(settings, known.checkpoint, known.model or "", known.vlm)
        report = Report(shards=tuple(row for _, row in rows))
        if known.report:
            report.save(known.report)
        say(*report.lines(), *(line for result, _ in rows for line in lines_of(result)))


if __name__ == "__main__":
    main()
