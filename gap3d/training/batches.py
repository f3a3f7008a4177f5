"""What a step of training gets: tokens with a caption, of one source or mixed of two.

A batch may hold the end of one epoch and the beginning of the next, so all batches are equally large.
"""

import queue
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Any, TypeVar

import torch
from torch import Tensor

from gap3d.features.tokens import TokenLayout
from gap3d.records import SystemicFault
from gap3d.training.sources import Source

DEPTH = 2  # batches that are read ahead of the one in use
Item = TypeVar("Item")


@dataclass(frozen=True)
class Batch:
    """Several samples.

    Attributes:
        keys: one a sample.
        captions: one a sample, drawn anew every epoch.
        visits: one a sample: what its randomness is drawn from.
        tokens: [B, T, C] in the store's number format, or float32: CLS, registers, patches.
        place: where the sources stand after this batch (``Batches.restore``).
        damaged: samples that could not be read, since the run began.
    """

    keys: list[str]
    captions: list[str]
    visits: list[str]
    tokens: Tensor
    place: dict[str, Any]
    damaged: int


@dataclass(frozen=True)
class Drawn:
    """What a thread has read of a batch; see ``Batch``."""

    keys: list[str]
    captions: list[str]
    visits: list[str]
    read: list[tuple[Source, Any]]
    place: dict[str, Any]
    damaged: int


class Batches:
    """Batches without end, read ahead in a thread.

    Args:
        source: of the samples.
        size: samples of a batch.
        mixed: another source, of general data.
        share: of the samples that come from it. Batch n has as many of them as bring their number up to the share of
            n + 1 batches, rounded down: exact in every batch where share x size is whole, never off by one otherwise.
        pin: keep tokens in page-locked memory, from which a GPU fetches them while it works.

    Raises:
        SystemicFault: the tokens of both sources are not laid out in the same way.
    """

    def __init__(
        self, source: Source, size: int, *, mixed: Source | None = None, share: float = 0.0, pin: bool = False
    ) -> None:
        self.source, self.size, self.mixed, self.share, self.pin = source, size, mixed, share, pin
        self.number = 0
        if mixed is not None and mixed.layout != source.layout:
            raise SystemicFault(f"tokens of {mixed.layout} can't be mixed with tokens of {source.layout}")

    @property
    def layout(self) -> TokenLayout:
        """Of the tokens."""
        return self.source.layout

    def restore(self, place: Mapping[str, Any]) -> None:
        """Go on after the batch that had this place. Nothing is read to get there.

        Raises:
            ValueError: it is a place of other data, or of data that are ordered otherwise.
        """
        self.number = place["number"]
        self.source.samples.restore(place["data"])
        if self.mixed is not None:
            self.mixed.samples.restore(place["mixed"])

    @contextmanager
    def read_ahead(self) -> Iterator[Iterator[Drawn]]:
        """The batches from here on, for ``finished``; the thread ends with the block."""
        with ahead(self._drawn(), DEPTH) as drawn:
            yield drawn

    def _drawn(self) -> Iterator[Drawn]:
        a_batch = Fraction(str(self.share)) * self.size  # not a float: 0.29 x 100 would be a little less than 29
        while True:
            taken = floor((self.number + 1) * a_batch) - floor(self.number * a_batch)
            self.number += 1
            pairs = [(self.source, next(self.source.samples)) for _ in range(self.size - taken)]
            if self.mixed is not None:
                pairs += [(self.mixed, next(self.mixed.samples)) for _ in range(taken)]
            sources = [each for each in (self.source, self.mixed) if each is not None]
            groups = [(source, [pair[1][1] for pair in pairs if pair[0] is source]) for source in sources]
            places = {name: s.samples.place for name, s in zip(("data", "mixed"), sources, strict=False)}
            yield Drawn(
                keys=[sample.key for _, (_, sample) in pairs],
                captions=[sample.caption for _, (_, sample) in pairs],
                visits=[visit for _, (visit, _) in pairs],
                read=[(source, self._pinned(source.read(samples))) for source, samples in groups if samples],
                place={"number": self.number, **places},
                damaged=sum(source.samples.damaged for source in sources),
            )

    def _pinned(self, read: Tensor) -> Tensor:
        return read.pin_memory() if self.pin else read

    def finished(self, drawn: Drawn) -> Batch:
        """A batch, with what is left to do: the encoder's work, where data are images."""
        tokens = [source.tokens(read) for source, read in drawn.read]
        return Batch(
            keys=drawn.keys,
            captions=drawn.captions,
            visits=drawn.visits,
            tokens=tokens[0] if len(tokens) == 1 else torch.cat([each.float() for each in tokens]),
            place=drawn.place,
            damaged=drawn.damaged,
        )


@contextmanager
def ahead(items: Iterator[Item], depth: int) -> Iterator[Iterator[Item]]:
    """The same items, made in a thread while earlier ones are in use; what is raised there is raised here.

    Args:
        items: to be made; closed where the block ends.
        depth: so many wait at most.
    """
    made: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)
    ended = threading.Event()

    def put(item: Item | None, error: BaseException | None) -> None:
        while not ended.is_set():
            with suppress(queue.Full):
                made.put((item, error), timeout=0.1)
                return

    def make() -> None:
        try:
            for item in items:
                put(item, None)
                if ended.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - whoever takes the items hears of it
            put(None, error)

    def taken() -> Iterator[Item]:
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            yield item  # type: ignore[misc]

    thread = threading.Thread(target=make, name="batches", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        ended.set()
        thread.join()
        if hasattr(items, "close"):
            items.close()
