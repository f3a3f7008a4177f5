"""The worker of targets: one encoder that is never idle while there is something to encode.

Several items are at work at once, each in a thread of the pool's: one is in the encoder, the pixels of the next are
made by a few threads that decode, and the rows of the last are packed, hashed and handed over. Decoding, hashing and
the encoder run outside Python's lock.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gap3d import fingerprints
from gap3d.features.encoders import Encoder, load_encoder
from gap3d.features.images import to_uint8
from gap3d.features.tokens import columns_of
from gap3d.images import Place, read_bytes
from gap3d.parts import read_rows
from gap3d.records import Failure, Outcome, Status, SystemicFault
from gap3d.settings import Settings
from pipelines.utilisation import DECODE, FEED, FORWARD

STAGE = "targets"
log = logging.getLogger(__name__)


class Featurizer:
    """One encoder, kept from batch to batch.

    Args:
        settings: what the feature is, limits, and threads of the encoder; as many decode.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        threads = settings.compute.encoder_threads
        self.decoders = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        # A GPU goes on with a second item while the first waits for its tokens. On a CPU one thread loads the encoder
        # and runs it, and in no other torch has more to do than it does alone: else that thread would get a team of
        # OpenMP's too, and where all teams have more members than there are cores, they sleep at every wait.
        self.engine = ThreadPoolExecutor(2 if cuda_here() else 1, thread_name_prefix="encode")
        self.encoder: Encoder = self.engine.submit(load_encoder, settings.targets, threads=threads).result()
        self.turn, self.clock = threading.Lock(), threading.Lock()
        self.closing = threading.Event()
        self.idle_since = time.perf_counter()  # of the encoder

    def process(self, payload: Mapping[str, Any]) -> list[Outcome]:
        """One batch of images: a row each, whatever becomes of the others.

        Args:
            payload: ``keys``, and where their images are: ``places`` (of files), or ``part`` and ``positions``.
        """
        begun = time.perf_counter()
        section = self.settings.targets
        side, channels = section.image_size, 4 if (section.crop, section.alpha) == ("trellis", "black") else 3
        with self.turn:  # items are read, decoded and encoded in one order
            images = read_images(payload)
            read_s = (time.perf_counter() - begun) / len(images)
            pixels = np.empty((len(images), side, side, channels), dtype=np.uint8)  # see to_uint8
            decoded = [self.decoders.submit(self.decode, *each) for each in zip(images, pixels, strict=True)]
            encoded = self.engine.submit(self.encode, pixels, decoded, begun)
        tokens, shares = encoded.result()
        found = []
        for key, task in zip(payload["keys"], decoded, strict=True):
            failure, seconds = task.result()
            if failure is None:
                try:
                    found.append(self.outcome(key, next(tokens), {"decode": seconds + read_s, **shares}))
                except ValueError as error:  # numbers that are not finite: of this image alone
                    found.append(Outcome(stage=STAGE, key=key, status=Status.INTERNAL_ERROR, reason=str(error)))
            else:
                found.append(Outcome(stage=STAGE, key=key, status=failure.status, reason=failure.reason))
        return found

    def decode(self, image: bytes, pixels: NDArray[np.uint8]) -> tuple[Failure | None, float]:
        """Write the pixels of one image to their place, or say why there are none; and the seconds that it took."""
        begun = time.perf_counter()
        failure = None
        try:
            pixels[:] = to_uint8(image, self.settings.targets, self.settings.limits.pixels)
        except Failure as known:
            failure = known
        except MemoryError:
            failure = Failure(Status.OUT_OF_MEMORY, f"no memory to resize the picture of {len(image)} bytes")
        except Exception as error:  # what nobody thought of costs this row, and none that travels with it
            log.exception("a picture of %d bytes", len(image))
            failure = Failure(Status.INTERNAL_ERROR, f"{type(error).__name__}: {error}"[:500])
        return failure, time.perf_counter() - begun

    def encode(
        self, pixels: NDArray[np.uint8], decoded: Sequence[Future[tuple[Failure | None, float]]], arrived: float
    ) -> tuple[Iterator[Tensor], dict[str, float]]:
        """Tokens of the images that could be decoded, and seconds of one of them: in the encoder, and waiting for it.

        Until the item had arrived the encoder waited for work, and from then on for pixels.

        Args:
            pixels: uint8 [B, S, S, 3], of which those of an image are there when it is decoded.
            decoded: see ``decode``.
            arrived: when the work on the item began.
        """
        good = [index for index, task in enumerate(decoded) if task.result()[0] is None]
        if not good:
            return iter(()), {}
        if len(good) < len(pixels):
            pixels = pixels[good]
        begun = time.perf_counter()
        # On a CPU an image takes seconds: whoever stops a run waits for one of them, not for a batch.
        step = 1 if self.encoder.images_per_pass == 1 else len(pixels)
        tokens: list[Tensor] = []
        for start in range(0, len(pixels), step):
            if self.closing.is_set():
                raise SystemicFault("the encoder was stopped")
            tokens += self.encoded(pixels[start : start + step])
        with self.clock:
            begun = max(begun, self.idle_since)  # until then a GPU was at the item before
            no_item = min(max(arrived - self.idle_since, 0.0), begun - self.idle_since)
            no_pixels = begun - self.idle_since - no_item
            self.idle_since = time.perf_counter()
        spent = {FORWARD: self.idle_since - begun, DECODE: no_pixels, FEED: no_item}
        return iter(tokens), {name: seconds / len(pixels) for name, seconds in spent.items()}

    def encoded(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Tokens of some pixels, float32 [B, T, C].

        Raises:
            SystemicFault: the encoder fails: for lack of memory, or by its GPU. No pixels are at fault.
        """
        try:
            return self.encoder.encode(pixels)
        except RuntimeError as error:
            raise SystemicFault(f"the encoder fails on {self.encoder.device}: {error}") from error

    def outcome(self, key: str, tokens: Tensor, costs: Mapping[str, float]) -> Outcome:
        """The row of one image.

        Args:
            key: its key.
            tokens: float32 [T, C].
            costs: seconds by kind.
        """
        begun = time.perf_counter()
        object_id, _, view = key.partition("/")
        columns = columns_of(tokens, self.encoder.layout, self.settings.targets.store_dtype)
        data = {"object_id": object_id, "view": int(view), **columns}
        # Arrays over the bytes: they go to another process in shared memory, and are read there where they lie.
        data = {name: np.frombuffer(cell, np.uint8) if isinstance(cell, bytes) else cell for name, cell in data.items()}
        digest = fingerprints.row_digest("ok", data)
        spent = {**costs, "pack": time.perf_counter() - begun}
        return Outcome(
            stage=STAGE,
            key=key,
            data=data,
            digest=digest,
            seconds=sum(spent[name] for name in (FORWARD, "decode", "pack")),
            device=self.encoder.device,
            costs=spent,
        )

    def probe(self) -> None:
        """Encode a black image, as far as its row."""
        side = self.settings.targets.image_size
        tokens = self.engine.submit(self.encoded, np.zeros((1, side, side, 3), dtype=np.uint8)).result()
        try:
            self.outcome("probe/000", tokens[0], {FORWARD: 0.0, "decode": 0.0})
        except ValueError as error:
            raise SystemicFault(f"the encoder's tokens of a black image are no numbers: {error}") from error

    def close(self) -> None:
        """End the threads, the encoder's after the image that it is at."""
        self.closing.set()
        self.engine.shutdown(cancel_futures=True)
        self.decoders.shutdown(cancel_futures=True)


def read_images(payload: Mapping[str, Any]) -> Sequence[bytes]:
    """The images of a batch as they are stored, in the order of its keys.

    Raises:
        SystemicFault: a file is not what it was when its place was noted.
    """
    if "places" in payload:
        return [read_bytes(Path(payload["root"]), Place(*place)) for place in payload["places"]]
    table = read_rows(Path(payload["part"]), payload["positions"], ["png"])
    found: list[bytes] = table.column("png").to_pylist()
    return found


def cuda_here() -> bool:
    """Whether this process has a GPU to encode on."""
    return torch.cuda.is_available()
