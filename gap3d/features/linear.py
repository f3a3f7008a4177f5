"""Linear layers whose weights lie as the processor's matrix product reads them.

Without it oneDNN brings the weights of a bfloat16 layer into that order again for every image. The numbers are the
same, bit for bit.
"""

from typing import Any

import torch
from torch import Tensor


class PackedLinear(torch.nn.Module):
    """A ``torch.nn.Linear`` for inference in bfloat16 on a CPU; saved as the layer that it replaces.

    Args:
        linear: the layer.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.bias = linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return torch.ops.mkldnn._linear_pointwise(inputs, self._packed, self.bias, "none", [], "")

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self._packed.to_dense()


def pack(model: torch.nn.Module) -> None:
    """Replace the linear layers of a bfloat16 model on a CPU by packed ones.

    Args:
        model: on its device, in its precision, for inference; its weights can still be saved, not loaded.
    """
    for name, child in list(model.named_children()):
        if type(child) is torch.nn.Linear:
            setattr(model, name, PackedLinear(child))
        else:
            pack(child)
