"""Pictures in rows and columns, as in the paper's Figures 2, 3, 4 and 6: a caption a row, a model or a rank a column.

Every row is as long as the head: what has no picture has a place that says why.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from gap3d.evaluation.lettering import Lettering, height, leading

PAGE, EMPTY, EDGE = "#16181d", "#22262e", "#5f697d"
TEXT, SOFT, MARKED, BAD = "#e1e4eb", "#9aa4b2", "#ffaa32", "#ff8a80"
WARNING = "#b3261e"
LEAST, MOST = 96, 256  # pixels of a side that a picture is shown with, unless asked otherwise
CAPTION = 230  # pixels of the column of captions
GAP = 8
WORDS, SMALL, LARGE = 13, 11, 18  # pixels of letters
MOST_LINES, LABEL_LINES, HEAD_LINES = 14, 2, 3
ROWS = 60


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One place of a grid.

    Attributes:
        picture: uint8 [H, W, 3], or [H, W, 4] with straight alpha, which is shown on black; None where there is none.
        status: said in its place; what became of it.
        label: below it, a score or a key.
        marked: framed, and its label lit: the one that was asked for.
    """

    picture: NDArray[np.uint8] | None = None
    status: str = "missing"
    label: str = ""
    marked: bool = False


def grid(
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[Tile]],
    title: str,
    *,
    warning: str = "",
    side: int | None = None,
    limit: int = ROWS,
) -> bytes:
    """A PNG.

    A picture whose longer side is the grid's stands there pixel by pixel; others are resized, their shape kept.

    Args:
        rows: captions, of any length and script.
        columns: heads.
        cells: one sequence a row, one tile a column.
        title: above everything.
        warning: in red above that, and in the file's metadata: what is untrained.
        side: pixels of a tile; None takes the longest side among the pictures, from ``LEAST`` to ``MOST``.
        limit: rows that are shown; how many are not is said below them.

    Raises:
        ValueError: the cells are not one for every row and column, or a picture is not of such a shape.
    """
    if len(rows) != len(cells) or any(len(row) != len(columns) for row in cells):
        raise ValueError(f"{[len(row) for row in cells]} cells a row don't fill {len(rows)} rows of {len(columns)}")
    left_out = max(0, len(rows) - limit)
    rows, cells = rows[:limit], cells[:limit]
    side = side or side_of(cells)
    texts = [title, warning, *rows, *columns, *(text for row in cells for tile in row for text in words_of(tile))]
    letters = Lettering.of(texts)
    notes = [f"{left_out} more rows are not shown."] if left_out else []
    if letters.missing:
        boxes = " ".join(f"U+{ord(each):04X}" for each in sorted(letters.missing)[:8])
        notes.append(f"No installed font has {len(letters.missing)} of the characters ({boxes}): install Noto fonts.")
    return Sheet(letters, side, len(columns)).draw(rows, columns, cells, title, warning, notes)


def words_of(tile: Tile) -> tuple[str, ...]:
    """What is written of a tile."""
    return (tile.label, tile.status if tile.picture is None else "")


def side_of(cells: Sequence[Sequence[Tile]]) -> int:
    """The side that shows the largest picture as it is, within bounds."""
    sides = [max(tile.picture.shape[:2]) for row in cells for tile in row if tile.picture is not None]
    return min(MOST, max([LEAST, *sides]))


