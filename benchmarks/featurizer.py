"""The targets stage beside its encoder, and what feeds and takes from it: ``python -m benchmarks.featurizer``.

1. The stage end to end (read, decode, encode, hash, write, commit) against the encoder alone on the same pixels, in the
   same run: the encoder alone on one half of the images before the stage, and on the other half after it. An encoder
   of ViT-L's size with UNTRAINED random weights, at 518 pixels. Wanted: 0.95.
2. Feeder: images a second that one core reads, decodes and resizes to 518, of bundled objects rendered at 512 pixels as
   PNG (in a renders part) and as JPEG (in a tar); what one core packs and hashes; what the writer commits; what comes
   through Ray's shared memory. All against the 584 images a second that an H200 asks for at 0.6 of its peak.
3. What a shard costs beside its images: many shards of one image against one shard of as many.
"""

import hashlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks._arguments import Arguments
from benchmarks._objects import files, model, objects
from benchmarks._timing import ratio, timed
from benchmarks.parts import LAYOUT
from gap3d import fingerprints, images, schemas, tars
from gap3d.cameras import look_at_origin
from gap3d.features.encoders import UNTRAINED_MARK, load_encoder
from gap3d.features.images import to_uint8
from gap3d.features.tokens import pack
from gap3d.parts import read_rows
from gap3d.records import Failure, Outcome
from gap3d.settings import ComputeSettings, Limits, RenderSettings, Settings
from gap3d.store import Store
from pipelines import targets
from pipelines.cluster import RayPool
from pipelines.command import load_settings
from pipelines.featurizer import Featurizer
from pipelines.worker import Broken, Resources
from render.job import View
from render.worker import Blender

H200 = 584.0  # images a second at 0.6 of its bfloat16 peak
SIDE = 512
VIEW = View(look_at_origin(30.0, 30.0, 2.0), 40.0)
SIZES = {"large": (1024, 24, 16), "base": (768, 12, 12), "small": (384, 12, 6)}  # width, layers, heads
READY: list[float] = []


class Timed(Featurizer):
    """Says when it was ready: what comes before is loading."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        READY.append(time.perf_counter())


class Sender:
    """A worker that answers with rows of ViT-L's size, as bytes or as arrays over them."""

    def __init__(self) -> None:
        self.row = os.urandom(2 * LAYOUT.patches * LAYOUT.width)

    def process(self, payload: tuple[str, int]) -> list[Outcome]:
        way, count = payload
        cell = self.row if way == "bytes" else np.frombuffer(self.row, np.uint8)
        return [Outcome(key=str(index), data={"patches": cell}) for index in range(count)]

    def probe(self) -> None:
        """Nothing can be wrong with it."""

    def close(self) -> None:
        """Nothing is held."""


def rendered(folder: Path, count: int) -> list[bytes]:
    """The first so many objects of a folder as 512-pixel PNGs."""
    found: list[bytes] = []
    with Blender(Limits(), 1, trees=folder) as blender:
        for path in files(folder, sys.maxsize):
            try:
                blender.load(model(path))
                found.append(blender.render(VIEW, RenderSettings(resolution=SIDE, samples=8, prefilter="fast")).png)
            except Failure:
                continue
            if len(found) == count:
                return found
    sys.exit(
        f"only {len(found)} objects of {folder} could be rendered, and {count} are needed: see --folder, --objects"
    )


def as_jpeg(png: bytes) -> bytes:
    """On black, at the quality that photographs usually have."""
    with Image.open(io.BytesIO(png)) as picture:
        flat = Image.new("RGB", picture.size)
        flat.paste(picture, mask=picture.getchannel("A"))
    file = io.BytesIO()
    flat.save(file, "JPEG", quality=90)
    return file.getvalue()


def write_renders(settings: Settings, pngs: list[bytes], shards: list[str]) -> None:
    """A renders stage with these pictures, dealt out to the shards."""
    store = Store(settings.store, settings.collection, settings.catalog.shards)
    blank = {name: None for name in schemas.RENDERS.columns.names if name != "key"}
    for number, shard in enumerate(shards):
        mine = pngs[number :: len(shards)]
        with store.writer("renders", shard, schemas.RENDERS, settings.compute, settings.limits) as writer:
            keys = {f"{shard}-{index}/000": png for index, png in enumerate(mine)}
            for key, png in keys.items():
                data = {**blank, "object_id": key.partition("/")[0], "view": 0, "png": png}
                writer.add(Outcome(stage="renders", key=key, data=data), {})
            writer.finish(set(keys))


def settings_for(root: Path, encoder: str, shards: int, **values: object) -> Settings:
    """A collection of its own, computed in this process."""
    features = {"encoder": encoder, "image_size": 518, **values}
    compute = {"workers": 0, "encoder_threads": os.cpu_count() or 1}
    return load_settings(
        "demo", store=root, collection=f"shards-{shards}", catalog={"shards": shards}, targets=features, compute=compute
    )


