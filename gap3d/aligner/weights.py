"""Weights of an aligner in files: one of this project, or a released one, whole or sharded (docs/method.md 5)."""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gap3d.aligner.dit import DiT, Geometry
from gap3d.aligner.naming import DIT, SOFT_TOKENS, from_released, is_trainable
from gap3d.features.weights import first_line
from gap3d.records import SystemicFault

MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The trainable weights of a checkpoint, by the names of ``Aligner``'s parameters; frozen ones are not read.

    Raises:
        SystemicFault: it is no checkpoint, or damaged.
    """
    state: dict[str, Tensor] = {}
    try:
        for path, names in sorted(_files(folder).items()):
            with safe_open(path, "pt") as file:
                state |= {name: file.get_tensor(name) for name in names or filter(is_trainable, file.keys())}
        return from_released(state)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise SystemicFault(
            f"aligner {str(folder)!r} can't be read: {first_line(error)}: name a folder with {MODEL}, or with {INDEX} "
            "and its shards"
        ) from error


def _files(folder: Path) -> Mapping[Path, list[str]]:
    """Files with trainable weights, and those weights' names; no names for all that there are."""
    index = folder / INDEX
    if not index.exists():
        return {folder / MODEL: []}
    files = defaultdict(list)
    for name, file in json.loads(index.read_text())["weight_map"].items():
        if Path(file).name != file:
            raise ValueError(f"{INDEX} names {file!r}, which is no file beside it")
        if is_trainable(name):
            files[folder / file].append(name)
    return files


def geometry_of(state: Mapping[str, Tensor]) -> tuple[Geometry, int]:
    """What the shapes tell: of the transformer, and the number of soft tokens.

    Raises:
        ValueError: a weight that tells it is missing.
    """
    try:
        width, channels = state[f"{DIT}cls_in.weight"].shape
        geometry = Geometry(
            channels=channels,
            registers=state[f"{DIT}registers_role"].shape[1] if f"{DIT}registers_role" in state else 0,
            condition_width=state[f"{DIT}condition_in.0.weight"].shape[1],
            width=width,
            blocks=1 + max(int(name.split(".")[2]) for name in state if name.startswith(f"{DIT}blocks.")),
            heads=len(state[f"{DIT}blocks.0.attention.gate"]),
        )
        return geometry, state[SOFT_TOKENS].shape[1]
    except (KeyError, ValueError) as error:
        raise ValueError(f"it lacks weights that every aligner has ({first_line(error)})") from error


def check_geometry(state: Mapping[str, Tensor], geometry: Geometry, soft_tokens: int) -> None:
    """Hold weights against the shapes that a geometry gives them.

    Raises:
        ValueError: they are others, too few or too many.
    """
    blocks = {name.split(".")[2] for name in state if name.startswith(f"{DIT}blocks.")}
    built = replace(geometry, blocks=min(geometry.blocks, len(blocks) + 1))  # not the billion that a damaged file says
    try:
        with torch.device("meta"):
            shapes = {DIT + name: tuple(tensor.shape) for name, tensor in DiT(built).state_dict().items()}
    except RuntimeError as error:  # a width that no memory has
        raise ValueError(f"no transformer can be of {geometry}") from error
    shapes[SOFT_TOKENS] = (1, soft_tokens, geometry.condition_width)
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if wrong := sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name)):
        name = wrong[0]
        here, there = (str(list(each[name])) if name in each else "not there" for each in (found, shapes))
        words = ", ".join(f"{key} {value}" for key, value in asdict(geometry).items())
        raise ValueError(
            f"{len(wrong)} of its weights are of another geometry, e.g. {name} is {here}, and with {words}, "
            f"soft tokens {soft_tokens} it is {there}"
        )
