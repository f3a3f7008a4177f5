"""The worker of features of pictures: one extractor; while it is at some pictures, the next are read and decoded."""

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gap3d import fingerprints
from gap3d.evaluation.extractors import PictureName, load_pictures
from gap3d.evaluation.pictured import contents
from gap3d.evaluation.views import View
from gap3d.features.decoding import decode_image
from gap3d.features.images import without_alpha
from gap3d.metrics.extractors.extractor import PASS, PictureFeatures
from gap3d.records import Failure, Outcome, Status, SystemicFault
from gap3d.settings import Settings
from pipelines.featurizer import cuda_here
from pipelines.utilisation import DECODE, FEED, FORWARD

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decoded:
    """What the network sees of a picture, float32 [3, S, S], or why there is nothing to see; and the seconds for it."""

    pixels: Tensor | None
    failure: Failure | None
    seconds: float


class PictureExtractor:
    """One extractor, kept from batch to batch.

    Args:
        stage: of the rows.
        name: of the extractor.
        settings: its weights, limits, and threads; as many decode.
    """

    def __init__(self, stage: str, name: PictureName, settings: Settings) -> None:
        self.stage = stage
        self.settings = settings
        threads = settings.compute.encoder_threads
        self.decoders = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        # One thread loads the extractor and runs it, for it alone has a team of OpenMP's: see pipelines.featurizer.
        self.engine = ThreadPoolExecutor(1, thread_name_prefix="extract")
        self.extractor: PictureFeatures = self.engine.submit(self.load, name, threads).result()
        self.device = torch.cuda.get_device_name() if cuda_here() else "cpu"
        self.turn = threading.Lock()
        self.closing = threading.Event()
        self.idle_since = time.perf_counter()  # of the extractor

    def load(self, name: PictureName, threads: int) -> PictureFeatures:
        """The extractor, in the thread that runs it."""
        torch.set_num_threads(threads)
        return load_pictures(name, self.settings.evaluation)

    def process(self, payload: Sequence[View]) -> list[Outcome]:
        """Some pictures: a row for each, whatever becomes of the others."""
        begun = time.perf_counter()
        with self.turn:  # items are read, decoded and extracted in one order
            found = contents(payload, self.settings.limits)
            read_s = (time.perf_counter() - begun) / len(payload)
            decoded = [self.decoders.submit(self.decode, each) for each in found]
            extracted = self.engine.submit(self.extract, decoded, begun)
        features, shares = extracted.result()
        return [
            self.outcome(view, task.result(), features, {"decode": task.result().seconds + read_s, **shares})
            for view, task in zip(payload, decoded, strict=True)
        ]

    def decode(self, content: Mapping[str, Any] | Failure) -> Decoded:
        """The pixels of one picture."""
        begun = time.perf_counter()
        pixels, failure = None, None
        try:
            if isinstance(content, Failure):
                raise content
            image = decode_image(content["png"], self.settings.limits.pixels)
            pixels = self.extractor.pixels(without_alpha(image, "black"))
        except Failure as known:
            failure = known
        except MemoryError:
            failure = Failure(Status.OUT_OF_MEMORY, "no memory to resize the picture")
        except Exception as error:  # what nobody thought of costs this row, and none that travels with it
            log.exception("a picture")
            failure = Failure(Status.INTERNAL_ERROR, f"{type(error).__name__}: {error}"[:500])
        return Decoded(pixels, failure, time.perf_counter() - begun)

    def extract(
        self, decoded: Sequence[Future[Decoded]], arrived: float
    ) -> tuple[Iterator[NDArray[np.float32]], dict[str, float]]:
        """Features of the pictures that could be decoded, and seconds of one: in the extractor, and waiting for it."""
        good = [pixels for task in decoded if (pixels := task.result().pixels) is not None]
        if not good:
            return iter(()), {}
        begun = time.perf_counter()
        # On a CPU singly: a feature then depends on its picture alone, to the last bit, and whoever stops a run waits
        # for one picture. A GPU is fast with many only.
        step = PASS if cuda_here() else 1
        features: list[NDArray[np.float32]] = []
        for start in range(0, len(good), step):
            if self.closing.is_set():
                raise SystemicFault("the extractor was stopped")
            features += list(self.forward(torch.stack(good[start : start + step])))
        no_item = max(arrived - self.idle_since, 0.0)
        no_pixels = begun - self.idle_since - no_item
        self.idle_since = time.perf_counter()
        spent = {FORWARD: self.idle_since - begun, DECODE: no_pixels, FEED: no_item}
        return iter(features), {name: seconds / len(good) for name, seconds in spent.items()}

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> NDArray[np.float32]:
        """Features of some pictures, float32 [B, D].

        Raises:
            SystemicFault: the extractor fails: for lack of memory, or by its GPU. No pixels are at fault.
        """
        try:
            return self.extractor.forward(pixels).float().cpu().numpy()
        except RuntimeError as error:
            raise SystemicFault(f"{self.extractor.name} fails on {self.device}: {error}") from error

    def outcome(
        self, view: View, decoded: Decoded, features: Iterator[NDArray[np.float32]], costs: Mapping[str, float]
    ) -> Outcome:
        """The row of one picture."""
        if decoded.failure is not None:
            return Outcome(stage=self.stage, key=view.key, status=decoded.failure.status, reason=decoded.failure.reason)
        feature = next(features)
        if not np.isfinite(feature).all():
            return Outcome(
                stage=self.stage,
                key=view.key,
                status=Status.INTERNAL_ERROR,
                reason=f"{np.count_nonzero(~np.isfinite(feature))} of {len(feature)} numbers are not finite",
            )
        data = {
            "object_id": view.object_id,
            "view": int(view.key.rpartition("/")[2]),
            "yaw": view.camera.yaw,
            "feature": feature,
        }
        return Outcome(
            stage=self.stage,
            key=view.key,
            data=data,
            digest=fingerprints.row_digest("ok", data),
            seconds=costs.get(FORWARD, 0.0) + costs["decode"],
            device=self.device,
            costs=costs,
        )

    def probe(self) -> None:
        """Extract the features of a black picture."""
        black = self.extractor.pixels(Image.new("RGB", (64, 64)))
        found = self.engine.submit(self.forward, black[None]).result()
        if not np.isfinite(found).all():
            raise SystemicFault(f"the features of {self.extractor.name} of a black picture are no numbers")

    def close(self) -> None:
        """End the threads, the extractor's after the picture that it is at."""
        self.closing.set()
        self.decoders.shutdown(cancel_futures=True)
        self.engine.shutdown(cancel_futures=True)
