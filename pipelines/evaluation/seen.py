"""Whether a model was trained on what it is measured on, as far as what is recorded tells it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gap3d import dataset_index
from gap3d.store import ALL, Store
from gap3d.training.run import SETTINGS

SECTIONS = {"pretrain": "pretraining", "finetune": "finetuning"}  # of the settings, by stage


def trained_on(said: Mapping[str, Any], measured: Store, checkpoint: Path | None = None) -> dict[str, str]:
    """What a result says of it: ``trained_on``, in words; nothing where nobody knows that it was.

    Of what a training began with, such as the aligner that was fine-tuned, nothing is known.

    Args:
        said: of the training by the aligner (``stage``, ``data``).
        measured: the collection.
        checkpoint: its folder, in that of its run, whose settings name the collections too.
    """
    if said.get("data") and said["data"] == measured.manifest("dataset", ALL).digest:
        splits = dataset_index.load(measured, columns=("key",)).splits
        return {
            "trained_on": f"trained on {splits.get('train', 0):,} of the collection's {sum(splits.values()):,} images"
        }
    if checkpoint is not None and measured.collection in collections_of(str(said.get("stage")), checkpoint, measured):
        return {"trained_on": "trained on images of this collection, as it was then"}
    return {}


def collections_of(stage: str, checkpoint: Path, measured: Store) -> set[str]:
    """Names of the collections of the measured one's store that a run's settings say it was trained on."""
    try:
        settings = json.loads((checkpoint.parents[1] / SETTINGS).read_text())
        section = settings[SECTIONS[stage]]
        own = (section["collection"] or settings["collection"]) if section["data"] != "tars" else None
        mixed = section["mix_collection"] if section["mix_share"] else None
        same = Path(settings["store"]).absolute() == measured.root.absolute()
    except (OSError, ValueError, LookupError, TypeError):
        return set()
    return {name for name in (own, mixed) if name} if same or checkpoint.is_relative_to(measured.root) else set()
