"""How far a run is: a bar in a terminal, and lines where there is none, such as in the log of a Ray job."""

import math
import sys
import time
import weakref
from typing import Any

from tqdm import tqdm

LINE_S = 10.0  # seconds from one line to the next
_newest: "list[weakref.ref[tqdm]]" = []  # the bar that was opened last


class Lines(tqdm):
    """A bar that begins a new line where others overwrite theirs: followers of a log see whole lines only."""

    disable: bool

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Print the state."""
        self.fp.write(f"{self if msg is None else msg}\n")
        self.fp.flush()
        return True

    def close(self) -> None:
        """Print the last state, unless it stands there."""
        if not self.disable:
            if self.n != self.last_print_n:
                self.refresh()
            self.disable = True
            self._decr_instances(self)


def progress(*args: Any, **options: Any) -> tqdm:
    """What ``tqdm`` would be with these arguments, on standard error."""
    if sys.stderr.isatty():
        bar = tqdm(*args, dynamic_ncols=True, **options)
    else:
        bar = Lines(*args, ncols=100, mininterval=LINE_S, maxinterval=LINE_S, **options)
    _newest[:] = [weakref.ref(bar)]
    return bar


def advance(count: int) -> None:
    """Move the bar of this process on, from within the work that it shows; nothing where there is none, as in Ray."""
    bar = _newest[0]() if _newest else None
    if bar is not None and not bar.disable and bar.total is not None:
        bar.update(min(count, bar.total - bar.n))


def say_beside(bar: tqdm, words: str) -> None:
    """Say something beside a bar that does not move, as seldom as it would say that it moves."""
    bar.set_postfix_str(words, refresh=False)
    now = time.monotonic()
    if now - getattr(bar, "said", -math.inf) >= bar.mininterval:
        bar.said = now
        bar.refresh()


def show_bytes(bar: tqdm, more: int) -> None:
    """Say beside a bar how many bytes have come, and how many a second."""
    bar.bytes = getattr(bar, "bytes", 0) + more
    size, rate = (tqdm.format_sizeof(value, "B", 1024) for value in (bar.bytes, bar.bytes / max(elapsed(bar), 1e-3)))
    bar.set_postfix_str(f"{size}, {rate}/s", refresh=False)


def elapsed(bar: tqdm) -> float:
    """Seconds since a bar began."""
    return float(bar.format_dict["elapsed"])
