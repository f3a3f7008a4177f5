"""A collection of images has ways out and a verification too: its tokens, for its pictures lie in tars already."""

import shutil

import pyarrow.parquet as pq
import pytest
from pictures import of_images, pairs, run_images, write_tar

from gap3d.audit import audit
from gap3d.exports.webdataset import Pictures
from pipelines import images
from pipelines.command import open_store
from pipelines.export import export_datasets, export_trellis, export_webdataset


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two tars of three pictures that went through the line."""
    root = tmp_path_factory.mktemp("tars")
    write_tar(root / "tars" / "a.tar", pairs(0))
    write_tar(root / "tars" / "b.tar", pairs(100))
    run_images(of_images(root / "store", root / "tars"))
    return root


def test_its_tokens_go_out_with_captions_and_a_card_that_speaks_of_images(finished, tmp_path):
    store = open_store(of_images(finished / "store", finished / "tars"))
    export_datasets(store, tmp_path, images=False, tokens=True)
    rows = [row for path in (tmp_path / "data").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    found = {row["identifier"]: row["captions"] for row in rows}
    names = {f"{tar}.tar#{first + i:04d}": first + i for tar, first in (("a", 0), ("b", 100)) for i in range(3)}
    assert found == {name: [f"picture {number}"] for name, number in names.items()}
    card = (tmp_path / "README.md").read_text()
    assert "\n6 images with the tokens of a frozen encoder" in card and "3D objects" not in card


@pytest.mark.parametrize(
    "way",
    [
        lambda store, out: export_webdataset(store, out, Pictures()),
        lambda store, out: export_trellis(store, out, "renders"),
        lambda store, out: export_datasets(store, out, images=True, tokens=False),
    ],
)
def test_what_would_need_renders_says_what_goes_out_instead(finished, tmp_path, way):
    with pytest.raises(ValueError, match="--to datasets --tokens --without-images"):
        way(open_store(of_images(finished / "store", finished / "tars")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_it_is_verified_against_its_images(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    settings = of_images(tmp_path / "copy" / "store", tmp_path / "copy" / "tars")
    store = open_store(settings)
    found = audit(store, None, lambda _: None)
    assert found.faults == [] and found.stages["images"] == found.stages["dataset"] == {"ok": 6}
    (tmp_path / "copy" / "tars" / "b.tar").unlink()
    images.run(settings, store.shards)
    faults = audit(store, None, lambda _: None).faults
    assert any("are not in images" in fault for fault in faults)
    assert any(fault.startswith("3 rows of the index are not as images has them") for fault in faults)
