"""The code location: ``dagster dev -w workspace.yaml``."""

import dagster as dg

from assets_defs import evaluation, image_text, model
from assets_defs.automation import on_change
from assets_defs.checks import CHECKS
from assets_defs.data import ASSETS, RENDERED
from assets_defs.left_behind import left_behind
from assets_defs.lost import lost_runs
from assets_defs.pictures import quality_gates
from assets_defs.resources import Compute
from assets_defs.tokens import tokens_healthy
from assets_defs.watch import watch_images, watch_source

STAGES = ("downloads", "views", "renders", "targets") if RENDERED else ("images", "targets")
line = dg.define_asset_job(
    "shard",
    selection=dg.AssetSelection.assets(*STAGES),
    description="One shard through all stages.",
)
nightly = dg.ScheduleDefinition(
    name="nightly_catalog",
    target=dg.AssetSelection.assets("catalog"),
    cron_schedule="0 2 * * *",
    description="Looks at the source every night; with on_change switched on, changed shards follow by themselves.",
)

defs = dg.Definitions(
    assets=[*ASSETS, *image_text.ASSETS, *model.ASSETS, *evaluation.ASSETS],
    asset_checks=[
        *CHECKS,
        *image_text.CHECKS,
        *([quality_gates] if RENDERED else []),
        tokens_healthy,
        *model.CHECKS,
        *evaluation.CHECKS,
    ],
    resources={"compute": Compute()},
    sensors=[on_change, left_behind, lost_runs, watch_source if RENDERED else watch_images],
    schedules=[nightly] if RENDERED else [],  # what watch_images sees is all there is to see
    jobs=[line],
    executor=dg.in_process_executor,  # a run is one process: one Ray and one import serve all its steps
)
