"""Pictures for people: a contact sheet of objects with their views and visibility scores."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from gap3d.entries import Entry, spread

TILE = 144  # pixels of one object's pictures
BAND = 54  # pixels of text and bars below them
MOST_VIEWS = 9  # of one object
PAGE = (22, 24, 29)
TEXT = (225, 228, 235)
CHOSEN, OTHER = (255, 170, 50), (95, 105, 125)
MOST_BARS = 6  # beyond that their labels have no room


@dataclass(frozen=True)
class Tile:
    """One object of a sheet.

    Attributes:
        name: its file name.
        pngs: its renders, RGBA with straight alpha; empty where there are none.
        labels: of the candidate views.
        scores: visible share of the points at each, in [0, 1].
        chosen: index of the chosen candidate; -1 where none of them was taken.
        status: shown in place of missing pictures.
    """

    name: str
    pngs: Sequence[bytes]
    labels: Sequence[str]
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
    if tile.pngs:
        draw_views(sheet, tile.pngs, place)
    else:
        draw.text((left + 8, top + TILE // 2), tile.status, fill=CHOSEN, font=font)
    name = PurePosixPath(tile.name).name
    draw.text((left, top + TILE + 2), name if len(name) <= 24 else name[:23] + "…", fill=TEXT, font=font)
    width = TILE / max(1, len(tile.scores))
    highest = max([*tile.scores, 1e-9])
    for index, (label, score) in enumerate(zip(tile.labels, tile.scores, strict=True)):
        x, base = left + index * width, top + TILE + BAND - 22
        colour = CHOSEN if index == tile.chosen else OTHER
        gap = 4 if len(tile.scores) <= MOST_BARS else 1
        draw.rectangle((x, base - round(12 * score / highest), x + max(1, width - gap), base), fill=colour)
        for line, text in enumerate((label, f"{score:.1%}") if len(tile.scores) <= MOST_BARS else ()):
            draw.text((x, base + 1 + 10 * line), text, fill=colour, font=ImageFont.load_default(9))
    if len(tile.scores) > MOST_BARS and tile.chosen >= 0:
        text = f"{tile.labels[tile.chosen]}  {tile.scores[tile.chosen]:.1%}"
        draw.text((left, top + TILE + BAND - 20), text, fill=CHOSEN, font=ImageFont.load_default(9))


def draw_views(sheet: Image.Image, pngs: Sequence[bytes], place: tuple[int, int]) -> None:
    """Draw an object's views as a square of small pictures; one view fills it."""
    chosen = [pngs[index] for index in spread(len(pngs), MOST_VIEWS)]
    columns = math.ceil(math.sqrt(len(chosen)))
    side = TILE // columns
    for index, png in enumerate(chosen):
        with Image.open(io.BytesIO(png)) as picture:
            small = picture.convert("RGBA").resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(small, (place[0] + index % columns * side, place[1] + index // columns * side), small)


def candidate_labels(views: Mapping[str, Any]) -> list[str]:
    """The candidates of a views row by their yaw; by yaw and pitch where the pitches differ."""
    candidates = views.get("candidates") or []
    several = len({camera["pitch"] for camera in candidates}) > 1
    return [f"{c['yaw']:g}°/{c['pitch']:g}°" if several else f"{c['yaw']:g}°" for c in candidates]


def tile_of(entry: Entry, pngs: Mapping[str, bytes]) -> Tile:
    """An object's tile.

    Args:
        entry: the object.
        pngs: PNG bytes by key of renders.
    """
    return Tile(
        name=entry.name,
        pngs=[pngs[key] for key in entry.renders if key in pngs],
        labels=candidate_labels(entry.views),
        scores=entry.scores,
        chosen=int(entry.views.get("chosen", -1)),
        status=entry.status,
    )
