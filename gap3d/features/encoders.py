"""Which encoder the settings name: loading it, and knowing it without loading it."""

import functools
import json
import logging
from pathlib import Path
from typing import Any

import torch

from gap3d.descriptions import described, files_of, remembered, stamps_of
from gap3d.features.encoder import UNTRAINED, UNTRAINED_MARK, Encoder, layout_from
from gap3d.features.families import DINOV2_WITH_REGISTERS, DINOV3, family_of
from gap3d.features.tokens import TokenLayout
from gap3d.features.weights import (
    model_of_file,
    pinned,
    pretrained_config,
    pretrained_model,
    pretrained_normalisation,
    random_model,
)
from gap3d.settings import RANDOM_ENCODERS, TargetSettings

log = logging.getLogger(__name__)

RANDOM_SMALL, RANDOM_SMALL_DINOV3 = RANDOM_ENCODERS
RANDOM_FAMILIES = {RANDOM_SMALL: DINOV2_WITH_REGISTERS, RANDOM_SMALL_DINOV3: DINOV3}
DESCRIPTION = 2  # the version of what an encoder's description holds: an older one is not taken from the cache


def load_encoder(settings: TargetSettings, *, threads: int | None = None, device: str | None = None) -> Encoder:
    """Load the encoder that the settings name.

    Args:
        settings: a hub id with a revision, a local folder, a file of the authors' weights, or ``random-small``.
        threads: CPU threads of torch in this process.
        device: see ``Encoder``.

    Returns:
        The encoder; ``trained`` is False, and a warning is logged, if its weights are random.

    Raises:
        SystemicFault: the weights cannot be had, are incomplete, or are of none of ``families.FAMILIES``.
        ValueError: the image size is no multiple of the patch size.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    trained, normalisation = True, None
    if settings.encoder in RANDOM_FAMILIES:
        trained = False
        family = RANDOM_FAMILIES[settings.encoder]
        model = random_model(family, family.small_config(settings.image_size), settings.seed)
        revision: str | None = f"seed {settings.seed}"
    elif Path(settings.encoder).is_file():
        model = model_of_file(Path(settings.encoder))
        revision = settings.revision
    else:
        at = pinned(settings)
        config = pretrained_config(at)
        trained = not getattr(config, UNTRAINED_MARK, False)
        family = family_of(config.model_type)
        normalisation = pretrained_normalisation(family, at)
        model = pretrained_model(family, at)
        revision = at.revision
    encoder = Encoder(model, settings, trained=trained, revision=revision, device=device, normalisation=normalisation)
    if not trained:
        warn_untrained(settings.encoder)
    return encoder


@functools.cache
def warn_untrained(encoder: str) -> None:
    """Say it loudly, and once in a process: a run both knows its encoder and loads it."""
    log.warning("%s: encoder %r makes tokens that mean nothing; use it to try the pipeline", UNTRAINED, encoder)


def identity(settings: TargetSettings) -> dict[str, Any]:
    """The encoder's ``description`` without keeping it loaded; ``fingerprint`` goes into those of the rows.

    Weights are read once: what was found is remembered by the names, sizes and times of their files, so
    that a run with nothing to compute loads no encoder.

    Raises:
        SystemicFault: see ``load_encoder``.
    """
    return dict(_identity(settings, json.dumps(stamps_of(_weights_files(settings)))))


@functools.lru_cache(maxsize=4)
def _identity(settings: TargetSettings, stamps: str) -> dict[str, Any]:
    load = functools.partial(load_encoder, settings, device="cpu")
    if stamps == "[]" and settings.encoder not in RANDOM_FAMILIES:
        return described(load)
    return remembered("encoders", [settings.model_dump(), stamps], DESCRIPTION, load)


def _weights_files(settings: TargetSettings) -> list[Path]:
    return [] if settings.encoder in RANDOM_FAMILIES else files_of(settings.encoder, settings.revision)


def layout_of(settings: TargetSettings) -> TokenLayout:
    """The token layout, without keeping the encoder loaded.

    Raises:
        SystemicFault: see ``load_encoder``.
        ValueError: the image size is no multiple of the patch size.
    """
    found = identity(settings)
    return layout_from(found["patch_size"], settings.image_size, found["registers"], found["width"])
