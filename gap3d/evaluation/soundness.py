"""What must hold of a result as it lies there, read anew: nothing lost, nothing altered, nothing impossible.

Each of these says in sentences what does not hold; no sentence where everything does.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from gap3d.evaluation.result import Result, digest_of_samples, read_samples
from gap3d.records import SystemicFault

ROUNDING = 1e-9  # relative, of a mean that is made again from the samples
RETRIEVED = ("cls", "patches")

RANGES: tuple[tuple[str, float, float], ...] = (
    ("cosine_", -1.0, 1.0),
    ("mse_", 0.0, math.inf),
    ("norm_ratio_", 0.0, math.inf),
    ("cls_r", 0.0, 100.0),
    ("patches_r", 0.0, 100.0),
    ("fd_", 0.0, math.inf),
    ("clip_", -100.0, 100.0),
)
"""What a cell can be, by how its name begins. An unbiased kernel distance can be below 0."""

SLACK = 1e-6  # beyond a range: the rounding of a distance that is 0


def unaccounted(result: Result) -> list[str]:
    """Samples that are lost, doubled or altered: counts and digest of the result against its samples."""
    try:
        samples = read_samples(result.folder) if result.folder else []
    except SystemicFault as fault:
        return [str(fault)]
    found = []
    counts = dict(sorted(Counter(str(sample.status) for sample in samples).items()))
    if counts != dict(result.counts):
        found.append(f"the samples are {list_counts(counts)}, and the result counts {list_counts(dict(result.counts))}")
    keys = Counter(sample.key for sample in samples)
    if twice := sorted(key for key, count in keys.items() if count > 1):
        found.append(f"{len(twice)} samples stand twice, e.g. {twice[0]!r}")
    if digest_of_samples(samples) != result.samples_digest:
        found.append("the samples are not those that were measured: their digest is another")
    return found


def list_counts(counts: dict[str, int]) -> str:
    """Counts in words."""
    return ", ".join(f"{count} {status}" for status, count in counts.items()) or "none"


def impossible(result: Result) -> list[str]:
    """Cells whose value no measurement can give, and recalls that fall where more of the list is looked at."""
    found = []
    for name, cell in result.cells.items():
        if cell.value is None:
            continue
        if not math.isfinite(cell.value):
            found.append(f"{name} is {cell.value}")
        for begins, least, most in RANGES:
            if name.startswith(begins) and not least - SLACK <= cell.value <= most + SLACK:
                found.append(f"{name} is {cell.value:g}, outside {least:g} to {most:g}")
    for kind in RETRIEVED:
        recalls = [result.cells.get(f"{kind}_r{at}") for at in (1, 5, 10)]
        values = [cell.value for cell in recalls if cell is not None and cell.value is not None]
        if values != sorted(values):
            found.append(f"recalls of {kind} fall: {', '.join(f'{value:g}' for value in values)}")
    return found


def not_measured(result: Result) -> list[str]:
    """Cells without a value, and why."""
    return [f"{name}: {cell.note or 'no value'}" for name, cell in result.cells.items() if cell.value is None]


def remade(result: Result) -> list[str]:
    """Cells that are not what their samples give: means of measures and scores, recalls of ranks.

    An object of generation that lacks one measure counts in the means of the others.
    With the quirk ``batch_means`` a cell need not be the mean of its samples.
    """
    if result.folder is None or "batch_means" in result.quirks:
        return []
    try:
        samples = [sample.values for sample in read_samples(result.folder)]
    except SystemicFault as fault:
        return [str(fault)]
    found = []
    for name, cell in result.cells.items():
        values = values_of(name, samples)
        if cell.value is None or not values:
            continue
        mean = math.fsum(values) / len(values)
        if not math.isclose(mean, cell.value, rel_tol=ROUNDING, abs_tol=ROUNDING):
            found.append(f"{name} is {cell.value:.9g}, and its {len(values)} samples make it {mean:.9g}")
    return found


def values_of(cell: str, samples: Sequence[Mapping[str, float]]) -> list[float]:
    """What a cell is the mean of: a measure of the same name, or 100 for each rank that is within a recall's reach."""
    kind, _, at = cell.rpartition("_r")
    if kind not in RETRIEVED or not at.isdecimal():
        return [sample[cell] for sample in samples if cell in sample]
    ranks = [sample.get(f"place_{kind}", sample.get(f"rank_{kind}")) for sample in samples]
    return [100.0 * (rank <= int(at)) for rank in ranks if rank is not None]


def not_identical(result: Result) -> list[str]:
    """Samples whose squared error is not what cosine and norm ratio make it, MSE = 1 + r^2 - 2 r cos.

    It holds for each token of normalised targets. Of one token a sample (CLS) it is made again from the sample's own
    numbers; of several, from the greatest gap of a token that was written down when it was measured.
    """
    from gap3d.metrics.alignment import GAP, NORMALISED, ROUNDING, expected_mse  # brings torch

    try:
        samples = read_samples(result.folder) if result.folder else []
    except SystemicFault as fault:
        return [str(fault)]
    found = []
    for sample in samples:
        gaps = {name: value for name, value in sample.values.items() if name.startswith(GAP)}
        names = [f"{measure}_cls" for measure in ("cosine", "mse", "norm_ratio")]
        if all(name in sample.values for name in names):
            cosine, mse, ratio = (sample.values[name] for name in names)
            expected = float(expected_mse(cosine, ratio))  # type: ignore[arg-type]
            gaps["made again of cls"] = abs(mse - expected) / (expected + ROUNDING)
        found += [f"{sample.key}: {name} {gap:.3g}" for name, gap in gaps.items() if not gap <= NORMALISED]
    return found
