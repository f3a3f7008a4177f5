"""The model assets: an aligner that learned from image-text data, and one that was finetuned on renders.

What trains brings torch, which the code location loads without: it is imported where it is used.
"""

import base64
from collections.abc import Callable, Mapping
from typing import Any, Literal

import dagster as dg

from assets_defs.automation import AFTER_DATASET
from assets_defs.data import OWNERS, version
from assets_defs.partitions import SETTINGS
from assets_defs.resources import Compute
from gap3d import fingerprints
from gap3d.aligner_settings import AlignerSettings, TrainingSettings
from gap3d.records import SystemicFault
from gap3d.settings import Settings

Stage = Literal["pretrain", "finetune"]
ASSET_OF: Mapping[Stage, str] = {"pretrain": "pretrained_aligner", "finetune": "finetuned_aligner"}
MEASURED = ("loss", "cosine_patches", "cosine_cls", "cosine_registers", "mse_patches", "norm_ratio_patches", "overlap")
NAMED = 20  # numbers that a failing check names


def model_version(aligner: AlignerSettings, training: TrainingSettings) -> str:
    """An asset's code version: the code that trains, the model's settings, and the training's that shape its result."""
    return version("aligner", fingerprints.settings_digest(aligner), fingerprints.digest_of(training.shaping()))


def condition(training: TrainingSettings) -> dg.AutomationCondition | None:
    """When it trains by itself: never, unless the settings ask for it."""
    return AFTER_DATASET if training.automatic else None


def trained(context: dg.AssetExecutionContext, compute: Compute, stage: Stage) -> dg.MaterializeResult:
    """Train, or find the training of these settings and data finished; then what came out of it."""
    from gap3d.training.plan import plan_of

    compute.run(context, stage)
    run = plan_of(compute.settings(), stage).run
    result = run.result()
    if result is None:
        raise dg.Failure(
            f"the training ended without a result in {run.folder}: its store is not the one seen from here"
        )
    if not result["trained"]:
        context.log.warning(f"{result['label']}: what this aligner generates means nothing")
    return dg.MaterializeResult(data_version=dg.DataVersion(result["digest"]), metadata=metadata_of(run, result))


