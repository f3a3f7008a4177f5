"""The line with every kind of encoder and framing: nothing after the encoder assumes one."""

import json

import authors_vit
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from folders import counters, run_line, small, write_box

from gap3d.features.encoders import load_encoder
from gap3d.features.images import to_uint8
from gap3d.target_parts import read_targets
from pipelines import targets
from pipelines.command import open_store
from pipelines.report import merge


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two boxes, and weights of their authors' names."""
    root = tmp_path_factory.mktemp("encoders")
    for index in range(2):
        write_box(root / "objects" / f"{index}.obj", 1.0 + index)
    torch.save(authors_vit.weights(family="dinov2", registers=5, patch=8), root / "vit.pth")
    return root


@pytest.mark.parametrize(
    "values",
    [
        {"encoder": "random-small-dinov3", "image_size": 64},
        {"encoder": "random-small-dinov3", "image_size": 48, "crop": "trellis", "dtype": "bfloat16"},
        {"encoder": "vit.pth", "image_size": 40, "alpha": "drop"},
    ],
    ids=["dinov3", "dinov3, trellis", "authors' file"],
)
def test_the_line_stores_what_any_encoder_makes_of_the_renders(root, values, monkeypatch):
    monkeypatch.chdir(root)
    settings = small(root / "store", root / "objects", targets=values, collection="boxes")
    report = run_line(settings)
    assert report.by_status("targets") == report.by_status("dataset") == {"ok": 2}
    assert counters(merge([report, run_line(settings)]))["targets"] == 2  # the second run has nothing to do
    monkeypatch.chdir("/")
    encoder = load_encoder(settings.targets, device="cpu")
    layout = encoder.layout
    store = open_store(settings)
    seen = 0
    for shard in store.shards:
        for part in store.manifest("targets", shard).parts:
            about = json.loads(pq.read_schema(store.shard("targets", shard) / part).metadata[b"gap3d"])
            assert about["encoder"] == encoder.description
        renders = store.read(store.manifest("renders", shard), ["png"])
        for batch in read_targets(store, shard):
            pixels = [to_uint8(renders[key]["png"], settings.targets, 10**6) for key in batch.keys]
            cls, registers, patches = layout.split(encoder.encode(np.stack(pixels)))
            assert torch.equal(batch.cls, cls)
            assert torch.equal(batch.registers, registers.half())
            assert torch.equal(batch.patches, patches.half())
            seen += len(batch.keys)
    assert seen == 2


def test_an_encoder_without_registers_is_refused_before_anything_is_computed(root):
    torch.save(authors_vit.weights(family="dinov2", registers=0, patch=8), root / "none.pth")
    settings = small(root / "store", root / "objects", targets={"encoder": str(root / "none.pth"), "image_size": 40})
    with pytest.raises(ValueError, match=r"no register tokens.*set targets\.encoder"):
        targets.make_job(settings)
