"""export: renders as files, one folder an object with its pictures and transforms.json, as TRELLIS lays them out."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gap3d.parts import write_atomically
from gap3d.records import Status
from gap3d.store import Store
from gap3d.takedown import note_export
from gap3d.transforms import transforms
from pipelines.command import open_store, parse, parser, require_catalog, say, sentences
from pipelines.progress import progress


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
    """Write every object's folder; transforms.json comes last, so that a folder with one is whole.

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
        place = folder / rows[0]["object_id"]
        (place / "transforms.json").unlink(missing_ok=True)  # of an earlier export, whose pictures now go
        named = {f"{row['view']:03d}.png" for row in rows}
        named |= {f"{row['view']:03d}_depth.png" for row in rows if row["depth"]}
        for picture in place.glob("[0-9][0-9][0-9]*.png"):
            if picture.name not in named:
                picture.unlink()
        for row in rows:
            write_atomically(place / f"{row['view']:03d}.png", row["png"])
            if row["depth"]:
                write_atomically(place / f"{row['view']:03d}_depth.png", row["depth"])
        write_atomically(place / "transforms.json", json.dumps(transforms(rows), indent=1).encode())
        count, pictures = count + 1, pictures + len(rows)
    return count, pictures


def main() -> None:
    """The program."""
    made = parser(__doc__ or "")
    made.add_argument("--out", type=Path, required=True, help="folder to write into")
    known, settings = parse(made)
    with sentences(made):
        store = open_store(settings)
        require_catalog(store)
        count, pictures = export(store, known.out.absolute())
        say(f"wrote {pictures} pictures of {count} objects to {known.out}")


if __name__ == "__main__":
    main()
