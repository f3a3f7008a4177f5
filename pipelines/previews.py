"""previews: the contact sheet of a shard or of the whole collection, as it is committed."""

from collections.abc import Sequence
from pathlib import Path

from gap3d.parts import write_atomically
from gap3d.report import Tile, contact_sheet, tiles_of
from gap3d.store import Store
from pipelines.command import open_store, parse, parser, require_catalog, say, sentences


def shard_tiles(store: Store, shard: str, first: int = 24) -> list[Tile]:
    """Tiles of one shard's objects."""
    renders, views = store.manifest("renders", shard), store.manifest("views", shard)
    source = renders if renders.rows else views
    statuses = {key.partition("/")[0]: row.status.value for key, row in source.rows.items()}
    if not renders.rows:
        statuses = {key: "not rendered" if status == "ok" else status for key, status in statuses.items()}
    catalog = store.read(store.manifest("catalog", shard), ["identifier"])
    chosen = sorted(
        statuses, key=lambda key: (statuses[key] != "ok", str(catalog.get(key, {}).get("identifier", key)))
    )[:first]
    pictures = store.read(renders, ["png"], [key for key in renders.rows if key.partition("/")[0] in chosen])
    return tiles_of(
        catalog,
        {key: statuses[key] for key in chosen},
        store.read(views, ["yaws", "counts", "points", "chosen"]),
        {key.partition("/")[0]: row["png"] for key, row in pictures.items()},
        first,
    )


def collection_sheet(store: Store, shards: Sequence[str], limit: int = 48) -> bytes:
    """The contact sheet of several shards, JPEG."""
    tiles = [tile for shard in shards for tile in shard_tiles(store, shard, limit)]
    good_first = sorted(tiles, key=lambda tile: (tile.status != "ok", tile.name))
    return contact_sheet(good_first, columns=8, limit=limit)


def main() -> None:
    """The program."""
    made = parser(__doc__ or "")
    made.add_argument("--out", type=Path, default=Path("contact_sheet.jpg"))
    known, settings = parse(made)
    with sentences(made):
        store = open_store(settings)
        require_catalog(store)
        write_atomically(known.out.absolute(), collection_sheet(store, store.shards))
        say(f"wrote {known.out}")


if __name__ == "__main__":
    main()
