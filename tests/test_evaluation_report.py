"""The evaluation's report: the page in a real browser against the results' files."""

import base64
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from browser import NEEDED, Browser
from evaluation_results import HOSTILE, PAPER, RETRIEVAL, data_of, published_file, result

from gap3d.evaluation.grids import Tile, grid
from gap3d.evaluation.published import with_file
from gap3d.evaluation.result import RESULT, Cell, Sample, save
from gap3d.evaluation.runs import bundled
from gap3d.records import Status
from pipelines.evaluation_report import main, write


def retrieved(found, different):
    """What a result of the baseline without generation tells of its prompts."""
    told = {"kind": "retrieved", "true_object_found": found, "different_objects_found": different}
    return {"protocol": {"generated": told}}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A store of results, and the report on them in a browser's reach."""
    root = tmp_path_factory.mktemp("evaluation")
    samples = [*(Sample(f"a{n}", values={"x": 1.0}) for n in range(199)), Sample("b", Status.TIMEOUT, HOSTILE)]
    picture = grid(["a"], ["b"], [[Tile(picture=np.full((96, 96, 3), 200, np.uint8))]], "Figure 2")
    odd = {
        "cls_r10": Cell(77.75, note="too <b>few</b>"),
        "mine": Cell(0.00012345, note=f"one; {HOSTILE}"),
        "patches_r10": Cell(None),
    }
    untrained = {"trained": False, "label": f"UNTRAINED: random-small {HOSTILE}"}
    made = [result(step=step, samples=199) for step in (3000, 100, 2000)]
    made += [
        result(step=3000, quirks=("unsorted_list",), samples=199),
        result(model="finetuned", step=50, samples=199, protocol={"weights": HOSTILE}),
        result(model=HOSTILE, cells=odd),
        result(collection="demo", step=7, samples=199, **untrained),
        result("generation", "trellis-image", "toys4k", {"fd_pointnet": Cell(30.0, samples=1250)}),
        result("generation", "retrieved by pretrained", "toys4k", {"fd_pointnet": Cell(3.0)}, **retrieved(1, 4)),
        result("generation", "retrieved by finetuned", "toys4k", {"fd_pointnet": Cell(3.0)}, **retrieved(HOSTILE, 4)),
    ]
    pictures = {"figure.png": picture}
    kept = [save(root / each.collection, each, samples, pictures if each is made[0] else None) for each in made]
    (kept[0].folder / "no.png").write_bytes(b"<svg onload=alert(1)>")
    figures = root / "coco" / "evaluation" / "figures" / "demo-table3"
    figures.mkdir(parents=True)
    (figures / "comparison.json").write_text(
        json.dumps({"title": HOSTILE, "note": "A note.", "warning": "UNTRAINED x"})
    )
    (figures / "grid-001.png").write_bytes(picture)
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
        assert exact.startswith(f"{cell['value']!r}, interval {cell['low']!r} to {cell['high']!r}, 199 samples")
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
def test_what_there_is_to_know_of_a_number_is_read_without_a_pointer(browser):
    (cell,) = browser.driver.find_elements("css selector", '[data-table="2"] td[data-column="mine"]:has(.value)')
    mark = cell.find_element("css selector", "sup").text.strip()
    block = browser.driver.find_element("css selector", '[data-table="2"][data-block="coco"]')
    notes = [each.text.split("\n") for each in block.find_elements("css selector", ".notes div")]
    assert [mark, f"one; {HOSTILE}"] in [[name, " ".join(text)] for name, *text in notes]


@needs_browser
def test_untrained_weights_are_told_at_the_top_and_in_their_row_and_failures_are_counted(browser):
    top = browser.driver.find_element("css selector", "header .warn").text
    assert "UNTRAINED" in top and "random-small" in top
    block = browser.driver.find_element("css selector", '[data-table="2"][data-block="demo"]')
    assert "UNTRAINED" in block.find_element("css selector", 'tr[data-line="ours"] th').text
    assert "1 timeout of 200 samples" in block.text


@needs_browser
def test_a_measurement_of_any_model_is_called_measured_here(browser):
    script = "return [...document.querySelectorAll('tr[data-line=ours] th')].map((head) => head.innerText)"
    heads = browser.driver.execute_script(script)
    assert len(heads) > 3 and all(head.startswith("measured here") for head in heads)
    assert "ours" not in browser.driver.find_element("css selector", "main").text.split()


@needs_browser
def test_a_table_without_numbers_names_a_command_that_there_is(browser):
    def empty(number):
        return browser.driver.find_element("css selector", f'[data-table="{number}"] .explain').text

    assert "python -m pipelines.comparison --runs table4 --measure" in empty(4)
    assert "table4" in bundled()
    assert "python -m pipelines.alignment_metrics" in empty(1) and "--runs" not in empty(1)


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


@needs_browser
def test_a_row_of_the_retrieved_baseline_tells_how_many_objects_stand_behind_it(browser):
    rows = browser.driver.find_elements("css selector", '[data-table="3"][data-block="toys4k"] tr[data-line="ours"]')
    heads = {row.get_attribute("data-row"): row.find_element("css selector", "th").text for row in rows}
    said = {name: [line for line in head.splitlines() if "true object" in line] for name, head in heads.items()}
    assert said["retrieved by pretrained"] == ["true object found 1 of 200, 4 different objects"]
    assert sum(map(len, said.values())) == 1 < len(said)


