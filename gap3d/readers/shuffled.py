"""What the datasets of this package have in common: order, split, place in the epoch, and what damage does."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from gap3d import seeds
from gap3d.readers.order import INTERLEAVE, Order, Place, Split

log = logging.getLogger(__name__)
OnDamage = Literal["raise", "skip"]


class DamagedSample(Exception):
    """A sample can't be read because of its bytes; the message says which and why."""

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True)
class Damaged:
    """Stands where a sample would, if damage is skipped: no other sample takes its place.

    Attributes:
        key: of the sample.
        position: in the sequence of this rank.
        reason: what is wrong with it.
    """

    key: str
    position: int
    reason: str


class Reader(AbstractContextManager["Reader"]):
    """Reads the samples of one pass; holds what is open."""

    def sample(self, place: Place, epoch: int) -> Any:
        """The sample at a place.

        Raises:
            DamagedSample: it can't be read.
        """
        raise NotImplementedError


class ShuffledDataset(IterableDataset[Any], ABC):
    """A torch dataset whose order is a function of seed and epoch, and that goes on where it was.

    Every sample, or a ``Damaged`` in its place, comes once an epoch, over all ranks and workers together. With
    ``DataLoader(dataset, batch_size=dataset.batch_size, num_workers=any)`` the sequence of batches is the same for any
    number of workers. A loader reads ahead, so the place in the epoch is the last batch's that was used:
    ``dataset.state_dict(batch.position)``. Call ``set_epoch`` before every epoch.

    Args:
        sizes: rows of each block, int64 [blocks].
        digest: of what is read: a state of something else is refused.
        seed: of order and captions.
        shuffle: False reads in the order of the store.
        interleave: blocks (row groups) in progress at a time; with ``lanes``, in each lane.
        batch_size: the loader's; samples that one worker takes in a row.
        lanes: runs of blocks that are read in turn. A multiple of the number of workers keeps them out of each other's
            row groups, which pays where row groups are fetched or decoded; mapped ones cost nothing to share.
        rank: of this process; default: torch.distributed's, where it is initialised.
        ranks: their number; likewise.
        pad: make all ranks equally long by repeating a sample, instead of one rank being one sample longer.
        on_damage: raise ``DamagedSample``, or go on with a ``Damaged``.
    """

    def __init__(
        self,
        sizes: NDArray[np.int64],
        digest: str,
        *,
        seed: int = 0,
        shuffle: bool = True,
        interleave: int = INTERLEAVE,
        batch_size: int = 1,
        lanes: int = 1,
        rank: int | None = None,
        ranks: int | None = None,
        pad: bool = False,
        on_damage: OnDamage = "raise",
    ) -> None:
        here, all_ranks = world()
        self.split = Split(
            rank=here if rank is None else rank,
            ranks=all_ranks if ranks is None else ranks,
            pad=pad,
            batch=batch_size,
            lanes=lanes,
        )
        self.sizes, self.digest = sizes, digest
        self.seed, self.interleave = seed, interleave if shuffle else 0
        self.on_damage = on_damage
        # Epoch and start of the next pass, in shared memory: persistent workers of a loader see what is set here.
        self._next = torch.zeros(2, dtype=torch.int64).share_memory_()
        self._position = 0

    @abstractmethod
    def reader(self) -> Reader:
        """A reader for one pass."""

    @property
    def batch_size(self) -> int:
        """Samples that one worker takes in a row."""
        return self.split.batch

    @property
    def epoch(self) -> int:
        """Number of the epoch that the next pass reads."""
        return int(self._next[0])

    def __len__(self) -> int:
        return self.split.count(int(self.sizes.sum()))

    def set_epoch(self, epoch: int) -> None:
        """Read this epoch from its beginning."""
        self._next.copy_(torch.tensor([epoch, 0]))
        self._position = 0

    def order(self) -> Order:
        """The order of the epoch."""
        return Order(sizes=self.sizes, seed=self.seed, epoch=self.epoch, interleave=self.interleave, split=self.split)

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        epoch, start = self._next.tolist()
        with self.reader() as reader:
            for place in self.order().places(start, worker, workers):
                try:
                    sample = reader.sample(place, epoch)
                except DamagedSample as error:
                    if self.on_damage == "raise":
                        raise
                    log.warning("skipped %s", error)
                    sample = Damaged(error.key, place.position, str(error))
                self._position = place.position + 1
                yield sample

    def state_dict(self, position: int | None = None) -> dict[str, Any]:
        """Where to go on.

        Args:
            position: samples of this epoch that were used, as the last batch says. Default: those that this object
                gave out, which is right only where it is iterated without workers.
        """
        return {
            "epoch": self.epoch,
            "position": self._position if position is None else position,
            "of": self._identity(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; nothing is read to get there. The state of one rank serves all.

        Raises:
            ValueError: it is of another dataset, or of one that is ordered otherwise, or no such state.
        """
        if not {"of", "epoch", "position"} <= set(state) or min(state["epoch"], state["position"]) < 0:
            raise ValueError("this is no state of a dataset: load what its state_dict returned")
        mine, other = self._identity(), state["of"]
        if different := sorted(name for name in {*mine, *other} if mine.get(name) != other.get(name)):
            raise ValueError(
                f"this state was saved by a dataset with another {', '.join(different)}: make the dataset as it was, "
                "or begin an epoch with set_epoch"
            )
        self._next.copy_(torch.tensor([state["epoch"], state["position"]]))
        self._position = state["position"]

    def _identity(self) -> dict[str, Any]:
        """All that the order depends on."""
        split = self.split
        return {
            "digest": self.digest,
            "seed": self.seed,
            "interleave": self.interleave,
            "batch_size": split.batch,
            "lanes": split.lanes,
            "ranks": split.ranks,
            "pad": split.pad,
        }


def world() -> tuple[int, int]:
    """(rank, ranks) of torch.distributed; (0, 1) where it is not initialised."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def drawn(captions: Sequence[str], key: str, seed: int, epoch: int) -> str:
    """One of the captions of an image, drawn anew every epoch; empty where there is none."""
    if not captions:
        return ""
    return captions[int(seeds.generator(key, seed, f"caption{epoch}").integers(len(captions)))]
