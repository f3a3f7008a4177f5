"""The aligner as one module: a text's condition, the velocity it gives, tokens drawn with it; and its files."""

import itertools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from gap3d.aligner import sampler
from gap3d.aligner.about import ABOUT, VERSION, read_about
from gap3d.aligner.dit import DiT, Geometry
from gap3d.aligner.naming import DIT, SOFT_TOKENS, to_released
from gap3d.aligner.vlm import Conditioner, load_conditioner
from gap3d.aligner.weights import MODEL, check_geometry, geometry_of, read_weights
from gap3d.aligner_settings import AlignerSettings, SamplingSettings
from gap3d.features.encoder import UNTRAINED
from gap3d.features.tokens import TORCH_DTYPES, TokenLayout
from gap3d.features.weights import first_line
from gap3d.parts import write_atomically
from gap3d.records import SystemicFault

log = logging.getLogger(__name__)

RELEASED_GRID = (37, 37)  # of patches, that the released weights were trained on: 518 / 14


class Aligner(nn.Module):
    """Frozen vision-language model, soft tokens, diffusion transformer.

    Args:
        conditioner: the first two.
        dit: the third.
        layout: of the tokens it makes.
        settings: what it was made of.
        about: what is known of its training: ``step``, the optimiser steps it had; ``encoder``, the description of
            the encoder of its targets; and whatever else.

    Raises:
        ValueError: the parts do not fit together.
    """

    def __init__(
        self,
        conditioner: Conditioner,
        dit: DiT,
        layout: TokenLayout,
        settings: AlignerSettings,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.conditioner = conditioner
        self.dit = dit
        self.layout = layout
        self.settings = settings
        self.about = dict(about or {})
        made = dit.geometry
        if conditioner.width != made.condition_width:
            raise ValueError(
                f"it takes conditions of {made.condition_width} channels, and those of {conditioner.settings.vlm!r} "
                f"have {conditioner.width}: name the vision-language model that it was trained with"
            )
        if (layout.width, layout.registers) != (made.channels, made.registers):
            raise ValueError(
                f"it makes {made.registers} registers and {made.channels} channels, and the tokens have "
                f"{layout.registers} and {layout.width}"
            )

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.conditioner.device

    @property
    def trained(self) -> bool:
        """Whether all of it is: language model, encoder of the targets, and itself."""
        return not self._untrained(self.about)

    @property
    def label(self) -> str:
        """What its weights are worth, for reports and files."""
        untrained = self._untrained(self.about)
        return f"{UNTRAINED}: {', '.join(untrained)}" if untrained else f"trained with {self.conditioner.label}"

    def _untrained(self, about: Mapping[str, Any]) -> list[str]:
        return [
            *([] if self.conditioner.trained else ["vision-language model"]),
            *([] if about.get("encoder", {}).get("trained", True) else ["encoder of the targets"]),
            *([] if about.get("step") else ["aligner"]),
        ]

    @property
    def description(self) -> dict[str, Any]:
        """All that is needed to load it, and what it is, for its file and the metadata of what it makes."""
        return self._description(self.about)

    def _description(self, about: Mapping[str, Any]) -> dict[str, Any]:
        untrained = self._untrained(about)
        return {
            "version": VERSION,
            "trained": not untrained,
            "untrained": untrained,
            "settings": self.settings.model_dump(mode="json"),
            "geometry": asdict(self.dit.geometry),
            "layout": asdict(self.layout),
            "vlm": self.conditioner.description,
            "about": dict(about),
        }

    def trainable(self) -> dict[str, nn.Parameter]:
        """Diffusion transformer and soft tokens, by their names here; all else is frozen."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def checkpointing(self, on: bool) -> None:
        """Compute activations anew in the backward pass, or keep them."""
        self.dit.checkpointing = self.conditioner.checkpointing = on

    def condition(self, texts: Sequence[str], images: Sequence[Image.Image | None] | None = None) -> Tensor:
        """Conditions [B, M, Dc]; see ``Conditioner``."""
        return self.conditioner(texts, images)

    def forward(self, tokens: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        """The velocity [B, T, C] at noisy tokens [B, T, C] and timesteps [B] under conditions [B, M, Dc]."""
        return self.dit(tokens, timestep, condition, self.layout.grid)

    @torch.no_grad()
    def generate(
        self,
        texts: Sequence[str],
        keys: Sequence[str],
        sampling: SamplingSettings,
        images: Sequence[Image.Image | None] | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Tokens for texts.

        Args:
            texts: captions; where there is an image, how the object is to differ from it.
            keys: one a text, different ones: with the seed they are the noise that it starts from.
            sampling: steps, guidance, seed, samples at once.
            images: one or none for each text.
            on_step: told how many steps are done, of ``steps`` for each ``batch_size`` texts.

        Returns:
            float32 [B, T, C] on the aligner's device.

        Raises:
            Failure: see ``Conditioner``.
            ValueError: the same; or there are not as many keys as texts.
        """
        if len(keys) != len(texts):
            raise ValueError(f"{len(texts)} texts and {len(keys)} keys: each text needs a key of its own")
        count = itertools.count(1)
        tokens = [torch.empty(0, self.layout.count, self.layout.width, device=self.device)]
        for start in range(0, len(texts), sampling.batch_size):
            rows = slice(start, start + sampling.batch_size)
            noise = sampler.noise_of(keys[rows], self.layout, sampling.seed).to(self.device)
            condition = self.condition(texts[rows], None if images is None else images[rows])
            told = None if on_step is None else lambda _: on_step(next(count))
            tokens.append(sampler.sample(self, noise, condition, sampling, told))
        return torch.cat(tokens)

    def save(self, folder: Path, about: Mapping[str, Any], weights: Mapping[str, Tensor] | None = None) -> None:
        """Write ``model.safetensors``, in the released naming and without the frozen weights, and ``aligner.json``.

        Args:
            folder: made if it is not there.
            about: see ``Aligner``.
            weights: by the names of ``trainable``: masters of higher precision, or gathered shards; default: its own.
        """
        state = self.trainable() if weights is None else weights
        described = self._description(about)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in to_released(state).items()}
        words = {"format": "pt", "gap3d_untrained": ", ".join(described["untrained"])}
        save_file(tensors, folder / MODEL, {name: word for name, word in words.items() if word})
        write_atomically(folder / ABOUT, json.dumps(described, indent=1).encode())


