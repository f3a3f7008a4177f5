"""The dataset's report of planted tokens: its numbers against numpy, the page in a real browser."""

import base64
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from browser import NEEDED, Browser
from dataset_data import COPY, COUNT, LAYOUT, ORIGINAL, STRANGE, tokens_of, write_dataset
from gallery_data import Collection, object_id, settings_of
from pictures import of_images, pairs, picture, run_images, write_tar
from PIL import Image

from gap3d.pages.document import state_of
from pipelines import dataset, dataset_report
from pipelines.command import open_store
from pipelines.job import NotReady
from pipelines.survey import Bounds

HOSTILE = {
    0: "<img src=x onerror=\"window.struck='img'\">",
    1: "</script ><script >window.struck='script'</script >",
    2: "<!--<script>{{data}} $& ` \u2028 \u202e ${window.struck=1}",
}


def key(index):
    return f"{object_id(index)}/000"


def embedded(path):
    """The data of a page."""
    text = path.read_text().partition('<script type="application/json" id="data">')[2].partition("</script>")[0]
    return json.loads(text)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("dataset")
    tokens = tokens_of()
    store, settings = write_dataset(root / "store", tokens, HOSTILE, trained=False)
    written = dataset_report.write(store, settings)
    numbers = json.loads(written.numbers.read_text())
    return SimpleNamespace(
        root=root,
        store=store,
        settings=settings,
        tokens=tokens,
        written=written,
        numbers=numbers,
        data=embedded(written.page),
    )


def test_its_statistics_are_numpys_of_the_tokens_that_were_written(place):
    slices = {
        "cls": slice(0, 1),
        "registers": slice(1, 1 + LAYOUT.registers),
        "patches": slice(1 + LAYOUT.registers, None),
    }
    for kind in place.numbers["kinds"]:
        truth = place.tokens[:, slices[kind["name"]]].astype(np.float64)
        assert (kind["images"], kind["tokens"], kind["broken"]) == (COUNT, truth.shape[0] * truth.shape[1], 0)
        assert np.allclose(kind["channels"]["means"], truth.mean((0, 1)), atol=2e-3)
        assert np.allclose(kind["channels"]["deviations"], truth.std((0, 1)), atol=2e-3)
        assert kind["variances"]["least"] == pytest.approx(truth.var(-1).min(), abs=2e-3)
    assert all(finding["good"] for finding in place.numbers["findings"])


def test_neighbours_are_the_nearest_of_all_with_the_cosines_of_their_tokens(place):
    cls = place.tokens[:, 0] / np.linalg.norm(place.tokens[:, 0], axis=1, keepdims=True)
    index = {key(i): i for i in range(COUNT)}
    assert len(place.data["neighbours"]) == 12
    for query in place.data["neighbours"]:
        own = index[query["key"]]
        others = sorted((i for i in range(COUNT) if i != own), key=lambda i: -cls[own] @ cls[i])
        assert [index[near["key"]] for near in query["near"]] == others[:5]
        assert query["near"][0]["cosine"] == pytest.approx(float(cls[own] @ cls[others[0]]), abs=1e-5)


def test_the_planted_near_duplicate_is_named_first_and_known_to_lie_across_the_split(place):
    assert set(place.data["pairs"][0]["keys"]) == {key(COPY), key(ORIGINAL)}
    assert place.data["pairs"][0]["cosine"] > 0.99
    assert place.numbers["duplicates"]["across"] >= 1


def test_the_planted_outlier_is_named_first(place):
    assert place.data["outliers"][0]["key"] == key(STRANGE)


