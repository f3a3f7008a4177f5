"""Text in pictures: any script that an installed font has, wrapped to a width."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path

from matplotlib import font_manager, get_data_path
from PIL import ImageDraw, ImageFont

UNREADABLE = "\ufffd"
FOLDER = Path(get_data_path(), "fonts", "ttf")  # matplotlib's own
FIRST = FOLDER / "DejaVuSans.ttf"  # Latin, Greek, Cyrillic, Arabic and more
LAST = "LastResort"  # in the names of fonts that have a box for every character, which tells its script
NO_LETTERS = ("Cc", "Cs", "Cn", "Co")  # categories: controls, surrogates, unassigned and private characters
UNKNOWN = 0  # glyph of what a font lacks: an empty box


def one_line(text: str) -> str:
    """Words with a blank between them, and a mark in place of what can't be drawn."""
    return "".join(UNREADABLE if unicodedata.category(each) in NO_LETTERS else each for each in " ".join(text.split()))


def in_first(text: str) -> str:
    """One line in letters that ``FIRST`` has, with a mark in place of others: matplotlib's words are of that font."""
    first = font_manager.get_font(str(FIRST))
    return "".join(each if first.get_char_index(ord(each)) != UNKNOWN else UNREADABLE for each in one_line(text))


@dataclass(frozen=True)
class Lettering:
    """Fonts for some texts.

    Attributes:
        fonts: file by character, for those that ``FIRST`` lacks.
        missing: characters that no installed font has: they are drawn as boxes.
    """

    fonts: dict[str, str]
    missing: frozenset[str]

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Lettering":
        """Look for the characters of these texts in the installed fonts, where the first does not have them."""
        first = font_manager.get_font(str(FIRST))
        left = {each for text in texts for each in one_line(text) if first.get_char_index(ord(each)) == UNKNOWN}
        found: dict[str, str] = {}
        installed = sorted({entry.fname for entry in font_manager.fontManager.ttflist}) if left else []
        for path in (path for path in installed if LAST not in path):
            try:
                font = font_manager.get_font(path)
            except (OSError, RuntimeError):
                continue  # one that is gone or damaged
            if font.scalable:  # pictures of letters have one size
                has = {each for each in left if font.get_char_index(ord(each)) != UNKNOWN}
                found |= dict.fromkeys(has, path)
                left -= has
            if not left:
                break
        boxes = next((path for path in installed if LAST in path), str(FIRST))
        return cls(dict.fromkeys(left, boxes) | found, frozenset(left))

    def width(self, text: str, size: int) -> float:
        """Pixels of one line."""
        return sum(font.getlength(part) for font, part in self.runs(text, size))

    def write(self, draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, fill: str) -> None:
        """Draw one line with its upper left corner at a place."""
        left, top = place
        for font, part in self.runs(text, size):
            draw.text((left, top + size), part, fill=fill, font=font, anchor="ls")
            left += font.getlength(part)

    def runs(self, text: str, size: int) -> list[tuple[ImageFont.FreeTypeFont, str]]:
        """The parts of a line with the font of each."""
        parts = groupby(text, lambda each: self.fonts.get(each, str(FIRST)))
        return [(load_font(path, size), "".join(part)) for path, part in parts]

    def wrap(self, text: str, width: float, size: int, most: int) -> list[str]:
        """Lines of at most a width; what does not fit into the last ends in an ellipsis.

        Args:
            text: any.
            width: pixels of a line; a word that is wider, or a script without blanks, is broken anywhere.
            size: pixels of the letters.
            most: lines.
        """
        lines = [""]
        for word in one_line(text).split(" "):
            longer = f"{lines[-1]} {word}" if lines[-1] else word
            if self.width(longer, size) <= width:
                lines[-1] = longer
                continue
            lines += [""] if lines[-1] else []
            for letter in word:
                if lines[-1] and self.width(lines[-1] + letter, size) > width:
                    if len(lines) > most:
                        break
                    lines.append("")
                lines[-1] += letter
            if len(lines) > most:
                break
        return lines if len(lines) <= most else [*lines[: most - 1], self.cut(lines[most - 1], width, size)]

    def cut(self, line: str, width: float, size: int) -> str:
        """The beginning of a line with an ellipsis, within a width."""
        while line and self.width(f"{line}…", size) > width:
            line = line[:-1]
        return f"{line.rstrip()}…"


@lru_cache(maxsize=64)
def load_font(path: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of a size."""
    return ImageFont.truetype(path, size)


def height(lines: Sequence[str], size: int) -> int:
    """Pixels of lines of letters of a size."""
    return len(lines) * leading(size)


def leading(size: int) -> int:
    """Pixels from a line to the next."""
    return round(1.3 * size)
