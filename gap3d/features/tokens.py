"""The token layout of a target and its stored form (docs/method.md 3).

Tokens stand in the encoder's order: CLS, register tokens, patch tokens row by row.
"""

import ctypes
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

KINDS = ("cls", "registers", "patches")
"""The kinds of tokens, in the encoder's order: columns of a target part, fields of a ``TargetBatch``."""
PACKED = KINDS[1:]  # those that a part holds as bytes in ``StoreDtype``
StoreDtype = Literal["float16", "bfloat16", "int8"]
TORCH_DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "int8": torch.int8,
}
SERIAL = 32768  # numbers from which torch works in parallel
STEPS = 127  # of int8, on either side of zero
NORM_EPS = 1e-5  # of the target's layer norm, not of the encoder's


@dataclass(frozen=True)
class TokenLayout:
    """How many tokens of which kind a target has.

    Args:
        registers: number of register tokens.
        grid: rows and columns of patch tokens.
        width: channels per token.
    """

    registers: int
    grid: tuple[int, int]
    width: int

    @property
    def patches(self) -> int:
        """Number of patch tokens."""
        return self.grid[0] * self.grid[1]

    @property
    def count(self) -> int:
        """Number of tokens: CLS, registers and patches."""
        return 1 + self.registers + self.patches

    def split(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, T, C] as CLS [B, C], registers [B, R, C] and patches [B, N, C], all views.

        Raises:
            ValueError: the shape is not of this layout.
        """
        if tuple(tokens.shape[1:]) != (self.count, self.width):
            raise ValueError(f"tokens {tuple(tokens.shape)} are not [B, {self.count}, {self.width}]")
        return tokens[:, 0], tokens[:, 1 : 1 + self.registers], tokens[:, 1 + self.registers :]

    def join(self, cls: Tensor, registers: Tensor, patches: Tensor) -> Tensor:
        """The inverse of ``split``: tokens [B, T, C]."""
        tokens = torch.cat([cls[:, None], registers, patches], dim=1)
        self.split(tokens)
        return tokens

    def describe(self, dtype: StoreDtype) -> dict[str, Any]:
        """All that is needed to decode the columns, for the metadata of the parts."""
        described: dict[str, Any] = {
            "order": ["cls", "registers", "patches (row-major)"],
            "normalisation": f"layer norm over channels without affine, eps {NORM_EPS}, of the pre-norm tokens",
            "grid": list(self.grid),
            "cls": {"shape": [self.width], "dtype": "float32"},
        }
        for name, count in (("registers", self.registers), ("patches", self.patches)):
            described[name] = {"shape": [count, self.width], "dtype": dtype, "byte_order": "little"}
            if dtype == "int8":
                described[name]["decode"] = f"token = {name} * {name}_scale, one scale a token"
                described[f"{name}_scale"] = {"shape": [count], "dtype": "float32", "byte_order": "little"}
        return described


def targets_from_prenorm(tokens: Tensor) -> Tensor:
    """The training target: layer norm over channels, no affine, eps 1e-5, in float32.

    Args:
        tokens: [B, T, C] after the last block and before the encoder's own final norm, of any precision.

    Returns:
        float32 [B, T, C].
    """
    return torch.nn.functional.layer_norm(tokens.float(), tokens.shape[-1:], eps=NORM_EPS)


def columns_of(tokens: Tensor, layout: TokenLayout, dtype: StoreDtype) -> dict[str, Any]:
    """The tokens of one image as the columns of a target part.

    Args:
        tokens: [T, C], of any precision.
        layout: T and C.
        dtype: number format of registers and patches; with int8 each has a column of scales beside it.

    Returns:
        ``cls`` float32 [C]; ``registers``, ``patches`` (and ``..._scale``) as bytes.

    Raises:
        ValueError: another shape, or numbers that are not finite in that format.
    """
    cls, registers, patches = layout.split(tokens[None])
    columns: dict[str, Any] = {"cls": cls[0].to(torch.float32, copy=True).numpy()}  # a view would keep all tokens
    for name, part in (("registers", registers[0]), ("patches", patches[0])):
        if dtype == "int8":
            values, scales = quantise(part)
            columns |= {name: pack(values, "int8"), f"{name}_scale": pack(scales, "float32")}
        else:
            columns[name] = pack(part, dtype)
    return columns


def quantise(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 with one scale a token: the greatest magnitude of a token is 127.

    Args:
        tokens: [..., C].

    Returns:
        int8 [..., C] and float32 [...]; a number differs from what it was by at most half of its token's scale.

    Raises:
        ValueError: a number is not finite.
    """
    exact = tokens.float()
    values, scales = torch.empty(exact.shape, dtype=torch.int8), torch.empty(exact.shape[:-1])
    for value, scale, piece in serially(values, scales[..., None], exact):
        torch.div(piece.abs().amax(-1, keepdim=True), STEPS, out=scale)
        # A token of zeros has scale 0, and its quotients are not numbers.
        steps = np.rint(torch.nan_to_num(piece / scale).numpy())  # torch's round takes threads for 2048 numbers
        value.copy_(torch.from_numpy(steps).clamp(-STEPS, STEPS))
    if not torch.isfinite(scales).all():
        raise ValueError(f"numbers of shape {tuple(tokens.shape)} are not all finite")
    return values, scales


