"""Where the samples of a training come from: target shards, or image-text tars with the encoder online.

A source never ends: epoch follows epoch. A sample that is damaged is counted, and no other takes its visit. Everything
random about a sample (caption, time, noise, dropout) belongs to its *visit*: source, epoch and key. So nothing depends
on the size of batches, on the number of processes, or on where a run was stopped.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gap3d.features.encoder import Encoder
from gap3d.features.images import to_uint8
from gap3d.features.tokens import TokenLayout
from gap3d.readers.batches import Collate
from gap3d.readers.image_text import ImageTextDataset, ImageTextSample
from gap3d.readers.shuffled import Damaged, ShuffledDataset
from gap3d.readers.targets import TargetDataset
from gap3d.records import Failure, SystemicFault

log = logging.getLogger(__name__)


class Endless:
    """The samples of a dataset that are whole, epoch after epoch.

    Args:
        dataset: skips damage (``on_damage="skip"``); its ranks are padded to one length.
        name: of the source, in its visits.
        passed: what an epoch's samples go through.
    """

    def __init__(
        self, dataset: ShuffledDataset, name: str, passed: Callable[[Iterator[Any]], Iterator[Any]] = iter
    ) -> None:
        self.dataset, self.name, self.passed = dataset, name, passed
        self.damaged = 0
        self._samples: Iterator[Any] | None = None
        self._epoch, self._position, self._good = 0, 0, False
        self.dataset.set_epoch(0)

    def __next__(self) -> tuple[str, Any]:
        """(visit, sample)."""
        while True:
            if self._samples is None:
                self._samples = self.passed(iter(self.dataset))
            sample = next(self._samples, None)
            if sample is None:
                if not self._good:
                    raise SystemicFault(f"not one sample of the {self.name} data can be read: see the warnings above")
                self._samples, self._epoch, self._position, self._good = None, self._epoch + 1, 0, False
                self.dataset.set_epoch(self._epoch)
                continue
            self._position = sample.position + 1
            if isinstance(sample, Damaged):
                self.damaged += 1
                continue
            self._good = True
            return f"{self.name}/{self._epoch}/{sample.key}", sample

    @property
    def place(self) -> dict[str, Any]:
        """Where it stands."""
        return self.dataset.state_dict(self._position) | {"epoch": self._epoch, "damaged": self.damaged}

    def restore(self, place: Mapping[str, Any]) -> None:
        """Go on from a place.

        Where the same rows lie otherwise than they did (``gc`` compacts parts), the rest of this epoch comes in another
        order, with some of its samples twice and others not at all.
        """
        of = self.dataset.state_dict()["of"]
        if place["of"] != of and {**place["of"], "digest": of["digest"]} == of:
            log.warning(
                "the rows of the %s data lie otherwise than before: this epoch ends in another order", self.name
            )
            place = {**place, "of": of}
        self.dataset.load_state_dict(place)
        self._samples = None
        self._epoch, self._position, self.damaged = place["epoch"], place["position"], place["damaged"]
        self._good = self._position > 0


class Source(Protocol):
    """Where samples come from, and how they become tokens.

    Attributes:
        samples: of this rank.
        layout: of the tokens.
    """

    samples: Endless
    layout: TokenLayout

    def read(self, samples: Sequence[Any]) -> Any:
        """What a thread can do beside the training."""

    def tokens(self, read: Any) -> Tensor:
        """The rest: [B, T, C]."""


class TargetSource:
    """Tokens of a collection's target shards.

    Args:
        dataset: of them.
        layout: of their tokens.
        name: of the source.
    """

    def __init__(self, dataset: TargetDataset, layout: TokenLayout, name: str) -> None:
        self.samples, self.layout = Endless(dataset, name), layout
        self._collate = Collate()

    def read(self, samples: Sequence[Any]) -> Tensor:
        """See Source."""
        return self._collate(samples).tokens

    def tokens(self, read: Tensor) -> Tensor:
        """See Source."""
        return read


class TarSource:
    """Pictures of image-text tars, encoded as they come.

    Args:
        dataset: of the pictures' bytes.
        encoder: frozen.
        name: of the source.
        threads: that decode.
        pixel_limit: most pixels of a picture.
    """

    def __init__(
        self, dataset: ImageTextDataset, encoder: Encoder, name: str, *, threads: int, pixel_limit: int
    ) -> None:
        decode = partial(to_uint8, settings=encoder.settings, pixel_limit=pixel_limit)
        self.samples = Endless(dataset, name, partial(decoded, decode=decode, threads=threads))
        self.layout = encoder.layout
        self.encoder = encoder

    def read(self, samples: Sequence[ImageTextSample]) -> Tensor:
        """See Source."""
        return torch.from_numpy(np.stack([sample.image for sample in samples]))

    def tokens(self, read: Tensor) -> Tensor:
        """See Source."""
        return self.encoder.encode(read).clone()  # what was made in inference mode takes part in no gradient


def decoded(samples: Iterator[Any], decode: Callable[[bytes], Any], threads: int) -> Iterator[Any]:
    """Samples with their images decoded by threads, in the order in which they come."""

    def one(sample: Any) -> Any:
        if isinstance(sample, Damaged):
            return sample
        try:
            return replace(sample, image=decode(sample.image))
        except Failure as failure:
            log.warning("skipped %s: %s", sample.key, failure.reason)
            return Damaged(sample.key, sample.position, failure.reason)

    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        ahead: deque[Future[Any]] = deque()
        try:
            for sample in samples:
                ahead.append(pool.submit(one, sample))
                if len(ahead) > 2 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