def fitted(picture: NDArray[np.uint8], side: int) -> Image.Image:
    """RGB of which the longer side is ``side``, on black.

    Raises:
        ValueError: it is no picture.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] not in (3, 4) or 0 in picture.shape:
        raise ValueError(f"{picture.dtype} {picture.shape} is no picture: give uint8 [H, W, 3] or [H, W, 4]")
    image = Image.fromarray(picture)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("RGB")
    longest = max(image.size)
    if longest == side:
        return image
    width, tall = (max(1, round(each * side / longest)) for each in image.size)
    return image.resize((width, tall), Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class Sheet:
    """How a grid is drawn."""

    letters: Lettering
    side: int
    across: int

    @property
    def width(self) -> int:
        """Pixels of the whole."""
        return GAP + CAPTION + GAP + max(1, self.across) * (self.side + GAP)

    def draw(
        self,
        rows: Sequence[str],
        columns: Sequence[str],
        cells: Sequence[Sequence[Tile]],
        title: str,
        warning: str,
        notes: Sequence[str],
    ) -> bytes:
        """See ``grid``."""
        wrap, inner = self.letters.wrap, self.width - 2 * GAP
        warned = wrap(warning, inner, WORDS, 3) if warning else []
        titled = wrap(title, inner, LARGE, 2) if title else []
        heads = [wrap(head, self.side, WORDS, HEAD_LINES) for head in columns]
        captions = [wrap(caption, CAPTION, WORDS, MOST_LINES) for caption in rows]
        labels = [[wrap(tile.label, self.side, SMALL, LABEL_LINES) if tile.label else [] for tile in r] for r in cells]
        noted = [line for note in notes for line in wrap(note, inner, SMALL, 3)]

        bands = [
            max(height(caption, WORDS), self.side + max((height(label, SMALL) for label in row), default=0))
            for caption, row in zip(captions, labels, strict=True)
        ]
        head = max((height(lines, WORDS) for lines in heads), default=0)
        above = (height(warned, WORDS) + GAP if warned else 0) + (height(titled, LARGE) + GAP if titled else 0) + GAP
        tall = above + head + GAP + sum(band + GAP for band in bands) + (height(noted, SMALL) + GAP if noted else 0)
        sheet = Image.new("RGB", (self.width, tall), PAGE)
        draw = ImageDraw.Draw(sheet)

        top = 0
        if warned:
            draw.rectangle((0, 0, self.width, height(warned, WORDS) + GAP - 1), fill=WARNING)
            top = self.lines(draw, (GAP, GAP // 2), warned, WORDS, "white") + GAP // 2
        top += GAP
        if titled:
            top = self.lines(draw, (GAP, top), titled, LARGE, TEXT) + GAP
        for number, lines in enumerate(heads):
            self.lines(draw, (self.left(number), top + head - height(lines, WORDS)), lines, WORDS, SOFT)
        top += head + GAP
        for caption, band, row, below in zip(captions, bands, cells, labels, strict=True):
            self.lines(draw, (GAP, top), caption, WORDS, TEXT)
            for number, (tile, label) in enumerate(zip(row, below, strict=True)):
                self.tile(sheet, draw, (self.left(number), top), tile, label)
            top += band + GAP
        self.lines(draw, (GAP, top), noted, SMALL, MARKED)

        about = PngInfo()
        for name, text in (("Title", title), ("Warning", warning)):
            if text:
                about.add_itxt(name, text.encode(errors="replace").decode())
        file = io.BytesIO()
        sheet.save(file, "PNG", pnginfo=about)
        return file.getvalue()

    def left(self, column: int) -> int:
        """Where a column begins."""
        return GAP + CAPTION + GAP + column * (self.side + GAP)

    def lines(
        self, draw: ImageDraw.ImageDraw, place: tuple[int, int], lines: Sequence[str], size: int, fill: str
    ) -> int:
        """Write lines; where they end."""
        left, top = place
        for line in lines:
            self.letters.write(draw, (left, top), line, size, fill)
            top += leading(size)
        return top

    def tile(
        self,
        sheet: Image.Image,
        draw: ImageDraw.ImageDraw,
        place: tuple[int, int],
        tile: Tile,
        label: Sequence[str],
    ) -> None:
        """Draw one tile."""
        left, top = place
        box = (left, top, left + self.side - 1, top + self.side - 1)
        if tile.picture is None:
            draw.rectangle(box, fill=EMPTY, outline=EDGE)
            said = self.letters.wrap(tile.status, self.side - 2 * GAP, WORDS, max(1, self.side // leading(WORDS) - 1))
            middle = top + (self.side - height(said, WORDS)) // 2
            self.lines(draw, (left + GAP, middle), said, WORDS, BAD)
        else:
            picture = fitted(tile.picture, self.side)
            draw.rectangle(box, fill="black")
            sheet.paste(picture, (left + (self.side - picture.width) // 2, top + (self.side - picture.height) // 2))
        if tile.marked:  # around it: no pixel of the picture is lost
            draw.rectangle((left - 3, top - 3, box[2] + 3, box[3] + 3), outline=MARKED, width=3)
        self.lines(draw, (left, top + self.side + 2), label, SMALL, MARKED if tile.marked else SOFT)