def build_aligner(settings: AlignerSettings, layout: TokenLayout, device: str | torch.device | None = None) -> Aligner:
    """An aligner at its start, which follows the settings' seed; the transformer's weights are float32.

    Raises:
        SystemicFault: see ``load_conditioner``.
    """
    conditioner = load_conditioner(settings, device)
    geometry = Geometry(
        channels=layout.width,
        registers=layout.registers,
        condition_width=conditioner.width,
        width=settings.width,
        blocks=settings.blocks,
        heads=settings.heads,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        dit = DiT(geometry)
    return Aligner(conditioner, dit.to(conditioner.device), layout, settings)


def load_aligner(
    folder: Path, device: str | torch.device | None = None, vlm: str | None = None, *, dtype: str | None = None
) -> Aligner:
    """An aligner of a checkpoint: of this project, or a released one.

    A released one has no ``aligner.json``: its geometry is what its shapes tell, its grid 37 x 37.

    Args:
        folder: that holds it.
        device: default: a GPU if there is one.
        vlm: hub id or folder of the vision-language model, where it lies elsewhere than when this one was trained;
            default: what ``aligner.json`` names, or the paper's.
        dtype: of the transformer's weights; default: that of the products, which ``aligner.json`` names.

    Raises:
        SystemicFault: it can't be read, its weights are of another geometry, or the vision-language model cannot be
            had or is not that of its training.
    """
    state = read_weights(folder)
    try:
        found = read_about(folder) or _released(state)
        settings = AlignerSettings(**found["settings"])
        geometry = Geometry(**found["geometry"])
        layout = TokenLayout(**{**found["layout"], "grid": tuple(found["layout"]["grid"])})
        check_geometry(state, geometry, settings.soft_tokens)
    except ValueError as error:
        raise SystemicFault(f"aligner {str(folder)!r} can't be used: {first_line(error)}") from error
    if vlm is not None:
        settings = AlignerSettings(**{**settings.model_dump(), "vlm": vlm, "vlm_revision": None})
    conditioner = load_conditioner(settings, device)
    _check_vlm(folder, conditioner, found["vlm"])
    with torch.device("meta"):
        dit = DiT(geometry)
    precision = TORCH_DTYPES[dtype or settings.dtype]
    dit.load_state_dict(
        {name.removeprefix(DIT): tensor.to(precision) for name, tensor in state.items() if name.startswith(DIT)},
        assign=True,
    )
    try:
        aligner = Aligner(conditioner, dit.to(conditioner.device), layout, settings, found["about"])
    except ValueError as error:
        raise SystemicFault(f"aligner {str(folder)!r} can't be used: {error}") from error
    with torch.no_grad():
        conditioner.soft_tokens.copy_(state[SOFT_TOKENS])
    if not aligner.trained:
        log.warning("%s: tokens of %s mean nothing; use it to try the pipeline", aligner.label, folder)
    return aligner


def describe(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself (``Aligner.description``), without loading a vision-language model.

    Raises:
        SystemicFault: it can't be read.
    """
    try:
        return read_about(folder) or _released(read_weights(folder))
    except ValueError as error:
        raise SystemicFault(f"aligner {str(folder)!r} can't be used: {first_line(error)}") from error


def _released(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What ``aligner.json`` would say of a released checkpoint."""
    geometry, soft_tokens = geometry_of(state)
    own = {name: getattr(geometry, name) for name in ("width", "blocks", "heads")}
    return {
        "version": VERSION,
        "settings": {**own, "soft_tokens": soft_tokens},
        "geometry": asdict(geometry),
        "layout": {"registers": geometry.registers, "grid": RELEASED_GRID, "width": geometry.channels},
        "vlm": None,
        "about": {"step": "unknown", "released": True},
    }


def _check_vlm(folder: Path, conditioner: Conditioner, trained_with: Mapping[str, Any] | None) -> None:
    """Hold a vision-language model against that of a checkpoint's training.

    Raises:
        SystemicFault: its weights are others.
    """
    if trained_with is not None and conditioner.description["weights"] != trained_with["weights"]:
        raise SystemicFault(
            f"aligner {str(folder)!r} was trained with {trained_with['label']} ({trained_with['vlm']!r}), and the "
            f"weights of {conditioner.settings.vlm!r} are others: name a folder or hub id that has them (vlm)"
        )
