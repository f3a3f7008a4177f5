"""Target parts beside plain files: ``python -m benchmarks.parts``; it writes where ``TMPDIR`` says.

Writes and reads the tokens of ViT-L at 518 (2.8 MB an image): our parts, the same bytes as one plain file,
and one compressed npz per object, which is what the peers do. Interleaved repeats; medians of the ratios.
Reads are from the page cache: all three from the same place in the same run.
"""

import os
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks._arguments import Arguments
from benchmarks._timing import ratio
from gap3d import schemas
from gap3d.features import tokens
from gap3d.records import Outcome
from gap3d.settings import ComputeSettings, Limits
from gap3d.store import Store
from gap3d.target_parts import read_targets

LAYOUT = tokens.TokenLayout(registers=4, grid=(37, 37), width=1024)


def write_part(folder: Path, rows: list[np.ndarray]) -> float:
    """Seconds to commit rows as a part, digests and manifest included."""
    store = Store(folder, "bench", 1)
    schema = schemas.targets(LAYOUT.registers, LAYOUT.patches, LAYOUT.width)
    started = time.perf_counter()
    with store.writer(
        "targets",
        "0",
        schema,
        ComputeSettings(flush_rows=10**6, flush_s=1e6, part_bytes=1 << 40),
        Limits(),
        {"tokens": LAYOUT.describe("float16")},
    ) as writer:
        for index, row in enumerate(rows):
            data = {
                "object_id": str(index),
                "view": 0,
                "cls": row[0].astype(np.float32),
                "registers": row[1 : 1 + LAYOUT.registers],
                "patches": row[1 + LAYOUT.registers :],
            }
            writer.add(Outcome(stage="targets", key=f"{index}/000", data=data), {})
        writer.finish({f"{index}/000" for index in range(len(rows))})
    return time.perf_counter() - started


def read_part(folder: Path) -> float:
    """Seconds to read all tokens into torch tensors and touch every number's page."""
    store = Store(folder, "bench", 1)
    started = time.perf_counter()
    total = 0
    for batch in read_targets(store, "0"):
        total += sum(
            int(tensor.view(torch.int16).flatten()[::2048].sum()) for tensor in (batch.registers, batch.patches)
        )
    assert total != 0
    return time.perf_counter() - started


def write_plain(path: Path, rows: list[np.ndarray]) -> float:
    """Seconds to write the same bytes, then fsync."""
    started = time.perf_counter()
    with path.open("wb") as file:
        for row in rows:
            file.write(row.data)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - started


def read_plain(path: Path) -> float:
    """Seconds to read a file into memory, a row at a time."""
    size = LAYOUT.count * LAYOUT.width * 2
    buffer = bytearray(size)
    started = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - started


def write_npz(folder: Path, rows: list[np.ndarray]) -> float:
    """Seconds to write one compressed npz per object."""
    folder.mkdir()
    started = time.perf_counter()
    for index, row in enumerate(rows):
        np.savez_compressed(folder / f"{index}.npz", tokens=row)
    return time.perf_counter() - started


def read_npz(folder: Path) -> float:
    """Seconds to read them into torch tensors."""
    started = time.perf_counter()
    for path in sorted(folder.iterdir()):
        torch.from_numpy(np.load(path)["tokens"])
    return time.perf_counter() - started


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_size("--rows", 256, 4)
    parser.add_size("--repeats", 5, 1)
    known = parser.read()
    rng = np.random.default_rng(0)
    rows = [
        rng.standard_normal((LAYOUT.count, LAYOUT.width), dtype=np.float32).astype(np.float16)
        for _ in range(known.rows)
    ]
    size = sum(row.nbytes for row in rows) / 1e9
    few = rows[: max(1, known.rows // 16)]  # npz is so slow that a sixteenth tells
    seconds: dict[str, list[float]] = {}
    for repeat in range(known.repeats + 1):
        with TemporaryDirectory() as made:
            folder = Path(made)
            one = {
                "write part": write_part(folder / "store", rows),
                "write plain": write_plain(folder / "plain", rows),
                "write npz": write_npz(folder / "npz", few) * len(rows) / len(few),
                "read part": read_part(folder / "store"),
                "read plain": read_plain(folder / "plain"),
                "read npz": read_npz(folder / "npz") * len(rows) / len(few),
            }
        if repeat:  # the first warms up
            for name, value in one.items():
                seconds.setdefault(name, []).append(value)
    print(f"{known.rows} rows of {rows[0].nbytes / 1e6:.2f} MB, {known.repeats} repeats")
    print(f"{'':>12} {'GB/s':>8} {'of plain':>9} {'wanted':>7}")
    for kind, wanted in (("write", 0.4), ("read", 0.6)):
        for way in ("plain", "part", "npz"):
            name = f"{kind} {way}"
            reached = ratio(seconds[f"{kind} plain"], seconds[name])
            goal = f"{wanted:7.1f}" if way == "part" else ""
            print(f"{name:>12} {size / statistics.median(seconds[name]):8.2f} {reached:9.3f} {goal}")


if __name__ == "__main__":
    main()
