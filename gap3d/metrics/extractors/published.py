"""Published weights of an extractor: where they are fetched, where they lie, and what to say when they can't be had."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import numpy as np
import torch
from torch import Tensor, nn

from gap3d.features.weights import first_line, randomise
from gap3d.records import SystemicFault

RANDOM_SMALL = "random-small"
"""In place of weights: a small network with UNTRAINED random ones."""
HUB_FILE = "model.safetensors"
SUFFIXES = (".pth", ".pt", ".safetensors")


@dataclass(frozen=True)
class Published:
    """The weights that the paper's evaluation takes.

    Attributes:
        title: of the network, for people.
        name: that names them in the settings.
        url: of their file.
        digest: the beginning of the file's SHA-256, where its authors tell it.
        setting: that names another file.
    """

    title: str
    name: str
    url: str
    setting: str
    digest: str | None = None

    @property
    def kept(self) -> Path:
        """Where the file lies once it was fetched, or was put by hand: torch's own folder of checkpoints."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.url.rsplit("/", 1)[-1]

    def file(self, weights: str) -> Path:
        """The file that a setting means.

        Args:
            weights: ``name``, a file, or a repository of the hub with a ``model.safetensors``.

        Raises:
            SystemicFault: it is not there and can't be fetched; says which it is and where it goes.
        """
        try:
            if weights == self.name:
                if not self.kept.exists():
                    self.kept.parent.mkdir(parents=True, exist_ok=True)
                    torch.hub.download_url_to_file(self.url, str(self.kept), self.digest)
                return self.kept
            if Path(weights).is_file():
                return Path(weights)
            if weights.endswith(SUFFIXES):
                raise FileNotFoundError(f"there is no file {weights}.")
            return Path(huggingface_hub.hf_hub_download(weights, HUB_FILE))
        except (OSError, ValueError, RuntimeError) as error:
            raise self.fault(weights, error) from error

    def fault(self, weights: str, error: Exception) -> SystemicFault:
        """What to do about weights that can't be had."""
        return SystemicFault(
            f"the weights of {self.title} ({weights!r}) cannot be had: {first_line(error)} Fetch {self.url} on a "
            f"machine with a network and put it at {self.kept}, or name the file where it lies: --{self.setting} FILE. "
            f"To try the evaluation without weights, set {self.setting} to {RANDOM_SMALL}."
        )


def load_into(module: nn.Module, state: Mapping[str, Tensor], path: Path, unused: tuple[str, ...] = ()) -> None:
    """Load weights by name, in float32; none may be missing or left over.

    Args:
        module: takes them.
        state: tensors by name.
        path: where they come from.
        unused: beginnings of names that the module does without.

    Raises:
        SystemicFault: they are not of this module.
    """
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(unused)} if unused else state
    try:
        module.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in kept.items()})
    except RuntimeError as error:
        words = " ".join(str(error).split())[:300]
        raise SystemicFault(f"weights {str(path)!r} are of another network: {words}") from error


def randomise_layers(network: nn.Module, seed: int) -> None:
    """Random weights that follow the seed alone; through rectifiers, activations keep their size."""
    randomise(network, seed, lambda _, tensor: (2 / tensor[0].numel()) ** 0.5)
    # What randomise leaves as it was made is not all zeros and ones: torch has drawn layers' biases, and CLIP's CLS.
    rng = np.random.Generator(np.random.PCG64([seed, 1]))
    with torch.no_grad():
        for name, parameter in sorted(network.named_parameters()):
            if parameter.ndim == 1 and name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim == 1 and not name.endswith("weight"):
                parameter.copy_(torch.from_numpy(rng.standard_normal(len(parameter)) * len(parameter) ** -0.5))
