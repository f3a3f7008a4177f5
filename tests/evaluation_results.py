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
ENCODER = {
    "family": "DINOv2 with registers",
    "encoder": "facebook/dinov2-with-registers-large",
    "width": 1024,
    "layers": 24,
    "image_size": 518,
}
TOKENS = {
    "predicted": {"sampling": {"steps": 30, "guidance": 3.0, "interval": [0.0, 1.0], "method": "euler"}},
    "true": {"encoder": ENCODER, "settings": {"crop": "none"}},
}


def extractor(name, width, source):
    """What features say of their extractor."""
    said = {
        "extractor": {"extractor": name, "width": width, "source": source, "preprocessing": "shorter side to 224, x"}
    }
    return {"true": said, "generated": said}


STATED = {
    "alignment": {"captions": "drawn", **TOKENS},
    "retrieval": {"captions": "all", **TOKENS},
    "generation": {
        "generated": {
            "kind": "shapes-gap3d",
            "shapes": {
                "0": {
                    "model": "microsoft/TRELLIS-image-large",
                    "resolution": 512,
                    "black": False,
                    "ssaa": {"4": 1, "8": 4, "20": 4},
                }
            },
            "prompts": {"suffix": "", "other_texts": 0},
            "tokens": {"sampling": {"steps": 50, "guidance": 3.0, "interval": [0.0, 1.0], "method": "euler"}},
        },
        "objects": {"shuffle": 42},
        "true": {"renders": {"0": {"resolution": 512, "samples": 128}}},
        "extractors": {
            "inception": extractor("Inception-v3", 2048, "torchvision"),
            "dinov2": extractor("DINOv2", 1024, "facebook/dinov2-large (revision 1a)"),
            "clip": extractor("CLIP ViT/32, 12 layers", 512, "openai/clip-vit-base-patch32"),
            "clip_large": extractor("CLIP ViT/14, 24 layers", 768, "openai/clip-vit-large-patch14"),
            "pointnet": extractor("PointNet++", 512, "point-e"),
        },
    },
    "settings": {"evaluation": {"dinov2_size": 518, "points": 4000}},
}
"""What results state that are measured as the paper's."""


def stating(table, **fields):
    """The protocol of a result that is measured as the paper's, but for these."""
    return STATED[table] | fields


def stated(table, model):
    """What a result of a model states that is measured as the paper's."""
    if table != "generation":
        return stating(table)
    said = STATED[table]["generated"]
    kind = model if model in ("trellis-image", "trellis-text") else "gap3d"
    weights = "microsoft/TRELLIS-text-xlarge" if kind == "trellis-text" else "microsoft/TRELLIS-image-large"
    shapes = {"0": {**said["shapes"]["0"], "model": weights}}
    return stating(table, generated={**said, "kind": f"shapes-{kind}", "shapes": shapes})


def result(table="retrieval", model="pretrained", collection="coco", cells=None, *, step=None, samples=40, **fields):
    """One that nobody measured: its numbers are drawn."""
    count = next(COUNTER)
    if cells is None:
        values = np.random.default_rng(count).uniform(5, 95, len(RETRIEVAL))
        cells = {name: Cell(v, v - 2, v + 1.5, samples) for name, v in zip(RETRIEVAL, values.tolist(), strict=True)}
    made = {
        "label": "trained",
        "trained": True,
        "made_at": f"2026-01-01T00:00:{count % 60:02d}.000+00:00",
        "counts": {"ok": samples},
        "protocol": stated(table, model),
        "settings": STATED["settings"],
        "checks": {"database": {"passed": True, "measured": 5000, "expected": 5000}} if table == "retrieval" else {},
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