def save_untrained(folder: Path, size: str) -> None:
    """An encoder of a known size with random weights, marked as such."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    width, layers, heads = SIZES[size]
    config = Dinov2WithRegistersConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, patch_size=14, image_size=518
    )
    setattr(config, UNTRAINED_MARK, True)
    Dinov2WithRegistersModel(config).save_pretrained(folder)


def end_to_end(root: Path, pngs: list[bytes], size: str, side: int, dtype: str, count: int) -> None:
    """Part 1."""
    save_untrained(root / "encoder", size)
    settings = settings_for(root / "store", str(root / "encoder"), 1, dtype=dtype, image_size=side)
    chosen = [pngs[index % len(pngs)] for index in range(count)]
    write_renders(settings, chosen, ["0"])
    targets.make_job(settings)  # the weights are hashed once, and the hash is kept
    pixels = [to_uint8(png, settings.targets, settings.limits.pixels)[None] for png in chosen]

    def alone(half: list[np.ndarray]) -> float:
        with ThreadPoolExecutor(1) as thread:  # the team of OpenMP's that it gets ends with it
            return thread.submit(encoding, half).result()

    def encoding(half: list[np.ndarray]) -> float:
        encoder = load_encoder(settings.targets, threads=settings.compute.encoder_threads)
        encoder.encode(half[0])
        return timed(lambda: [encoder.encode(each) for each in half])

    targets.Featurizer = Timed  # type: ignore[misc]
    before = alone(pixels[: count // 2])
    started = time.perf_counter()
    report = targets.run(settings, ["0"])
    ended = time.perf_counter()
    after = alone(pixels[count // 2 :])
    assert report.by_status("targets") == {"ok": count}
    busy, costs = report.utilisation("targets"), report.of("targets", "0").costs
    stage, load = ended - READY[-1], READY[-1] - started
    print(f"ViT-{size} (untrained), {side} pixels, {dtype}, {count} images, {torch.get_num_threads()} threads")
    print(f"  encoder alone     {count / (before + after):8.3f} images/s")
    print(
        f"  stage end to end  {count / stage:8.3f} images/s  {ratio([before + after], [stage]):6.3f} of it, wanted 0.95"
    )
    print(f"  {busy}; loading {load:.1f} s, once a run")
    kinds = ("decode", "pack", "write", "commit")
    print("  seconds an image: " + ", ".join(f"{name} {costs[name] / count:.4f}" for name in kinds))


def rate(call: Callable[[int], object], seconds: float) -> float:
    """Calls a second, by the lower quartile of their times: other programs on the machine lengthen some of them."""
    call(0)
    times: list[float] = []
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        times.append(timed(lambda: call(len(times))))
    return 1 / float(np.quantile(times, 0.25))


def row(name: str, images_s: float, note: str = "") -> None:
    """A line of part 2."""
    print(f"  {name:<44} {images_s:8.1f}  {H200 / images_s:8.2f}  {note}")


def feeder(root: Path, pngs: list[bytes], seconds: float, rows: int) -> None:
    """Part 2: of one core, but for the writer. So many ``rows`` are written, and twice as many come through Ray."""
    settings = settings_for(root / "feeder", "random-small", 1)
    limit = settings.limits.pixels
    write_renders(settings, [pngs[index % len(pngs)] for index in range(64)], ["0"])
    (part,) = (root / "feeder" / settings.collection / "renders" / "0").glob("[0-9a-f]*.parquet")
    at_once = 64

    def read(_: int) -> list[bytes]:
        return read_rows(part, range(at_once), ["png"]).column("png").to_pylist()

    tar = root / "pictures.tar"
    jpegs = [as_jpeg(png) for png in pngs]
    tars.write(tar, ({"__key__": f"{n:06d}", "jpg": each, "txt": b""} for n, each in enumerate(jpegs)))
    spans = [sample.members["jpg"] for sample in tars.samples(tar)]
    places = [
        images.Place(tar.name, span.offset, span.size, hashlib.sha256(each).hexdigest())
        for span, each in zip(spans, jpegs, strict=True)
    ]
    torch.set_num_threads(1)
    tokens = torch.randn(LAYOUT.count, LAYOUT.width)
    packed = np.frombuffer(pack(tokens, "float16"), np.uint8)
    kinds = [("PNG from a renders part", pngs, rate(read, seconds) * at_once)]
    reading_jpegs = rate(lambda n: images.read_bytes(root, places[n % len(places)]), seconds)
    kinds.append(("JPEG from a tar", jpegs, reading_jpegs))
    print(f"\n  {'of one core':<44} {'images/s':>8}  {'cores for 584':>8}")
    for name, pictures, reading in kinds:
        row(f"{name}: read", reading, f"{np.mean([len(each) for each in pictures]) / 1e3:.0f} kB an image")
        try:
            decoding = rate(lambda n: to_uint8(pictures[n % len(pictures)], settings.targets, limit), seconds)  # noqa: B023
        except Failure as failure:
            print(f"  {name}: {failure}")
            continue
        row(f"{name}: decode, resize to 518", decoding)
        row(f"{name}: together", 1 / (1 / reading + 1 / decoding))
    row("rows: pack to float16", rate(lambda _: pack(tokens, "float16"), seconds))
    row("rows: hash", rate(lambda _: fingerprints.row_digest("ok", {"patches": packed}), seconds))
    torch.set_num_threads(os.cpu_count() or 1)
    gigabytes = writer_rate(root, packed, rows)
    row("writer, of one run: write, fsync, commit", gigabytes * 1e9 / packed.nbytes, f"{gigabytes:.2f} GB/s, not cores")
    plain = plain_rate(root, packed, rows)
    row("the same bytes as one plain file, fsync", plain * 1e9 / packed.nbytes, f"{plain:.2f} GB/s, not cores")
    for way, per_s in ray_rates(max(1, rows // 8)):
        row(f"through Ray as {way}", per_s, f"{per_s * packed.nbytes / 1e9:.2f} GB/s, one worker to the run")


def writer_rate(root: Path, packed: np.ndarray, count: int) -> float:
    """GB a second of rows that are hashed already, into one part, committed."""
    cells = {"registers": packed[: 2 * LAYOUT.registers * LAYOUT.width]}
    cells["patches"] = packed[-2 * LAYOUT.patches * LAYOUT.width :]
    schema = schemas.targets(LAYOUT.registers, LAYOUT.patches, LAYOUT.width)
    store = Store(root / "writer", "bench", 1)
    data = {"object_id": "", "view": 0, "cls": np.zeros(LAYOUT.width, np.float32), **cells}
    compute = ComputeSettings()
    started = time.perf_counter()
    with store.writer("targets", "0", schema, compute, Limits()) as writer:
        for index in range(count):
            writer.add(Outcome(stage="targets", key=f"{index}/000", data=data, digest=f"{index:032x}"), {})
        writer.finish({f"{index}/000" for index in range(count)})
    return count * packed.nbytes / 1e9 / (time.perf_counter() - started)


def plain_rate(root: Path, packed: np.ndarray, count: int) -> float:
    """GB a second of a plain file: what the disk takes."""
    started = time.perf_counter()
    with (root / "plain").open("wb") as file:
        for _ in range(count):
            file.write(packed.data)
        file.flush()
        os.fsync(file.fileno())
    return count * packed.nbytes / 1e9 / (time.perf_counter() - started)


def ray_rates(items: int, rows: int = 16) -> Iterator[tuple[str, float]]:
    """Rows a second that come from one worker to the run, and are touched there."""
    pool = RayPool(Sender, Resources(1, ahead=targets.AHEAD), 60.0)
    list(pool.run([("arrays", 1)], lambda item: item))
    for way in ("bytes", "arrays"):
        started = time.perf_counter()
        for _, outcomes in pool.run([(way, rows)] * items, lambda item: item):
            assert not isinstance(outcomes, Broken), outcomes.reason
            assert sum(outcome.data["patches"][-1] for outcome in outcomes if outcome.data) >= 0
        yield way, rows * items / (time.perf_counter() - started)
    pool.close()


def fixed_cost(root: Path, pngs: list[bytes], count: int) -> None:
    """Part 3."""
    seconds: dict[int, list[float]] = {}
    for shards in (1, count, 1, count):
        settings = settings_for(root / f"fixed-{len(seconds)}-{shards}", "random-small", shards, image_size=56)
        names = fingerprints.shard_keys(shards)
        write_renders(settings, [pngs[index % len(pngs)] for index in range(count)], names)
        started = time.perf_counter()
        report = targets.run(settings, names)
        seconds.setdefault(shards, []).append(time.perf_counter() - started)
        assert report.count("computed") == count
    each = (min(seconds[count]) - min(seconds[1])) / (count - 1)
    whole = 64 * each
    print(
        f"\n  a shard costs {each * 1e3:.1f} ms beside its images ({count} shards of one image against one of {count})"
    )
    share = whole / (60_000 / H200 + whole)
    print(f"  60,000 images in 64 shards at {H200:.0f} images/s: {share:.1%} of the time, wanted at most 5 %")


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_size("--size", "large", "small", "of the encoder", choices=SIZES)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_size("--side", 518, 112, "of its images")
    parser.add_size("--images", 12, 2)
    parser.add_size("--objects", 6, 2, "that are rendered for the pictures")
    parser.add_size("--seconds", 3.0, 0.05, "that each rate of part 2 is measured")
    parser.add_size("--rows", 192, 16, "that are written in part 2")
    parser.add_size("--shards", 64, 4, "of part 3")
    parser.add_argument("--parts", default="123", help="which of the three")
    parser.add_argument("--pictures", type=Path, help="keep the rendered objects here")
    known = parser.read()
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        kept = known.pictures or root / "pictures"
        if not kept.is_dir():
            with objects(known.folder) as folder:
                pngs = rendered(folder, known.objects)
            kept.mkdir(parents=True)
            for number, png in enumerate(pngs):
                (kept / f"{number}.png").write_bytes(png)
        pngs = [path.read_bytes() for path in sorted(kept.glob("*.png"))]
        if "1" in known.parts:
            end_to_end(root, pngs, known.size, known.side, known.dtype, known.images)
        if "2" in known.parts:
            feeder(root, pngs, known.seconds, known.rows)
        if "3" in known.parts:
            fixed_cost(root, pngs, known.shards)


if __name__ == "__main__":
    main()
