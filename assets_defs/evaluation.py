"""The evaluation's assets: the paper's tables of this collection's aligners, their history, and the HTML report.

What draws and measures brings matplotlib and torch, which the code location loads without: they are imported where they
are used.
"""

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

import dagster as dg
from PIL import Image

from assets_defs.automation import AFTER_METRICS, AFTER_TRAINING
from assets_defs.data import OWNERS, version
from assets_defs.model import ASSET_OF
from assets_defs.partitions import SETTINGS
from assets_defs.resources import FOR_A_PERSON, Compute
from gap3d import fingerprints
from gap3d.evaluation import soundness
from gap3d.evaluation.quirks import Table
from gap3d.evaluation.result import TABLES, Cell, Result
from gap3d.settings import Settings
from pipelines.evaluation.measured import history_of, of_report, stage_of
from pipelines.report import Report

ALIGNERS: Mapping[str, str] = {"pretrained": ASSET_OF["pretrain"], "finetuned": ASSET_OF["finetune"]}
SOURCES: Mapping[Table, Sequence[str]] = {
    "alignment": ("prompts", "generated"),
    "retrieval": ("prompts", "generated"),
    "generation": ("prompts", "generated", "renders", "picture_features", "clouds", "cloud_features"),
}
"""Stages that make what a table is measured on, where no asset of their own makes it."""
DEPS = [*(ALIGNERS[model] for model in SETTINGS.evaluation.models), "dataset"]
NAMED = 20  # sentences of a failing check
FOLD = 1000  # characters of markdown from which the UI folds it
SHOWN = 800  # pixels of a picture's width
LARGE = 200_000  # bytes from which a picture becomes a JPEG of that width: it lies in the event log


def metrics_version(name: Table) -> str:
    """An asset's code version: the code that measures, and the settings that shape its numbers."""
    shaping = SETTINGS.evaluation.shaping(name)
    code = [fingerprints.code_version(stage) for stage in SOURCES[name]]
    return version(name, fingerprints.digest_of([code, shaping]), fingerprints.settings_digest(SETTINGS.sampling))


def measured(context: dg.AssetExecutionContext, compute: Compute, name: Table) -> dg.MaterializeResult:
    """Measure what is not measured yet; then what came out of it, and what there was before."""
    settings = compute.settings()
    try:
        report = compute.run(context, stage_of(name))
        results, history = of_report(settings, name, report), history_of(settings, name)
    except (*FOR_A_PERSON, ValueError) as error:
        raise dg.Failure(str(error)) from error
    for label in sorted({result.label for result in results if not result.trained}):
        context.log.warning(f"{label}: these numbers mean nothing")
    content = [[one.collection, one.model, one.fingerprint, one.samples_digest] for one in results]
    return dg.MaterializeResult(
        data_version=dg.DataVersion(fingerprints.digest_of(sorted(content))),
        metadata=metadata_of(settings, name, results, history, report),
    )


def metadata_of(
    settings: Settings, name: Table, results: Sequence[Result], history: Sequence[Result], report: Report
) -> dict[str, Any]:
    """Metadata: the history and the figure as pictures, the table, every cell as a number, and where it all lies."""
    from gap3d.evaluation.history import history_png, history_table
    from gap3d.features.encoder import UNTRAINED

    untrained = sorted({result.label for result in results if not result.trained})
    made: dict[str, Any] = {}
    if any(cell.value is not None for result in history for cell in result.cells.values()):
        title = f"{f'{UNTRAINED}: ' if untrained else ''}{name} over the checkpoints of {settings.collection}"
        made["history"] = picture("history", history_png(history, title))
    for result in results:
        for path in sorted(result.folder.glob("*.png"))[:1] if result.folder else ():  # the others are in the report
            made[named("figure", settings, result)] = picture(path.stem, path.read_bytes())
    made["measured"] = dg.MetadataValue.md(table_of(settings, results))
    made["history_table"] = dg.MetadataValue.md(history_table(history))
    made["label"] = "; ".join(untrained) or "trained"
    for result in results:
        for column, cell in result.cells.items():
            if cell.value is not None:
                made[named(column, settings, result)] = float(cell.value)
    not_measured = [f"{result.model}: {sentence}" for result in results for sentence in soundness.not_measured(result)]
    for result in results:
        made[named("samples", settings, result)] = sum(result.counts.values())
        made[named("failed", settings, result)] = sum(result.counts.values()) - result.counts.get("ok", 0)
        made[named("step", settings, result)] = int(result.checkpoint.get("step") or 0)
        made[named("result", settings, result)] = dg.MetadataValue.path(
            result.folder.absolute() if result.folder else ""
        )
    return made | {
        "not_measured": "\n".join(not_measured) or "nothing",
        "quirks": ", ".join(dict.fromkeys(quirk for result in results for quirk in result.quirks)) or "none",
        "checkpoints_measured": len({result.checkpoint.get("digest") for result in history}),
        "computed": report.count("computed"),
        "seconds": round(report.wall_s, 3),
    }


