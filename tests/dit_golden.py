"""What the reference implementation of the diffusion transformer made, and the transformer with its weights."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from gap3d.aligner.dit import DiT, Geometry
from gap3d.aligner.naming import DIT, RELEASED_DIT, from_released
from gap3d.features.tokens import TokenLayout

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "golden"


def read(name):
    """Tensors and metadata of a golden file; skips the test where it is not there."""
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"the golden file of the reference implementation is not there: {path}")
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["config"])


def reference():
    """The transformer with the reference's weights, the layout of its tokens, and all tensors."""
    tensors, config = read("dit_small.safetensors")
    dit = DiT(
        Geometry(
            channels=config["in_channels"],
            registers=config["registers"],
            condition_width=config["cond_dim"],
            width=config["dim"],
            blocks=config["layers"],
            heads=config["heads"],
        )
    )
    weights = {name.removeprefix("weights."): tensor for name, tensor in tensors.items() if name.startswith("weights.")}
    named = from_released({RELEASED_DIT + name: tensor for name, tensor in weights.items()})
    dit.load_state_dict({name.removeprefix(DIT): tensor for name, tensor in named.items()})
    layout = TokenLayout(config["registers"], (config["grid"], config["grid"]), config["in_channels"])
    return dit, layout, tensors


def tokens(tensors, kind, layout):
    """One of the file's token sets as [B, T, C]."""
    cls, registers, patches = (tensors[f"{kind}.{part}"] for part in ("cls", "reg", "patch"))
    return layout.join(cls, registers, patches.flatten(2).transpose(1, 2))