def metadata_of(run: Any, result: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of a finished run: its curves first, then what it is, what was measured, where it lies."""
    from gap3d.training import curves, health, log

    metrics = run.folder / log.METRICS
    title = run.name if result["trained"] else f"{result['label']} \u00b7 {run.name}"
    png = base64.b64encode(curves.draw(metrics, title)).decode()
    fall = health.fall_of(log.read(metrics))
    found: dict[str, Any] = {
        "curves": dg.MetadataValue.md(f"![curves](data:image/png;base64,{png})"),
        "label": result["label"],
        "loss_first": round(fall.first, 5),
        "loss_last": round(fall.last, 5),
    }
    validation = result["validation"] or {}
    found |= {f"held_out_{name}": round(validation[name], 5) for name in MEASURED if validation.get(name) is not None}
    found["held_out_pairs"] = validation.get("pairs", 0)
    return found | {
        "measured": dg.MetadataValue.md(table(result)),
        "best_step": result["best_step"] or 0,
        "steps": result["step"],
        "samples": result["samples"],
        "samples_per_second": round(result["samples"] / result["seconds"], 3) if result["seconds"] else 0.0,
        "seconds": round(result["seconds"], 3),
        "vision_language_model": result["vlm"],
        "encoder": result["encoder"] or "unknown",
        "run": run.name,
        "checkpoint": dg.MetadataValue.path(run.folder / result["checkpoint"]),
        "best_checkpoint": dg.MetadataValue.path(run.folder / (result["best"] or result["checkpoint"])),
        "tensorboard": dg.MetadataValue.path(run.folder / log.EVENTS),
        "digest": result["digest"],
    }


def table(result: Mapping[str, Any]) -> str:
    """What the last and the best validation measured, side by side; the UI folds markdown of 1000 characters."""
    last, best = result["validation"] or {}, result["best_validation"] or {}
    lines = [
        f"| {name} | {last[name]:.4f} | {best.get(name, float('nan')):.4f} |"
        for name in MEASURED
        if last.get(name) is not None
    ]
    return "\n".join(["| held out | last | best |", "|---|---|---|", *lines]) if lines else "no held-out pairs"


@dg.asset(
    name=ASSET_OF["pretrain"],
    deps=["dataset"],
    group_name="model",
    kinds={"pytorch", "ray"},
    owners=OWNERS,
    code_version=model_version(SETTINGS.aligner, SETTINGS.pretraining),
    automation_condition=condition(SETTINGS.pretraining),
    pool="training",
)
def pretrained_aligner(context: dg.AssetExecutionContext, compute: Compute) -> dg.MaterializeResult:
    """Soft tokens and diffusion transformer after stage 1: text to the dataset's tokens, on general data.

    `curves` of a materialisation opens a picture. A training that was stopped goes on from its last checkpoint; the
    same settings and data train once. Started by hand, unless `pretraining.automatic` is set.
    """
    return trained(context, compute, "pretrain")


@dg.asset(
    name=ASSET_OF["finetune"],
    deps=["dataset", pretrained_aligner],
    group_name="model",
    kinds={"pytorch", "ray"},
    owners=OWNERS,
    code_version=model_version(SETTINGS.aligner, SETTINGS.finetuning),
    automation_condition=condition(SETTINGS.finetuning),
    pool="training",
)
def finetuned_aligner(context: dg.AssetExecutionContext, compute: Compute) -> dg.MaterializeResult:
    """The pretrained aligner after stage 2: text to the tokens of rendered objects, which a 3D generator takes.

    `curves` of a materialisation opens a picture. A training that was stopped goes on from its last checkpoint; the
    same settings and data train once. Started by hand, unless `finetuning.automatic` is set.
    """
    return trained(context, compute, "finetune")


def loss_fell(run: Any) -> dg.AssetCheckResult:
    """Is the mean loss of the last tenth of the steps below that of the first?"""
    from gap3d.training import health, log

    fall = health.fall_of(log.read(run.folder / log.METRICS))
    return dg.AssetCheckResult(
        passed=fall.fell,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"From {fall.first:.4f} over the first tenth of {fall.steps} steps to {fall.last:.4f}.",
        metadata={"first": fall.first, "last": fall.last, "steps": fall.steps},
    )


def no_nan(run: Any) -> dg.AssetCheckResult:
    """Was every number of the run finite?"""
    from gap3d.training import health, log
    from gap3d.training.run import FAILED

    found = health.not_finite(log.read(run.folder / log.METRICS))
    saved = sorted(str(path) for path in (run.folder / FAILED).glob("*"))
    return dg.AssetCheckResult(
        passed=not found,
        description=f"Not finite: {', '.join(found[:NAMED])}." if found else "Every number is finite.",
        metadata={"not_finite": len(found), **({"saved_batches": dg.MetadataValue.json(saved)} if saved else {})},
    )


def resumable(run: Any) -> dg.AssetCheckResult:
    """Could the training go on from its newest checkpoint?"""
    from gap3d.training import health

    faults = health.faults_of(run)
    steps = run.checkpoints.steps()
    return dg.AssetCheckResult(
        passed=not faults,
        description="; ".join(faults[:NAMED]) or f"The checkpoint of step {steps[-1]} is whole.",
        metadata={"checkpoints": dg.MetadataValue.json(steps), "faults": dg.MetadataValue.json(faults)},
    )


DESCRIPTIONS: Mapping[Callable[[Any], dg.AssetCheckResult], str] = {
    loss_fell: "The training's mean loss over the last tenth of its steps is below that over the first.",
    no_nan: "Every number of the run is finite: losses, gradient, what was measured on held-out pairs.",
    resumable: "The newest checkpoint loads: weights and moments are all there, of the model's shapes and finite, and "
    "step, settings and data are those of the run. Reads it whole, a tensor at a time.",
}


def check(stage: Stage, measure: Callable[[Any], dg.AssetCheckResult]) -> dg.AssetChecksDefinition:
    """A check of one training, from what lies in its folder now; along with the asset, or executed alone."""

    @dg.asset_check(asset=ASSET_OF[stage], name=measure.__name__, description=DESCRIPTIONS[measure], pool="checks")
    def of_the_run(compute: Compute) -> dg.AssetCheckResult:
        from gap3d.training.plan import plan_of

        settings: Settings = compute.settings()
        try:
            return measure(plan_of(settings, stage).run)
        except (OSError, ValueError, SystemicFault) as error:
            return dg.AssetCheckResult(passed=False, description=f"The run can't be read: {error}")

    return of_the_run


ASSETS = [pretrained_aligner, finetuned_aligner]
CHECKS = [check(stage, measure) for stage in ASSET_OF for measure in DESCRIPTIONS]