def named(what: str, settings: Settings, result: Result) -> str:
    """The name of an entry about one result: the UI draws a curve of each name over materialisations."""
    model = re.sub(r"\W+", "_", called(result)).strip("_")
    where = "" if result.collection == settings.collection else f"_on_{result.collection}"
    return f"{model}_{what}{where}{'_as_released' if result.quirks else ''}"


def called(result: Result) -> str:
    """Its model, less what only explains the name."""
    from gap3d.evaluation.retrieved import LABEL  # brings torch

    return result.model.removesuffix(f": {LABEL}")


def picture(name: str, png: bytes) -> dg.MetadataValue:
    """A picture as metadata, no wider than a screen."""
    kind, content = "png", png
    if len(png) > LARGE:
        image = Image.open(io.BytesIO(png)).convert("RGB")
        image.thumbnail((SHOWN, 8 * SHOWN))
        sink = io.BytesIO()
        image.save(sink, format="jpeg", quality=80)
        kind, content = "jpeg", sink.getvalue()
    return dg.MetadataValue.md(f"![{name}](data:image/{kind};base64,{base64.b64encode(content).decode()})")


def table_of(settings: Settings, results: Sequence[Result]) -> str:
    """Cells by row, results by column, with intervals where the UI does not fold it then."""
    from gap3d.evaluation.history import arrow, columns_of
    from gap3d.exports.card import plain, table

    columns = columns_of(results)
    head = ["", *(plain(heading(settings, result)) for result in results)]
    texts = []
    for intervals in (True, False):
        lines = [
            [
                f"{plain(column.title)} {arrow(column)}",
                *(format_cell(result.cells.get(name), intervals=intervals) for result in results),
            ]
            for name, column in columns.items()
        ]
        texts.append("\n".join(table(head, lines)).strip())
    return next((text for text in texts if len(text) < FOLD), texts[-1])


def heading(settings: Settings, result: Result) -> str:
    """What stands over a result's column."""
    where = "" if result.collection == settings.collection else f" on {result.collection}"
    how = (" as released" if result.quirks else "") + ("" if result.trained else " UNTRAINED")
    return f"{called(result)}{where}{how}"


def format_cell(cell: Cell | None, *, intervals: bool) -> str:
    """A cell in four digits."""
    if cell is None or cell.value is None:
        return "-"
    ends = f" ({cell.low:.4g} to {cell.high:.4g})" if cell.low is not None and cell.high is not None else ""
    return f"{cell.value:.4g}{ends if intervals else ''}"


WORDS: Mapping[Table, str] = {
    "alignment": "Cosine, squared error and norm ratio of predicted with true tokens, on captions of true images "
    "(the paper's Table 1).",
    "retrieval": "How often predicted tokens find the true image of their caption among all, within 1, 5 and 10 (the "
    "paper's Table 2); queries, true images and the first four as a picture (Figure 2).",
    "generation": "Frechet and kernel distances of pictures and clouds of generated from true objects, and CLIP scores "
    "(the paper's Table 3).",
}


def metrics(name: Table) -> dg.AssetsDefinition:
    """The asset of one table."""

    @dg.asset(
        name=stage_of(name),
        deps=DEPS,
        group_name="evaluation",
        kinds={"pytorch", "ray"},
        owners=OWNERS,
        code_version=metrics_version(name),
        automation_condition=AFTER_TRAINING if SETTINGS.evaluation.automatic else None,
        pool="evaluation",
        description=f"{WORDS[name]}\n\n`history` of a materialisation opens a picture: every number over the steps of "
        "the checkpoints that were measured. What was measured of the same checkpoint, data and settings is not "
        "measured again. Started by hand, unless `evaluation.automatic` is set.",
    )
    def of_the_table(context: dg.AssetExecutionContext, compute: Compute) -> dg.MaterializeResult:
        return measured(context, compute, name)

    return of_the_table


