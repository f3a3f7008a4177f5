"""Farthest point sampling and Frechet distance beside the obvious ways: ``python -m benchmarks.distances``.

Sampling beside the plain loop over all points in numpy, as evaluations have it, and beside that loop with its memory
laid out well; of either a few steps are timed, for each step takes as long. Distances beside scipy's root of the
product of the covariances, from more features than channels and from fewer: the second ones are singular.
"""

import statistics
from collections.abc import Callable

import numpy as np
import torch

from benchmarks._arguments import Arguments
from benchmarks._timing import ratio, timed
from gap3d.metrics.farthest import farthest_points
from gap3d.metrics.frechet import FeatureMoments, frechet_distance


def ellipsoid(count: int) -> np.ndarray:
    """Points of a surface, float32 [count, 3]."""
    points = np.random.default_rng(0).standard_normal((count, 3))
    return (points / np.linalg.norm(points, axis=1, keepdims=True) * [0.5, 0.3, 0.2]).astype(np.float32)


def numpy_loop(points: np.ndarray, count: int) -> np.ndarray:
    """The plain loop."""
    chosen, distance, farthest = np.zeros(count, dtype=np.int64), np.full(len(points), 1e10), 0
    for step in range(count):
        chosen[step] = farthest
        squared = np.sum((points - points[farthest]) ** 2, -1)
        nearer = squared < distance
        distance[nearer] = squared[nearer]
        farthest = int(np.argmax(distance))
    return chosen


def column_loop(points: np.ndarray, count: int) -> np.ndarray:
    """The loop with coordinates in columns and nothing allocated."""
    chosen, columns = np.zeros(count, dtype=np.int64), np.ascontiguousarray(points.T)
    distance, farthest = np.full(len(points), np.inf, dtype=np.float32), 0
    squared, part = np.empty_like(distance), np.empty_like(distance)
    for step in range(count):
        chosen[step] = farthest
        squared[:] = 0
        for column in columns:
            np.subtract(column, column[farthest], out=part)
            np.multiply(part, part, out=part)
            np.add(squared, part, out=squared)
        np.minimum(distance, squared, out=distance)
        farthest = int(distance.argmax())
    return chosen


def sampling(points: int, count: int, repeats: int) -> None:
    """The table of the sampling."""
    cloud, few = ellipsoid(points), max(1, count // 200)
    assert farthest_points(cloud, few).tolist() == column_loop(cloud, few).tolist()
    ways: dict[str, Callable[[], float]] = {
        "boxes": lambda: timed(lambda: farthest_points(cloud, count)),
        "loop": lambda: timed(lambda: numpy_loop(cloud, few)) * count / few,
        "column loop": lambda: timed(lambda: column_loop(cloud, few)) * count / few,
    }
    table(f"{count} of {points} points", ways, "boxes", {"loop": 20.0}, repeats)


def distances(width: int, features: int, repeats: int) -> None:
    """The table of the distances."""
    try:
        from scipy.linalg import sqrtm
    except ImportError:
        print('scipy is not here: pip install -e ".[dev]"')
        return
    generator = torch.Generator().manual_seed(0)
    scales = torch.linspace(0.1, 2, width, dtype=torch.float64)
    moments = []
    for shift in (0.0, 0.3):
        one = FeatureMoments(width)
        one.update(torch.randn(features, width, generator=generator, dtype=torch.float64) * scales + shift)
        moments.append(one)
    first, second = moments

    def by_scipy() -> float:
        root = sqrtm((first.covariance @ second.covariance).numpy())
        traces = first.covariance.trace() + second.covariance.trace() - 2 * np.trace(root).real
        return float((first.mean - second.mean).square().sum() + traces)

    ways = {"ours": lambda: timed(lambda: frechet_distance(first, second)), "scipy": lambda: timed(by_scipy)}
    table(f"{features} features of {width} channels", ways, "ours", {"scipy": 3.0}, repeats)
    wanted, found = by_scipy(), frechet_distance(first, second)
    print(f"distances {found:.9g} and {wanted:.9g}; of a set with itself {frechet_distance(first, first):.1e}")


def table(title: str, ways: dict[str, Callable[[], float]], quick: str, goals: dict[str, float], repeats: int) -> None:
    """Medians of interleaved repeats, and how many times the quick way's time the others take."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            seconds[name].append(way())
    print(f"\n{title}, {torch.get_num_threads()} threads, {repeats} repeats")
    print(f"{'':>12} {'seconds':>8} {'ratio':>7} {'wanted':>7}")
    for name, values in seconds.items():
        goal = f"{goals[name]:7.1f}" if name in goals else ""
        print(f"{name:>12} {statistics.median(values):8.2f} {ratio(values, seconds[quick]):7.1f} {goal}")


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_size("--points", 1_000_000, 20_000)
    parser.add_size("--count", 4000, 400)
    parser.add_size("--width", 2048, 128)
    parser.add_size("--features", 5000, 300)
    parser.add_size("--repeats", 3, 1)
    known = parser.read()
    sampling(known.points, known.count, known.repeats)
    for features in (known.features, known.width // 2):
        distances(known.width, features, known.repeats)


if __name__ == "__main__":
    main()
