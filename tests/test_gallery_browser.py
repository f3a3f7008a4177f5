"""The HTML report in a real browser, of collections that the store's own writer wrote."""

import io
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
from browser import NEEDED, Browser
from gallery_data import POINTS, Collection, object_id, settings_of
from PIL import Image

from gap3d.records import Status
from pipelines.previews import shard_report, write_reports

pytestmark = NEEDED
HOSTILE = (
    "<img src=x onerror=\"window.struck='img'\">",
    "</script ><script >window.struck='script'</script >",
    "<!--<script>{{data}} &lt;b&gt; \u2028 \u202e $& ' \" `${window.struck=1}`",
)
REASON = "glTF: buffer <0> has 12 bytes, not 96"
LAST_WORDS = "Error: buffer is short\n<b>Blender quit</b>"


def fill(collection: Collection) -> list[dict]:
    """Eighteen objects of several kinds; what is known of each."""
    known = []
    for index in range(14):
        flags = [["cut_off"], [], ["coverage", "missing_textures"], [], []][index % 5]
        values = {"coverage": (index * 7 % 13) / 20, "flags": flags}
        views = {"triangles": (index * 31) % 17 * 1000, "missing_textures": ["oak.png"] if index % 5 == 2 else []}
        caption = HOSTILE[index] if index < 3 else f"a thing, number {index}"
        key = collection.add(
            index,
            catalog={"captions": [caption]},
            views=views,
            renders=[values] * 4 if index == 5 else [values],
            seconds=float(index * 5 % 11),
            sandboxed=index != 6,
        )
        scores = [300 + (index * step) % 400 for step in (17, 29, 43, 61)]
        known.append(
            {
                "id": key,
                "name": f"kit/object_{index:04d}.glb",
                "text": caption,
                "status": "ok",
                "split": "validation" if index % 7 == 3 else "train",
                "flags": flags,
                "coverage": values["coverage"],
                "best": max(scores) / POINTS,
                "spread": (max(scores) - min(scores)) / POINTS,
                "triangles": views["triangles"],
                "seconds": (5 if index == 5 else 2) * (index * 5 % 11),
            }
        )
    failing = [
        (20, "views", REASON),
        (21, "views", REASON),
        (22, "views", "another <reason>"),
        (23, "downloads", "gone"),
    ]
    for index, stage, reason in failing:
        status = Status.MISSING if stage == "downloads" else Status.IMPORT_ERROR
        key = collection.fail(index, stage, status, reason, LAST_WORDS if index == 20 else "")
        name = f"kit/object_{index:04d}.glb"
        split = "validation" if index % 7 == 3 else "train"
        known.append({"id": key, "name": name, "status": status.value, "split": split, "flags": [], "seconds": 0})
    return known


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A report, opened from disk in a browser."""
    root = tmp_path_factory.mktemp("report")
    collection = Collection(root / "store")
    known = fill(collection)
    paths = write_reports(collection.commit(), settings_of(root / "store"))
    browser = Browser(root / "profile", logged=True)
    try:
        yield SimpleNamespace(root=root, known=known, index=paths[0], shard=paths[1], page=browser, js=browser.driver)
    finally:
        browser.driver.quit()


@pytest.fixture
def page(place):
    """The shard's page, freshly opened."""
    place.js.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    place.page.open(place.shard.as_uri())
    return place


def shown(page) -> list[str]:
    """Ids of the cards that can be seen, in their order on the screen."""
    return page.js.execute_script(
        "return [...document.querySelectorAll('.card')].filter(e => e.offsetParent)"
        ".map(e => [e.getBoundingClientRect(), e.dataset.id])"
        ".sort(([a], [b]) => a.top - b.top || a.left - b.left).map(([, id]) => id)"
    )


