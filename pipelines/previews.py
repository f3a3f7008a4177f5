"""previews: HTML reports and a contact sheet of what is committed.

Writes index.html, shard-*.html and contact_sheet.jpg; of a collection of images, the contact sheet alone. The pages
need no network and no server: open them from disk.
"""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from gap3d.contact_sheet import MOST_VIEWS, TILE, Tile, contact_sheet, tile_of
from gap3d.entries import pictures, shard_entries
from gap3d.parts import write_atomically
from gap3d.records import Status
from gap3d.settings import Settings
from gap3d.store import Store
from pipelines import images, pages
from pipelines.command import open_store, parse, parser, require_catalog, say, sentences

SHEET = "contact_sheet.jpg"


def shard_tiles(store: Store, shard: str, first: int = 24) -> list[Tile]:
    """Tiles of one shard's objects, good ones first."""
    entries = shard_entries(store, shard)[:first]
    wanted = [key for entry in entries for key in entry.keys(MOST_VIEWS)]
    pngs = {row["key"]: row["png"] for row in pictures(store.manifest("renders", shard), store, wanted)}
    return [tile_of(entry, pngs) for entry in entries]


def image_tiles(store: Store, settings: Settings, shard: str, first: int = 24) -> list[Tile]:
    """Tiles of one shard's images, good ones first: those that were encoded; of the others what became of them."""
    held, encoded = store.manifest(images.STAGE, shard), store.manifest("targets", shard)
    rows = {key: encoded.rows.get(key, row) for key, row in held.rows.items()}
    chosen = sorted(rows, key=lambda key: (rows[key].status != Status.OK, key))[:first]
    names = {key: row["identifier"] for key, row in store.read(held, ["identifier"], chosen).items()}
    good = [key for key in chosen if key in encoded.rows and rows[key].status is Status.OK]
    small = {
        key: thumbnail_png(found, settings.limits.pixels)
        for key, found in images.pictures(store, settings, shard, good)
    }
    made = []
    for key in chosen:
        name = names.get(key, key)
        state = str(rows[key].status) if key in encoded.rows else "not encoded"
        shown = [small[key]] if key in small else []
        made.append(
            Tile(name.partition("#")[2] or name, shown, [], [], -1, state if shown or key not in good else "gone")
        )
    return made


def thumbnail_png(image: bytes, pixel_limit: int) -> bytes:
    """A small PNG of an image that was decoded before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # it is within our own limit
        picture = Image.open(io.BytesIO(image))
    if picture.width * picture.height > pixel_limit:
        raise ValueError(f"an image of {picture.width} x {picture.height} pixels, the limit is {pixel_limit}")
    picture.draft("RGB", (TILE, TILE))  # a JPEG is decoded at a fraction of its size
    picture.thumbnail((TILE, TILE))
    file = io.BytesIO()
    picture.convert("RGBA").save(file, "PNG")
    return file.getvalue()


def images_sheet(store: Store, settings: Settings, limit: int = 48) -> bytes:
    """The contact sheet of a collection of images, JPEG."""
    most = -(-limit // len(store.shards))
    tiles = [tile for shard in store.shards for tile in image_tiles(store, settings, shard, most)]
    return contact_sheet(sorted(tiles, key=lambda tile: tile.status != "ok"), columns=8, limit=limit)


def collection_sheet(store: Store, shards: Sequence[str], limit: int = 48) -> bytes:
    """The contact sheet of several shards, JPEG."""
    tiles = [tile for shard in shards for tile in shard_tiles(store, shard, limit)]
    good_first = sorted(tiles, key=lambda tile: (tile.status != "ok", tile.name))
    return contact_sheet(good_first, columns=8, limit=limit)


def shard_report(store: Store, settings: Settings, shard: str) -> Path:
    """A shard's HTML report in the collection's folder, brought up to date."""
    folder = store.folder / pages.FOLDER
    return pages.write_shard(store, settings, shard, folder, pages.INDEX if (folder / pages.INDEX).exists() else "")


def write_reports(store: Store, settings: Settings, folder: Path | None = None) -> list[Path]:
    """All HTML reports and the contact sheet, the collection's page first.

    Args:
        store: the collection.
        settings: limits, and what the encoder is.
        folder: where to; by default ``reports`` in the collection's folder.
    """
    folder = folder or store.folder / pages.FOLDER
    if settings.pictures == "images":
        write_atomically(folder / SHEET, images_sheet(store, settings))
        return [folder / SHEET]
    made = [pages.write_shard(store, settings, shard, folder, pages.INDEX) for shard in store.shards]
    index = pages.write_index(store, settings, folder)
    write_atomically(folder / SHEET, collection_sheet(store, store.shards))
    return [index, *made, folder / SHEET]


def main() -> None:
    """The program."""
    made = parser(__doc__ or "")
    made.add_argument("--out", type=Path, help="folder (default: reports in the collection's folder)")
    known, settings = parse(made)
    with sentences(made):
        store = open_store(settings)
        require_catalog(store)
        paths = write_reports(store, settings, known.out.absolute() if known.out else None)
        pages_of_shards = f", {len(paths) - 2} pages of shards and {paths[-1].name}" if len(paths) > 1 else ""
        say(f"wrote {paths[0]}{pages_of_shards}")


if __name__ == "__main__":
    main()
