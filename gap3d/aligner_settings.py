"""Settings of the aligner: the model, its two trainings, sampling (docs/method.md 4 to 7)."""

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from gap3d.section import Place, Section, Weights, of_collection

OwnOrOther = Annotated[str | None, AfterValidator(lambda name: of_collection(name) if name else None)]
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

    vlm: Weights = "Qwen/Qwen2.5-VL-3B-Instruct"
    """Vision-language model: a hub id or a local folder of a Qwen2.5-VL. random-small: a small one with UNTRAINED
    random weights."""
    vlm_revision: str | None = None
    """Hub revision (commit, branch or tag) of the vision-language model."""
    soft_tokens: PositiveInt = 64
    """Number of trainable soft tokens; their last hidden states are the condition."""
    soft_tokens_std: PositiveFloat = 1.0
    """Standard deviation of the soft tokens' initial values, drawn from a normal distribution."""
    width: PositiveInt = 1792
    """Channels of the diffusion transformer; a multiple of 4 x heads."""
    blocks: PositiveInt = 24
    """Depth of the diffusion transformer, in blocks. The paper's text says 36; its parameter count, and the released
    configuration, say 24."""
    heads: PositiveInt = 28
    """Attention heads of the diffusion transformer; width / heads has to be a multiple of 4."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of matrix products; path, loss, norms of the optimiser and the sampler's state are float32."""
    seed: int = 42
    """Seed of the initial weights of soft tokens and diffusion transformer."""

    @model_validator(mode="after")
    def heads_divide_width(self) -> "AlignerSettings":
        """Row and column angles turn pairs of channels."""
        if self.width % (4 * self.heads):
            raise ValueError(f"aligner.width = {self.width} is no multiple of 4 x {self.heads} heads")
        return self


class TrainingSettings(Section):
    """One training (docs/method.md 6); the defaults are stage 1's of the paper."""

    data: Literal["targets", "tars"] = "targets"
    """Kind of training data. targets: token shards of a collection. tars: image-text tars, encoded while training
    (section targets)."""
    collection: OwnOrOther = None
    """targets: name of the collection in this store that is trained on; default: --collection."""
    tars: Place | None = None
    """tars: folder of the image-text tars, searched at any depth."""
    start: Place | None = None
    """Checkpoint to begin with, ours or a released one. Default: weights drawn from aligner.seed for pretraining, the
    pretrained run of the same settings for finetuning."""
    mix_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each batch's samples that are drawn from mix_collection, 0 to below 1: general data against
    forgetting."""
    mix_collection: OwnOrOther = None
    """Name of a collection in this store whose token shards are mixed in."""
    steps: PositiveInt | None = None
    """Number of optimiser steps; default: as many as the epochs take."""
    epochs: PositiveFloat = 3.0
    """Passes over the data, fractions allowed, where steps are not given."""
    batch_size: PositiveInt = 16
    """Samples that a worker takes at once."""
    accumulate: PositiveInt = 1
    """Batches accumulated for one optimiser step; the step sees batch_size x accumulate x workers samples."""
    learning_rate: PositiveFloat = 2.8e-4
    """Highest learning rate, at the end of the warm-up; the paper's belongs to 2048 samples a step."""
    floor: Annotated[float, Field(ge=0)] = 1e-5
    """Lowest learning rate, at the end of the cosine."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.003
    """Share of the steps in which the learning rate rises linearly, 0 to below 1."""
    warmup_steps: NonNegativeInt = 0
    """Least number of steps of the warm-up, whatever its share: with fewer samples a step than the paper's, 100 are
    advised."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay of the AdamW optimiser."""
    clip: PositiveFloat = 1.0
    """Greatest norm of the gradient; a larger one is scaled down to it."""
    condition_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the samples whose condition is set to zeros, for guidance, 0 to below 1."""
    loss_weights: tuple[float, float, float] = (0.4, 0.3, 0.3)
    """Weights of the losses of patches, CLS and registers, in this order (paper, equation 5)."""
    checkpointing: bool = True
    """Compute activations anew in the backward pass instead of keeping them: less memory, more time."""
    compile: bool = False
    """Compile the diffusion transformer with torch.compile."""
    seed: int = 42
    """Seed of sample order, choice of captions, times, noises and condition dropout."""
    workers: PositiveInt = 1
    """Number of Ray Train processes, one a GPU where there are GPUs. A result setting: a step sees that many
    batches."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Way in which several workers share the model. ddp: each holds all of it. fsdp: each holds a part."""
    save_every: PositiveInt = 500
    """Number of steps between checkpoints."""
    keep: PositiveInt = 2
    """Number of newest checkpoints that are kept, beside the best."""
    validate_every: PositiveInt = 5000
    """Number of steps between validations; one comes at the end in any case."""
    validation_collection: OwnOrOther = None
    """Name of the collection whose validation split is held out. Default: the data's own; for tars, --collection."""
    validation_count: PositiveInt = 4096
    """Number of held-out pairs in a validation, at most."""
    validation_steps: PositiveInt = 30
    """Number of sampler steps in a validation."""
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

    @model_validator(mode="after")
    def data_are_named(self) -> "TrainingSettings":
        """Tars and mixtures have no default."""
        if self.data == "tars" and self.tars is None:
            raise ValueError("data = 'tars' needs the folder of the tars (--pretraining.tars DIR)")
        if self.mix_share and self.mix_collection is None:
            raise ValueError("mix_share needs mix_collection: name a collection of this store that has a dataset")
        return self


class FinetuningSettings(TrainingSettings):
    """Finetuning (docs/method.md 6): a training whose defaults are stage 2's, also where only some are given."""

    epochs: PositiveFloat = 1000.0
    """Passes over the data, fractions allowed, where steps are not given."""
    learning_rate: PositiveFloat = 5.6e-4
    """Highest learning rate, at the end of the warm-up; the paper's belongs to 2048 samples a step."""
    floor: Annotated[float, Field(ge=0)] = 0.0
    """Lowest learning rate, at the end of the cosine."""


class SamplingSettings(Section):
    """How tokens are generated (docs/method.md 7)."""

    steps: PositiveInt = 50
    """Number of sampler steps for what is made in 3D; alignment and retrieval take evaluation.steps."""
    guidance: Annotated[float, Field(ge=0)] = 3.0
    """Strength of classifier-free guidance: v = v_null + guidance x (v_condition - v_null); 1 is no guidance."""
    interval: tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]] = (0.0, 1.0)
    """Least and greatest sigma at which guidance holds, 0 to 1; elsewhere the condition alone."""
    method: Literal["euler", "heun"] = "euler"
    """Solver of the sampler. euler: the paper's. heun: second order, two evaluations a step."""
    seed: int = 0
    """Seed, together with the object's key, of the noise that its tokens are made from."""
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