def dequantise(values: Tensor, scales: Tensor) -> Tensor:
    """The inverse of ``quantise`` up to its error: float16 [..., C]."""
    tokens = torch.empty(values.shape, dtype=torch.float16)
    for target, value, scale in serially(tokens, values, scales[..., None]):
        target.copy_(value * scale)
    return tokens


def serially(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of the same rows, some rows at a time: so few that they stay in the cache and torch takes one thread.

    With more it would take a team of threads, and wait for all cores whatever else they have to do: a loader has
    workers for more than one. And an encoder in this process would no longer be the only one that has a team.

    Args:
        tensors: [..., C], C being their own; contiguous where they are written to.
    """
    few = max(1, (SERIAL - 1) // max(1, *(tensor.shape[-1] for tensor in tensors)))
    return zip(*(tensor.reshape(-1, tensor.shape[-1]).split(few) for tensor in tensors), strict=True)


def pack(array: Tensor | NDArray[Any], dtype: StoreDtype | Literal["float32"]) -> bytes:
    """Numbers of any shape as the bytes of a fixed-size binary column, little-endian.

    Raises:
        ValueError: a number is not finite in that format.
    """
    exact = torch.as_tensor(array).detach().cpu().contiguous()
    packed, size = torch.empty(exact.shape, dtype=TORCH_DTYPES[dtype]), exact.numel()
    extremes: list[Tensor] = []
    for target, piece in serially(packed.reshape(size, 1), exact.reshape(size, 1)):
        target.copy_(piece)
        extremes += torch.aminmax(piece) if piece.numel() else ()
    # Rounding keeps the order, and what is no number is its own extreme: a tenth of the time of looking at all of them.
    if extremes and not torch.isfinite(torch.stack(extremes).to(packed.dtype)).all():
        raise ValueError(f"numbers of shape {tuple(packed.shape)} are not all finite in {dtype}")
    return packed.view(torch.uint8).numpy().tobytes()


def unpack(buffer: Any, shape: tuple[int, ...], dtype: str) -> Tensor:
    """The inverse of ``pack``, without a copy.

    Args:
        buffer: bytes, memoryview, Arrow buffer or array; kept alive by the result.
        shape: of the result; several rows of a column may be taken at once.
        dtype: what was packed, a name in ``TORCH_DTYPES``.

    Returns:
        A tensor over the buffer's memory. Read it, never write to it: the memory may be a mapped file.

    Raises:
        ValueError: the buffer has another length.
    """
    memory = np.frombuffer(buffer, dtype=np.uint8)
    kind = TORCH_DTYPES[dtype]
    if memory.size != math.prod(shape) * kind.itemsize:
        raise ValueError(f"{memory.size} bytes are not {dtype} of shape {shape}")
    if not memory.size:
        return torch.empty(shape, dtype=kind)
    # torch has no read-only tensors and warns of a read-only buffer; the ctypes array says nothing.
    window = (ctypes.c_ubyte * memory.size).from_address(memory.ctypes.data)
    window.owner = memory  # type: ignore[attr-defined]  # keeps the buffer alive
    return torch.frombuffer(window, dtype=kind).view(shape)
