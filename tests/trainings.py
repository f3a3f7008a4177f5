"""Small trainings over collections that ``target_stores`` writes."""

import torch
from target_stores import collection

from gap3d.training.parallel import Processes
from gap3d.training.plan import plan_of
from gap3d.training.train import train
from pipelines.command import load_settings

TINY = {"vlm": "random-small", "soft_tokens": 4, "width": 32, "blocks": 2, "heads": 2, "dtype": "float32"}
FEW = {
    "steps": 6,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "save_every": 2,
    "validate_every": 3,
    "validation_count": 3,
    "validation_steps": 2,
}


def small(root, *, rows=20, **values):
    """Settings of both trainings on a collection of so many images."""
    if not (root / "test").exists():
        collection(root, rows=rows, shards=2)
    base = {
        "store": root,
        "collection": "test",
        "catalog": {"shards": 2},
        "aligner": TINY,
        "pretraining": FEW,
        "finetuning": FEW,
        "compute": {"workers": 0, "lease_wait_s": 0},
    }
    for name, value in values.items():
        base[name] = {**base.get(name, {}), **value} if isinstance(value, dict) else value
    return load_settings("demo", **base)


def trained(settings, stage="pretrain", **how):
    """A whole training in this process: (plan, result)."""
    plan = plan_of(settings, stage)
    return plan, train(settings, plan, Processes(device=torch.device("cpu")), **how)
