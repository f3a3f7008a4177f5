"""The worker that generates token sets: one aligner, kept from batch to batch."""

import hashlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gap3d.aligner.model import load_aligner
from gap3d.features.decoding import decode_image
from gap3d.features.images import without_alpha
from gap3d.features.tokens import TokenLayout, columns_of
from gap3d.parts import read_rows
from gap3d.records import Failure, Outcome, Status, SystemicFault
from gap3d.settings import Settings
from pipelines.progress import advance

STAGE = "generated"
VIEW = re.compile(r"(.+)/(\d{3,})")


@dataclass(frozen=True)
class Wish:
    """One prompt of a batch.

    Attributes:
        key: of its row.
        text: what is asked for.
        image_sha256: of the picture that is edited; empty where there is none.
        part: that holds the picture.
        row: its position there.
        due: whether a row is wanted; the others of a batch are generated on a GPU all the same, because the last bits
            of a sample depend there on what is computed beside it.
    """

    key: str
    text: str
    image_sha256: str = ""
    part: str = ""
    row: int = 0
    due: bool = True


class Generator:
    """One aligner.

    Args:
        checkpoint: its folder.
        digest: what the folder's files have to be.
        settings: sampling, number format, limits, threads.
        vlm: see ``load_aligner``.

    Raises:
        SystemicFault: the checkpoint is another by now, or can't be loaded.
    """

    def __init__(self, checkpoint: Path, digest: str, settings: Settings, vlm: str | None = None) -> None:
        torch.set_num_threads(settings.compute.encoder_threads)
        self.settings = settings
        self.digest = digest
        self.aligner = load_aligner(checkpoint, vlm=vlm).eval()
        if digest_of(checkpoint) != digest:
            raise SystemicFault(f"{checkpoint} is being written: wait for that to end, then run again")

    def process(self, payload: Sequence[Wish]) -> list[Outcome]:
        """One batch: a row for each that is due, whatever becomes of the others."""
        together = self.aligner.device.type != "cpu"
        if together:
            try:
                return self.generated(payload)
            except Failure:  # of one of them: then each by itself
                pass
        return [outcome for wish in payload if wish.due for outcome in self.alone(wish)]

    def alone(self, wish: Wish) -> list[Outcome]:
        """The row of one prompt."""
        try:
            return self.generated([wish])
        except Failure as known:
            return [Outcome(stage=STAGE, key=wish.key, status=known.status, reason=known.reason)]

    def generated(self, wishes: Sequence[Wish]) -> list[Outcome]:
        """Rows of prompts that are sampled together.

        Raises:
            Failure: an image can't be taken.
            SystemicFault: the aligner fails; no prompt is at fault.
        """
        begun = time.perf_counter()
        images = [self.image(wish) if wish.part else None for wish in wishes]
        sampling = self.settings.sampling.model_copy(update={"batch_size": len(wishes)})
        due = sum(wish.due for wish in wishes)
        try:
            tokens = self.aligner.generate(
                [wish.text for wish in wishes],
                [wish.key for wish in wishes],
                sampling,
                images if any(images) else None,
                on_step=lambda _: advance(due),
            ).cpu()
        except RuntimeError as error:
            raise SystemicFault(
                f"the aligner fails on {self.aligner.device}: {error}; where memory is short, ask for less at once "
                "(--sampling.batch_size)"
            ) from error
        seconds = (time.perf_counter() - begun) / len(wishes)
        return [self.outcome(wish, each, seconds) for wish, each in zip(wishes, tokens, strict=True) if wish.due]

    def image(self, wish: Wish) -> Image.Image:
        """The picture of a prompt, RGB, on black where it has alpha."""
        table = read_rows(Path(wish.part), [wish.row], ["key", "image"])
        if table.column("key")[0].as_py() != wish.key:
            raise SystemicFault(f"{wish.part} row {wish.row} is not {wish.key}: run `python -m pipelines.verify`")
        return without_alpha(decode_image(table.column("image")[0].as_py(), self.settings.limits.pixels), "black")

    def outcome(self, wish: Wish, tokens: Tensor, seconds: float) -> Outcome:
        """The row of a token set, float32 [T, C]."""
        parts = VIEW.fullmatch(wish.key)
        try:
            if not torch.isfinite(tokens[0]).all():
                raise ValueError("the CLS token is not finite")
            stored, layout = tokens, self.aligner.layout
            if self.settings.sampling.pooled:
                stored, layout = pooled(tokens, layout), pooled_layout(layout)
            columns = columns_of(stored, layout, self.settings.targets.store_dtype)
        except ValueError as error:  # numbers of this prompt alone
            return Outcome(stage=STAGE, key=wish.key, status=Status.INTERNAL_ERROR, reason=str(error), seconds=seconds)
        data: dict[str, Any] = {
            "object_id": parts[1] if parts else wish.key,
            "view": int(parts[2]) if parts else 0,
            **columns,
            "prompt": wish.text,
            "image_sha256": wish.image_sha256,
            "seed": self.settings.sampling.seed,
            "checkpoint": self.digest,
        }
        # Arrays over the bytes: they go to another process in shared memory.
        data = {name: np.frombuffer(cell, np.uint8) if isinstance(cell, bytes) else cell for name, cell in data.items()}
        device = str(self.aligner.device)
        return Outcome(stage=STAGE, key=wish.key, data=data, seconds=seconds, device=device, costs={"sample": seconds})

    def probe(self) -> None:
        """Generate something."""
        (found,) = self.alone(Wish("probe", "a chair"))
        if found.status is not Status.OK:
            raise SystemicFault(f"the aligner makes no tokens of a plain prompt: {found.reason}")

    def close(self) -> None:
        """Nothing is held but memory."""


def pooled_layout(layout: TokenLayout) -> TokenLayout:
    """Of sets with one token for all their patches."""
    return replace(layout, grid=(1, 1))


def pooled(tokens: Tensor, layout: TokenLayout) -> Tensor:
    """Tokens [T, C] with the mean of the patches in their place, float32 [1 + R + 1, C]."""
    cls, registers, patches = layout.split(tokens[None].float())
    return pooled_layout(layout).join(cls, registers, patches.mean(1, keepdim=True))[0]


def digest_of(checkpoint: Path) -> str:
    """What a checkpoint's files hold: weights, and what is said of them.

    Raises:
        SystemicFault: it is no folder of a checkpoint.
    """
    weights = [path for path in checkpoint.glob("*.safetensors") if not path.name.startswith("optimiser")]
    if not weights:
        raise SystemicFault(f"{checkpoint} is no checkpoint of an aligner: name a folder with model.safetensors")
    files = sorted([*weights, *checkpoint.glob("aligner.json")])
    state = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            state.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return state.hexdigest()[:32]