@needs_browser
def test_a_click_opens_a_picture_at_full_size_and_another_closes_it(place, browser):
    def shown():
        return browser.driver.execute_script(
            "return [...document.querySelectorAll('dialog[open] img')].map((i) => [i.src, i.width, i.naturalWidth])"
        )

    button = browser.driver.find_element("css selector", ".figures button")
    browser.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()
    ((source, width, natural),) = shown()
    assert base64.b64decode(source.partition(",")[2]) == place.picture and width == natural > 0
    browser.driver.find_element("css selector", "dialog button").click()
    assert shown() == []


def test_pictures_are_the_files_of_the_last_checkpoint_bit_by_bit(place):
    found, refused = pictures_in(place.data)
    assert base64.b64decode(found["src"].partition(",")[2]) == place.picture
    assert found["place"] == str(place.kept[0].folder.relative_to(place.root) / "figure.png")
    assert (refused["name"], refused["src"]) == ("no.png", "")
    (compared,) = place.data["comparisons"]
    assert (compared["title"], compared["note"]) == (HOSTILE, "A note")
    assert [base64.b64decode(each["src"].partition(",")[2]) for each in compared["pictures"]] == [place.picture]
    assert "UNTRAINED x" in place.data["head"]["untrained"]


def pictures_in(data):
    """The pictures of results on a page."""
    return [p for t in data["tables"] for b in t["blocks"] for r in b["rows"] for o in r["ours"] for p in o["pictures"]]


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


def test_a_result_stands_in_the_row_of_its_model_by_any_of_its_names_and_others_have_their_own(tmp_path):
    cells = {"fd_dinov2": Cell(1.0)}
    names = {
        "trellis-image": "toys4k-table3-trellis-image: trellis-image",
        "trellis-text": "TRELLIS, text to 3D",
        "pretrained": "GAP3D, pre-trained",
        "pretrained-prompted": "Pre-trained, prompted for a black background",
        "": "retrieved by pretrained: nearest object, no generation",
    }
    for name in names.values():
        save(tmp_path / "toys4k", result("generation", name, "toys4k", cells), [Sample("a")])
    tables = {each["number"]: each for each in data_of(write(tmp_path / "toys4k").read_text())["tables"]}
    stand = {
        number: {row["name"]: [each["model"] for each in row["ours"]] for row in tables[number]["blocks"][0]["rows"]}
        for number in ("3", "4")
    }
    assert {row: models for row, models in stand["3"].items() if models} == {
        **{row: [names[row]] for row in ("trellis-image", "trellis-text", "pretrained")},
        names[""]: [names[""]],
    }
    assert stand["4"] == {row: [names[row]] for row in ("pretrained", "pretrained-prompted")}
    assert not any(block["rows"] for number in ("1", "2") for block in tables[number]["blocks"] if not block["dataset"])


def test_a_glance_stands_below_the_full_measurement_and_the_history_tells_their_samples(tmp_path):
    for count, value in ((1250, 180.0), (5, 900.0)):
        one = result("generation", "finetuned", "toys4k", {"fd_dinov2": Cell(value, samples=count)}, samples=count)
        save(tmp_path / "toys4k", one, [Sample(str(number)) for number in range(count)])
    (table,) = (each for each in data_of(write(tmp_path / "toys4k").read_text())["tables"] if each["number"] == "3")
    block = table["blocks"][0]
    (row,) = (each for each in block["rows"] if each["name"] == "finetuned")
    assert [(each["samples"], each["cells"]["fd_dinov2"]["value"]) for each in row["ours"]] == [(1250, 180), (5, 900)]
    assert [each["samples"] for each in block["history"]["rows"]] == [1250, 5]


def test_the_same_numbers_under_two_names_are_two_rows(tmp_path):
    one = result(step=3000)
    for model in (one.model, "step 3000"):
        save(tmp_path / "coco", replace(one, model=model), [Sample("a")])
    (table,) = (each for each in data_of(write(tmp_path / "coco").read_text())["tables"] if each["number"] == "2")
    rows = {row["name"]: [each["model"] for each in row["ours"]] for row in table["blocks"][0]["rows"]}
    assert rows["pretrained"] == ["pretrained"] and rows["step 3000"] == ["step 3000"]


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
    assert [block["collections"] for block in one["blocks"]] == [["coco"], ["demo"], []]
    bad = published_file(tmp_path, "[tables.9]")
    assert run(*flags, "--collection", "demo", "--published", bad) == 1
    assert "there is no table '9'" in capsys.readouterr().err
    good = published_file(tmp_path)
    for flag in ("--published", "--evaluation.published"):
        assert run(*flags, "--collection", "demo", "--out", tmp_path, flag, good) == 0
        assert data_of((tmp_path / "evaluation.html").read_text())["head"]["added"] == good.name
    assert run(*flags, "--collection", "dmeo") == 1
    assert "no collection dmeo" in capsys.readouterr().err and not (place.root / "dmeo").exists()
