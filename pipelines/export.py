"""export: the collection as others read it.

--to files: an object's folder by its object_id, with pictures, depths and transforms.json.
--to trellis: the same by sha256 under renders_cond or renders, with TRELLIS's metadata.csv.
--to webdataset: image-text tars as the released training reads them, a folder for each split.
--to datasets: Parquet that datasets.load_dataset(DIR) opens, with a card; renders, and with --tokens the targets.

A second export into the same folder writes what changed.
"""

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from gap3d.dataset_index import Row
from gap3d.exports import folders, huggingface, trellis, webdataset
from gap3d.exports import rows as exported
from gap3d.exports.card import card
from gap3d.exports.pieces import HIDDEN, Piece, Record, due, require_own
from gap3d.lease import lease
from gap3d.parts import write_atomically
from gap3d.records import Status
from gap3d.store import Store
from gap3d.takedown import note_export
from gap3d.tars import require_room
from pipelines.command import open_store, parse, parser, require_catalog, say, sentences, stop
from pipelines.progress import progress

MIB = 1 << 20
Rows = Sequence[Row]
Planned = tuple[Record, Mapping[str, Rows]]


def objects(store: Store) -> Iterator[list[Mapping[str, Any]]]:
    """The good renders rows of each object, an object at a time."""
    for shard in store.shards:
        held = store.manifest("renders", shard)
        by_object: dict[str, list[str]] = {}
        for key, row in sorted(held.rows.items()):
            if row.status is Status.OK:
                by_object.setdefault(key.partition("/")[0], []).append(key)
        for keys in by_object.values():
            found = store.read(held, keys=keys)
            yield [found[key] for key in keys]


def export(store: Store, folder: Path) -> tuple[int, int]:
    """Write every object's folder.

    Returns:
        Numbers of objects and of pictures.
    """
    note_export(store, folder)
    count, pictures = 0, 0
    total = sum(
        len({key.partition("/")[0] for key, row in store.manifest("renders", shard).rows.items() if row.part})
        for shard in store.shards
    )
    for rows in progress(objects(store), total=total, desc="export", unit="object"):
        folders.write(folder / rows[0]["object_id"], rows)
        count, pictures = count + 1, pictures + len(rows)
    return count, pictures


def export_trellis(store: Store, folder: Path, kind: trellis.Kind) -> str:
    """TRELLIS's layout; what was done, in words."""
    taken: dict[str, str] = {}
    plans = {shard: trellis.planned(store, shard, kind, taken) for shard in store.shards}
    with begun(store, folder, kind):
        work = [(shard, piece) for shard, plan in plans.items() for piece in due(folder, plan.record)]
        room(store, folder, [(shard, plans[shard].keys[piece.path]) for shard, piece in work])
        with progress(total=sum(len(plans[s].keys[p.path]) for s, p in work), desc="export", unit="image") as bar:
            for shard, piece in work:
                bar.update(trellis.write(folder, piece, store, shard, plans[shard].keys[piece.path]))
        lines = trellis.write_metadata(folder, [line for plan in plans.values() for line in plan.lines])
    shared = sum(plan.shared for plan in plans.values())
    return (
        f"wrote {len(work)} of {sum(len(plan.keys) for plan in plans.values())} objects to {folder / kind}; "
        f"metadata.csv has {lines} lines" + (f"; {shared} objects share the bytes of another" if shared else "")
    )


def export_webdataset(store: Store, folder: Path, made: webdataset.Pictures, most: int = 512 * MIB) -> str:
    """Image-text tars; what was done, in words."""
    index = exported.indexed(store)
    chosen = {place: [row for row in rows if row.captions] for place, rows in index.items()}
    left = sum(map(len, index.values())) - sum(map(len, chosen.values()))
    plans = {
        shard: webdataset.planned(store, shard, by_split, made, most) for shard, by_split in by_shard(chosen).items()
    }

    def write(shard: str, piece: Piece, rows: Rows, done: Callable[[], object]) -> None:
        webdataset.write(folder, piece, store, shard, rows, made, done)

    told = write_pieces(store, folder, webdataset.KIND, plans, write)
    about = {made.format: made.describe(), "txt": "longest caption", "json": "list of all captions, longest first"}
    files = {split: f"{split}/*.tar" for _, split in chosen}
    use = f'load_dataset("webdataset", data_files={{"train": "{folder.name}/train/*.tar"}}, split="train")'
    write_card(store, folder, [row for rows in chosen.values() for row in rows], files, about, use)
    return told + (f"; {left} rows without a caption are not among them" if left else "")


def export_datasets(store: Store, folder: Path, *, images: bool, tokens: bool, most: int = 512 * MIB) -> str:
    """A dataset folder of the hub; what was done, in words."""
    index = exported.indexed(store)
    rows = [row for found in index.values() for row in found]
    columns = huggingface.Columns(images, exported.layout(store, rows) if tokens else None)
    plans = {
        shard: huggingface.planned(store, shard, by_split, columns, most) for shard, by_split in by_shard(index).items()
    }

    def write(shard: str, piece: Piece, rows: Rows, done: Callable[[], object]) -> None:
        huggingface.write(folder, piece, store, shard, rows, columns, done)

    told = write_pieces(store, folder, huggingface.KIND, plans, write, tokens=tokens)
    files = {split: f"data/{split}-*.parquet" for _, split in index}
    use = f'load_dataset("{folder.name}", split="train")'
    write_card(store, folder, rows, files, columns.about(), use, columns)
    return told


