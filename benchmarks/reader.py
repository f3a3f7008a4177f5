"""Reading targets for training: ``python -m benchmarks.reader``; it writes where ``TMPDIR`` says.

Writes a dataset with the tokens of ViT-L at 518 (2.8 MB an image), then reads it with the torch dataset (shuffled, 16
row groups interleaved) and plainly, from the page cache, in the same run. Interleaved repeats; medians of the ratios.
The plain reads fill memory that is there already: as long as one image, which stays in the processor's cache, or as
long as a batch, which is what a training step gets. Beside the rates of the clock stand those of the CPU's seconds, of
all processes that take part: other work on the machine moves them little.

Then the variants of the store: size, error against float32 by kind of token, and rates. The tokens are synthetic:
smooth over the grid, with noise, layer-normed as targets are. Real ones compress otherwise; the errors of number
formats depend on their largest numbers.
"""

import gc
import resource
import shutil
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader

from benchmarks._arguments import Arguments
from benchmarks._timing import ratio
from benchmarks.parts import LAYOUT
from gap3d import schemas
from gap3d.features import tokens
from gap3d.readers.batches import Collate, prefetch
from gap3d.readers.targets import TargetDataset
from gap3d.records import Outcome
from gap3d.settings import ComputeSettings, Limits
from gap3d.store import ALL, Store

BATCH = 16
WANTED = 110e6  # bytes a second that an H200 takes at batch 16
VARIANTS = [("float16", "none"), ("float16", "zstd"), ("bfloat16", "none"), ("int8", "none"), ("int8", "zstd")]


def image(number: int) -> torch.Tensor:
    """float32 [T, C]: a smooth field for the patches, noise everywhere."""
    generator = torch.Generator().manual_seed(number)
    coarse = torch.randn(1, LAYOUT.width, 5, 5, generator=generator)
    field = interpolate(coarse, LAYOUT.grid, mode="bicubic")[0].flatten(1).T
    rows = torch.randn(LAYOUT.count, LAYOUT.width, generator=generator)
    rows[1 + LAYOUT.registers :] = 0.5 * rows[1 + LAYOUT.registers :] + field
    return tokens.targets_from_prenorm(rows)


def write(folder: Path, rows: list[torch.Tensor], dtype: Any, compression: Any) -> tuple[Store, float]:
    """A collection with these rows as targets, and the seconds that its parts took."""
    store = Store(folder, "bench", 1)
    schema = schemas.targets(LAYOUT.registers, LAYOUT.patches, LAYOUT.width, dtype, compression)
    compute = ComputeSettings(flush_rows=10**6, flush_s=1e6)
    keys = [f"{number:06d}/000" for number in range(len(rows))]
    seconds = 0.0
    with store.writer("targets", "0", schema, compute, Limits(), {"tokens": LAYOUT.describe(dtype)}) as writer:
        for key, row in zip(keys, rows, strict=True):
            data = {"object_id": key[:6], "view": 0, **tokens.columns_of(row, LAYOUT, dtype)}
            started = time.perf_counter()
            writer.add(Outcome(stage="targets", key=key, data=data), {})
            seconds += time.perf_counter() - started
        started = time.perf_counter()
        held = writer.finish(set(keys))
        seconds += time.perf_counter() - started
    with store.writer("dataset", ALL, schemas.DATASET, compute, Limits()) as writer:
        for rank, key in enumerate(keys):
            place = {"target_shard": "0", "target_part": held.rows[key].part, "target_row": held.rows[key].part_row}
            data = {"object_id": key[:6], "view": 0, "captions": [f"an object {rank}", "an object"], "split": "train"}
            data |= {"rank": rank, "licence": "", "source": "", "identifier": "", "target": held.rows[key].digest}
            writer.add(Outcome(stage="dataset", key=key, data={**data, **place}), {})
        writer.finish(set(keys))
    return store, seconds


def measured(work: Callable[[], int]) -> tuple[float, float, int]:
    """(seconds, CPU seconds of this process and its workers, bytes) of one pass."""
    gc.collect()
    started, used = time.perf_counter(), cpu()
    size = work()
    seconds = time.perf_counter() - started
    gc.collect()  # a loader waits for its workers
    return seconds, cpu() - used, size


def cpu() -> float:
    """CPU seconds of this process, and of those that it started and that have ended."""
    return time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def plain(path: Path, buffer: np.ndarray) -> int:
    """Read a file into the same memory again and again."""
    total = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer.data):
            total += count
    return total


def samples(dataset: TargetDataset) -> int:
    """Every sample, a number of each of its pages looked at; nothing is copied."""
    total = 0
    for sample in dataset:
        for tensor in (sample.registers, sample.patches):
            assert tensor.view(torch.int16).flatten()[::2048].sum() is not None
            total += tensor.nbytes
    return total


def batches(dataset: TargetDataset, collate: Collate, workers: int = 0, *, thread: bool = False) -> int:
    """Every batch as one tensor [16, 1374, 1024], a number of each page looked at."""
    loader = DataLoader(dataset, BATCH, collate_fn=collate, num_workers=workers)
    total = 0
    for batch in prefetch(loader) if thread else loader:
        assert batch.tokens.view(torch.int16).flatten()[::2048].sum() is not None
        total += batch.tokens.nbytes
    return total


