"""Which extractors the settings name: loading them, and knowing them without loading them (docs/method.md 8.3, 8.4)."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from gap3d.descriptions import described, files_of, remembered, stamps_of
from gap3d.evaluation_settings import EvaluationSettings
from gap3d.metrics.extractors import inception, pointnet
from gap3d.metrics.extractors.clip import ClipFeatures
from gap3d.metrics.extractors.dinov2 import Dinov2Features
from gap3d.metrics.extractors.extractor import Frozen, PictureFeatures
from gap3d.metrics.extractors.inception import InceptionFeatures
from gap3d.metrics.extractors.pointnet import PointFeatures
from gap3d.metrics.extractors.published import RANDOM_SMALL
from gap3d.records import SystemicFault

PictureName = Literal["inception", "dinov2", "clip", "clip_large"]
Name = Literal["inception", "dinov2", "clip", "clip_large", "pointnet"]
VIEWS: Mapping[PictureName, int] = {"inception": 4, "dinov2": 4, "clip": 8, "clip_large": 8}
"""How many views of an object an extractor of pictures sees: those of the protocol that its score is measured on."""
CLOUD_VIEWS = 20
PUBLISHED = {"inception": inception.PUBLISHED, "pointnet": pointnet.PUBLISHED}
DESCRIPTION = 2  # the version of what a description holds: an older one is not taken from the cache


def load_pictures(name: PictureName, settings: EvaluationSettings, device: str | None = None) -> PictureFeatures:
    """The extractor of pictures that the settings name.

    Raises:
        SystemicFault: its weights can't be had; the message says what to do.
    """
    if name == "inception":
        mode: inception.Mode = "paper" if "inception_input" in settings.quirks else "clean"
        return InceptionFeatures(settings.inception, mode, seed=settings.seed, device=device)
    if name == "dinov2":
        size = settings.dinov2_size
        return Dinov2Features(settings.dinov2, image_size=size, seed=settings.seed, device=device)
    weights = settings.clip if name == "clip" else settings.clip_large
    try:
        return ClipFeatures(weights, seed=settings.seed, device=device)
    except SystemicFault as fault:  # which names the setting of one of the two
        raise SystemicFault(str(fault).replace("evaluation.clip", f"evaluation.{name}")) from fault


def load_points(settings: EvaluationSettings, device: str | None = None) -> PointFeatures:
    """The extractor of clouds that the settings name.

    Raises:
        SystemicFault: its weights can't be had; the message says what to do.
    """
    return PointFeatures(settings.pointnet, paper="batch_order" in settings.quirks, seed=settings.seed, device=device)


def load(name: Name, settings: EvaluationSettings, device: str | None = None) -> Frozen:
    """Any of them."""
    return load_points(settings, device) if name == "pointnet" else load_pictures(name, settings, device)


def identity(name: Name, settings: EvaluationSettings) -> dict[str, Any]:
    """An extractor's ``description`` without keeping it loaded.

    Weights are read once: what was found is remembered by the names, sizes and times of their files, so that a run
    with nothing to compute loads no extractor.

    Raises:
        SystemicFault: see ``load``.
    """
    stamps = stamps_of(weights_files(name, settings))
    shown = [getattr(settings, name), settings.dinov2_size, settings.seed, list(settings.quirks)]
    return dict(_identity(name, settings, json.dumps([name, shown, stamps]), bool(stamps)))


@functools.lru_cache(maxsize=16)
def _identity(name: Name, settings: EvaluationSettings, about: str, cached: bool) -> dict[str, Any]:
    one = functools.partial(load, name, settings, "cpu")
    return remembered("extractors", json.loads(about), DESCRIPTION, one) if cached else described(one)


def weights_files(name: Name, settings: EvaluationSettings) -> list[Path]:
    """An extractor's files on this machine, if there are any."""
    weights = getattr(settings, name)
    if weights == RANDOM_SMALL:
        return []
    if name in PUBLISHED and weights == PUBLISHED[name].name:
        return [PUBLISHED[name].kept] if PUBLISHED[name].kept.is_file() else []
    return files_of(weights)
