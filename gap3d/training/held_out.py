"""Pairs of caption and tokens that no step of a training sees: the validation split of a dataset."""

import hashlib
import heapq
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gap3d import dataset_index
from gap3d.features.tokens import TokenLayout
from gap3d.readers.order import Place
from gap3d.readers.shuffled import DamagedSample
from gap3d.readers.targets import TargetReader
from gap3d.schemas import TARGET_ROWS
from gap3d.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pairs:
    """Several pairs.

    Attributes:
        keys: one a pair.
        captions: one a pair: its longest.
        tokens: float32 [B, T, C].
        counted: one a pair. False: its tokens are zeros, because they can't be read or because other ranks have a pair
            more; it goes through the model, whose parts wait for those on other ranks, and is not measured.
    """

    keys: list[str]
    captions: list[str]
    tokens: Tensor
    counted: list[bool]


class HeldOut:
    """The same pairs in every pass, and with any number of ranks: those of the validation split with the least hashes.

    Args:
        collection: a store's collection, its folder, or the URL of that folder.
        layout: of its tokens.
        count: pairs at most.
        batch_size: of a batch.
        rank: this process, of ``ranks`` that validate together; all get the same number of batches.
        ranks: their number.

    Raises:
        ValueError: there is no such dataset, or nothing in its validation split.
    """

    def __init__(
        self,
        collection: Store | Path | str,
        layout: TokenLayout,
        *,
        count: int,
        batch_size: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.index = dataset_index.places(collection, "validation")
        self.layout, self.batch_size = layout, batch_size
        described = self.index.table.select(["key", "captions"]).take(self.index.entry)
        self._keys: list[str] = described["key"].to_pylist()
        self._captions: list[list[str] | None] = described["captions"].to_pylist()
        # By hash, not the first ones: those would all be of one shard, and others once there are more objects.
        chosen = heapq.nsmallest(
            count, range(len(self._keys)), key=lambda row: hashlib.sha256(self._keys[row].encode()).digest()
        )
        self.count = len(chosen)
        self._rows: list[int | None] = list(sorted(chosen)[rank::ranks])
        self._rows += [None] * (-(-self.count // ranks) - len(self._rows))

    def __len__(self) -> int:
        """Pairs of this rank, those not counted too."""
        return len(self._rows)

    def __iter__(self) -> Iterator[Pairs]:
        places = self._places()
        reader = TargetReader(self.index, 0, verify=True)  # seconds, where sampling takes minutes
        with reader:
            for start in range(0, len(self._rows), self.batch_size):
                rows = self._rows[start : start + self.batch_size]
                read = [None if row is None else self._tokens(reader, places[row]) for row in rows]
                nothing = torch.zeros(self.layout.count, self.layout.width)
                yield Pairs(
                    keys=["" if row is None else self._keys[row] for row in rows],
                    captions=["" if row is None else self.caption(row) for row in rows],
                    tokens=torch.stack([nothing if tokens is None else tokens for tokens in read]),
                    counted=[tokens is not None for tokens in read],
                )

    def caption(self, row: int) -> str:
        """The longest caption of a row of the index, of equally long ones the first; empty where there is none."""
        return max(self._captions[row] or [""], key=len)

    def _places(self) -> dict[int, Place]:
        """Of every row: when it is read, and how long its block of the file is still wanted."""
        rows = [row for row in self._rows if row is not None]
        last = {self._block(row): position for position, row in enumerate(rows)}
        return {row: Place(position, row, last[self._block(row)]) for position, row in enumerate(rows)}

    def _block(self, row: int) -> tuple[int, int]:
        return int(self.index.part[row]), int(self.index.row[row]) // TARGET_ROWS

    def _tokens(self, reader: TargetReader, place: Place) -> Tensor | None:
        """Tokens [T, C] of a row; None if they are damaged."""
        try:
            sample = reader.sample(place, 0)
        except DamagedSample as error:
            log.warning("not validated: %s", error)
            return None
        parts = (sample.cls, sample.registers, sample.patches)
        return self.layout.join(*(part[None].float() for part in parts))[0]
