"""The dataset report's two long loops beside the obvious way: ``python -m benchmarks.atlas``.

Neighbours: every cosine of n CLS tokens, in blocks of which each serves both of its sides, beside one matrix product of
all with all and its ``topk``. Statistics: an image at a time from sums, beside torch's own moments, norms and unit
vectors of a batch. Interleaved repeats; medians of the ratios.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from gap3d.atlas.neighbours import BLOCK, nearest
from gap3d.atlas.statistics import TokenStatistics

WIDTH, GRID = 1024, (37, 37)
NEAR = 5


def at_once(vectors: Tensor) -> Tensor:
    """Indices of the nearest, by the whole matrix."""
    units = normalize(vectors, dim=1)
    return (units @ units.T).fill_diagonal_(-2).topk(NEAR, dim=1).indices


def by_batch(tokens: Tensor) -> float:
    """The same numbers as ``TokenStatistics``, less the histograms, the plain way."""
    numbers = tokens.float()
    moments = torch.var_mean(numbers, dim=-1)
    channels = torch.var_mean(numbers.flatten(0, 1), dim=0)
    units = normalize(numbers, dim=-1)
    within = units.sum(1).square().sum(-1)
    picture = units.unflatten(1, GRID)
    right = (picture[:, :, 1:] * picture[:, :, :-1]).sum(-1)
    below = (picture[:, 1:] * picture[:, :-1]).sum(-1)
    return sum(float(each.sum()) for each in (*moments, *channels, within, right, below))


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=12_000)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    known = parser.parse_args()
    made = torch.Generator().manual_seed(0)
    vectors = torch.randn(known.rows, WIDTH, generator=made)
    batches = [torch.randn(8, GRID[0] * GRID[1], WIDTH, generator=made).half() for _ in range(known.images // 8)]

    def by_image() -> None:
        found = TokenStatistics("patches", GRID)
        for tokens in batches:
            found.add(tokens)

    found: dict[str, list[float]] = {}
    for repeat in range(known.repeats + 1):
        one = {
            "neighbours at once": seconds(lambda: at_once(vectors)),
            "neighbours in blocks": seconds(lambda: nearest(vectors, NEAR)),
            "statistics by batch": seconds(lambda: [by_batch(tokens) for tokens in batches]),
            "statistics by image": seconds(by_image),
        }
        if repeat:  # the first warms up
            for name, value in one.items():
                found.setdefault(name, []).append(value)
    size = sum(tokens.nbytes for tokens in batches) / 1e9
    print(f"{known.rows} CLS tokens of {WIDTH}; {known.images} images of {GRID} patches; {known.repeats} repeats")
    print(f"matrix of cosines {4 * known.rows**2 / 2**20:.0f} MiB at once, {4 * BLOCK**2 / 2**20:.0f} MiB in blocks")
    for name, plain in (
        ("neighbours at once", "neighbours at once"),
        ("neighbours in blocks", "neighbours at once"),
        ("statistics by batch", "statistics by batch"),
        ("statistics by image", "statistics by batch"),
    ):
        times = statistics.median(p / s for p, s in zip(found[plain], found[name], strict=True))
        spent = statistics.median(found[name])
        rate = f"{size / spent:7.2f} GB/s" if "statistics" in name else f"{known.rows**2 / spent / 1e6:7.0f} pairs/us"
        print(f"{name:>21} {spent:8.2f} s {rate} {times:6.2f} times as fast as the plain way")


if __name__ == "__main__":
    main()
