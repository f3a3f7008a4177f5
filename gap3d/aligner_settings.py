"""Settings of the aligner: the model, its two trainings, sampling (docs/method.md 4 to 7)."""

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from gap3d.section import Section

RANDOM_VLM = "random-small"
PLACES = {"collection", "tars", "mix_collection", "start"}  # of a training's data: their contents shape it
NO_RESULT = {
    "checkpointing",
    "compile",
    "save_every",
    "keep",
    "validate_every",
    "validation_count",
    "validation_steps",
    "validation_collection",
    "automatic",
}
"""Of a training, what changes no weight, or its last bits at most."""


class AlignerSettings(Section):
    """The model: a frozen vision-language model with soft tokens, and a diffusion transformer (paper 3.1, 3.2).

    Grid, channels and registers of the tokens that it makes are those of the dataset.
    """

    vlm: str = "Qwen/Qwen2.5-VL-3B-Instruct"
    """A hub id or a local folder of a Qwen2.5-VL. random-small: a small one with UNTRAINED random weights."""
    vlm_revision: str | None = None
    """Hub revision (commit) of the vision-language model."""
    soft_tokens: PositiveInt = 64
    """Trainable tokens whose last hidden states are the condition."""
    soft_tokens_std: PositiveFloat = 1.0
    """Of their normal start."""
    width: PositiveInt = 1792
    """Channels of the diffusion transformer."""
    blocks: PositiveInt = 24
    """Its depth. The paper's text says 36; its parameter count, and the released configuration, say 24."""
    heads: PositiveInt = 28
    """Attention heads; width / heads has to be a multiple of 4."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of the products; path, loss, norms of the optimiser and the sampler's state are float32."""
    seed: int = 42
    """Of the start of soft tokens and diffusion transformer."""

    @field_validator("vlm")
    @classmethod
    def vlm_holds_anywhere(cls, vlm: str) -> str:
        """A job runs in no folder of the caller's."""
        path = Path(vlm).expanduser()
        return str(path.absolute()) if path.exists() else vlm

    @model_validator(mode="after")
    def heads_divide_width(self) -> "AlignerSettings":
        """Row and column angles turn pairs of channels."""
        if self.width % (4 * self.heads):
            raise ValueError(f"aligner.width = {self.width} is no multiple of 4 x {self.heads} heads")
        return self


