"""The linear layers of a network alone: each with its own weights, on random inputs of the shapes that it gets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gap3d.features.linear import PackedLinear


@dataclass(frozen=True)
class Layer:
    """A linear layer with an input as it gets them, and a gradient of its output where gradients are on."""

    module: nn.Module
    given: Tensor
    gradient: Tensor | None


def linears(network: nn.Module, run: Callable[[], object]) -> list[Layer]:
    """Every linear layer in the order of its call.

    Args:
        network: whose layers.
        run: one forward pass of it.
    """
    found: list[Layer] = []
    tensors: dict[Any, Tensor] = {}  # layers of one shape share them, as they share the processor's cache

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        (came,) = inputs
        given = tensors.setdefault(
            (came.shape, came.requires_grad), torch.randn_like(came).requires_grad_(came.requires_grad)
        )
        gradient = None
        if torch.is_grad_enabled():
            gradient = tensors.setdefault((output.shape, "out"), torch.randn_like(output))
        found.append(Layer(module, given, gradient))

    kinds = (nn.Linear, PackedLinear)
    hooks = [module.register_forward_hook(note) for module in network.modules() if isinstance(module, kinds)]
    run()
    for hook in hooks:
        hook.remove()
    return found


def forward(layers: Sequence[Layer]) -> None:
    """Every layer once."""
    for layer in layers:
        layer.module(layer.given)


def backward(layers: Sequence[Layer]) -> None:
    """Every layer once, forward and backward."""
    for layer in layers:
        wanted = [*layer.module.parameters(), *([layer.given] if layer.given.requires_grad else [])]
        torch.autograd.grad(layer.module(layer.given), wanted, layer.gradient)
