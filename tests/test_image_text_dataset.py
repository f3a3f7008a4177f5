"""The dataset of image-text tars: what webdataset reads, in an order of seed and epoch, nothing replaced."""

import io
import itertools
import json
import pickle
import tarfile
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from webdataset_tars import read_back

from gap3d import tars
from gap3d.features.decoding import decode_image
from gap3d.features.images import to_pixels
from gap3d.readers.image_text import ImageTextDataset, collate_images
from gap3d.readers.shuffled import Damaged, DamagedSample
from gap3d.settings import TargetSettings

COUNT = 300


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gap3d" / "tars"


def png(number, side=20):
    file = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), number % 256, np.uint8)).save(file, "PNG")
    return file.getvalue()


def sample(number):
    made = {"__key__": f"{number:05d}", "png": png(number)}
    if number % 3:
        made["txt"] = f"caption {number}".encode()
    else:
        captions = [f"caption {number} of {i}" for i in range(3)]
        made["json"] = json.dumps({"captions": captions}).encode()
        made["txt"] = b"not this one"
    return made


@pytest.fixture
def folder(tmp_path):
    """Five tars, some in a folder below, with 300 samples."""
    for number in range(5):
        mine = [sample(n) for n in range(number * COUNT // 5, (number + 1) * COUNT // 5)]
        tars.write(tmp_path / "tars" / ("" if number % 2 else "below") / f"{number:05d}.tar", mine)
    return tmp_path / "tars"


def loader(dataset, workers=0):
    return DataLoader(dataset, dataset.batch_size, num_workers=workers, collate_fn=collate_images)


def test_every_sample_of_webdataset_comes_once_with_its_bytes(folder):
    truth = read_back(folder.rglob("*.tar"))
    samples = list(ImageTextDataset(folder))
    assert {each.key.partition("#")[2] for each in samples} == set(truth)
    assert len(samples) == len(truth) == COUNT
    for each in samples:
        tar, _, stem = each.key.partition("#")
        assert (folder / tar).is_file()
        assert (each.image, each.format) == (truth[stem]["png"], "png")
        if "json" in truth[stem]:
            assert each.caption in json.loads(truth[stem]["json"])["captions"]
        else:
            assert each.caption == truth[stem]["txt"].decode()
    keys = [each.key for each in samples]
    assert keys != sorted(keys)
    assert sum(one[:-5] == two[:-5] for one, two in itertools.pairwise(keys)) < 0.5 * COUNT  # of the same tar


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("used", [0, 7, 37, 38])
def test_resumed_is_uninterrupted_for_any_number_of_workers(folder, workers, used):
    dataset = ImageTextDataset(folder, batch_size=8, seed=2)
    dataset.set_epoch(3)
    whole = [(batch.keys, batch.captions, batch.images) for batch in loader(dataset)]
    seen = list(itertools.islice(loader(dataset, 2 - workers), used))
    state = dataset.state_dict(seen[-1].position if seen else 0)
    resumed = ImageTextDataset(folder, batch_size=8, seed=2)
    resumed.load_state_dict(json.loads(json.dumps(state)))
    assert [(batch.keys, batch.captions, batch.images) for batch in loader(resumed, workers)] == whole[used:]


def test_a_dataset_goes_to_other_processes_without_what_it_maps(folder):
    dataset = ImageTextDataset(folder)
    sent = pickle.dumps(dataset)
    assert len(sent) < 20 * COUNT
    assert [each.key for each in pickle.loads(sent)] == [each.key for each in dataset]


def test_ranks_read_all_of_it_between_them(folder):
    read = [each.key for rank in range(7) for each in ImageTextDataset(folder, rank=rank, ranks=7)]
    assert len(read) == len(set(read)) == COUNT


def test_captions_are_drawn_again_every_epoch(folder):
    dataset, drawn = ImageTextDataset(folder), Counter()
    for epoch in range(12):
        dataset.set_epoch(epoch)
        drawn.update(each.caption for each in dataset if each.key.endswith("#00003"))
    assert set(drawn) == {"caption 3 of 0", "caption 3 of 1", "caption 3 of 2"}
    assert drawn.total() == 12


def test_images_are_decoded_on_request_by_the_worker(folder):
    settings = TargetSettings(image_size=14)
    decode = partial(to_pixels, settings=settings, pixel_limit=10**6)

    def collate(samples):
        return collate_images(samples).keys, np.stack([each.image for each in samples])

    for keys, images in DataLoader(
        ImageTextDataset(folder, decode=decode, batch_size=5), 5, collate_fn=collate, num_workers=1
    ):
        for key, image in zip(keys, images, strict=True):
            np.testing.assert_array_equal(image, decode(png(int(key[-5:]))))
    batch = next(iter(loader(ImageTextDataset(folder, decode=lambda data: torch.tensor(list(data[:4])), batch_size=3))))
    assert batch.images.tolist() == [[137, 80, 78, 71]] * 3


def test_jpeg_and_webp_are_images_too(tmp_path):
    def encoded(kind):
        file = io.BytesIO()
        Image.new("RGB", (9, 7), (200, 30, 40)).save(file, kind)
        return file.getvalue()

    kinds = {"jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP", "png": "PNG"}
    made = [{"__key__": kind, kind: encoded(name), "txt": b"text"} for kind, name in kinds.items()]
    tars.write(tmp_path / "a.tar", made)
    samples = list(ImageTextDataset(tmp_path, decode=partial(decode_image, pixel_limit=100)))
    assert {each.key: each.format for each in samples} == {
        "a.tar#jpg": "jpg",
        "a.tar#jpeg": "jpg",
        "a.tar#webp": "webp",
        "a.tar#png": "png",
    }
    for each in samples:
        np.testing.assert_allclose(each.image.convert("RGB").getpixel((4, 3)), (200, 30, 40), atol=4)
    small = ImageTextDataset(tmp_path, decode=partial(decode_image, pixel_limit=10), on_damage="skip")
    assert all(isinstance(each, Damaged) for each in small)


@pytest.fixture
def faulty(folder):
    """Beside the good ones: no image, no caption, an image that is none."""
    extra = [
        {"__key__": "a", "txt": b"text"},
        {"__key__": "b", "png": png(1)},
        {"__key__": "c", "png": b"\x89PNG and no more", "txt": b"text"},
        {"__key__": "d", "png": png(2), "txt": b"good"},
    ]
    tars.write(folder / "99999.tar", extra)
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_sample_is_counted_and_never_replaced(faulty, workers):
    decode = partial(to_pixels, settings=TargetSettings(image_size=14), pixel_limit=10**6)
    dataset = ImageTextDataset(faulty, decode=decode, batch_size=8, on_damage="skip")
    batches = list(loader(dataset, workers))
    reasons = {damage.key: damage.reason for batch in batches for damage in batch.damaged}
    assert sorted(reasons) == ["99999.tar#a", "99999.tar#b", "99999.tar#c"]
    assert "no image" in reasons["99999.tar#a"]
    assert "no caption" in reasons["99999.tar#b"]
    assert "PNG" in reasons["99999.tar#c"]
    keys = [key for batch in batches for key in batch.keys]
    assert len(keys) == len(set(keys)) == COUNT + 1
    assert [batch.position for batch in batches] == [*range(8, COUNT + 4, 8), COUNT + 4]
    with pytest.raises(DamagedSample, match=r"no image|no caption|PNG"):
        list(ImageTextDataset(faulty, decode=decode))


def test_of_a_tar_that_is_cut_off_the_beginning_is_read(folder):
    path = folder / "00001.tar"
    content = path.read_bytes()
    path.chmod(0o644)
    with tarfile.open(path) as file:
        members = file.getmembers()
    path.write_bytes(content[: members[40].offset_data + 3])
    with pytest.raises(DamagedSample, match=r"00001\.tar: no plain tar that can be read"):
        ImageTextDataset(folder)
    dataset = ImageTextDataset(folder, on_damage="skip")
    assert list(dataset.damaged_tars) == [str(path)]
    stems = {each.key[-5:] for each in dataset if not isinstance(each, Damaged)}
    before = {member.name.partition(".")[0] for member in members[:40]}
    lost = {f"{number:05d}" for number in range(COUNT)} - stems
    assert lost and not lost & before - {members[39].name.partition(".")[0]}


def test_headers_are_read_once_until_a_tar_changes(folder, cache, monkeypatch):
    first = [each.key for each in ImageTextDataset(folder)]
    assert len(list(cache.glob("*.arrow"))) == 5
    scans, scan = [], tars.samples
    monkeypatch.setattr(tars, "samples", lambda path: scans.append(path) or scan(path))
    assert [each.key for each in ImageTextDataset(folder)] == first
    assert not scans
    tars.write(folder / "00003.tar", [sample(1000)])
    assert "00003.tar#01000" in {each.key for each in ImageTextDataset(folder)}
    assert scans == [folder / "00003.tar"]


def test_a_folder_without_tars_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no tar with a sample"):
        ImageTextDataset(tmp_path)


def test_a_state_of_other_tars_is_refused(folder):
    state = ImageTextDataset(folder).state_dict()
    tars.write(folder / "00009.tar", [sample(9)])
    with pytest.raises(ValueError, match="another digest"):
        ImageTextDataset(folder).load_state_dict(state)