class TrainingSettings(Section):
    """One training (docs/method.md 6); the defaults are stage 1's of the paper."""

    data: Literal["targets", "tars"] = "targets"
    """targets: token shards of a collection. tars: image-text tars, encoded while training (section targets)."""
    collection: str | None = None
    """targets: the collection in this store; none takes the one that the settings name."""
    tars: Path | None = None
    """tars: their folder, searched at any depth."""
    start: Path | None = None
    """A checkpoint to begin with, ours or a released one. None: weights drawn from aligner.seed for pretraining, the
    pretrained run of the same settings for finetuning."""
    mix_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each batch's samples that are drawn from mix_collection: general data against forgetting."""
    mix_collection: str | None = None
    """A collection in this store whose token shards are mixed in."""
    steps: PositiveInt | None = None
    """Optimiser steps; none takes them from epochs."""
    epochs: PositiveFloat = 3.0
    """Passes over the data, where steps are not given."""
    batch_size: PositiveInt = 16
    """Samples a worker takes at once."""
    accumulate: PositiveInt = 1
    """Batches of one optimiser step; the step sees batch_size x accumulate x workers samples."""
    learning_rate: PositiveFloat = 2.8e-4
    """At the end of the warm-up; the paper's belongs to 2048 samples a step."""
    floor: Annotated[float, Field(ge=0)] = 1e-5
    """Learning rate at the end of the cosine."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.003
    """Share of the steps in which the rate rises in a line."""
    warmup_steps: NonNegativeInt = 0
    """So many steps at least, whatever the share: with fewer samples a step than the paper's, 100 are advised."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of AdamW."""
    clip: PositiveFloat = 1.0
    """Greatest norm of the gradient."""
    condition_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the samples whose condition is zeros, for guidance."""
    loss_weights: tuple[float, float, float] = (0.4, 0.3, 0.3)
    """Of patches, CLS and registers (paper, equation 5)."""
    checkpointing: bool = True
    """Compute activations anew in the backward pass instead of keeping them."""
    compile: bool = False
    """torch.compile of the diffusion transformer."""
    seed: int = 42
    """Of order, captions, times, noises and dropout."""
    workers: PositiveInt = 1
    """Processes of Ray Train, one a GPU where there are GPUs. A result setting: a step sees that many batches."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """How several workers share the model."""
    save_every: PositiveInt = 500
    """Steps between checkpoints."""
    keep: PositiveInt = 2
    """Newest checkpoints that are kept, beside the best."""
    validate_every: PositiveInt = 5000
    """Steps between validations; one comes at the end in any case."""
    validation_collection: str | None = None
    """The collection whose validation split is held out. None: the data's own; for tars, the one that the settings
    name."""
    validation_count: PositiveInt = 4096
    """Held-out pairs of a validation, at most."""
    validation_steps: PositiveInt = 30
    """Steps of the sampler in a validation."""
    automatic: bool = False
    """In Dagster: train anew when the dataset's content changes (sensor on_change). If not, a person starts it."""

    def shaping(self) -> dict[str, Any]:
        """All that shapes the weights, but for the data; what other settings leave without effect is at its default."""
        made = self.model_dump(mode="json", exclude=PLACES | NO_RESULT)
        idle = {"epochs": self.steps is not None, "strategy": self.workers == 1}
        fields = type(self).model_fields
        made |= {name: fields[name].default for name, is_idle in idle.items() if is_idle}
        if self.warmup_steps <= math.ceil(self.warmup * (self.steps or 0)):  # without effect, as in runs before it was
            del made["warmup_steps"]
        return made

    @field_validator("collection", "mix_collection", "validation_collection")
    @classmethod
    def collections_are_names(cls, name: str | None) -> str | None:
        """Collections of this store, not folders anywhere."""
        if name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise ValueError(f"{name!r} is no collection: name one of this store, as --collection would")
        return name or None

    @field_validator("tars", "start")
    @classmethod
    def paths_hold_anywhere(cls, path: Path | None) -> Path | None:
        """A job runs in no folder of the caller's."""
        return path.expanduser().absolute() if path else None

    @model_validator(mode="after")
    def data_are_named(self) -> "TrainingSettings":
        """Tars and mixtures have no default."""
        if self.data == "tars" and self.tars is None:
            raise ValueError("data = 'tars' needs the folder of the tars (--pretraining.tars DIR)")
        if self.mix_share and self.mix_collection is None:
            raise ValueError("mix_share needs mix_collection: name a collection of this store that has a dataset")
        return self


class FinetuningSettings(TrainingSettings):
    """Stage 2's, whose defaults are its own also where only some are given."""

    epochs: PositiveFloat = 1000.0
    """Passes over the data, where steps are not given."""
    learning_rate: PositiveFloat = 5.6e-4
    """At the end of the warm-up; the paper's belongs to 2048 samples a step."""
    floor: Annotated[float, Field(ge=0)] = 0.0
    """Learning rate at the end of the cosine."""


class SamplingSettings(Section):
    """How tokens are generated (docs/method.md 7)."""

    steps: PositiveInt = 50
    """Of the sampler: 30 for alignment and retrieval, 50 for 3D."""
    guidance: Annotated[float, Field(ge=0)] = 3.0
    """v = v_null + guidance x (v_condition - v_null); 1 is no guidance."""
    interval: tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]] = (0.0, 1.0)
    """Least and greatest sigma at which guidance holds; elsewhere the condition alone."""
    method: Literal["euler", "heun"] = "euler"
    """euler: the paper's. heun: second order, two evaluations a step."""
    seed: int = 0
    """With the object's key, the seed of its noise."""
    batch_size: PositiveInt = 8
    """Samples that are generated at once; changes no sample's noise."""
    pooled: bool = False
    """Keep the mean of a set's patches in their place: all that retrieval compares, at 1/200 of the disk."""

    @model_validator(mode="after")
    def interval_rises(self) -> "SamplingSettings":
        """From most to least, guidance would hold nowhere, without a word."""
        if self.interval[0] > self.interval[1]:
            raise ValueError(f"sampling.interval = {self.interval}: the least sigma comes first")
        return self