METRICS = {name: metrics(name) for name in SETTINGS.tables}


PUBLISHED = resources.files("gap3d.evaluation").joinpath("published.toml").read_text()


def published_version(settings: Settings) -> str:
    """Digest of the published numbers that the report shows: those that are known here, and the user's."""
    given = settings.evaluation.published
    path = given.expanduser() if given else None
    return fingerprints.digest_of([PUBLISHED, path.read_text(errors="replace") if path and path.is_file() else ""])[:16]


@dg.asset(
    deps=list(METRICS.values()),
    group_name="evaluation",
    kinds={"python"},
    owners=OWNERS,
    code_version=published_version(SETTINGS),
    automation_condition=AFTER_METRICS if SETTINGS.evaluation.automatic else None,
    pool="evaluation",
)
def evaluation_report(compute: Compute) -> dg.MaterializeResult:
    """An HTML page that sets every number beside the paper's, cell by cell, and says where the protocols differ.

    `page` of a materialisation is its path; the UI copies it with one click.
    """
    from pipelines import evaluation_report as program

    settings = compute.settings()
    try:
        path = program.of_settings(settings)
        results = [result for name in TABLES for result in history_of(settings, name)]
    except (*FOR_A_PERSON, ValueError) as error:
        raise dg.Failure(str(error)) from error
    content = [published_version(settings), *sorted(result.fingerprint for result in results)]
    return dg.MaterializeResult(
        data_version=dg.DataVersion(fingerprints.digest_of(content)),
        metadata={
            "page": dg.MetadataValue.path(path.absolute()),
            "bytes": path.stat().st_size,
            **{f"results_of_{name}": sum(result.table == name for result in results) for name in TABLES},
        },
    )


def identity_holds(results: Sequence[Result]) -> list[str]:
    """Of every result what contradicts the identity."""
    normalised = [one for one in results if one.checks.get("identity", {}).get("applies", True)]
    return [f"{title(result)}: {sentence}" for result in normalised for sentence in soundness.not_identical(result)]


def every_sample_accounted(results: Sequence[Result]) -> list[str]:
    """Of every result the samples that are lost, doubled or altered, and cells that the samples do not give."""
    return [
        f"{title(result)}: {sentence}"
        for result in results
        for sentence in (*soundness.unaccounted(result), *soundness.remade(result))
    ]


def metrics_possible(results: Sequence[Result]) -> list[str]:
    """Of every result the numbers that no measurement can give."""
    return [f"{title(result)}: {sentence}" for result in results for sentence in soundness.impossible(result)]


def title(result: Result) -> str:
    """How a result is called in a sentence."""
    return f"{result.model} on {result.collection}, {result.folder.name if result.folder else 'not saved'}"


DESCRIPTIONS: Mapping[Callable[[Sequence[Result]], list[str]], str] = {
    identity_holds: "MSE = 1 + r^2 - 2 r cos of every token of normalised targets: as written down of patches and "
    "registers, and made again of every CLS.",
    every_sample_accounted: "Every expected sample has one row, as it was measured (counts and digest), and means and "
    "recalls are those of the rows.",
    metrics_possible: "Every number is finite and can be one: cosines from -1 to 1, recalls from 0 to 100 and rising, "
    "no distance below 0.",
}


def check(name: Table, faults_of: Callable[[Sequence[Result]], list[str]]) -> dg.AssetChecksDefinition:
    """A check of all results of a table, as they lie there now; along with the asset, or executed alone."""

    @dg.asset_check(asset=METRICS[name], name=faults_of.__name__, description=DESCRIPTIONS[faults_of], pool="checks")
    def of_the_results(compute: Compute) -> dg.AssetCheckResult:
        try:
            results = history_of(compute.settings(), name)
            faults = faults_of(results)
        except FOR_A_PERSON as error:
            return dg.AssetCheckResult(passed=False, description=str(error))
        if not results:
            return dg.AssetCheckResult(passed=False, description=f"There is no result: materialise {stage_of(name)}.")
        return dg.AssetCheckResult(
            passed=not faults,
            description="; ".join(faults[:NAMED]) or f"It holds of {len(results)} results.",
            metadata={"results": len(results), "faults": dg.MetadataValue.json(faults)},
        )

    return of_the_results


ASSETS = [*METRICS.values(), evaluation_report]
CHECKS = [
    check("alignment", identity_holds),
    *(check(name, faults_of) for name in METRICS for faults_of in (every_sample_accounted, metrics_possible)),
]
