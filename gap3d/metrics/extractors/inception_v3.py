"""Inception-v3 under torchvision's names, up to its 2048 pooled channels (docs/method.md 8.3; arXiv 1512.00567).

Torchvision itself is no dependency: its wheels belong to one build of torch each, and import under no other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d

Kernel = int | tuple[int, int]
Step = tuple[str, int, Kernel]  # a convolution: name, channels out, kernel
UNUSED = ("AuxLogits.", "fc.")  # of the classifier


class BasicConv2d(nn.Module):
    """Convolution, norm, rectifier."""

    def __init__(self, channels_in: int, channels: int, kernel: Kernel, stride: int = 1, padded: bool = True) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(channels_in, channels, sides, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, D, h, w]."""
        return torch.relu(self.bn(self.conv(x)))


@dataclass(frozen=True)
class Path:
    """One way through a block.

    Attributes:
        steps: one after another.
        fork: side by side after the steps.
        pooled: whether it starts with the block's pooling.
    """

    steps: tuple[Step, ...] = ()
    fork: tuple[Step, ...] = ()
    pooled: bool = False


class Mixed(nn.Module):
    """Paths side by side, their results joined by channel.

    Args:
        channels_in: of the block.
        paths: in the order of the result.
        halving: whether the last step of every path, and the pooling, go two pixels at a time.
        slim: divisor of all channels.
    """

    def __init__(self, channels_in: int, paths: tuple[Path, ...], *, halving: bool = False, slim: int = 1) -> None:
        super().__init__()
        self.paths = paths
        self.pool: Callable[[Tensor], Tensor] = (
            partial(max_pool2d, kernel_size=3, stride=2)
            if halving
            else partial(avg_pool2d, kernel_size=3, stride=1, padding=1)
        )
        self.channels = 0
        for path in paths:
            channels = channels_in
            for step in path.steps:
                last = halving and step is path.steps[-1]
                self.add_module(step[0], BasicConv2d(channels, step[1] // slim, step[2], 1 + last, padded=not last))
                channels = step[1] // slim
            for name, out, kernel in path.fork:
                self.add_module(name, BasicConv2d(channels, out // slim, kernel))
            self.channels += sum(out // slim for _, out, _ in path.fork) or channels

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, D, h, w]."""
        found: list[Tensor] = []
        for path in self.paths:
            y = self.pool(x) if path.pooled else x
            for name, *_ in path.steps:
                y = self.get_submodule(name)(y)
            found += [self.get_submodule(name)(y) for name, *_ in path.fork] or [y]
        return torch.cat(found, 1)


def double3x3(first: int, second: int) -> tuple[Step, ...]:
    """Two convolutions of 3 x 3 in place of one of 5 x 5."""
    return (("branch3x3dbl_1", first, 1), ("branch3x3dbl_2", second, 3), ("branch3x3dbl_3", second, 3))


def mixed_a(pooled: int) -> tuple[Path, ...]:
    """At 35 x 35."""
    return (
        Path((("branch1x1", 64, 1),)),
        Path((("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5))),
        Path(double3x3(64, 96)),
        Path((("branch_pool", pooled, 1),), pooled=True),
    )


def mixed_c(inner: int) -> tuple[Path, ...]:
    """At 17 x 17: 7 x 7 as rows and columns."""
    return (
        Path((("branch1x1", 192, 1),)),
        Path((("branch7x7_1", inner, 1), ("branch7x7_2", inner, (1, 7)), ("branch7x7_3", 192, (7, 1)))),
        Path(
            (
                ("branch7x7dbl_1", inner, 1),
                ("branch7x7dbl_2", inner, (7, 1)),
                ("branch7x7dbl_3", inner, (1, 7)),
                ("branch7x7dbl_4", inner, (7, 1)),
                ("branch7x7dbl_5", 192, (1, 7)),
            )
        ),
        Path((("branch_pool", 192, 1),), pooled=True),
    )


MIXED_B = (Path((("branch3x3", 384, 3),)), Path(double3x3(64, 96)), Path(pooled=True))
"""From 35 x 35 to 17 x 17."""
MIXED_D = (
    Path((("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3))),
    Path(
        (
            ("branch7x7x3_1", 192, 1),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
            ("branch7x7x3_4", 192, 3),
        )
    ),
    Path(pooled=True),
)
"""From 17 x 17 to 8 x 8."""
MIXED_E = (
    Path((("branch1x1", 320, 1),)),
    Path((("branch3x3_1", 384, 1),), (("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1)))),
    Path(
        (("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3)),
        (("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))),
    ),
    Path((("branch_pool", 192, 1),), pooled=True),
)
"""At 8 x 8."""
BLOCKS: dict[str, tuple[tuple[Path, ...], bool]] = {
    "Mixed_5b": (mixed_a(32), False),
    "Mixed_5c": (mixed_a(64), False),
    "Mixed_5d": (mixed_a(64), False),
    "Mixed_6a": (MIXED_B, True),
    "Mixed_6b": (mixed_c(128), False),
    "Mixed_6c": (mixed_c(160), False),
    "Mixed_6d": (mixed_c(160), False),
    "Mixed_6e": (mixed_c(192), False),
    "Mixed_7a": (MIXED_D, True),
    "Mixed_7b": (MIXED_E, False),
    "Mixed_7c": (MIXED_E, False),
}


class InceptionV3(nn.Module):
    """The network without its classifier.

    Args:
        slim: divisor of all channels; 1 is the published one.

    Attributes:
        width: channels of a feature, 2048 where it is not slim.
    """

    def __init__(self, slim: int = 1) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = BasicConv2d(3, 32 // slim, 3, stride=2, padded=False)
        self.Conv2d_2a_3x3 = BasicConv2d(32 // slim, 32 // slim, 3, padded=False)
        self.Conv2d_2b_3x3 = BasicConv2d(32 // slim, 64 // slim, 3)
        self.Conv2d_3b_1x1 = BasicConv2d(64 // slim, 80 // slim, 1)
        self.Conv2d_4a_3x3 = BasicConv2d(80 // slim, 192 // slim, 3, padded=False)
        channels = 192 // slim
        for name, (paths, halving) in BLOCKS.items():
            block = Mixed(channels, paths, halving=halving, slim=slim)
            self.add_module(name, block)
            channels = block.channels
        self.width = channels

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, 299, 299] to features [B, F], F being ``width``."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(pixels)))  # [B, 64, 147, 147]
        x = max_pool2d(x, kernel_size=3, stride=2)  # [B, 64, 73, 73]
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))  # [B, 192, 71, 71]
        x = max_pool2d(x, kernel_size=3, stride=2)  # [B, 192, 35, 35]
        for name in BLOCKS:
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))  # [B, 2048], of [B, 2048, 8, 8]
