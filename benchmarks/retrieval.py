"""Retrieval beside the matrix product that it can't do without: ``python -m benchmarks.retrieval``.

Texts, images and channels of MS-COCO's val2017 with DINOv2-L by default. The product alone, in one piece of memory
and in the same blocks; and the obvious way, all similarities at once and a stable sort. Interleaved repeats; medians
of the ratios.
"""

import statistics

import torch

from benchmarks._arguments import Arguments
from benchmarks._timing import interleaved, ratio
from gap3d.metrics.retrieval import retrieve, similarities, vectors


def blocks(queries: torch.Tensor, database: torch.Tensor) -> None:
    """All similarities a block at a time; nobody looks at them."""
    for _ in similarities(queries, database):
        pass


def sorting(queries: torch.Tensor, database: torch.Tensor, truth: torch.Tensor) -> list[float]:
    """Recalls the obvious way."""
    order = (queries @ database.T).argsort(dim=1, descending=True, stable=True)
    ranks = 1 + (order == truth[:, None]).int().argmax(1)
    return [float((ranks <= at).float().mean()) for at in (1, 5, 10)]


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_size("--queries", 25_000, 500)
    parser.add_size("--images", 5_000, 100)
    parser.add_size("--channels", 1024, 64)
    parser.add_size("--repeats", 5, 1)
    known = parser.read()
    generator = torch.Generator().manual_seed(0)
    database = vectors(torch.randn(known.images, known.channels, generator=generator))
    truth = torch.randint(known.images, (known.queries,), generator=generator)
    queries = vectors(database[truth] + 0.1 * torch.randn(known.queries, known.channels, generator=generator))
    columns, out = database.T.contiguous(), torch.empty(known.queries, known.images)
    few = max(1, known.queries // 10)  # sorting is so slow that a tenth tells
    ways = {
        "product": lambda: torch.mm(queries, columns, out=out),  # in one piece, into memory that is there
        "blocks": lambda: blocks(queries, database),
        "retrieve": lambda: retrieve(queries, database, truth).recalls(),
        "sort": lambda: sorting(queries[:few], database, truth[:few]),
    }
    seconds = interleaved(ways, known.repeats)
    seconds["sort"] = [value * known.queries / few for value in seconds["sort"]]
    operations = 2 * known.queries * known.images * known.channels / 1e9
    shape = f"{known.queries} x {known.images} x {known.channels}"
    print(f"{shape}, {torch.get_num_threads()} threads, {known.repeats} repeats")
    print(f"{'':>10} {'seconds':>8} {'GFLOP/s':>8} {'of product':>11} {'wanted':>7}")
    for name, values in seconds.items():
        reached = ratio(seconds["product"], values)
        middle = statistics.median(values)
        goal = f"{0.7:7.1f}" if name == "retrieve" else ""
        print(f"{name:>10} {middle:8.2f} {operations / middle:8.1f} {reached:11.3f} {goal}")


if __name__ == "__main__":
    main()
