"""Results that nobody measured, for tests of what shows them."""

import hashlib
import itertools
import json

import numpy as np

from gap3d.evaluation.result import Cell, Result

HOSTILE = "<img src=x onerror=\"window.struck='img'\"></script ><script >window.struck=1</script > $x_2$ | `中`"
RETRIEVAL = ("cls_r1", "cls_r5", "cls_r10", "patches_r1", "patches_r5", "patches_r10")
PAPER = {"cls_r1": 11.2, "cls_r5": 49.0, "cls_r10": 90.9}  # what the released code makes of 61.7, 85.0 and 90.9
COUNTER = itertools.count()


def result(table="retrieval", model="pretrained", collection="coco", cells=None, *, step=None, **fields):
    """One that nobody measured: its numbers are drawn."""
    count = next(COUNTER)
    if cells is None:
        values = np.random.default_rng(count).uniform(5, 95, len(RETRIEVAL))
        cells = {name: Cell(v, v - 2, v + 1.5, 40) for name, v in zip(RETRIEVAL, values.tolist(), strict=True)}
    made = {
        "label": "trained",
        "trained": True,
        "made_at": f"2026-01-01T00:00:{count % 60:02d}.000+00:00",
        "counts": {"ok": 40},
        "checkpoint": {} if step is None else {"stage": "pretrain", "run": f"{model} run", "step": step},
    }
    return Result(
        table=table,
        model=model,
        collection=collection,
        cells=cells,
        fingerprint=hashlib.sha256(str(count).encode()).hexdigest(),
        **made | fields,
    )


def published_file(folder, text=""):
    path = folder / "mine.toml"
    rows = "\n".join(f"{name} = {value}" for name, value in PAPER.items())
    path.write_text(
        text or f"[tables.2.values.coco.pretrained]\n{rows}\n[tables.1.values.coco.pretrained]\nmse_cls = 1"
    )
    return path


def data_of(text):
    """The data of a page."""
    return json.loads(text.partition('<script type="application/json" id="data">')[2].partition("</script>")[0])