def test_pictures_of_tokens_have_one_pixel_a_patch_in_the_colours_of_joint_components(place):
    patches = place.tokens[:, 1 + LAYOUT.registers :].reshape(-1, LAYOUT.width).astype(np.float64)
    centred = patches - patches.mean(0)
    axis = np.linalg.svd(centred, full_matrices=False)[2][0]
    first = centred @ (axis * np.sign(axis[np.abs(axis).argmax()]))
    low, high = np.quantile(first, (0.02, 0.98))
    red = np.clip((first - low) / (high - low), 0, 1).reshape(COUNT, *LAYOUT.grid) * 255
    assert len(place.data["shown"]) == COUNT
    for shown in place.data["shown"]:
        drawn = np.asarray(Image.open(io.BytesIO(decoded(shown["tokens"]))), dtype=float)
        assert drawn.shape == (*LAYOUT.grid, 3)
        index = int(shown["key"].partition("/")[0], 16)
        assert np.abs(drawn[..., 0] - red[index]).max() <= 3
        cut = np.asarray(Image.open(io.BytesIO(decoded(shown["object"]))))[..., 3]
        assert cut[0, 0] == 0 and cut[LAYOUT.grid[0] // 2, LAYOUT.grid[1] // 2] == 255
    with Image.open(place.written.preview) as preview:
        assert preview.width > 3 * 96


def decoded(uri):
    return base64.b64decode(uri.partition("base64,")[2])


def test_rows_reasons_and_bytes_are_those_of_the_store(place):
    stages = {stage["stage"]: stage for stage in place.numbers["stages"]}
    assert stages["views"]["statuses"] == {"ok": COUNT, "no_geometry": 1}
    assert stages["views"]["reasons"] == [{"status": "no_geometry", "reason": "nothing <b>to see</b>", "count": 1}]
    assert (stages["targets"]["passed_on"], stages["targets"]["reasons"]) == (1, [])
    for held in place.numbers["storage"]:
        folder = place.store.folder / held["stage"]
        files = [path for path in folder.rglob("*.parquet") if path.name != "manifest.parquet"]
        assert (held["bytes"], held["parts"]) == (sum(path.stat().st_size for path in files), len(files))
    assert place.numbers["counts"]["splits"] == {"train": COUNT - 2, "validation": 2}
    assert place.numbers["counts"]["captions"] == COUNT


def test_it_is_made_again_only_where_something_changed(place):
    def stamps():
        paths = (place.written.page, place.written.numbers, place.written.preview)
        return [(path.stat().st_ino, path.stat().st_mtime_ns) for path in paths]

    before = stamps()
    dataset_report.write(place.store, place.settings)
    assert stamps() == before
    elsewhere = dataset_report.write(place.store, place.settings, place.root / "other", Bounds(shown=2))
    assert len(embedded(elsewhere.page)["shown"]) == 2
    assert state_of(elsewhere.page.read_bytes()[:4096]) != state_of(place.written.page.read_bytes()[:4096])
    assert stamps() == before


def test_a_changed_dataset_has_a_new_report(tmp_path):
    store, settings = write_dataset(tmp_path, tokens_of(4))
    assert embedded(dataset_report.write(store, settings).page)["counts"]["images"] == 4
    fewer = settings.model_copy(update={"dataset": settings.dataset.model_copy(update={"count": 3})})
    dataset.run(fewer)
    data = embedded(dataset_report.write(store, fewer).page)
    assert (data["counts"]["images"], len(data["shown"])) == (3, 3)
    assert data["stages"][-1]["statuses"] == {"ok": 3, "no_geometry": 1, "not_admitted": 1}


def test_samples_bound_what_is_read_and_the_page_says_so(place):
    bounds = Bounds(compared=9, measured=7, fitted=5, shown=3, queries=2)
    made = dataset_report.write(place.store, place.settings, place.root / "few", bounds)
    data = embedded(made.page)
    assert data["looked_at"] == {"rows": COUNT, "compared": 9, "measured": 7, "fitted": 5, "shown": 3}
    assert {kind["images"] for kind in data["kinds"]} == {7}
    assert (len(data["shown"]), len(data["neighbours"])) == (3, 2)
    assert data["counts"]["images"] == COUNT


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_dataset_of_few_images_has_a_report_too(tmp_path, count):
    store, settings = write_dataset(tmp_path, tokens_of(2)[:count])
    made = dataset_report.write(store, settings)
    data = json.loads(made.numbers.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert data["counts"]["images"] == count
    assert embedded(made.page)["outliers"] == [] if count < 2 else len(embedded(made.page)["outliers"]) == 2


def test_a_collection_without_a_dataset_is_told_what_to_run(tmp_path):
    collection = Collection(tmp_path)
    collection.add(1)
    with pytest.raises(NotReady, match=r"python -m pipelines\.line"):
        dataset_report.write(collection.commit(), settings_of(tmp_path))


def test_tokens_that_are_not_sound_are_told_at_the_top(tmp_path):
    tokens = tokens_of()
    tokens[5] *= 1.5
    store, settings = write_dataset(tmp_path, tokens)
    data = json.loads(dataset_report.write(store, settings).numbers.read_text())
    assert {finding["about"] for finding in data["findings"] if not finding["good"]} == {
        f"{name}: every token has variance 1" for name in ("cls", "registers", "patches")
    }


def test_a_collection_of_images_shows_its_own_pictures(tmp_path):
    write_tar(tmp_path / "tars" / "a.tar", pairs(0, 4))
    settings = of_images(tmp_path / "store", tmp_path / "tars")
    run_images(settings)
    data = embedded(dataset_report.write(open_store(settings), settings).page)
    assert len(data["shown"]) == len(data["pictures"]) == 4
    number = int(data["shown"][0]["caption"].split()[1])
    seen = np.asarray(Image.open(io.BytesIO(decoded(data["pictures"][data["shown"][0]["key"]]))), dtype=float)
    truth = Image.open(io.BytesIO(picture(number))).crop((2, 0, 22, 20)).resize((56, 56), Image.Resampling.BICUBIC)
    assert np.abs(seen - np.asarray(truth)).mean() < 25  # colours of noise, through a WebP
    assert {shown["object"] for shown in data["shown"]} == {""}  # nothing is transparent


@pytest.fixture(scope="module")
def page(place, tmp_path_factory):
    """The page, opened from disk in a browser."""
    browser = Browser(tmp_path_factory.mktemp("profile"), logged=True)
    try:
        browser.requests()
        browser.open(place.written.page.as_uri())
        yield SimpleNamespace(**vars(place), page=browser, js=browser.driver.execute_script)
    finally:
        browser.driver.quit()


def in_browser(test):
    """Mark a test that needs a browser."""
    for mark in NEEDED:
        test = mark(test)
    return test


@in_browser
def test_every_picture_is_decoded_and_no_request_leaves_the_page(page):
    asked = [url for url in page.page.requests() if url.partition(":")[0] not in ("data", "chrome")]
    assert asked == [page.written.page.as_uri()]
    sizes = page.js(
        "for (const image of document.images) image.loading = 'eager';"
        "return Promise.all([...document.images].map(i => i.decode().catch(() => null).then(() => i.naturalWidth)))"
    )
    assert len(sizes) > 3 * COUNT and min(sizes) > 0
    assert page.page.driver.get_log("browser") == []
    titles = page.js("return [...document.querySelectorAll('h2')].map(e => e.textContent)")
    assert titles == [
        "Tokens",
        "Similarity",
        "Patch tokens as colours",
        "Nearest neighbours",
        "Outliers",
        "Near duplicates",
        "Rows",
        "Storage",
        "Encoder and settings",
    ]
    assert page.js("return document.querySelectorAll('svg rect').length") > 100


@in_browser
def test_random_weights_are_told_loudly(page):
    loud = page.js(
        "const e = document.querySelector('.loud-label strong');"
        "return [e.textContent, parseFloat(getComputedStyle(e).fontSize), e.getBoundingClientRect().top]"
    )
    assert loud[0] == "UNTRAINED random weights"
    assert loud[1] >= 20 and loud[2] < 200


@in_browser
def test_captions_and_reasons_of_strangers_are_text(page):
    texts = page.js("return [...document.querySelectorAll('.pca-card .caption')].map(e => e.textContent)")
    assert set(HOSTILE.values()) <= set(texts)
    assert "nothing <b>to see</b>" in page.js("return document.getElementById('rows').textContent")
    assert page.js("return window.struck === undefined")
    assert page.js("return document.querySelectorAll('script').length") == 2


@in_browser
def test_a_patch_under_the_pointer_colours_all_patches_by_their_cosine_to_it(page):
    patches = page.tokens[:, 1 + LAYOUT.registers :].astype(np.float64)
    centred = patches - patches.mean((0, 1))
    units = centred / np.linalg.norm(centred, axis=-1, keepdims=True)
    card, row, column = 4, 1, 3
    drawn = page.js(
        "const [card, x, y] = arguments, triple = document.querySelectorAll('.triple')[card];"
        "triple.scrollIntoView(); const box = triple.children[0].getBoundingClientRect();"
        "triple.children[0].dispatchEvent(new PointerEvent('pointermove', {bubbles: true,"
        " clientX: box.left + box.width * x, clientY: box.top + box.height * y}));"
        "return [...document.querySelectorAll('canvas.heat')].map(c => c.hidden ? null :"
        " [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data])",
        *(card, (column + 0.5) / LAYOUT.grid[1], (row + 0.5) / LAYOUT.grid[0]),
    )
    keys = [shown["key"] for shown in page.data["shown"]]
    index = {key(i): i for i in range(COUNT)}
    query = units[index[keys[card]], row * LAYOUT.grid[1] + column]
    greens = np.array([np.array(each).reshape(-1, 4)[:, 1] for each in drawn])  # rises with the cosine
    truth = np.clip(np.stack([units[index[each]] for each in keys]) @ query, 0, 1)
    assert greens[card, row * LAYOUT.grid[1] + column] == greens.max() > 225
    assert np.corrcoef(greens.ravel(), truth.ravel())[0, 1] > 0.98
    page.js("document.querySelector('.pca-grid').dispatchEvent(new PointerEvent('pointerleave'))")
    assert page.js("return [...document.querySelectorAll('canvas.heat')].every(c => c.hidden)")
    page.page.shot("dataset_report")
