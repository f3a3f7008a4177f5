"""Samples of targets, and how several become one tensor."""

import ctypes
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from gap3d.readers.shuffled import Damaged

Batch = TypeVar("Batch")
SPARE = 2  # batches' memory that is kept for the next ones


@dataclass(frozen=True)
class TargetSample:
    """One image.

    Attributes:
        key: (object_id, view) as ``object_id/view``.
        object_id: which object, or image.
        view: number of the view.
        caption: one of the object's, drawn anew every epoch; empty where it has none.
        cls: float32 [C].
        registers: the store's number format (float16 for int8), [R, C].
        patches: the same, [N, C]. Views of the mapped file where that is local and plain: never write to them. Each has
            memory of its own, so that a sample sent to another process takes its own bytes with it and no more.
        position: in the sequence of this rank.
    """

    key: str
    object_id: str
    view: int
    caption: str
    cls: Tensor
    registers: Tensor
    patches: Tensor
    position: int


@dataclass(frozen=True)
class TokenBatch:
    """Several images.

    Attributes:
        keys: one an image.
        captions: one an image.
        tokens: [B, T, C]: CLS, registers, patches; [0, 0, 0] where all are damaged.
        position: samples of this epoch that are used with this batch (``ShuffledDataset.state_dict``).
        damaged: what was to be in this batch and can't be read.
    """

    keys: list[str]
    captions: list[str]
    tokens: Tensor
    position: int
    damaged: list[Damaged]

    def pin_memory(self) -> "TokenBatch":
        """The same in page-locked memory, for ``DataLoader(pin_memory=True)``."""
        return replace(self, tokens=self.tokens.pin_memory())


@dataclass
class Collate:
    """The ``collate_fn`` of a loader over targets: copies every sample once, to where the batch stays.

    The memory of batches that nobody refers to any more is used again: the system hands out fresh memory in zeroed
    pages, which takes several times as long as reading tokens into it.

    Args:
        dtype: of the tokens; default: the store's.
    """

    dtype: torch.dtype | None = None
    _spare: deque[NDArray[np.uint8]] = field(default_factory=lambda: deque(maxlen=SPARE), init=False, repr=False)

    def __call__(self, samples: Sequence[TargetSample | Damaged]) -> TokenBatch:
        """A batch of the samples that are whole."""
        good = [sample for sample in samples if isinstance(sample, TargetSample)]
        return TokenBatch(
            keys=[sample.key for sample in good],
            captions=[sample.caption for sample in good],
            tokens=self._joined(good) if good else torch.empty(0, 0, 0, dtype=self.dtype),
            position=max(sample.position for sample in samples) + 1,
            damaged=[sample for sample in samples if isinstance(sample, Damaged)],
        )

    def _joined(self, samples: Sequence[TargetSample]) -> Tensor:
        registers, (patches, width) = len(samples[0].registers), samples[0].patches.shape
        shape = (len(samples), 1 + registers + patches, width)
        tokens = self._empty(torch.Size(shape), self.dtype or samples[0].patches.dtype)
        for target, sample in zip(tokens, samples, strict=True):
            target[0] = sample.cls
            copy(sample.registers, target[1 : 1 + registers])
            copy(sample.patches, target[1 + registers :])
        return tokens

    def _empty(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        size = shape.numel() * dtype.itemsize
        if get_worker_info() is not None:
            # Memory that the loader's process takes over, as torch's own default_collate makes it.
            shared = torch.UntypedStorage._new_shared(size)
            return torch.empty(0, dtype=dtype).set_(shared).view(shape)  # type: ignore[call-overload]
        memory = self._spare.pop() if self._spare else np.empty(0, np.uint8)
        if memory.nbytes != size:
            memory = np.empty(size, np.uint8)
        window = (ctypes.c_ubyte * size).from_buffer(memory.data)
        weakref.finalize(window, self._spare.append, memory).atexit = False
        return torch.frombuffer(window, dtype=dtype).view(shape)  # keeps the window as long as its own memory


def prefetch(batches: Iterable[Batch], depth: int = 2) -> Iterator[Batch]:
    """The same batches in the same order, made ahead by a thread while the caller is at work.

    Copying, decompressing and fetching run outside Python's lock, so the thread does what a worker of ``DataLoader``
    would, and a batch stays where it was made. A worker is a process and puts every batch into fresh shared memory,
    which takes the system longer than reading does. To go on after a stop, take the position of the batch that was
    used.

    Args:
        batches: e.g. a ``DataLoader`` with ``num_workers=0``; iterated in the thread alone.
        depth: batches that wait at most; each takes its memory.

    Raises:
        Exception: what ``batches`` raises, after the batches before it.
    """
    source, end = iter(batches), object()
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        ahead = deque(thread.submit(next, source, end) for _ in range(depth))
        try:
            while (batch := ahead.popleft().result()) is not end:
                ahead.append(thread.submit(next, source, end))
                yield batch  # type: ignore[misc]
                del batch  # its memory is for the next
        finally:
            for each in ahead:
                each.cancel()


def copy(source: Tensor, target: Tensor) -> None:
    """Copy numbers, converting them where the formats differ."""
    if source.dtype != target.dtype:
        target.copy_(source)
        return
    # One thread's memory bandwidth is enough; torch would take all cores, and wait for those that are busy: measured at
    # a thirtieth of this on a machine with other work.
    np.copyto(target.view(torch.uint8).numpy(), source.view(torch.uint8).numpy())
