"""The evaluation's report: the page in a real browser against the results' files, and what is set against the paper."""

import base64
import hashlib
import io
import itertools
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from browser import NEEDED, Browser
from PIL import Image

from gap3d.evaluation.grids import Tile, grid
from gap3d.evaluation.history import FOLDED, history_png, history_table, points_of
from gap3d.evaluation.published import bundled, difference, with_file
from gap3d.evaluation.result import RESULT, Cell, Result, Sample, save
from gap3d.records import Status
from pipelines.evaluation_report import main, write

HOSTILE = "<img src=x onerror=\"window.struck='img'\"></script ><script >window.struck=1</script > $x_2$ | `中`"
RETRIEVAL = ("cls_r1", "cls_r5", "cls_r10", "patches_r1", "patches_r5", "patches_r10")
PAPER = {"cls_r1": 11.2, "cls_r5": 49.0, "cls_r10": 90.9}  # what the released code makes of 61.7, 85.0 and 90.9
COUNTER = itertools.count()


def result(table="retrieval", model="pretrained", collection="coco", cells=None, *, step=None, **fields):
    """One that nobody measured: its numbers are drawn."""
    count = next(COUNTER)
    if cells is None:
        values = np.random.default_rng(count).uniform(5, 95, len(RETRIEVAL))
        cells = {name: Cell(v, v - 2, v + 1.5, 40) for name, v in zip(RETRIEVAL, values.tolist(), strict=True)}
    made = {
        "label": "trained",
        "trained": True,
        "made_at": f"2026-01-01T00:00:{count % 60:02d}.000+00:00",
        "counts": {"ok": 40},
        "checkpoint": {} if step is None else {"stage": "pretrain", "run": f"{model} run", "step": step},
    }
    return Result(
        table=table,
        model=model,
        collection=collection,
        cells=cells,
        fingerprint=hashlib.sha256(str(count).encode()).hexdigest(),
        **made | fields,
    )


def published_file(folder, text=""):
    path = folder / "mine.toml"
    rows = "\n".join(f"{name} = {value}" for name, value in PAPER.items())
    path.write_text(
        text or f"[tables.2.values.coco.pretrained]\n{rows}\n[tables.1.values.coco.pretrained]\nmse_cls = 1"
    )
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A store of results, and the report on them in a browser's reach."""
    root = tmp_path_factory.mktemp("evaluation")
    samples = [Sample("a", values={"x": 1.0}), Sample("b", Status.TIMEOUT, HOSTILE)]
    picture = grid(["a"], ["b"], [[Tile(picture=np.full((96, 96, 3), 200, np.uint8))]], "Figure 2")
    odd = {"cls_r10": Cell(77.75, note="too <b>few</b>"), "mine": Cell(0.00012345), "patches_r10": Cell(None)}
    untrained = {"trained": False, "label": f"UNTRAINED: random-small {HOSTILE}"}
    made = [result(step=step) for step in (3000, 100, 2000)]
    made += [
        result(step=3000, quirks=("unsorted_list",)),
        result(model="finetuned", step=50, protocol={"weights": HOSTILE}),
        result(model=HOSTILE, cells=odd),
        result(collection="demo", step=7, **untrained),
        result("generation", "trellis-image", "toys4k", {"fd_pointnet": Cell(30.0, samples=1250)}),
    ]
    pictures = {"figure.png": picture}
    kept = [save(root / each.collection, each, samples, pictures if each is made[0] else None) for each in made]
    edited = kept[5].folder / RESULT
    edited.write_text(edited.read_text().replace("77.75", "NaN"))
    path = write(root / "demo", [root / "coco", root / "toys4k"], with_file(published_file(root)))
    return SimpleNamespace(root=root, path=path, kept=kept, picture=picture, data=data_of(path.read_text()))


def in_json(result):
    """The cells of a result, as its file has them."""
    return json.loads((result.folder / RESULT).read_text())["cells"]


def needs_browser(test):
    """Mark a test that needs a browser."""
    for mark in NEEDED:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def browser(place, tmp_path_factory):
    made = Browser(tmp_path_factory.mktemp("profile"), logged=True)
    try:
        made.requests()
        made.open(place.path.as_uri())
        made.see("Table 4")
        made.asked = made.requests()
        yield made
    finally:
        made.driver.quit()


def line(browser, block, row, kind, quirks=""):
    """Column to (what is shown, the exact words behind it) of one line of the numbers."""
    script = """
        const [block, row, kind, quirks] = arguments;
        const at = [...document.querySelectorAll(`[data-table="2"][data-block="${block}"] tr[data-line="${kind}"]`)]
          .filter((line) => line.dataset.row === row && (kind === "paper" || line.dataset.quirks === quirks));
        return at.map((line) => Object.fromEntries([...line.querySelectorAll("td")].map((cell) =>
          [cell.dataset.column, [(cell.querySelector(".value") || cell).textContent, cell.title]])));
    """
    (found,) = browser.driver.execute_script(script, block, row, kind, quirks)
    return found


