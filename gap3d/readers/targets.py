"""Samples of a dataset's targets: tokens with a caption, shuffled, split and resumed as ``ShuffledDataset`` says."""

import math
from collections import OrderedDict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gap3d import dataset_index
from gap3d.dataset_index import Places
from gap3d.features.tokens import PACKED, TORCH_DTYPES
from gap3d.readers.batches import TargetSample
from gap3d.readers.order import Place
from gap3d.readers.shuffled import DamagedSample, Reader, ShuffledDataset, drawn
from gap3d.store import Store
from gap3d.target_parts import DamagedPart, RowGroup, TargetPart

OPEN_PARTS = 64  # kept open at a time, two descriptors each


class TargetDataset(ShuffledDataset):
    """The targets of a dataset, with captions.

    The index is read here, once; parts are opened by whoever iterates. Rows of plain parts on a local disk are views of
    the file and take no memory of the process; row groups that are compressed, or lie at a URL, are held while they are
    in progress. ``most_bytes`` bounds it.

    Args:
        collection: a store's collection, its folder, or the URL of that folder.
        split: ``train`` or ``validation``; None takes all.
        verify: check the checksums of a row group when it is opened.
        options: of ``ShuffledDataset``: seed, shuffle, interleave, batch_size, lanes, rank, ranks, pad, on_damage.

    Raises:
        ValueError: there is no such dataset.
    """

    def __init__(
        self, collection: Store | Path | str, split: str | None = None, *, verify: bool = False, **options: Any
    ) -> None:
        self.index = dataset_index.places(collection, split)
        self.verify = verify
        super().__init__(self.index.blocks(), self.index.digest, **options)

    def most_bytes(self, workers: int = 1) -> int:
        """A bound of what a pass adds to the anonymous memory of each process that reads.

        It counts, of row groups: ``interleave`` for each lane of the worker (none where rows are mapped) and four while
        one is decoded (none where it is neither decoded nor verified). Of batches of the store's numbers: four, and six
        with int8, whose samples are decoded one by one. Of the order: 40 bytes a row. Of the interpreter's own: 16 MiB.
        Finished batches that wait, of a loader's queue or of ``prefetch``, come on top.

        Args:
            workers: of the loader.
        """
        with TargetPart(self.index.path(0)) as part:
            columns = [about for name, about in part.layout.items() if name.partition("_")[0] in PACKED]
            row = sum(math.prod(about["shape"]) * TORCH_DTYPES[about["dtype"]].itemsize for about in columns)
            group = max(map(part.rows, range(part.groups))) * row
            mapped = part.open(0).mapped
            image = sum(2 * math.prod(part.layout[name]["shape"]) for name in ("cls", *PACKED))
        batches = 6 if part.layout["patches"]["dtype"] == "int8" else 4
        lanes = -(-self.split.lanes // workers)
        held = 0 if mapped else max(1, self.interleave) * lanes
        decoded = 4 if self.verify or not mapped else 0
        rows = -(-len(self) // self.split.lanes) * lanes
        return (held + decoded) * group + batches * self.batch_size * image + 40 * rows + 16 * 1024**2

    def reader(self) -> "TargetReader":
        """A reader for one pass."""
        return TargetReader(self.index, self.seed, verify=self.verify)


class TargetReader(Reader):
    """Opens parts and row groups as they come up, and forgets them when their rows are read.

    Args:
        index: of the dataset.
        seed: of the captions.
        verify: check checksums.
    """

    def __init__(self, index: Places, seed: int, *, verify: bool) -> None:
        self.index, self.seed, self.verify = index, seed, verify
        self._described = index.table.columns  # a new list at every access
        self._parts: OrderedDict[int, TargetPart] = OrderedDict()
        self._groups: dict[tuple[int, int], tuple[RowGroup | DamagedPart, int]] = {}

    def __exit__(self, *_: object) -> None:
        with ExitStack() as all_of_them:
            for part in self._parts.values():
                all_of_them.callback(part.close)
        self._parts.clear()
        self._groups.clear()

    @property
    def nbytes(self) -> int:
        """Bytes of the row groups in memory."""
        return sum(group.nbytes for group, _ in self._groups.values() if isinstance(group, RowGroup))

    def sample(self, place: Place, epoch: int) -> TargetSample:
        """The sample at a place; see ``Reader``."""
        entry = int(self.index.entry[place.row])
        key, object_id, view, captions = (column[entry].as_py() for column in self._described)
        self._groups = {name: held for name, held in self._groups.items() if held[1] >= place.position}
        try:
            group, row = self._group(int(self.index.part[place.row]), int(self.index.row[place.row]), place.until)
            if group.keys[row] != key:
                raise ValueError(f"{group.keys[row]} is in its place")
            cls, tokens = group.cls[row].clone(), {kind: group.tokens(kind, row) for kind in PACKED}
        except DamagedPart as error:
            raise DamagedSample(f"{key}: {error}", key) from error
        except (
            IndexError,
            KeyError,
            TypeError,
            ValueError,
        ) as error:  # the part is not what the index says, or it says
            path = self.index.path(int(self.index.part[place.row]))
            raise DamagedSample(f"{key}: {path} is damaged: {type(error).__name__}: {error}", key) from error
        return TargetSample(
            key=key,
            object_id=object_id,
            view=view,
            caption=drawn(captions or [], key, self.seed, epoch),
            cls=cls,
            **tokens,
            position=place.position,
        )

    def _group(self, part: int, row: int, until: int) -> tuple[RowGroup, int]:
        """(row group, position in it) of a row of a part; kept until a position."""
        if part not in self._parts:
            if len(self._parts) >= OPEN_PARTS:
                self._parts.popitem(last=False)[1].close()
            self._parts[part] = TargetPart(self.index.path(part), verify=self.verify)
        self._parts.move_to_end(part)
        number, within = self._parts[part].find(row)
        held, kept = self._groups.get((part, number), (None, -1))
        if held is None:
            try:
                held = self._parts[part].open(number)
            except DamagedPart as error:
                held = error  # its other rows need not try again
        self._groups[part, number] = held, max(until, kept)
        if isinstance(held, DamagedPart):
            raise held
        return held, within
