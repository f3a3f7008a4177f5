"""Pictures for people: a contact sheet of objects with their chosen view and visibility scores."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from PIL import Image, ImageDraw, ImageFont

TILE = 144  # pixels of one picture
BAND = 54  # pixels of text and bars below it
PAGE = (22, 24, 29)
TEXT = (225, 228, 235)
CHOSEN, OTHER = (255, 170, 50), (95, 105, 125)


@dataclass(frozen=True)
class Tile:
    """One object of a sheet.

    Attributes:
        name: its file name.
        png: the render, RGBA with straight alpha; None where there is none.
        yaws: candidate yaws, degrees.
        scores: visible share of the points at each, in [0, 1].
        chosen: index of the chosen yaw; -1 where none of them was taken.
        status: shown in place of a missing picture.
    """

    name: str
    png: bytes | None
    yaws: Sequence[float]
    scores: Sequence[float]
    chosen: int
    status: str = "ok"


def contact_sheet(tiles: Sequence[Tile], columns: int = 6, limit: int = 24) -> bytes:
    """A JPEG of at most ``limit`` objects: picture, name, and a bar for each candidate view, the chosen one lit."""
    shown = tiles[:limit]
    columns = max(1, min(columns, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    sheet = Image.new("RGB", (columns * (TILE + 8) + 8, rows * (TILE + BAND + 8) + 8), PAGE)
    font = ImageFont.load_default(11)
    for index, tile in enumerate(shown):
        place = (8 + (index % columns) * (TILE + 8), 8 + (index // columns) * (TILE + BAND + 8))
        draw_tile(sheet, tile, place, font)
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=82)
    return file.getvalue()


def draw_tile(
    sheet: Image.Image, tile: Tile, place: tuple[int, int], font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> None:
    """Draw one object with its upper left corner at ``place``."""
    left, top = place
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), fill=(0, 0, 0))
    if tile.png:
        with Image.open(io.BytesIO(tile.png)) as picture:
            small = picture.convert("RGBA").resize((TILE, TILE), Image.Resampling.LANCZOS)
        sheet.paste(small, place, small)
    else:
        draw.text((left + 8, top + TILE // 2), tile.status, fill=CHOSEN, font=font)
    name = PurePosixPath(tile.name).name
    draw.text((left, top + TILE + 2), name if len(name) <= 24 else name[:23] + "…", fill=TEXT, font=font)
    width = TILE // max(1, len(tile.scores))
    highest = max([*tile.scores, 1e-9])
    for index, (yaw, score) in enumerate(zip(tile.yaws, tile.scores, strict=True)):
        x, base = left + index * width, top + TILE + BAND - 22
        colour = CHOSEN if index == tile.chosen else OTHER
        draw.rectangle((x, base - round(12 * score / highest), x + width - 4, base), fill=colour)
        for line, text in enumerate((f"{yaw:.0f}°", f"{score:.1%}")):
            draw.text((x, base + 1 + 10 * line), text, fill=colour, font=ImageFont.load_default(9))


def tiles_of(
    catalog: Mapping[str, Mapping[str, object]],
    statuses: Mapping[str, str],
    views: Mapping[str, Mapping[str, object]],
    pictures: Mapping[str, bytes],
    first: int = 24,
) -> list[Tile]:
    """Tiles by object_id, good ones first.

    Args:
        catalog: rows with ``identifier``.
        statuses: status of the picture, by object_id.
        views: rows of the views stage.
        pictures: PNG bytes.
        first: at most so many.
    """
    order = sorted(statuses, key=lambda key: (statuses[key] != "ok", str(catalog.get(key, {}).get("identifier", key))))
    tiles = []
    for key in order[:first]:
        view = views.get(key, {})
        points = float(view.get("points", 0) or 1)  # type: ignore[arg-type]
        tiles.append(
            Tile(
                name=str(catalog.get(key, {}).get("identifier", key)),
                png=pictures.get(key),
                yaws=list(view.get("yaws", [])),  # type: ignore[call-overload]
                scores=[count / points for count in view.get("counts", [])],  # type: ignore[attr-defined]
                chosen=int(view.get("chosen", -1)),  # type: ignore[call-overload]
                status=statuses[key],
            )
        )
    return tiles
