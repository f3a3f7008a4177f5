"""What the stages targets and dataset write, in each variant of the store, is what the dataset gives a training."""

from functools import partial

import pytest
import torch
from gallery_data import Collection, object_id, picture
from pictures import of_images, pairs, run_images, write_tar
from torch.nn.functional import cosine_similarity
from torch.utils.data import DataLoader

from gap3d.features.encoders import load_encoder
from gap3d.features.images import to_pixels
from gap3d.images import key_of
from gap3d.readers.batches import Collate
from gap3d.readers.image_text import ImageTextDataset
from gap3d.readers.targets import TargetDataset
from gap3d.records import Status
from gap3d.target_parts import TargetPart
from pipelines import dataset, targets
from pipelines.command import load_settings

OBJECTS = 6


@pytest.mark.parametrize(
    ("store_dtype", "compression", "least"),
    [("float16", "none", 1 - 1e-5), ("bfloat16", "zstd", 1 - 1e-4), ("int8", "zstd", 1 - 1e-3)],
)
def test_the_dataset_gives_what_the_encoder_makes(tmp_path, store_dtype, compression, least):
    made = Collection(tmp_path)
    for index in range(OBJECTS):
        made.add(index)
    made.fail(99, "renders", Status.EMPTY_RENDER, "nothing in the picture")
    made.commit()
    chosen = {"image_size": 28, "store_dtype": store_dtype, "compression": compression}
    settings = load_settings(
        "demo", store=tmp_path, collection="toys", catalog={"shards": 1}, targets=chosen, compute={"workers": 0}
    )
    targets.run(settings, ["0"])
    dataset.run(settings)
    encoder = load_encoder(settings.targets)
    read = TargetDataset(tmp_path / "toys", batch_size=4)
    with TargetPart(read.index.path(0)) as part:
        assert part.layout["patches"]["dtype"] == store_dtype
        assert part.open(0).mapped == (compression == "none")
        assert targets.row_bytes(settings) == read_bytes(part.open(0), part.layout)
        assert "UNTRAINED" in part.metadata["encoder"]["label"]
    seen = []
    for batch in DataLoader(read, 4, collate_fn=Collate(torch.float32)):
        for key, caption, tokens in zip(batch.keys, batch.captions, batch.tokens, strict=True):
            index = next(n for n in range(OBJECTS) if key == f"{object_id(n)}/000")
            pixels = to_pixels(picture(index), settings.targets, settings.limits.pixels)
            exact = encoder.encode(torch.from_numpy(pixels)[None])[0]
            assert caption == f"a thing number {index}"
            assert cosine_similarity(tokens, exact, dim=-1).min() > least
            assert torch.allclose(tokens[0], exact[0], atol=1e-6)
            seen.append(index)
    assert sorted(seen) == list(range(OBJECTS))


def read_bytes(group, layout):
    """Bytes of the tokens of one row as they are stored, before compression."""
    stored = sum(group.stored(name).nbytes for name in layout if name.startswith(("registers", "patches")))
    return (stored + group.cls.nbytes) // len(group.keys)


def test_images_with_the_encoder_online_and_their_targets_in_a_store_are_the_same_training(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for first in (0, 3):
        write_tar(tmp_path / "tars" / f"{first}.tar", pairs(first))
    settings = of_images(tmp_path / "store", tmp_path / "tars")
    run_images(settings)
    decode = partial(to_pixels, settings=settings.targets, pixel_limit=settings.limits.pixels)
    online = {key_of("tars", each.key): each for each in ImageTextDataset(tmp_path / "tars", decode=decode)}
    stored = {each.key: each for each in TargetDataset(settings.store / settings.collection)}
    encoder = load_encoder(settings.targets)
    assert set(online) == set(stored)
    for key, each in stored.items():
        assert each.caption == online[key].caption
        cls, registers, patches = encoder.layout.split(encoder.encode(torch.from_numpy(online[key].image)[None]))
        assert torch.equal(each.cls, cls[0])
        assert torch.equal(each.registers, registers[0].to(each.registers.dtype))
        assert torch.equal(each.patches, patches[0].to(each.patches.dtype))