def anonymous() -> int:
    """Bytes of this process that are no file's."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def most_memory(dataset: TargetDataset) -> int:
    """Bytes that a pass by batches adds to this process at most."""
    gc.collect()
    base, most = anonymous(), 0
    for _batch in DataLoader(dataset, BATCH, collate_fn=Collate()):
        most = max(most, anonymous() - base)
    return most


def errors(dataset: TargetDataset, rows: list[torch.Tensor]) -> dict[str, tuple[float, float, float]]:
    """By kind of token: mean and least cosine, greatest difference."""
    found: dict[str, list[torch.Tensor]] = {"cls": [], "registers": [], "patches": []}
    for sample in dataset:
        exact = LAYOUT.split(rows[int(sample.object_id)][None])
        for part, kept, values in zip(
            exact, (sample.cls[None], sample.registers, sample.patches), found.values(), strict=True
        ):
            mine, theirs = part.reshape(-1, LAYOUT.width).double(), kept.double()
            cosine = torch.nn.functional.cosine_similarity(mine, theirs, dim=-1)
            values.append(torch.stack([cosine.mean(), cosine.min(), (mine - theirs).abs().max()]))
    return {
        kind: (float(v[:, 0].mean()), float(v[:, 1].min()), float(v[:, 2].max()))
        for kind, v in ((kind, torch.stack(values)) for kind, values in found.items())
    }


def speed(folder: Path, rows: list[torch.Tensor], repeats: int) -> None:
    """The first table."""
    store, _ = write(folder / "store", rows, "float16", "none")
    row_bytes = (LAYOUT.count - 1) * LAYOUT.width * 2
    path = folder / "plain"
    with path.open("wb") as file:
        for row in rows:
            file.write(tokens.pack(row[1:], "float16"))
    dataset, collate = TargetDataset(store, batch_size=BATCH), Collate()
    ways: dict[str, Callable[[], int]] = {
        "plain read, memory of one image": partial(plain, path, np.zeros(row_bytes, np.uint8)),
        "plain read, memory of a batch": partial(plain, path, np.zeros(BATCH * row_bytes, np.uint8)),
        "samples (views of the file)": partial(samples, dataset),
        "batches, in this process": partial(batches, dataset, collate),
        "batches, one thread (prefetch)": partial(batches, dataset, collate, thread=True),
        "batches, DataLoader of 1 worker": partial(batches, dataset, collate, 1),
        "batches, DataLoader of 2 workers": partial(batches, dataset, collate, 2),
    }
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, work in ways.items():
            took = measured(work)
            if repeat:  # the first warms up
                found[name].append(took)
    print(f"{len(rows)} images of {row_bytes / 1e6:.2f} MB, batches of {BATCH}, {repeats} repeats")
    print("of plain: the rate, divided by that of a plain read into the memory of one image, and of a batch")
    print(f"{'':>33} {'GB/s':>6} {'of plain':>11} {'times 110 MB/s':>15} {'GB per CPU s':>13} {'of plain':>11}")
    for name in ways:
        line = f"{name:>33}"
        for clock, width in ((0, 6), (1, 13)):
            rates = {way: [size / took[clock] for *took, size in passes] for way, passes in found.items()}
            rate = statistics.median(rates[name])
            ratios = [ratio(rates[name], rates[base]) for base in list(ways)[:2]]
            line += f" {rate / 1e9:{width}.2f} {ratios[0]:5.2f} {ratios[1]:5.2f}"
            line += f" {rate / WANTED:15.0f}" if clock == 0 else ""
        print(line)
    print("wanted: 0.6 of a plain read with one worker")
    print(
        f"anonymous memory of a pass by batches: {most_memory(dataset) / 1e6:.0f} MB, "
        f"stated bound {dataset.most_bytes() / 1e6:.0f} MB"
    )


def variants(folder: Path, rows: list[torch.Tensor], repeats: int) -> None:
    """The second table."""
    exact = len(rows) * LAYOUT.count * LAYOUT.width * 2
    print(f"\n{len(rows)} synthetic images; rates as float16 bytes; cosine and difference against float32")
    print(
        f"{'store':>14} {'MB/image':>9} {'write GB/s':>11} {'read GB/s':>10} {'verified':>9} {'memory MB':>10}"
        f" {'bound':>6} {'kind':>10} {'1 - cosine':>11} {'at most':>9} {'difference':>11}"
    )
    for dtype, compression in VARIANTS:
        place = folder / f"{dtype}-{compression}"
        store, seconds = write(place, rows, dtype, compression)
        size = sum(path.stat().st_size for path in store.shard("targets", "0").glob("*.parquet"))
        rates = []
        for verify in (False, True):
            dataset, collate = TargetDataset(store, batch_size=BATCH, verify=verify), Collate()
            batches(dataset, collate)  # warms up
            seconds_read = [measured(partial(batches, dataset, collate))[0] for _ in range(repeats)]
            rates.append(exact / statistics.median(seconds_read) / 1e9)
        dataset = TargetDataset(store, batch_size=BATCH)
        memory = f"{most_memory(dataset) / 1e6:10.0f} {dataset.most_bytes() / 1e6:6.0f}"
        head = f"{dtype + ' ' + compression:>14} {size / len(rows) / 1e6:9.3f} {exact / seconds / 1e9:11.2f}"
        head += f" {rates[0]:10.2f} {rates[1]:9.2f} {memory}"
        for kind, (mean, least, most) in errors(dataset, rows).items():
            print(f"{head:>73} {kind:>10} {1 - mean:11.1e} {1 - least:9.1e} {most:11.4f}")
            head = ""
        shutil.rmtree(place)


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_size("--rows", 128, BATCH)
    parser.add_size("--repeats", 4, 1)
    known = parser.read()
    rows = [image(number) for number in range(known.rows)]
    with TemporaryDirectory() as folder:
        speed(Path(folder), rows, known.repeats)
        variants(Path(folder), rows[: known.rows // 2], known.repeats)


if __name__ == "__main__":
    main()
