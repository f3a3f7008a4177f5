"""One model in several processes: every process has all weights (ddp), or its share of them (fsdp).

Both are torch's ``fully_shard``: float32 weights and gradients, products in the settings' precision, gradients summed
in float32 while the backward pass goes on. ddp is its case of shards that are whole: weights are gathered from nobody,
and stay between the passes. The soft tokens, a thousandth of the weights, are whole in every process, and their
gradient is summed after the backward pass.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from gap3d.aligner.dit import DiT

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Attributes:
        rank: of this one.
        ranks: their number; 1 needs no ``torch.distributed``.
        device: where this one computes.
    """

    rank: int = 0
    ranks: int = 1
    device: torch.device = CPU

    def mean(self, numbers: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        if self.ranks > 1:
            distributed.all_reduce(numbers)
            numbers /= self.ranks
        return numbers

    def gathered(self, value: Any) -> list[Any]:
        """What every process has, in the order of their ranks."""
        if self.ranks == 1:
            return [value]
        found: list[Any] = [None] * self.ranks
        distributed.all_gather_object(found, value)
        return found


def share(dit: DiT, processes: Processes, strategy: str, dtype: torch.dtype) -> None:
    """Make the transformer one of several processes' together.

    Args:
        dit: float32, the same in all of them.
        processes: all of them.
        strategy: ddp or fsdp.
        dtype: of the products.
    """
    # Without the first axis, shards are spread over all; with it, a shard is whole, and copied to all.
    shape: tuple[int, ...] = (processes.ranks,) if strategy == "fsdp" else (processes.ranks, 1)
    names = ("copies", "shards")[-len(shape) :]
    mesh = init_device_mesh(processes.device.type, shape, mesh_dim_names=names)
    # Inputs are left alone: timesteps are whole numbers, and the transformer converts the others.
    precision = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    sharded = partial(fully_shard, mesh=mesh, mp_policy=precision, reshard_after_forward=strategy == "fsdp")
    for block in dit.blocks:
        if dit.checkpointing:
            # Within what is gathered: from outside, the weights would be gathered once more to compute anew.
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
        sharded(block)
    dit.checkpointing = False
    sharded(dit)
    # A linear layer's three axes are a view of its two, and nothing changes the velocity in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)


def summing(dit: nn.Module, *, last: bool) -> None:
    """Say whether the backward pass that comes is the last one of its step: only then do processes speak."""
    if isinstance(dit, FSDPModule):
        dit.set_requires_gradient_sync(last)


def sum_the_rest(weights: Sequence[nn.Parameter] | Mapping[str, nn.Parameter], processes: Processes) -> None:
    """Give weights that are whole in every process the mean of their gradients."""
    for weight in weights.values() if isinstance(weights, Mapping) else weights:
        if weight.grad is not None and type(weight.grad) is Tensor:
            processes.mean(weight.grad)