def by_shard(index: Mapping[tuple[str, str], Rows]) -> dict[str, dict[str, Rows]]:
    """Rows by split, by shard of the store."""
    found: dict[str, dict[str, Rows]] = {}
    for (shard, split), rows in index.items():
        found.setdefault(shard, {})[split] = rows
    return found


@contextmanager
def begun(store: Store, folder: Path, kind: str) -> Iterator[None]:
    """Hold an export's folder, which a takedown will find from now on; what is no shard's any more is removed.

    Raises:
        LeaseHeld: another program writes it.
        ValueError: it holds another export.
    """
    require_own(folder, kind, store.collection)
    note_export(store, folder)
    with lease(folder / HIDDEN, 0):
        yield


def write_pieces(
    store: Store,
    folder: Path,
    kind: str,
    plans: Mapping[str, Planned],
    write: Callable[[str, Piece, Rows, Callable[[], object]], None],
    *,
    tokens: bool = False,
) -> str:
    """Write the files that are not there yet; what was done, in words."""
    with begun(store, folder, kind):
        work = []
        for shard in store.shards:  # one that has no rows any more had some, perhaps
            record, _ = plans.get(shard, (Record(kind, store.collection, shard, {}), {}))
            work += [(shard, piece) for piece in due(folder, record)]
        wanted = [(shard, [row.key for row in plans[shard][1][piece.path]]) for shard, piece in work]
        room(store, folder, wanted, ("renders", "targets") if tokens else ("renders",))
        with progress(total=sum(len(keys) for _, keys in wanted), desc="export", unit="image") as bar:
            for shard, piece in work:
                write(shard, piece, plans[shard][1][piece.path], bar.update)
    files = [rows for _, content in plans.values() for rows in content.values()]
    return f"wrote {len(work)} of {len(files)} files with {sum(map(len, files))} rows to {folder}"


def room(
    store: Store, folder: Path, wanted: Sequence[tuple[str, Sequence[str]]], stages: Sequence[str] = ("renders",)
) -> None:
    """Prove that what is to be written fits the disk, by what it takes in the store."""
    needed = 0.0
    for stage in stages:
        for shard, keys in wanted:
            needed += len(keys) * row_bytes(store, stage, shard)
    require_room(folder, int(needed), "choose another folder (--out)")


@cache
def row_bytes(store: Store, stage: str, shard: str) -> float:
    """Mean bytes of a row in the parts of a shard."""
    paths = [store.shard(stage, shard) / part for part in store.manifest(stage, shard).parts]
    return sum(path.stat().st_size for path in paths) / max(1, sum(pq.read_metadata(path).num_rows for path in paths))


def write_card(
    store: Store,
    folder: Path,
    rows: Rows,
    files: Mapping[str, str],
    about: Mapping[str, str],
    use: str,
    columns: huggingface.Columns | None = None,
) -> None:
    """README.md, and whose work it is."""
    text = card(
        name=store.collection,
        rows=rows,
        files=files,
        features=columns.yaml() if columns else [],
        about=about,
        steps=exported.provenance(store, rows),
        targets=columns.layout if columns else None,
        use=f"from datasets import load_dataset\n\ndataset = {use}",
    )
    write_atomically(folder / "README.md", text.encode())
    write_atomically(folder / "attribution.csv", (store.folder / "attribution.csv").read_bytes())


def main() -> None:
    """The program."""
    made = parser(__doc__ or "")
    made.add_argument("--out", type=Path, required=True, help="folder to write into")
    made.add_argument(
        "--to", choices=("files", "trellis", "webdataset", "datasets"), default="files", help="the way out"
    )
    made.add_argument("--most-mib", type=int, default=512, help="webdataset, datasets: a file has at most so many MiB")
    made.add_argument("--format", choices=("jpg", "png"), default="jpg", help="webdataset: pictures")
    made.add_argument("--jpeg-quality", type=int, default=95, help="webdataset: of JPEG, 95 to 100")
    made.add_argument("--renders-as", choices=("renders_cond", "renders"), help="trellis: default by the protocol")
    made.add_argument("--tokens", action="store_true", help="datasets: with CLS, register and patch tokens")
    made.add_argument("--without-images", action="store_true", help="datasets: without the renders")
    known, settings = parse(made)
    signal.signal(signal.SIGTERM, stop)
    with sentences(made):
        store = open_store(settings)
        require_catalog(store)
        folder, most = known.out.expanduser().absolute(), known.most_mib * MIB
        if known.to == "files":
            count, pictures = export(store, folder)
            say(f"wrote {pictures} pictures of {count} objects to {known.out}")
        elif known.to == "trellis":
            say(export_trellis(store, folder, known.renders_as or trellis.kind_of(settings.views.protocol)))
        elif known.to == "webdataset":
            how = webdataset.Pictures(known.format, known.jpeg_quality, settings.limits.pixels)
            say(export_webdataset(store, folder, how, most))
        else:
            say(export_datasets(store, folder, images=not known.without_images, tokens=known.tokens, most=most))


if __name__ == "__main__":
    main()
