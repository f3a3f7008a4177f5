"""What reports and contact sheets hold, without a browser: small pictures, depth, the choice of objects, freshness."""

import base64
import io
import json
from pathlib import Path

import numpy as np
from gallery_data import Collection, object_id, picture, ramp, settings_of
from PIL import Image

from gap3d.contact_sheet import TILE
from gap3d.depth import depth_range, encode_depth
from gap3d.entries import shard_entries
from gap3d.pages.gallery import sample
from gap3d.records import Outcome, Status
from gap3d.schemas import CATALOG
from gap3d.settings import ComputeSettings, Limits
from gap3d.thumbnails import depth_thumbnail
from pipelines.previews import collection_sheet, shard_report


def embedded(path: Path) -> dict:
    """The data of a page."""
    text = path.read_text().partition('<script type="application/json" id="data">')[2].partition("</script>")[0]
    return json.loads(text)


def decoded(uri: str) -> np.ndarray:
    """RGBA of a data URI, float."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGBA"), dtype=float)


def test_thumbnails_are_the_renders_and_depth_is_bright_where_it_is_near(tmp_path):
    collection = Collection(tmp_path)
    key = collection.add(3, renders=[ramp(), ramp()])
    (record,) = embedded(shard_report(collection.commit(), settings_of(tmp_path), "0"))["objects"]
    assert [shot["key"] for shot in record["shots"]] == [f"{key}/000", f"{key}/001"]
    assert record["rank"] == str(2**62 + 3)  # a browser's numbers have 53 bits
    for view, shot in enumerate(record["shots"]):
        truth = np.asarray(Image.open(io.BytesIO(picture(3 + view))), dtype=float)
        inside = truth[..., 3] == 255
        assert np.abs(decoded(shot["src"])[inside] - truth[inside]).mean() < 6
        depth = decoded(shot["depth"])
        assert depth[:4, :, 3].max() < 40 and depth[20:40, 20:40, 3].min() > 215
        assert depth[32, 12, :3].sum() > depth[32, 32, :3].sum() > depth[32, 52, :3].sum()


def test_depth_of_one_plane_and_of_nothing_have_pictures():
    low, high = depth_range(2.0)
    for value in (2.0, np.inf):
        flat = np.full((32, 32), value, dtype=np.float32)
        alpha = decoded(depth_thumbnail(encode_depth(flat, low, high), low, high, 16))[..., 3]
        assert alpha.shape == (16, 16)
        assert (alpha > 128).all() == np.isfinite(value)


def test_a_report_is_made_again_only_when_a_manifest_changed(tmp_path):
    collection = Collection(tmp_path)
    collection.add(1)
    store, settings = collection.commit(), settings_of(tmp_path)
    path = shard_report(store, settings, "0")
    first = path.stat().st_ino, path.read_bytes()
    assert (shard_report(store, settings, "0").stat().st_ino, path.read_bytes()) == first
    compute, limits = ComputeSettings(), Limits()
    with store.writer("catalog", "0", CATALOG, compute, limits) as writer:
        writer.add(Outcome(key=object_id(2), status=Status.EXCLUDED, reason="not wanted"), {})
        writer.finish({object_id(1), object_id(2)})
    digests = {stage: store.manifest(stage, "0").digest for stage in ("catalog", "views", "renders")}
    shard_report(store, settings, "0")
    assert embedded(path)["head"]["statuses"] == {"ok": 1, "excluded": 1}
    assert digests == {stage: store.manifest(stage, "0").digest for stage in digests}


def test_a_damaged_picture_costs_its_place_and_not_the_report(tmp_path):
    collection = Collection(tmp_path)
    collection.add(1, renders=[{"png": picture(1)[:200]}])
    collection.add(2)
    first, second = embedded(shard_report(collection.commit(), settings_of(tmp_path), "0"))["objects"]
    assert "damaged PNG" in first["shots"][0]["fault"]
    assert decoded(second["shots"][0]["src"]).shape == (64, 64, 4)


def test_of_too_many_objects_a_half_is_what_wants_a_look(tmp_path):
    collection = Collection(tmp_path)
    for index in range(40):
        collection.add(index, renders=[{"flags": ["cut_off"] if index % 2 else []}])
    entries = shard_entries(collection.commit(), "0")
    assert sorted(bool(entry.flags) for entry in sample(entries, 10)) == [False] * 5 + [True] * 5
    assert sample(entries, 40) == entries
    assert len(sample([entry for entry in entries if entry.flags], 12)) == 12


def test_a_contact_sheet_shows_every_view_of_an_object(tmp_path):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    pngs = []
    for colour in colours:
        file = io.BytesIO()
        Image.new("RGBA", (32, 32), (*colour, 255)).save(file, "PNG")
        pngs.append({"png": file.getvalue()})
    collection = Collection(tmp_path)
    collection.add(1, renders=pngs)
    store = collection.commit()
    with Image.open(io.BytesIO(collection_sheet(store, store.shards))) as sheet:
        quarter = TILE // 4
        middles = [(8 + x, 8 + y) for y in (quarter, 3 * quarter) for x in (quarter, 3 * quarter)]
        found = [sheet.getpixel(middle) for middle in middles]
    assert np.abs(np.subtract(found, colours)).max() < 12
