"""A family of encoders: how its authors name the weights, what a file of them says of the geometry, and where the
tokens stand before the final norm (docs/method.md 3)."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from gap3d.features.images import IMAGENET, Normalisation

HEAD_CHANNELS = 64  # of every published DINOv2; a file of weights doesn't tell


class Family(ABC):
    """What ``Encoder`` and the loader must know of a vision transformer.

    Attributes:
        title: for people.
        model_type: its name in a ``config.json`` of transformers.
        normalisation: of the pixels, where no ``preprocessor_config.json`` lies beside the weights.
        names: the authors' names of weights outside the blocks, and transformers' names of them.
        block_names: the same inside a block; several names are the equal parts of one tensor, stacked on axis 0.
        blocks: transformers' name of the list of blocks.
    """

    title: str
    model_type: str
    normalisation: Normalisation = IMAGENET
    names: Mapping[str, str]
    block_names: Mapping[str, tuple[str, ...]]
    blocks: str

    @property
    @abstractmethod
    def model_class(self) -> Any:
        """The class of transformers; importing it takes seconds."""

    @abstractmethod
    def small_config(self, image_size: int) -> Any:
        """A configuration for trying things: not that of any trained encoder."""

    @abstractmethod
    def owns(self, names: Collection[str]) -> bool:
        """Whether weights of these names are this family's, as its authors publish them."""

    @abstractmethod
    def config_of(self, state: Mapping[str, Tensor]) -> Any:
        """The configuration that the shapes of the authors' weights tell.

        Raises:
            KeyError: a weight is missing.
            ValueError: the shapes are of no such model.
        """

    @abstractmethod
    def prenorm(self, model: Any, pixels: Tensor) -> Tensor:
        """Tokens [B, T, C] of the last block, before the final norm, of pixels [B, 3, S, S] in the model's precision.

        The model's own forward would run the final norm too; its hidden_states[-1] would keep all the others.
        """

    def final_norm(self, model: Any, tokens: Tensor) -> Tensor:
        """The model's own norm of tokens [..., C] of the last block."""
        return model.get_submodule(self.names["norm.weight"].removesuffix(".weight"))(tokens)

    def renamed(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The authors' weights under the names of transformers.

        Raises:
            KeyError: a name is none of this family.
        """
        found: dict[str, Tensor] = {}
        for name, tensor in state.items():
            if name in self.names:
                found[self.names[name]] = tensor
                continue
            blocks, index, part = [*name.split(".", 2), "", ""][:3]
            if blocks != "blocks" or part not in self.block_names:
                raise KeyError(f"{name} is not a weight of a {self.title}")
            targets = self.block_names[part]
            for target, piece in zip(targets, tensor.chunk(len(targets)), strict=True):
                found[f"{self.blocks}.{index}.{target}"] = piece.clone()
        return found


def weights_and_biases(names: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """The weight and the bias of every layer."""
    return {
        f"{hub}.{kind}": tuple(f"{name}.{kind}" for name in found)
        for kind in ("weight", "bias")
        for hub, found in names.items()
    }


SAME_IN_ALL = {
    "ls1.gamma": ("layer_scale1.lambda1",),
    "ls2.gamma": ("layer_scale2.lambda1",),
    **weights_and_biases(
        {
            "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
            "attn.proj": ("attention.o_proj",),
            "norm1": ("norm1",),
            "norm2": ("norm2",),
        }
    ),
}
"""Names in a block that DINOv2 and DINOv3 share."""


def geometry(state: Mapping[str, Tensor]) -> dict[str, int]:
    """What the shapes of any family tell: width, depth and patch side, under transformers' names.

    Raises:
        KeyError: a weight is missing.
        ValueError: patches are not square.
    """
    rows, columns = state["patch_embed.proj.weight"].shape[-2:]
    if rows != columns:
        raise ValueError(f"patches of {rows} x {columns} are not square")
    indices = [int(name.split(".")[1]) for name in state if name.startswith("blocks.")]
    return {
        "hidden_size": state["cls_token"].shape[-1],
        "num_hidden_layers": max(indices, default=-1) + 1,
        "patch_size": rows,
    }
