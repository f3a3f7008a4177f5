"""Weights of an encoder: from the hub, a folder of transformers or a file of the authors', and what they are."""

import hashlib
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from gap3d.features.families import family_of, family_of_names
from gap3d.features.family import Family
from gap3d.features.images import Normalisation
from gap3d.records import SystemicFault
from gap3d.settings import RANDOM_ENCODERS, TargetSettings

PREPROCESSING = "preprocessor_config.json"
ATTENTION = "sdpa"


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, number formats and bytes of the weights, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_state(path: Path, what: str = "encoder", entry: str = "") -> dict[str, Tensor]:
    """The tensors of a .safetensors or .pth file by name; a pickle may hold tensors and plain values, and no code.

    Args:
        path: of the file.
        what: it is, for the words of a fault.
        entry: of a checkpoint of a training: the one that holds the weights. A file without it is all weights.

    Raises:
        SystemicFault: it is damaged, or holds something else.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if start[8:] == b"{":  # the length of a JSON header, and the header
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SystemicFault(
            f"{what} {str(path)!r} is a pickle of more than tensors, which could run code, or damaged: not opened"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise SystemicFault(f"{what} {str(path)!r} can't be read: {first_line(error)}") from error
    if isinstance(state, dict):
        state = state.get(entry, state)
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise SystemicFault(f"{what} {str(path)!r} is not a plain table of tensors by name, as the authors publish it")
    return state


def model_of_file(path: Path) -> Any:
    """A float32 model with the authors' own weights; what the names and shapes tell is its geometry.

    Raises:
        SystemicFault: see ``read_state``, or the weights are of no family, too few or too many.
    """
    state = read_state(path)
    try:
        family = family_of_names(state)
        model = empty_model(family, family.config_of(state))
        model.load_state_dict(family.renamed(state))
    except (KeyError, ValueError, RuntimeError) as error:
        words = " ".join(str(error.args[0] if error.args else error).split())
        hint = "" if "embeddings.cls_token" not in state else ": name the folder that it lies in, with its config.json"
        raise SystemicFault(f"encoder {str(path)!r} {words}{hint}") from error
    return model


def empty_model(family: Family, config: Any) -> Any:
    """A float32 model; its weights are anything."""
    with torch.random.fork_rng(devices=[]):
        return family.model_class._from_config(config, attn_implementation=ATTENTION, dtype=torch.float32)


def random_model(family: Family, config: Any, seed: int) -> Any:
    """A float32 model whose random weights follow the seed alone."""
    model = empty_model(family, config)
    # Scaled so that image, position and attention all show in the tokens.
    randomise(model, seed, lambda name, tensor: 0.5 if name.startswith("embeddings.") and tensor.ndim < 4 else 0)
    return model


def randomise(model: Any, seed: int, scale: Callable[[str, Tensor], float]) -> None:
    """Random weights that follow the seed alone; biases and norms keep their zeros and ones.

    Args:
        model: of transformers.
        seed: of all of them.
        scale: of a weight, by its name and shape; where it is 0, one over the root of the numbers it sums.
    """
    # numpy's normal numbers are the same on every processor; torch's depend on the vector unit.
    rng = np.random.Generator(np.random.PCG64(seed))
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.ndim > 1:
            factor = scale(name, tensor) or tensor[0].numel() ** -0.5
            tensor.copy_(torch.from_numpy(factor * rng.standard_normal(tensor.shape)))


def pinned(settings: TargetSettings) -> TargetSettings:
    """The same settings with the commit that a hub id's revision is now: all files are then of that commit.

    Raises:
        SystemicFault: the encoder's configuration cannot be had.
    """
    try:
        return settings.model_copy(update={"revision": pinned_revision(settings.encoder, settings.revision)})
    except (OSError, ValueError) as error:
        raise unobtainable(settings, error) from error


def pinned_revision(name: str, revision: str | None) -> str | None:
    """The commit that a revision of a hub id is now; a folder's is what it was.

    Raises:
        OSError, ValueError: its configuration cannot be had.
    """
    from transformers.utils import cached_file

    path = Path(str(cached_file(name, "config.json", revision=revision or "main")))
    return revision if Path(name).is_dir() or path.parent.parent.name != "snapshots" else path.parent.name


def pretrained_config(settings: TargetSettings) -> Any:
    """The configuration of an encoder of the hub or in a folder.

    Raises:
        SystemicFault: it cannot be had, or is of no family.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(settings.encoder, revision=settings.revision or "main")
    except (OSError, ValueError) as error:
        raise unobtainable(settings, error) from error
    try:
        family_of(config.model_type)
    except ValueError as error:
        raise SystemicFault(f"encoder {settings.encoder!r} {error}") from error
    return config


def pretrained_model(family: Family, settings: TargetSettings) -> Any:
    """A float32 model of the hub or in a folder.

    Raises:
        SystemicFault: it cannot be had, or weights are missing.
    """
    try:
        model, report = family.model_class.from_pretrained(
            settings.encoder,
            revision=settings.revision or "main",
            dtype=torch.float32,
            attn_implementation=ATTENTION,
            use_safetensors=True,  # never a pickle
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise unobtainable(settings, error) from error
    # transformers would fill what is missing with random numbers and go on.
    if report["missing_keys"] or report["mismatched_keys"]:
        lost = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise SystemicFault(f"encoder {settings.encoder!r} lacks {len(lost)} weights, e.g. {', '.join(lost[:3])}")
    return model


def pretrained_normalisation(family: Family, settings: TargetSettings) -> Normalisation:
    """Mean and deviation in the ``preprocessor_config.json`` beside the weights, or else the family's.

    Raises:
        SystemicFault: the file can't be had or is not as it should be.
    """
    from transformers.utils import cached_file

    try:
        path = cached_file(
            settings.encoder,
            PREPROCESSING,
            revision=settings.revision or "main",
            _raise_exceptions_for_missing_entries=False,
        )
        if path is None:
            return family.normalisation
        found = json.loads(Path(path).read_text())
        mean, std = (tuple(map(float, found[name])) for name in ("image_mean", "image_std"))
        if len(mean) != 3 or len(std) != 3 or not all(std):
            raise ValueError(f"image_mean {found['image_mean']} and image_std {found['image_std']} are not of colours")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise unobtainable(settings, OSError(f"{PREPROCESSING}: {first_line(error)}")) from error
    return Normalisation(mean, std)


def unobtainable(settings: TargetSettings, error: Exception) -> SystemicFault:
    """The fault that says what to do."""
    return SystemicFault(
        f"encoder {settings.encoder!r} cannot be had: {first_line(error)} "
        "It needs a network to the Hugging Face hub, or a local folder with config.json and model.safetensors, or a "
        "file of the authors' weights: set targets.encoder to that folder or file (--targets.encoder DIR). To try the "
        f"pipeline without weights, set it to {RANDOM_ENCODERS[0]}."
    )


def first_line(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
