"""The baseline that retrieves: for a prompt stands the object whose CLS target is nearest to the predicted CLS.

No object is generated, and nothing is rendered: the pictures are those of the found object. The true object is among
those that can be found, and often is: its share is told, and it draws distances towards 0.
"""

import logging
from pathlib import Path
from typing import Any

import torch

from gap3d.evaluation.generation import Pair
from gap3d.evaluation.retrieved import LABEL, nearest
from gap3d.evaluation.tokens import TokenSets, of_dataset, of_generated
from gap3d.parts import write_atomically
from gap3d.prompts import of_rows
from gap3d.records import Failure, Status
from gap3d.settings import Settings
from pipelines import generate, prompts
from pipelines.evaluation.objects import Subject, TrueObjects
from pipelines.generate import Checkpoint
from pipelines.predictions import about, checkpoint_of, fitting, require_room

log = logging.getLogger(__name__)
NO_PREDICTION = Failure(Status.MISSING, "the aligner made no tokens of its prompt")


def subject(settings: Settings, model: str, true: TrueObjects) -> Subject:
    """The objects that an aligner's predictions lead to.

    Args:
        settings: of the collection that was trained on.
        model: pretrained, finetuned, or the folder of a checkpoint.
        true: the expected objects, and those that can be found.

    Raises:
        NotReady: there is no such training yet.
        ValueError: none of the dataset's objects has pictures from all around.
    """
    checkpoint = checkpoint_of(settings, model)
    with predicted(settings, checkpoint, true) as sets, of_dataset(true.base) as targets:
        # Those that are measured alone: what else happens to be rendered has no say over the numbers.
        candidates = [
            key for key in sorted(targets.keys) if object_of(key) in true.asked and has_features(true, object_of(key))
        ]
        if not candidates:
            raise ValueError(
                f"no object of the dataset of collection {true.base.collection} has all its pictures from all around: "
                "run `python -m pipelines.around`"
            )
        pieces = list(targets.batches(candidates, ["cls"]))  # less what is damaged
        database = torch.cat([batch["cls"][:, 0] for _, batch in pieces])
        there = [key for keys, _ in pieces for key in keys]
        pairs = []
        for keys, batch in sets.batches(list(true.asked), ["cls"]):
            for key, found in zip(keys, nearest(batch["cls"][:, 0], database, there), strict=True):
                itself = object_of(found.key) == key
                values = {"cosine": found.cosine, "true_object": float(itself)}
                pairs.append(Pair(key, object_of(found.key), values=values))
        done = {pair.key for pair in pairs}
        lost = [Pair(key, failure=sets.failures.get(key, NO_PREDICTION)) for key in true.asked if key not in done]
        share = sum(pair.values["true_object"] for pair in pairs)
        bent = "ray_depth" in settings.evaluation.quirks
        described: dict[str, Any] = {
            "kind": "retrieved",
            "note": "for each prompt the object whose CLS target is nearest to the predicted CLS stands for the "
            "generated one; the true object can be found too"
            + ("; clouds are those of true objects, and bent like them" if bent else ""),
            "database": {"collection": true.base.collection, "images": len(there), "targets": targets.description},
            "predicted": sets.description,
            "true_object_found": int(share),
            "different_objects_found": len({pair.generated for pair in pairs}),
        }
        untrained = [
            name for name, held in (("aligner", sets), ("targets", targets)) if held.description["trained"] is False
        ]
    name = model if model in ("pretrained", "finetuned") else Path(model).name
    return Subject(
        model=f"retrieved by {name}: {LABEL}",
        pairs=[*pairs, *lost],
        side=true.side,
        captions={key: asked.caption for key, asked in true.asked.items()},
        checkpoint=about(checkpoint, true.base),
        untrained=untrained,
        about=described,
    )


def object_of(key: str) -> str:
    """The object of an image's key."""
    return key.rpartition("/")[0]


def has_features(true: TrueObjects, object_id: str) -> bool:
    """Whether an object has all features that a generated one is to have."""
    return all(rows.failure(object_id) is None for rows in true.side.values())


def predicted(settings: Settings, checkpoint: Checkpoint, true: TrueObjects) -> TokenSets:
    """Token sets of the evaluation's prompts, brought up to date in a collection of their own.

    ``evaluation.steps`` are the sampler's, as for retrieval: nothing is made in 3D of them.
    """
    fitting(checkpoint.layout, true.base)
    name = f"{true.base.collection}-generation-{checkpoint.digest[:12]}"
    sampling = settings.sampling.model_copy(update={"steps": settings.evaluation.steps})
    own = settings.model_copy(update={"sampling": sampling})
    store, own = prompts.collection_of(own, name, len(true.asked))
    rows = (
        (
            f"object {asked.index}",
            {"id": key, "prompt": asked.caption, "index": asked.index, "caption_index": asked.caption_index},
        )
        for key, asked in true.asked.items()
    )
    prompts.run(own, store, of_rows(rows, Path()))
    write_atomically(store.folder / "settings.json", own.model_dump_json(indent=1).encode())
    require_room(store, own, checkpoint)
    generate.run(own, store, checkpoint)
    return of_generated(store)
