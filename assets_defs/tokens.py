"""What the dataset's tokens look like, as the UI shows it, and the check that they can be what they claim to be.

What measures them brings torch, which the code location loads without: it is imported where it is used.
"""

import base64
import json
from typing import Any

import dagster as dg

from assets_defs import events
from assets_defs.resources import Compute
from gap3d.settings import Settings
from gap3d.store import ALL
from pipelines.command import open_store
from pipelines.job import NotReady


def metadata_of(settings: Settings) -> dict[str, Any]:
    """What the dataset's tokens look like: a preview, the path of the HTML report, and the numbers of it.

    Raises:
        dg.Failure: a part that they are made from is damaged.
    """
    from pipelines import dataset_report

    with events.damage_told(ALL, "targets"):
        written = dataset_report.write(open_store(settings), settings)
    data = json.loads(written.numbers.read_text())
    jpeg = base64.b64encode(written.preview.read_bytes()).decode()
    labels = [encoder["label"] for encoder in data["encoders"]]
    rows = [
        f"| {kind['name']} | {kind['tokens']} | {kind['broken']} | {kind['variances']['least']:.5f} to "
        f"{kind['variances']['most']:.5f} | {kind['mean_error']:.3f} | {len(kind['outliers'])} |"
        for kind in data["kinds"]
        if kind.get("width")
    ]
    head = (
        "| tokens | measured | not finite | variance | MSE of the mean | outlier channels |\n|---|---|---|---|---|---|"
    )
    return {
        "preview": dg.MetadataValue.md(f"![images beside their tokens](data:image/jpeg;base64,{jpeg})"),
        "report": dg.MetadataValue.path(written.page),
        "encoder": ", ".join(labels) or "none",
        "tokens": dg.MetadataValue.md("\n".join([head, *rows])),
        **dataset_report.key_numbers(data),
    }


@dg.asset_check(
    asset="dataset",
    name="tokens_healthy",
    description="Of a seeded sample of images, every token is finite and has mean 0 and variance 1 within rounding, "
    "images differ, and one encoder made them all. That tokens of different images are nearly the same is a warning.",
    pool="checks",
)
def tokens_healthy(compute: Compute) -> dg.AssetCheckResult:
    """The findings of the dataset's report, from the tokens as they lie there now."""
    from pipelines import survey

    try:
        found = survey.begin(open_store(compute.settings()))
        survey.measure(open_store(compute.settings()), found, survey.Bounds())
    except (NotReady, OSError, ValueError) as error:
        return dg.AssetCheckResult(passed=False, description=f"The tokens can't be read: {error}")
    grave = [finding for finding in found.findings if not finding.good and finding.grave]
    odd = [finding for finding in found.findings if not finding.good and not finding.grave]
    lines = [f"| {'yes' if one.good else 'NO'} | {one.about} | {one.words} |" for one in found.findings]
    return dg.AssetCheckResult(
        passed=not grave and not odd,
        severity=dg.AssetCheckSeverity.ERROR if grave else dg.AssetCheckSeverity.WARN,
        description="; ".join(f"{one.about}: {one.words}" for one in grave + odd)
        or f"Tokens of {len(found.measured)} images are sound.",
        metadata={
            "images": len(found.measured),
            "findings": dg.MetadataValue.md("\n".join(["| holds | what | seen |", "|---|---|---|", *lines])),
        },
    )