@needs_browser
@pytest.mark.parametrize(("index", "quirks"), [(0, ""), (3, "unsorted_list"), (4, ""), (6, "")])
def test_numbers_are_those_of_the_results_files_of_the_newest_result(place, browser, index, quirks):
    one = place.kept[index]
    shown = line(browser, one.collection, one.model, "ours", quirks)
    for name, cell in in_json(one).items():
        text, exact = shown[name]
        assert exact.startswith(f"{cell['value']!r}, interval {cell['low']!r} to {cell['high']!r}, 40 samples")
        assert float(text) == pytest.approx(cell["value"], abs=0.005)


@needs_browser
def test_recall_at_1_and_5_of_a_sorted_list_is_never_subtracted_and_at_10_it_is(place, browser):
    apart = line(browser, "coco", "pretrained", "difference")
    ours = in_json(place.kept[0])
    assert [apart[name][0][:12] for name in ("cls_r1", "cls_r5")] == ["not compared"] * 2
    assert "not sorted" in apart["cls_r1"][1]
    assert float(apart["cls_r10"][1]) == ours["cls_r10"]["value"] - PAPER["cls_r10"]
    as_released = line(browser, "coco", "pretrained", "difference", "unsorted_list")
    ours = in_json(place.kept[3])
    assert {n: float(as_released[n][1]) for n in PAPER} == {n: ours[n]["value"] - PAPER[n] for n in PAPER}


@needs_browser
def test_a_cell_without_a_published_number_says_so(browser):
    theirs = line(browser, "coco", "pretrained", "paper")
    assert {name: text for name, (text, _) in theirs.items()} == {
        **{name: f"{value:.2f}" for name, value in PAPER.items()},
        **dict.fromkeys(RETRIEVAL[3:], "not transcribed here"),
        "mine": "not in the paper",
    }
    assert {text for text, _ in line(browser, "toys4k", "blip3o", "paper").values()} == {"not transcribed here"}
    shown = browser.see("3 of 36 published cells stand here", "see Table 2 of arXiv 2605.28995v2")
    assert "mine.toml" in shown and "30.52, 29.26 and 27.51" in shown and "41.90 where Table 3 has 41.89" in shown


@needs_browser
def test_names_and_reasons_of_strangers_are_text_and_nothing_is_asked_of_a_network(place, browser):
    browser.see("<img src=x", HOSTILE[:60])
    script = "return [window.struck, document.querySelectorAll('img[src=x]').length]"
    assert browser.driver.execute_script(script) == [None, 0]
    assert [url for url in browser.asked if not url.startswith(("data:", "chrome:"))] == [place.path.as_uri()]
    strange = line(browser, "coco", HOSTILE, "ours")
    assert "its value is not finite" in strange["cls_r10"][0] and "<b>few</b>" in strange["cls_r10"][0]
    assert strange["mine"][0] == "0.00012"


@needs_browser
def test_untrained_weights_are_told_at_the_top_and_in_their_row_and_failures_are_counted(browser):
    top = browser.driver.find_element("css selector", "header .warn").text
    assert "UNTRAINED" in top and "random-small" in top
    block = browser.driver.find_element("css selector", '[data-table="2"][data-block="demo"]')
    assert "UNTRAINED" in block.find_element("css selector", 'tr[data-line="ours"] th').text
    assert "1 timeout of 2 samples" in block.text


@needs_browser
def test_pictures_and_curves_are_drawn(browser):
    script = """
        const images = [...document.querySelectorAll("main img")];
        for (const image of images) image.loading = "eager";
        const drawn = images.map((image) => image.decode().then(() => [image.alt, image.naturalWidth]));
        Promise.all(drawn).then(arguments[0]);
    """
    drawn = browser.driver.execute_async_script(script)
    assert [alt for alt, _ in drawn if alt.startswith("figure")] == ["figure.png of pretrained"]
    assert {width for alt, width in drawn if alt.startswith("history")} == {1200}


def test_pictures_are_the_files_of_the_last_checkpoint_bit_by_bit(place):
    (found,) = pictures_in(place.data)
    assert base64.b64decode(found["src"].partition(",")[2]) == place.picture
    assert found["place"] == str(place.kept[0].folder.relative_to(place.root) / "figure.png")
    (place.kept[0].folder / "no.png").write_bytes(b"<svg onload=alert(1)>")
    text = write(place.root / "coco").read_text()
    assert [bool(each["src"]) for each in pictures_in(data_of(text))] == [True, False]


