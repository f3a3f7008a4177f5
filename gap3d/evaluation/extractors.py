"""Which extractors the settings name: loading them, and knowing them without loading them (docs/method.md 8.3, 8.4)."""

import functools
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
from huggingface_hub.errors import HFValidationError

from gap3d.evaluation_settings import EvaluationSettings
from gap3d.metrics.extractors import inception, pointnet
from gap3d.metrics.extractors.clip import ClipFeatures
from gap3d.metrics.extractors.dinov2 import Dinov2Features
from gap3d.metrics.extractors.extractor import Frozen, PictureFeatures
from gap3d.metrics.extractors.inception import InceptionFeatures
from gap3d.metrics.extractors.pointnet import PointFeatures
from gap3d.metrics.extractors.published import RANDOM_SMALL
from gap3d.parts import write_atomically
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
    stamps = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in weights_files(name, settings)]
    shown = [getattr(settings, name), settings.dinov2_size, settings.seed, list(settings.quirks)]
    versions = [DESCRIPTION, *(importlib.metadata.version(each) for each in ("torch", "transformers"))]
    return dict(_identity(name, settings, json.dumps([name, shown, stamps, versions]), bool(stamps)))


@functools.lru_cache(maxsize=16)
def _identity(name: Name, settings: EvaluationSettings, content: str, cached: bool) -> dict[str, Any]:
    if not cached:
        return _described(name, settings)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gap3d" / "extractors"
    known = cache / f"{hashlib.sha256(content.encode()).hexdigest()}.json"
    if known.exists():
        return json.loads(known.read_text())
    found = _described(name, settings)
    write_atomically(known, json.dumps(found).encode())
    return found


def _described(name: Name, settings: EvaluationSettings) -> dict[str, Any]:
    # In a thread that ends, and with it its team of OpenMP's: see pipelines.featurizer.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(load, name, settings, "cpu").result().description


def weights_files(name: Name, settings: EvaluationSettings) -> list[Path]:
    """An extractor's files on this machine, if there are any: a file, a local folder's, or those in the hub's cache."""
    weights = getattr(settings, name)
    place = Path(weights)
    if weights == RANDOM_SMALL:
        return []
    if name in PUBLISHED and weights == PUBLISHED[name].name:
        place = PUBLISHED[name].kept
        return [place] if place.is_file() else []
    if place.is_file():
        return [place]
    if place.is_dir():
        return sorted(file for file in place.iterdir() if file.is_file())
    for file in ("config.json", "model.safetensors"):
        try:
            found = huggingface_hub.try_to_load_from_cache(weights, file)
        except HFValidationError:  # no possible name of the hub: loading it will say what to do
            return []
        if isinstance(found, str):
            return sorted(Path(found).parent.iterdir())
    return []
