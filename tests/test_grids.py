"""Picture grids: what is put in stands there, pixel by pixel, whatever the words around it are."""

import io
import itertools

import numpy as np
import pytest
from fontTools.ttLib import TTFont
from matplotlib import font_manager
from PIL import Image

from gap3d.evaluation.grids import Tile, grid
from gap3d.evaluation.lettering import Lettering

SIDE = 100
HOSTILE = [
    "",
    "a chair " * 200,
    "w" * 3000,
    "木の椅子と中国 " * 40,
    "كرسي خشبي עברית",
    "\ud800\x00\x07\u202e</b>\n\n\ttab",
]


def noise(seed, height=SIDE, width=SIDE, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def drawn(*given, **options):
    return np.asarray(Image.open(io.BytesIO(grid(*given, **options))))


def places(sheet, picture):
    """Upper left corners at which a picture stands in a sheet, found by looking."""
    height, width = picture.shape[:2]
    first = (sheet[: -height + 1, : -width + 1] == picture[0, 0]).all(-1)
    return [(y, x) for y, x in np.argwhere(first) if np.array_equal(sheet[y : y + height, x : x + width], picture)]


def test_every_picture_stands_once_in_its_row_and_column_pixel_by_pixel():
    pictures = [[noise(10 * row + column) for column in range(3)] for row in range(4)]
    cells = [[Tile(picture=each, label="0.91", marked=row == 1) for each in line] for row, line in enumerate(pictures)]
    sheet = drawn(["a", "b", "c", "d"], ["query", "truth", "1"], cells, "Figure 2")
    corners = [[places(sheet, each) for each in line] for line in pictures]
    assert all(len(found) == 1 for line in corners for found in line)
    tops = [{y for ((y, _),) in line} for line in corners]
    lefts = [{line[column][0][1] for line in corners} for column in range(3)]
    assert all(len(each) == 1 for each in (*tops, *lefts))
    assert all(a < b for each in (tops, lefts) for (a,), (b,) in itertools.pairwise(each))


def test_captions_of_any_length_and_script_move_rows_apart_and_touch_no_picture():
    pictures = [noise(seed) for seed in range(len(HOSTILE))]
    cells = [[Tile(picture=each, label=words)] for each, words in zip(pictures, HOSTILE, strict=True)]
    sheet = drawn(HOSTILE, [HOSTILE[-1] + "head " * 99], cells, HOSTILE[1], warning=HOSTILE[2])
    assert [len(places(sheet, each)) for each in pictures] == [1] * len(HOSTILE)


def test_transparent_pixels_are_black_and_shapes_are_kept():
    wide = noise(1, SIDE // 2, SIDE, 4)
    wide[..., 3] = np.where(np.arange(SIDE) < 40, 0, 255)
    truth = np.where(wide[..., 3:] > 0, wide[..., :3], 0)
    ((y, x),) = places(sheet := drawn(["a"], ["b"], [[Tile(picture=wide)]], "", side=SIDE), truth)
    assert not sheet[y - SIDE // 4 : y, x : x + SIDE].any()  # centred, black above
    red = np.full((400, 200, 3), (255, 0, 0), np.uint8)
    shown = (drawn(["a"], ["b"], [[Tile(picture=red)]], "", side=SIDE) == (255, 0, 0)).all(-1)
    assert shown.sum() == SIDE * SIDE // 2 and shown.any(0).sum() == SIDE // 2


def test_what_failed_has_a_place_that_says_so_and_its_neighbours_stay():
    good = [Tile(picture=noise(1)), Tile(picture=noise(2))]
    said = drawn(["a"], ["x", "y", "z"], [[good[0], Tile(status="timeout after 300 s"), good[1]]], "")
    empty = drawn(["a"], ["x", "y", "z"], [[good[0], Tile(status=""), good[1]]], "")
    differs = np.argwhere((said != empty).any(-1))
    ((_, left),), ((_, right),) = (places(said, each.picture) for each in good)
    assert len(differs) > 50
    assert left + SIDE < differs[:, 1].min() and differs[:, 1].max() < right


def test_rows_beyond_the_limit_are_counted_below_and_a_warning_is_in_the_file():
    cells = [[Tile(picture=noise(seed))] for seed in range(5)]
    content = grid(["a"] * 5, ["x"], cells, "t", warning="UNTRAINED weights", limit=2)
    image = Image.open(io.BytesIO(content))
    assert [len(places(np.asarray(image), tile.picture)) for (tile,) in cells] == [1, 1, 0, 0, 0]
    assert image.text == {"Title": "t", "Warning": "UNTRAINED weights"}
    assert image.height > Image.open(io.BytesIO(grid(["a"] * 2, ["x"], cells[:2], "t", warning="U"))).height


def test_lines_are_no_wider_than_asked_and_lose_nothing_but_what_the_ellipsis_says():
    for text in HOSTILE[1:]:
        letters = Lettering.of([text])
        lines = letters.wrap(text, 120, 13, 5)
        assert len(lines) <= 5 and all(letters.width(line, 13) <= 120 for line in lines)
        whole = letters.wrap(text, 120, 13, 10_000)
        assert lines[:4] == whole[:4] and (lines == whole) == (len(whole) <= 5)
    words = "six plain words of a caption"
    assert " ".join(Lettering.of([words]).wrap(words, 60, 13, 9)) == words


def test_letters_that_no_installed_font_has_are_told():
    text = "Stühle, стул, καρέκλα, 中文 ไทย \U00013000"
    files = {each.fname for each in font_manager.fontManager.ttflist if "LastResort" not in each.fname}
    covered = set()
    for file in files:
        with TTFont(file, fontNumber=0, lazy=True) as font:
            covered |= set(font.getBestCmap() or ())
    assert Lettering.of([text]).missing == {each for each in text if ord(each) not in covered}


@pytest.mark.parametrize("rows", [["a", "b"], []])
def test_cells_that_do_not_fill_the_grid_are_refused(rows):
    with pytest.raises(ValueError, match="don't fill"):
        grid(rows, ["x"], [[Tile()]], "")


def test_no_picture_is_refused():
    with pytest.raises(ValueError, match="is no picture"):
        grid(["a"], ["x"], [[Tile(picture=np.zeros((4, 4), np.uint8))]], "")
    assert grid([], ["x"], [], "nothing")
