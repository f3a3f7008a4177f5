"""previews: HTML reports and a contact sheet of what is committed.

Writes index.html, shard-*.html and contact_sheet.jpg. The pages need no network and no server: open them from disk.
"""

from collections.abc import Sequence
from pathlib import Path

from gap3d.entries import pictures, shard_entries
from gap3d.parts import write_atomically
from gap3d.report import MOST_VIEWS, Tile, contact_sheet, tile_of
from gap3d.settings import Settings
from gap3d.store import Store
from pipelines import pages
from pipelines.command import open_store, parse, parser, require_catalog, say, sentences

SHEET = "contact_sheet.jpg"


def shard_tiles(store: Store, shard: str, first: int = 24) -> list[Tile]:
    """Tiles of one shard's objects, good ones first."""
    entries = shard_entries(store, shard)[:first]
    wanted = [key for entry in entries for key in entry.keys(MOST_VIEWS)]
    pngs = {row["key"]: row["png"] for row in pictures(store.manifest("renders", shard), store, wanted)}
    return [tile_of(entry, pngs) for entry in entries]


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
        say(f"wrote {paths[0]}, {len(paths) - 2} pages of shards and {paths[-1].name}")


if __name__ == "__main__":
    main()
