"""Seconds side by side: ways in turns, the first round to warm up, medians of the ratios within a round."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

Clock = Callable[[], float]


def clock_of(busy: bool) -> Clock:
    """The clock; on a machine that others use at the same time, one thread and its CPU time instead."""
    if not busy:
        return time.perf_counter
    torch.set_num_threads(1)
    return time.thread_time


def timed(work: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """Seconds of one call."""
    started = clock()
    work()
    return clock() - started


def interleaved(
    ways: Mapping[str, Callable[[], object]],
    repeats: int,
    clock: Clock = time.perf_counter,
    prepare: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of every way by repeat, after a round that warms up.

    Args:
        ways: what to call, by name.
        repeats: how often each is timed.
        clock: what tells the seconds.
        prepare: called before every call, and not timed.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, work in ways.items():
            prepare()
            seconds = timed(work, clock)
            if repeat:
                found[name].append(seconds)
    return found


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median of the ratios within a repeat.

    Raises:
        ValueError: it is no positive number, so nothing was measured.
    """
    found = statistics.median(a / b for a, b in zip(above, below, strict=True))
    if not (math.isfinite(found) and found > 0):
        raise ValueError(f"a ratio of {found} says that nothing was measured: take a larger size")
    return found
