"""Whether predictions are measured against tokens of the kind that they predict: one encoder, one preprocessing."""

import logging
from typing import Any

from gap3d.evaluation.tokens import TokenSets

log = logging.getLogger(__name__)

SAME = ("weights", "fingerprint", "image_size", "preprocessing")
"""Of an encoder's description: what makes its tokens. Not its number format: bfloat16 gives nearly the same."""


def encoder_check(predicted: TokenSets, true: TokenSets) -> dict[str, dict[str, Any]]:
    """The check ``encoder``; a warning where it fails, and none where one of the two does not say its encoder."""
    trained_on = predicted.description.get("aligner", {}).get("about", {}).get("encoder", {})
    targets = true.description.get("encoder", {})
    known = [name for name in SAME if trained_on.get(name) and targets.get(name)]
    if "weights" not in known:
        return {}
    unlike = [name for name in known if trained_on[name] != targets[name]]
    check: dict[str, Any] = {"passed": not unlike, "trained_on": trained_on["weights"], "targets": targets["weights"]}
    if unlike:
        # Other weights have another fingerprint too; preprocessing is a table.
        sides = [{**each, **dict(each.get("preprocessing") or {})} for each in (trained_on, targets)]
        names = [name for name in unlike if name != "preprocessing" and (name != "fingerprint" or len(unlike) == 1)]
        if "preprocessing" in unlike:
            names += [name for name in targets["preprocessing"] if sides[0].get(name) != sides[1].get(name)]
        shown = "; ".join(f"{name} {sides[0].get(name)!s:.60} there, {sides[1].get(name)!s:.60} here" for name in names)
        check["note"] = (
            f"the model was trained on other targets than these ({shown}): the numbers compare two languages; measure "
            "on a collection whose targets are made as those of the training"
        )
        log.warning("%s: the check encoder FAILS: %s", predicted.description["name"], check["note"])
    return {"encoder": check}
