"""Images with captions from a folder of WebDataset tars, as ``ShuffledDataset`` says."""

import hashlib
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gap3d.captions import captions_in
from gap3d.readers.order import Place
from gap3d.readers.shuffled import Damaged, DamagedSample, Reader, ShuffledDataset, drawn
from gap3d.readers.tar_index import TarIndex, indexed
from gap3d.records import Failure, Status
from gap3d.tars import Span

BLOCK = 64  # samples of a tar that are read near one another in time, as they lie near one another on the disk
OPEN_TARS = 64  # kept open at a time
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageTextSample:
    """One image.

    Attributes:
        key: ``path of the tar#stem of the sample``.
        caption: one of its captions, drawn anew every epoch.
        image: the file's bytes, or what ``decode`` made of them.
        format: by the file's name: jpg, png or webp.
        position: in the sequence of this rank.
    """

    key: str
    caption: str
    image: Any
    format: str
    position: int


@dataclass(frozen=True)
class ImageTextBatch:
    """Several images.

    Attributes:
        keys: one an image.
        captions: one an image.
        images: one an image; stacked if they are tensors.
        position: samples of this epoch that are used with this batch (``ShuffledDataset.state_dict``).
        damaged: what was to be in this batch and can't be read.
    """

    keys: list[str]
    captions: list[str]
    images: Any
    position: int
    damaged: list[Damaged]


def collate_images(samples: Sequence[ImageTextSample | Damaged]) -> ImageTextBatch:
    """The ``collate_fn`` of a loader over ``ImageTextDataset``: a batch of the samples that are whole."""
    good = [sample for sample in samples if isinstance(sample, ImageTextSample)]
    images: Any = [sample.image for sample in good]
    return ImageTextBatch(
        keys=[sample.key for sample in good],
        captions=[sample.caption for sample in good],
        images=torch.stack(images) if images and isinstance(images[0], torch.Tensor) else images,
        position=max(sample.position for sample in samples) + 1,
        damaged=[sample for sample in samples if isinstance(sample, Damaged)],
    )


class ImageTextDataset(ShuffledDataset):
    """Image-text pairs of tars.

    A sample is an image (jpg, jpeg, png, webp) and its captions: those in its ``json``, else its ``txt``. One that
    lacks either, or whose image ``decode`` refuses, is damaged: it is raised or counted, and no other takes its place.

    The tars' headers are read once and remembered in the user's cache (``tar_index``). A worker holds one sample at a
    time, 8 bytes for each sample of its lanes (40 while the order is made), and what the loader prefetches.

    Args:
        folder: searched for ``*.tar`` at any depth.
        decode: makes of an image's bytes what a sample holds, in the worker; raises ``Failure`` for a damaged image,
            as ``partial(decode_image, pixel_limit=...)`` or ``partial(to_pixels, settings=..., pixel_limit=...)`` do
            (``gap3d.features``). Default: bytes as they are.
        options: of ``ShuffledDataset``: seed, shuffle, interleave, batch_size, lanes, rank, ranks, pad, on_damage.

    Attributes:
        damaged_tars: what is wrong with a tar, by path: what lies before the damage is read.

    Raises:
        ValueError: there is no tar, or no sample in any.
        DamagedSample: a tar is damaged, unless damage is skipped.
    """

    def __init__(self, folder: Path | str, *, decode: Callable[[bytes], Any] | None = None, **options: Any) -> None:
        self.folder = Path(folder).expanduser().absolute()
        self.decode = decode
        paths = sorted(self.folder.rglob("*.tar"))
        self.tars: list[TarIndex] = [indexed(path) for path in paths]
        self.damaged_tars = {str(tar.path): tar.fault for tar in self.tars if tar.fault}
        if not any(map(len, self.tars)):
            raise ValueError(f"{self.folder} has no tar with a sample in it")
        state = hashlib.sha256()
        for tar in self.tars:
            state.update(f"{tar.path.relative_to(self.folder)}\0{tar.path.stat().st_size}\0{len(tar)}\n".encode())
        sizes = [min(BLOCK, len(tar) - start) for tar in self.tars for start in range(0, len(tar), BLOCK)]
        super().__init__(np.array(sizes, np.int64), state.hexdigest()[:32], **options)
        for path, fault in self.damaged_tars.items():
            if self.on_damage == "raise":
                raise DamagedSample(f"{path}: {fault}", path)
            log.warning("%s: %s", path, fault)

    def reader(self) -> "ImageTextReader":
        """A reader for one pass."""
        return ImageTextReader(self)


class ImageTextReader(Reader):
    """Reads members where they lie.

    Args:
        dataset: whose.
    """

    def __init__(self, dataset: ImageTextDataset) -> None:
        self.dataset = dataset
        self._starts = np.cumsum([0, *map(len, dataset.tars)])
        self._open: OrderedDict[int, int] = OrderedDict()

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def sample(self, place: Place, epoch: int) -> ImageTextSample:
        """The sample at a place; see ``Reader``."""
        number = int(np.searchsorted(self._starts, place.row, side="right")) - 1
        tar = self.dataset.tars[number]
        entry = tar.entry(place.row - int(self._starts[number]))
        key = f"{tar.path.relative_to(self.dataset.folder).as_posix()}#{entry.stem}"
        try:
            if not entry.format:
                raise Failure(Status.MISSING, "no image (jpg, png or webp)")
            texts = ((kind, self._bytes(number, span)) for kind, span in entry.texts.items())
            captions = next((found for kind, text in texts if (found := captions_in(text, kind))), [])
            if not captions:
                raise Failure(Status.MISSING, "no caption (json or txt)")
            data = self._bytes(number, entry.image)
            image = data if self.dataset.decode is None else self.dataset.decode(data)
        except Failure as failure:
            raise DamagedSample(f"{key}: {failure.reason}", key) from failure
        caption = drawn(captions, key, self.dataset.seed, epoch)
        return ImageTextSample(key, caption, image, entry.format, place.position)

    def _bytes(self, tar: int, span: Span) -> bytes:
        if span.size < 0:
            raise Failure(Status.UNSUPPORTED, "a sparse member lies in pieces")
        if tar not in self._open:
            if len(self._open) >= OPEN_TARS:
                os.close(self._open.popitem(last=False)[1])
            self._open[tar] = os.open(self.dataset.tars[tar].path, os.O_RDONLY)
        self._open.move_to_end(tar)
        data = os.pread(self._open[tar], span.size, span.offset)
        if len(data) != span.size:
            raise Failure(Status.UNSUPPORTED, f"the tar ends within it: {len(data)} bytes of {span.size}")
        return data
