"""What a training says about its steps: JSON lines for programs, TensorBoard's event files for people.

A line of ``metrics.jsonl`` is an object with ``step``, ``kind`` (``train`` or ``validation``) and numbers. Numbers that
are not finite are null there (JSON has none) and what they are in TensorBoard. A run that goes on from a checkpoint
makes the steps after it again: their lines are dropped first, so each step has one line of a kind.
"""

import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from torch.utils.tensorboard import SummaryWriter

from gap3d.parts import write_atomically

METRICS = "metrics.jsonl"
EVENTS = "tensorboard"
Kind = Literal["train", "validation"]


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics file; a half last one, of a killed run or one that is being written, is left out.

    Raises:
        ValueError: another line is no JSON object.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                values = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number} of {path} is no JSON: move the file away to go on") from error
            if not isinstance(values, dict) or not isinstance(values.get("step"), int):
                raise ValueError(f"line {number} of {path} has no step: move the file away to go on")
            yield values


class MetricsLog:
    """Writes the metrics of one run; used by one process of it.

    Args:
        folder: of the run.
        resume_step: of the checkpoint that the run goes on from; 0 where it begins: what is there is dropped.

    Raises:
        ValueError: the lines that are there can't be read.
    """

    def __init__(self, folder: Path, resume_step: int = 0) -> None:
        self.path = folder / METRICS
        kept = [values for values in read(self.path) if 0 < resume_step >= values["step"]] if self.path.exists() else []
        write_atomically(self.path, "".join(f"{json.dumps(values)}\n" for values in kept).encode())
        self._lines = self.path.open("a")
        if resume_step == 0:
            shutil.rmtree(folder / EVENTS, ignore_errors=True)
        # TensorBoard reads event files in the order of their names, in which a second is the finest that can be told.
        while list((folder / EVENTS).glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
            time.sleep(0.05)
        # The purge tells it to forget those steps of earlier files.
        self._events = SummaryWriter(str(folder / EVENTS), purge_step=resume_step + 1 if resume_step else 0)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, step: int, kind: Kind, values: Mapping[str, float]) -> None:
        """One line, on the disk's way when this returns: a killed process loses none that it wrote."""
        line: dict[str, Any] = {"step": step, "kind": kind}
        line |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._lines.write(f"{json.dumps(line, allow_nan=False)}\n")
        self._lines.flush()
        for name, value in values.items():
            self._events.add_scalar(f"{kind}/{name}", value, step)
        self._events.flush()  # 0.4 ms for a dozen numbers; by itself it would wait two minutes

    def close(self) -> None:
        """End both files."""
        self._lines.close()
        self._events.close()