def pictures_in(data):
    """The pictures of results on a page."""
    return [p for t in data["tables"] for b in t["blocks"] for r in b["rows"] for o in r["ours"] for p in o["pictures"]]


def data_of(text):
    """The data of a page."""
    return json.loads(text.partition('<script type="application/json" id="data">')[2].partition("</script>")[0])


def test_the_history_of_a_page_has_every_result_with_its_numbers_the_oldest_checkpoint_first(place):
    blocks = {(t["number"], b["dataset"] or b["title"]): b for t in place.data["tables"] for b in t["blocks"]}
    rows = blocks["2", "coco"]["history"]["rows"]
    mine = [each for each in place.kept if (each.table, each.collection) == ("retrieval", "coco")]
    assert sorted(row["made"] for row in rows) == sorted(each.made_at for each in mine)
    assert [row["step"] for row in rows if row["model"] == "pretrained"] == [100, 2000, 3000, 3000]
    by_time = {each.made_at: each for each in mine}
    for row in rows[:4]:
        assert {n: v for n, v in row["values"].items() if v is not None} == {
            name: cell["value"] for name, cell in in_json(by_time[row["made"]]).items()
        }
    assert len(blocks["2", "demo"]["history"]["rows"]) == 1


def test_the_short_history_is_ordered_ends_with_the_last_and_is_not_folded():
    steps = [3000, 100, 2000, *range(5000, 90_000, 1000)]
    rows = [result(model="[a](b) | <b>" * 9, step=step) for step in steps]
    text = history_table(rows)
    assert len(text) < FOLDED and "<" not in text and "[" not in text
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")][2:]
    shown = [int(line[1].replace(",", "")) for line in lines]
    assert shown == sorted(steps)[-len(shown) :] and len(shown) > 3
    assert f"{len(steps) - len(shown)} earlier rows" in text
    last = next(each for each in rows if each.checkpoint["step"] == shown[-1])
    assert [float(number) for number in lines[-1][2:]] == [
        pytest.approx(last.cells[name].value, abs=0.005) for name in ("cls_r10", "patches_r10")
    ]
    assert history_table([]) == "nothing is measured yet"


def test_curves_go_from_step_to_step_and_take_the_last_measurement_of_each():
    rows = [result(step=step) for step in (300, 100, 200, 100)]
    last = {each.checkpoint["step"]: each.cells["cls_r1"] for each in rows}
    assert points_of(rows, "cls_r1", steps=True) == [
        (step, last[step].value, last[step].low, last[step].high) for step in (100, 200, 300)
    ]
    without = [result(model="other") for _ in range(2)]
    assert [(place, value) for place, value, *_ in points_of(without, "cls_r1", steps=True)] == [
        (None, without[-1].cells["cls_r1"].value)
    ]
    assert points_of([result(cells={"cls_r1": Cell(math.inf)}, step=1)], "cls_r1", steps=True) == []


def test_a_history_of_any_names_and_gaps_is_drawn_and_of_no_numbers_refused():
    rows = [result(step=1), result(model=HOSTILE, cells={"$x$": Cell(1.0, math.nan, None)}), result(cells={})]
    assert Image.open(io.BytesIO(history_png(rows, HOSTILE))).width == 1200
    with pytest.raises(ValueError, match="no history"):
        history_png(rows[2:], "")


def test_only_the_number_whose_row_and_column_are_known_is_transcribed():
    values = {name: table.values for name, table in bundled().tables.items()}
    assert values == {"1": {}, "2": {}, "3": {"toys4k": {"trellis-image": {"fd_pointnet": 25.86}}}, "4": {}}


def test_a_number_is_set_against_the_papers_only_where_both_are_of_one_thing(tmp_path):
    paper = with_file(published_file(tmp_path))

    def of(name="cls_r10", number="2", **fields):
        return difference(paper, number, fields.get("model", "pretrained"), name, result(step=1, **fields))

    assert of(cells={"cls_r10": Cell(91.9)}).value == pytest.approx(1.0)
    for other, why in (
        ({"collection": "demo"}, "none of the paper's datasets"),
        ({"model": "mine"}, "no such row"),
        ({"trained": False}, "UNTRAINED"),
        ({"cells": {"cls_r10": Cell(None, note="too few")}}, "too few"),
        ({"cells": {}}, "not measured"),
        ({"name": "patches_r10"}, "see Table 2 of arXiv"),
        ({"name": "cls_r1"}, "not sorted"),
        ({"name": "cls_r5", "quirks": ("float16_vectors",)}, "not sorted"),
        ({"name": "somebodys"}, "no such column"),
        ({"name": "mse_cls", "number": "1", "table": "alignment"}, "not measured"),
        (
            {"name": "mse_cls", "number": "1", "cells": {"mse_cls": Cell(1.0)}},
            "40 samples, the published number of 5,000",
        ),
    ):
        found = of(**other)
        assert found.value is None and why in found.why
    bent = {"model": "trellis-image", "collection": "toys4k", "cells": {"fd_pointnet": Cell(26.0)}}
    assert "bent" in of("fd_pointnet", "3", **bent, counts={"ok": 1250}).why
    as_released = of("fd_pointnet", "3", **bent, counts={"ok": 1249, "timeout": 1}, quirks=("ray_depth",))
    assert as_released.value == pytest.approx(0.14)


