"""What a model of loaded weights says of itself, known without loading it: remembered by the files it was loaded from,
so that a run with nothing to compute loads no model.
"""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HFValidationError

from gap3d.parts import write_atomically

WEIGHTS = ("config.json", "model.safetensors")  # of a hub's repository, the first that is in the cache tells its folder


def files_of(weights: str, revision: str | None = None) -> list[Path]:
    """The files of weights on this machine, if there are any: a file, a local folder's, or those in the hub's cache."""
    place = Path(weights)
    if place.is_file():
        return [place]
    if place.is_dir():
        return sorted(file for file in place.iterdir() if file.is_file())
    for file in WEIGHTS:
        try:
            found = huggingface_hub.try_to_load_from_cache(weights, file, revision=revision)
        except HFValidationError:  # no possible name of the hub: loading it will say what to do
            return []
        if isinstance(found, str):
            return sorted(Path(found).parent.iterdir())
    return []


def stamps_of(files: Sequence[Path]) -> list[list[Any]]:
    """Names, sizes and times of files: other weights have others."""
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def remembered(folder: str, about: Sequence[Any], version: int, load: Callable[[], Any]) -> dict[str, Any]:
    """A model's ``description``, from the user's cache where it is known there.

    Args:
        folder: of the cache.
        about: what the description depends on, as JSON can hold it: settings, and ``stamps_of`` the files.
        version: of what a description holds.
        load: loads the model.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gap3d" / folder
    versions = [version, *(importlib.metadata.version(name) for name in ("torch", "transformers"))]
    known = cache / f"{hashlib.sha256(json.dumps([*about, versions]).encode()).hexdigest()}.json"
    if known.exists():
        return json.loads(known.read_text())
    found = described(load)
    write_atomically(known, json.dumps(found).encode())
    return found


def described(load: Callable[[], Any]) -> dict[str, Any]:
    """A model's ``description``; the model is not kept."""
    # In a thread that ends, and with it its team of OpenMP's: see pipelines.featurizer.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(load).result().description
