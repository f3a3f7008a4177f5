"""The name of a run, and what lies in its folder.

``<store>/<collection>/aligner/<stage>-<settings>-<data>/``: both are digests, so other settings, or new data, are
another run and never go on from this one's checkpoints. What changes no weight (where data lie, when to save and
validate), or the last bits of them at most (activation checkpointing, compilation), is in neither.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from gap3d import fingerprints
from gap3d.aligner_settings import AlignerSettings, TrainingSettings
from gap3d.parts import write_atomically
from gap3d.records import SystemicFault
from gap3d.training.checkpoint import Checkpoints

Stage = Literal["pretrain", "finetune"]
FOLDER = "aligner"
RESULT, SETTINGS, CURVES, FAILED = "result.json", "settings.json", "curves.png", "failed"
SHORT = 12  # digits of a digest in a name


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        folder: of its files.
        stage: pretrain or finetune.
        settings: digest of all that shapes the result but the data.
        data: digest of the data.
        keep: checkpoints that stay.
    """

    folder: Path
    stage: Stage
    settings: str
    data: str
    keep: int

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.name

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """Its checkpoints."""
        return Checkpoints(self.folder / "checkpoints", self.keep)

    def result(self) -> dict[str, Any] | None:
        """What came out, where it is finished and its last checkpoint is still there.

        Raises:
            SystemicFault: see ``read_result``.
        """
        path = self.folder / RESULT
        if not path.exists():
            return None
        found = read_result(path)
        return found if (self.folder / found["checkpoint"]).is_dir() else None

    def save_result(self, result: Mapping[str, Any]) -> None:
        """Say that it is finished."""
        write_atomically(self.folder / RESULT, json.dumps(dict(result), indent=1).encode())

    @property
    def trained(self) -> Path | None:
        """The last checkpoint of a finished run."""
        found = self.result()
        return self.folder / found["checkpoint"] if found else None


def read_result(path: Path) -> dict[str, Any]:
    """What the ``result.json`` of a finished run holds.

    Raises:
        SystemicFault: it is damaged.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        if all(isinstance(found[name], str) for name in ("checkpoint", "digest")):
            return found
        said = "names are no texts"
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        said = f"{type(error).__name__}: {error}"
    raise SystemicFault(
        f"{path} is damaged ({said}): remove it, then run the stage again; it finds the last checkpoint and trains "
        "nothing anew"
    )


def run_of(
    collection: Path,
    stage: Stage,
    aligner: AlignerSettings,
    training: TrainingSettings,
    data: str,
    start: str = "",
) -> Run:
    """The run of these settings on these data.

    Args:
        collection: folder of the collection in the store.
        stage: pretrain or finetune.
        aligner: the model's settings.
        training: the training's.
        data: digest of the data.
        start: digest of the weights that it begins with; empty where they are drawn.
    """
    settings = fingerprints.digest_of(
        {
            "aligner": aligner.model_dump(mode="json"),
            "training": training.shaping(),
            "start": start,
            "code": fingerprints.code_version("aligner"),
        }
    )
    name = f"{stage}-{settings[:SHORT]}-{data[:SHORT]}"
    return Run(collection / FOLDER / name, stage, settings, data, training.keep)