def test_a_users_file_lies_over_the_transcribed_numbers_and_leaves_the_others(tmp_path):
    text = (
        "[tables.3.values.toys4k.trellis-image]\nclip_image = 80\n[tables.4.values.toys4k.pretrained]\nfd_dinov2 = 1.5"
    )
    merged = with_file(published_file(tmp_path, text))
    assert merged.tables["3"].values == {"toys4k": {"trellis-image": {"fd_pointnet": 25.86, "clip_image": 80}}}
    assert merged.tables["4"].value("toys4k", "pretrained", "fd_dinov2") == 1.5
    assert bundled().tables["4"].values == {}
    over = with_file(published_file(tmp_path, "[tables.3.values.toys4k.trellis-image]\nfd_pointnet = 26"))
    assert over.tables["3"].values == {"toys4k": {"trellis-image": {"fd_pointnet": 26}}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tables.5.values.coco.pretrained]\ncls_r1 = 1", "no table '5': choose of 1, 2, 3, 4"),
        ("[tables.2.values.imagenet.pretrained]\ncls_r1 = 1", "no dataset 'imagenet': choose of coco, toys4k"),
        ("[tables.2.values.coco.mine]\ncls_r1 = 1", "no row 'mine': choose of pretrained"),
        ("[tables.2.values.coco.pretrained]\ncls_r2 = 1", "no column 'cls_r2': choose of cls_r1"),
        ("[tables.3.values.toys4k.pretrained]\nclip_text_large = 1", "no column 'clip_text_large'"),
        ("[tables.2.values.coco.pretrained]\ncls_r1 = true", "True is no number"),
        ("[tables.2.values.coco.pretrained]\ncls_r1 = nan", "nan is no number"),
        ("[tables.2.values.coco.pretrained]\ncls_r1 = '9'", "'9' is no number"),
        ("[tables.2.values.coco.pretrained]\ncls_r1 = 909", "909 is beyond 0 and 100"),
        ("[tables.2.values]\ncoco = 1", "a table of names is wanted"),
        ("[tables.2.rows.mine]\ntitle = 'x'", "tables.2 has no entry 'rows': choose of values"),
        ("tables = 3", "a table of names is wanted"),
        ("source = 'arXiv 1'", "the tables here are of arXiv"),
        ("number = 1", "no entry 'number'"),
        ("[tables", "is no TOML"),
    ],
)
def test_a_users_file_that_names_no_cell_or_no_number_is_refused(tmp_path, text, words):
    with pytest.raises(ValueError, match=r"mine\.toml") as refused:
        with_file(published_file(tmp_path, text))
    assert words in str(refused.value)


def run(*flags):
    """The program in this process: its exit code."""
    before, sys.argv = sys.argv, ["evaluation_report", *map(str, flags)]
    try:
        main()
    except SystemExit as ended:
        return ended.code
    finally:
        sys.argv = before
    return 0


def test_the_program_writes_the_page_and_says_what_is_wrong_with_a_file(place, tmp_path, capsys):
    flags = ("--store", place.root, "--evaluation.collections", '["coco"]')
    assert run(*flags, "--collection", "demo", "--out", tmp_path) == 0
    assert f"wrote {tmp_path}" in capsys.readouterr().out
    (one,) = [t for t in data_of((tmp_path / "evaluation.html").read_text())["tables"] if t["number"] == "2"]
    assert [block["collections"] for block in one["blocks"]] == [["coco"], [], ["demo"]]
    bad = published_file(tmp_path, "[tables.9]")
    assert run(*flags, "--collection", "demo", "--published", bad) == 1
    assert "there is no table '9'" in capsys.readouterr().err
    assert run(*flags, "--collection", "dmeo") == 1
    assert "no collection dmeo" in capsys.readouterr().err and not (place.root / "dmeo").exists()
