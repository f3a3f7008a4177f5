"""Passes of a model over many images, all of one size.

A matrix product may sum in another order when its shape changes, and stored bytes must not depend on which images
happened to travel together: so every pass of a process has the same number of images, the last one filled up. A CPU
gains nothing by more than one image. A GPU gets 16, which is 22,000 tokens at 518 pixels. It is not given more where it
has the memory: its rows would then depend on what else was on the GPU. Where there is no room for 16, a pass has the
greatest power of two that has, which is found once, before the first image.

On a GPU three things go on at once: while a pass is computed, the pixels of the next one are copied to it and the
results of the last one back, all between page-locked memory and the GPU, on streams of their own.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CPU_PASS = 1
GPU_PASS = 16
DEPTH = 2  # passes that are on their way at a time: one is computed, the other comes or goes
MARGIN = 512 << 20  # bytes that a GPU has to have left: for kernels that are loaded late, and neighbours that grow


class Passes:
    """Calls a function with full passes; calls of several threads at once follow each other without a gap.

    Args:
        compute: rows [size, ...] to results [size, ...], both on the device; the same row gives the same result.
        device: where; with its index, as several threads call.

    Attributes:
        size: rows of a pass.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor], device: torch.device) -> None:
        self._compute = compute
        self._device = device
        self._backend: Any = torch.get_device_module(device)  # torch.cpu has streams and events too, that do nothing
        self._pinned = device.type == "cuda"
        self._incoming, self._outgoing = self._backend.Stream(device), self._backend.Stream(device)
        # What other streams may still use, with the event after which they don't: memory may not be used again before.
        self._under_way: deque[tuple[Any, Tensor, Tensor]] = deque()
        self._turn = threading.Lock()
        self.size = GPU_PASS if self._pinned else CPU_PASS

    def __call__(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The results of so many rows.

        Args:
            rows: [N, ...] on the CPU.
            shape: of one result.

        Returns:
            float32 [N, *shape] on the CPU; page-locked where it comes from a GPU.
        """
        results = torch.empty(len(rows), *shape, pin_memory=self._pinned)
        done = None
        with self._turn:
            for start in range(0, len(rows), self.size):
                done = self._enqueue(rows[start : start + self.size], results[start : start + self.size])
        if done is not None:
            done.synchronize()  # after the turn: the next caller's first pass is computed while our last comes back
        return results

    def _enqueue(self, rows: Tensor, results: Tensor) -> Any:
        """Have one pass computed; returns the event after which its results are there."""
        if len(self._under_way) == DEPTH:
            self._under_way.popleft()[0].synchronize()
        computing = self._backend.current_stream(self._device)
        with self._backend.stream(self._incoming):
            given = (rows.pin_memory() if self._pinned else rows).to(self._device, non_blocking=True)
        computing.wait_stream(self._incoming)
        rest = self.size - len(rows)
        found = self._compute(torch.cat([given, given.new_zeros(rest, *given.shape[1:])]) if rest else given)
        self._outgoing.wait_stream(computing)
        with self._backend.stream(self._outgoing):
            results.copy_(found[: len(rows)], non_blocking=True)
        done = self._backend.Event()
        done.record(self._outgoing)
        self._under_way.append((done, given, found))
        return done

    def fit(self, row: Tensor, shape: tuple[int, ...]) -> None:
        """Make passes as small as the memory of the GPU wants it.

        Args:
            row: one of those to come.
            shape: of its result.

        Raises:
            torch.OutOfMemoryError: there is no room for one row.
        """

        def attempt(size: int) -> None:
            self._backend.synchronize(self._device)
            self._under_way.clear()
            self._backend.empty_cache()
            self.size = size
            self(row.new_zeros((DEPTH + 1) * size, *row.shape), shape)

        if self._pinned:
            self.size = largest(self.size, attempt, lambda: int(self._backend.mem_get_info(self._device)[0]))


def largest(size: int, attempt: Callable[[int], None], free: Callable[[], int]) -> int:
    """The largest of a size, half of it, a quarter ..., that can be had.

    Args:
        size: the greatest that is wanted.
        attempt: raises ``torch.OutOfMemoryError`` for a size that is too large.
        free: bytes that are left after an attempt, while what it took is kept for the next.

    Raises:
        torch.OutOfMemoryError: one is too many.
    """
    while True:
        try:
            attempt(size)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        else:
            if size == 1 or free() >= MARGIN:
                return size
        size //= 2
