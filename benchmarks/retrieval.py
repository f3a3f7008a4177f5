"""Retrieval beside the matrix product that it can't do without: ``python -m benchmarks.retrieval``.

Texts, images and channels of MS-COCO's val2017 with DINOv2-L by default. The product alone, in one piece of memory
and in the same blocks; and the obvious way, all similarities at once and a stable sort. Interleaved repeats; medians
of the ratios.
"""

import argparse
import statistics
import time

import torch

from gap3d.metrics.retrieval import retrieve, similarities, vectors


def product(queries: torch.Tensor, columns: torch.Tensor, out: torch.Tensor) -> float:
    """Seconds of all similarities in one product, into memory that is there."""
    started = time.perf_counter()
    torch.mm(queries, columns, out=out)
    return time.perf_counter() - started


def blocks(queries: torch.Tensor, database: torch.Tensor) -> float:
    """Seconds of all similarities a block at a time; nobody looks at them."""
    started = time.perf_counter()
    for _ in similarities(queries, database):
        pass
    return time.perf_counter() - started


def ours(queries: torch.Tensor, database: torch.Tensor, truth: torch.Tensor) -> float:
    """Seconds of ranks and recalls."""
    started = time.perf_counter()
    retrieve(queries, database, truth).recalls()
    return time.perf_counter() - started


def sorting(queries: torch.Tensor, database: torch.Tensor, truth: torch.Tensor) -> float:
    """Seconds of the obvious way, for so many queries."""
    started = time.perf_counter()
    order = (queries @ database.T).argsort(dim=1, descending=True, stable=True)
    ranks = 1 + (order == truth[:, None]).int().argmax(1)
    [float((ranks <= at).float().mean()) for at in (1, 5, 10)]
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=25_000)
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--channels", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    known = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    database = vectors(torch.randn(known.images, known.channels, generator=generator))
    truth = torch.randint(known.images, (known.queries,), generator=generator)
    queries = vectors(database[truth] + 0.1 * torch.randn(known.queries, known.channels, generator=generator))
    columns, out = database.T.contiguous(), torch.empty(known.queries, known.images)
    few = max(1, known.queries // 10)  # sorting is so slow that a tenth tells
    seconds: dict[str, list[float]] = {}
    for repeat in range(known.repeats + 1):
        one = {
            "product": product(queries, columns, out),
            "blocks": blocks(queries, database),
            "retrieve": ours(queries, database, truth),
            "sort": sorting(queries[:few], database, truth[:few]) * known.queries / few,
        }
        if repeat:  # the first warms up
            for name, value in one.items():
                seconds.setdefault(name, []).append(value)
    operations = 2 * known.queries * known.images * known.channels / 1e9
    shape = f"{known.queries} x {known.images} x {known.channels}"
    print(f"{shape}, {torch.get_num_threads()} threads, {known.repeats} repeats")
    print(f"{'':>10} {'seconds':>8} {'GFLOP/s':>8} {'of product':>11} {'wanted':>7}")
    for name, values in seconds.items():
        ratio = statistics.median(p / s for s, p in zip(values, seconds["product"], strict=True))
        middle = statistics.median(values)
        goal = f"{0.7:7.1f}" if name == "retrieve" else ""
        print(f"{name:>10} {middle:8.2f} {operations / middle:8.1f} {ratio:11.3f} {goal}")


if __name__ == "__main__":
    main()
