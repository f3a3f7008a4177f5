"""Ways out beside plain files: ``python -m benchmarks.exports``; it writes where ``TMPDIR`` says.

A store with renders of 512 pixels and the tokens of ViT-L at 518 goes out as tars and as a dataset folder, and is
verified. Beside each, in the same run: a plain write with fsync of the same bytes, the JPEG work alone, the statistics
of tokens that lie in memory. Medians of the ratios; reads are from the page cache.
"""

import io
import os
import shutil
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks._arguments import Arguments
from benchmarks._timing import ratio, timed
from benchmarks.parts import LAYOUT
from gap3d import schemas
from gap3d.audit import Audit, Statistics, look_at_tokens
from gap3d.exports.webdataset import Pictures
from gap3d.features.tokens import targets_from_prenorm
from gap3d.moments import round_off
from gap3d.records import Outcome
from gap3d.settings import ComputeSettings, Limits
from gap3d.store import ALL, Store
from pipelines.export import export_datasets, export_webdataset

SIDE = 512
TOGETHER = ComputeSettings(flush_rows=10**6, flush_s=1e6, part_bytes=1 << 40)
WANTED = {"tars of png": 0.4, "tars of jpg": 0.8, "images and tokens": 0.4, "token statistics": 0.8}


def render(number: int, rng: np.random.Generator) -> bytes:
    """A textured ball on nothing, as PNG: some 200 KB, like a render of a textured object."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    z = np.sqrt(np.clip(0.6 - x**2 - y**2, 0, None))
    shade = 200 * z[..., None] * (0.7 + 0.3 * np.sin(9 * x + number)[..., None]) * rng.uniform(0.4, 1, 3)
    texture = rng.normal(0, 3, (SIDE, SIDE, 3))
    alpha = np.where(z > 0, 255, 0)[..., None]
    rgba = np.concatenate([np.clip(shade + texture, 0, 255) * (alpha > 0), alpha], -1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(rgba).save(file, "PNG")
    return file.getvalue()


def commit(
    store: Store, stage: str, shard: str, schema: schemas.StageSchema, rows: dict[str, dict], **about: Any
) -> None:
    inputs = {"settings": "", "engine": ""}
    with store.writer(stage, shard, schema, TOGETHER, Limits(), about) as writer:
        for key, data in rows.items():
            render = {"render": store.manifest("renders", shard).rows[key].digest} if stage == "targets" else {}
            writer.add(Outcome(stage=stage, key=key, data=data), {**inputs, **render})
        writer.finish(set(rows))


def make(folder: Path, count: int) -> tuple[Store, list[bytes], torch.Tensor]:
    """The store, its pictures, and its tokens [rows, T, C]."""
    rng = np.random.default_rng(0)
    store = Store(folder, "bench", 1)
    keys = [f"{number:032x}/000" for number in range(count)]
    pngs = [render(number, rng) for number in range(count)]
    blank = dict.fromkeys(schemas.RENDERS.columns.names)
    del blank["key"]
    views = {key.partition("/")[0]: dict.fromkeys(schemas.VIEWS.columns.names[1:]) for key in keys}
    commit(store, "views", "0", schemas.VIEWS, views)
    rows = {key: {**blank, "png": png, "width": SIDE, "height": SIDE} for key, png in zip(keys, pngs, strict=True)}
    commit(store, "renders", "0", schemas.RENDERS, rows)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.stack(
        [targets_from_prenorm(torch.randn(LAYOUT.count, LAYOUT.width, generator=generator)).half() for _ in keys]
    )
    schema = schemas.targets(LAYOUT.registers, LAYOUT.patches, LAYOUT.width)
    rows = {}
    for key, each in zip(keys, tokens.numpy(), strict=True):
        about = {"object_id": key.partition("/")[0], "view": 0, "cls": each[0].astype(np.float32)}
        rows[key] = {**about, "registers": each[1 : 1 + LAYOUT.registers], "patches": each[1 + LAYOUT.registers :]}
    encoder = {"trained": False, "label": "UNTRAINED", "preprocessing": {}}
    commit(store, "targets", "0", schema, rows, tokens=LAYOUT.describe("float16"), encoder=encoder)
    held, rows = store.manifest("targets", "0"), {}
    for rank, key in enumerate(keys):
        where = {"target_shard": "0", "target_part": held.rows[key].part, "target_row": held.rows[key].part_row}
        about = {"object_id": key.partition("/")[0], "view": 0, "captions": ["a ball", "a textured ball"], "rank": rank}
        texts = {"split": "train", "licence": "none", "source": "bench", "identifier": key}
        rows[key] = {**about, **texts, "target": held.rows[key].digest, **where}
    commit(store, "dataset", ALL, schemas.DATASET, rows)
    (store.folder / "attribution.csv").write_text("object_id\n")
    return store, pngs, tokens


def plain(path: Path, files: list[Path]) -> float:
    """Seconds to write the bytes of these files as one, with fsync."""
    content = [file.read_bytes() for file in files]

    def write() -> None:
        with path.open("wb") as file:
            for each in content:
                file.write(each)
            file.flush()
            os.fsync(file.fileno())

    return timed(write)


def jpegs(pngs: list[bytes]) -> float:
    """Seconds to make the JPEGs alone, in as many threads."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return timed(lambda: list(pool.map(Pictures().encode, pngs)))