def choose(page, name: str, value: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(page.js.find_element("id", name)).select_by_value(value)


def ids(rows) -> list[str]:
    return [row["id"] for row in rows]


@pytest.mark.parametrize(
    ("control", "value", "holds"),
    [
        ("status", "import_error", lambda row: row["status"] == "import_error"),
        ("flag", "coverage", lambda row: "coverage" in row["flags"]),
        ("split", "validation", lambda row: row["split"] == "validation"),
    ],
)
def test_a_filter_leaves_exactly_what_it_names(page, control, value, holds):
    assert shown(page) == ids(page.known)
    choose(page, control, value)
    assert shown(page) == ids(row for row in page.known if holds(row))
    assert 0 < len(shown(page)) < len(page.known)
    choose(page, control, "")
    assert shown(page) == ids(page.known)


def test_a_search_finds_all_its_words_in_names_and_captions_by_keyboard_alone(page):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    ActionChains(page.js).send_keys("/THING, 1").perform()
    assert shown(page) == ids(row for row in page.known if "thing," in row.get("text", "") and "1" in row["name"])
    ActionChains(page.js).send_keys(*[Keys.BACKSPACE] * 8, "0012.GLB").perform()
    assert shown(page) == [object_id(12)]
    ActionChains(page.js).send_keys(*[Keys.BACKSPACE] * 8, Keys.TAB, "missing").perform()
    assert shown(page) == [object_id(23)]


@pytest.mark.parametrize("key", ["name", "coverage", "best", "spread", "triangles", "seconds"])
def test_a_sort_puts_the_cards_in_order_both_ways_and_what_has_no_value_last(page, key):
    choose(page, "sort", key)
    by_name = sorted(page.known, key=lambda row: row["name"])
    rising = sorted((row for row in by_name if key in row), key=lambda row: row[key])
    falling = sorted(rising, key=lambda row: row["name"])
    falling.sort(key=lambda row: row[key], reverse=True)
    without = [row for row in by_name if key not in row]
    first, second = (rising, falling) if key == "name" else (falling, rising)
    assert shown(page) == ids([*first, *without])
    page.js.find_element("id", "order").click()
    assert shown(page) == ids([*second, *without])


def test_hostile_text_is_shown_as_it_is_and_makes_nothing(page):
    assert page.js.execute_script("return window.struck") is None
    assert page.js.execute_script("return document.querySelectorAll('script').length") == 2
    for element in page.js.find_elements("css selector", "img"):
        assert element.get_property("src").startswith("data:image/webp;base64,")
    for index, text in enumerate(HOSTILE):
        card = page.js.find_element("css selector", f"[data-id='{object_id(index)}'] .caption")
        assert card.get_property("textContent") == text
    assert page.js.find_element("id", "failures").get_property("textContent").count("another <reason>") == 1
    assert page.js.find_elements("css selector", "#failures b, #grid b") == []


def test_a_reason_stands_once_with_all_its_objects_and_blenders_last_words(page):
    page.js.find_element("css selector", f"[data-id='{object_id(20)}'] .empty a").click()
    assert page.page.see(REASON).count(REASON) == 1
    box = page.js.find_element("id", "failure-import_error")
    assert {f"kit/object_00{index}.glb" for index in (20, 21, 22)} <= set(re.findall(r"kit/\w+\.glb", box.text))
    assert "Blender quit" not in box.text
    box.find_element("xpath", ".//summary[contains(., 'last words')]").click()
    assert LAST_WORDS in box.text
    box.find_element("xpath", ".//button[contains(., 'object_0021')]").click()
    assert shown(page) == [object_id(21)]


def test_every_picture_decodes_and_what_was_opened_unconfined_is_loud(page):
    widths = page.js.execute_async_script(
        "const done = arguments[0], all = [...document.images];"
        "Promise.all(all.map(i => { i.loading = 'eager'; return i.decode(); }))"
        ".then(() => done(all.map(i => i.naturalWidth)), error => done(String(error)))"
    )
    assert widths == [64] * 17  # one of fourteen objects has four views
    loud = [element.text for element in page.js.find_elements("css selector", ".loud")]
    assert loud == ["sandboxed = false"]
    assert "1 object opened without the kernel's confinement" in page.js.find_element("id", "head").text


class Listener(BaseHTTPRequestHandler):
    """Writes down who came, and what they asked for."""

    came: list[int] = []  # noqa: RUF012
    heard: list[str] = []  # noqa: RUF012

    def setup(self):
        super().setup()
        self.came.append(self.client_address[1])

    def do_GET(self):
        self.heard.append(self.path)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        """Says nothing."""


REACH_OUT = """
const [base, done] = arguments;
new Image().src = base + '/img';
const style = document.createElement('link');
style.rel = 'stylesheet'; style.href = base + '/css'; document.head.append(style);
fetch(base + '/fetch', {mode: 'no-cors'}).catch(() => 0);
setTimeout(done, 700);
"""


def test_the_page_asks_for_nothing_and_is_not_able_to(place):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    bare = place.root / "bare.html"
    bare.write_text("<!doctype html><title>no policy</title><body></body>")
    try:
        for path in (place.shard, place.index):
            place.page.requests()
            place.page.open(path.as_uri())
            asked = [url for url in place.page.requests() if not url.startswith(("data:", "chrome:"))]  # its own
            assert asked == [path.as_uri()]
            place.js.execute_async_script(REACH_OUT, base)
            assert Listener.came == []
        place.page.open(bare.as_uri())
        place.js.execute_async_script(REACH_OUT, base)
        assert set(Listener.heard) == {"/img", "/css", "/fetch"}  # the listener can hear
    finally:
        server.shutdown()
        server.server_close()


def test_it_fits_a_phone_and_follows_the_colour_scheme(page):
    def light(scheme):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.js.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        colour = page.js.execute_script("return getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)))

    assert light("dark") < 150 < 600 < light("light")
    metrics = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.js.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.page.open(page.shard.as_uri())
    page.page.shot("report_phone")
    assert page.js.execute_script("return document.documentElement.scrollWidth") <= 360


def test_the_collections_page_leads_to_its_shards_and_back(place):
    place.page.open(place.index.as_uri())
    place.page.click("//a[.='shard 0']")
    assert shown(place) == ids(place.known)
    place.page.click("//a[.='the collection']")
    assert place.js.current_url == place.index.as_uri()


def test_a_thousand_objects_of_noise_stay_below_30_mb_and_open_within_seconds(place, tmp_path):
    noise = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 256, (180, 180, 4), dtype=np.uint8)
    Image.fromarray(values).save(noise, "PNG")  # what compresses worst
    collection = Collection(tmp_path / "store")
    for index in range(1000):
        collection.add(index, renders=[{"png": noise.getvalue()}])
    path = shard_report(collection.commit(), settings_of(tmp_path / "store"), "0")
    assert 15e6 < path.stat().st_size < 30e6
    started = time.monotonic()
    place.page.open(path.as_uri())
    assert len(place.js.find_elements("css selector", ".card")) == 1000
    assert time.monotonic() - started < 20
    pictures, left_out = (len(place.js.find_elements("css selector", name)) for name in (".card img", ".card .waiting"))
    assert pictures + left_out == 1000
    assert pictures > 300 < left_out
    started = time.monotonic()
    choose(place, "sort", "best")
    place.js.execute_script("return document.body.offsetHeight")
    assert time.monotonic() - started < 5
