"""The dataset report's two long loops beside the obvious way: ``python -m benchmarks.atlas``.

Neighbours: every cosine of n CLS tokens, in blocks of which each serves both of its sides, beside one matrix product of
all with all and its ``topk``. Statistics: an image at a time from sums, beside torch's own moments, norms and unit
vectors of a batch. Interleaved repeats; medians of the ratios.
"""

import statistics

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks._arguments import Arguments
from benchmarks._timing import interleaved, ratio
from benchmarks.parts import LAYOUT
from gap3d.atlas.neighbours import BLOCK, nearest
from gap3d.atlas.statistics import TokenStatistics

WIDTH, GRID = LAYOUT.width, LAYOUT.grid
NEAR = 5
BATCH = 8


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


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_size("--rows", 12_000, 500)
    parser.add_size("--images", 32, BATCH)
    parser.add_size("--repeats", 5, 1)
    known = parser.read()
    made = torch.Generator().manual_seed(0)
    vectors = torch.randn(known.rows, WIDTH, generator=made)
    batches = [torch.randn(BATCH, LAYOUT.patches, WIDTH, generator=made).half() for _ in range(known.images // BATCH)]

    def by_image() -> None:
        found = TokenStatistics("patches", GRID)
        for tokens in batches:
            found.add(tokens)

    ways = {
        "neighbours at once": lambda: at_once(vectors),
        "neighbours in blocks": lambda: nearest(vectors, NEAR),
        "statistics by batch": lambda: [by_batch(tokens) for tokens in batches],
        "statistics by image": by_image,
    }
    found = interleaved(ways, known.repeats)
    size = sum(tokens.nbytes for tokens in batches) / 1e9
    print(f"{known.rows} CLS tokens of {WIDTH}; {known.images} images of {GRID} patches; {known.repeats} repeats")
    print(f"matrix of cosines {4 * known.rows**2 / 2**20:.0f} MiB at once, {4 * BLOCK**2 / 2**20:.0f} MiB in blocks")
    for name, plain in (
        ("neighbours at once", "neighbours at once"),
        ("neighbours in blocks", "neighbours at once"),
        ("statistics by batch", "statistics by batch"),
        ("statistics by image", "statistics by batch"),
    ):
        times = ratio(found[plain], found[name])
        spent = statistics.median(found[name])
        rate = f"{size / spent:7.2f} GB/s" if "statistics" in name else f"{known.rows**2 / spent / 1e6:7.0f} pairs/us"
        print(f"{name:>21} {spent:8.2f} s {rate} {times:6.2f} times as fast as the plain way")


if __name__ == "__main__":
    main()
