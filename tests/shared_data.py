"""What does not come with the project and lies in ``shared`` beside its folder where there is any: real objects and
repositories, and what reference implementations made. A test of them is skipped where they are not there."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

SHARED = Path(__file__).resolve().parents[2] / "shared"
DATA = SHARED / "data"
"""Real objects, malformed and hostile ones, and repositories, with tables of what each is."""

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no real objects: ../shared/data is not part of the project")


def golden(name: str) -> tuple[dict[str, object], dict[str, torch.Tensor]]:
    """What a reference implementation made: (its configuration, its inputs, weights and outputs)."""
    path = SHARED / "golden" / name
    if not path.is_file():
        pytest.skip(f"no golden file: ../shared/golden/{name} is not part of the project")
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["config"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping


def weights_of(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights among a golden file's tensors, by their names in the reference implementation."""
    return {name.removeprefix("weights."): tensor for name, tensor in tensors.items() if name.startswith("weights.")}