def statistics_alone(tokens: torch.Tensor) -> float:
    """Seconds for the statistics of tokens in memory, a row group at a time."""
    found = Statistics("patches", round_off("float16", LAYOUT.width))

    def add() -> None:
        for start in range(0, len(tokens), 8):
            found.add([""] * len(tokens[start : start + 8]), tokens[start : start + 8])

    return timed(add)


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_size("--rows", 128, 8)
    parser.add_size("--repeats", 3, 1)
    known = parser.read()
    seconds: dict[str, list[float]] = {name: [] for name in WANTED}
    of: dict[str, list[float]] = {name: [] for name in WANTED}
    with TemporaryDirectory() as made:
        root = Path(made)
        store, pngs, tokens = make(root / "store", known.rows)
        held, size = store.manifest("targets", "0"), tokens.nbytes / 1e9
        out = root / "out"
        ways = {
            "tars of png": lambda: export_webdataset(store, out / "png", Pictures("png")),
            "tars of jpg": lambda: export_webdataset(store, out / "jpg", Pictures()),
            "images and tokens": lambda: export_datasets(store, out / "hub", images=True, tokens=True),
            "token statistics": lambda: look_at_tokens(Audit(), store, held, lambda _: None),
        }
        for repeat in range(known.repeats + 1):
            took = {name: timed(work) for name, work in ways.items()}
            beside = {
                "tars of png": plain(root / "plain", list((out / "png").rglob("*.tar"))),
                "tars of jpg": jpegs(pngs),
                "images and tokens": plain(root / "plain", list((out / "hub").rglob("*.parquet"))),
                "token statistics": statistics_alone(tokens),
            }
            shutil.rmtree(out)
            for name in took if repeat else ():  # the first warms up
                seconds[name].append(took[name])
                of[name].append(beside[name])
    print(f"{known.rows} rows, PNG of {statistics.mean(map(len, pngs)) / 1e3:.0f} KB, {size:.2f} GB of tokens")
    print(f"{'':>18} {'rows/s':>8} {'of':>6} {'wanted':>7}  what")
    whats = ("a plain write", "the JPEG work alone", "a plain write", "the same in memory")
    for name, what in zip(WANTED, whats, strict=True):
        rate, reached = known.rows / statistics.median(seconds[name]), ratio(of[name], seconds[name])
        print(f"{name:>18} {rate:8.0f} {reached:6.2f} {WANTED[name]:7.1f}  {what}")


if __name__ == "__main__":
    main()
