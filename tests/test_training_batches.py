"""Batches of a training: whole epochs, equal sizes, exact shares, the same after a stop; from shards and from tars."""

import io
import itertools
import tarfile
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from target_stores import collection, write_index
from trainings import small

from gap3d import gc
from gap3d.features.encoders import load_encoder
from gap3d.features.images import to_uint8
from gap3d.features.tokens import TokenLayout
from gap3d.records import SystemicFault
from gap3d.settings import ComputeSettings
from gap3d.store import Store
from gap3d.training.batches import ahead
from gap3d.training.data import described, open_batches

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Twenty images, sixteen of them to train on."""
    folder = tmp_path_factory.mktemp("batches")
    collection(folder, rows=20, shards=2)
    return folder


def opened(settings, rank=0, ranks=1):
    layout = described(settings, settings.pretraining).layout
    return open_batches(settings, settings.pretraining, layout, rank=rank, ranks=ranks, device="cpu")


def taken(batches, count):
    with batches.read_ahead() as drawn:
        return [batches.finished(each) for each in itertools.islice(drawn, count)]


def same(a, b):
    return (a.keys, a.captions, a.visits, a.place) == (b.keys, b.captions, b.visits, b.place) and torch.equal(
        a.tokens, b.tokens
    )


def parts_of(store, shard):
    return [store.shard("targets", shard) / part for part in store.manifest("targets", shard).parts]


def test_batches_are_equally_large_and_every_sample_comes_once_an_epoch(root):
    found = taken(opened(small(root, pretraining={"batch_size": 6})), 8)  # 48 samples, 3 epochs of 16
    assert {len(batch.keys) for batch in found} == {6}
    visits = [visit for batch in found for visit in batch.visits]
    assert len(set(visits)) == 48
    for epoch in range(3):
        part = visits[16 * epoch : 16 * (epoch + 1)]
        assert {visit.split("/")[1] for visit in part} == {str(epoch)}
        assert len({visit.partition(f"/{epoch}/")[2] for visit in part}) == 16


def test_ranks_have_an_epoch_between_them(root):
    settings = small(root, pretraining={"batch_size": 4})
    visits = [v for rank in range(2) for batch in taken(opened(settings, rank, 2), 2) for v in batch.visits]
    assert len(set(visits)) == 16


@pytest.mark.parametrize("used", [1, 3, 4])
def test_resumed_batches_are_those_of_a_run_without_a_stop(root, used):
    settings = small(root, pretraining={"batch_size": 6, "mix_share": 0.3, "mix_collection": "test"})
    whole = taken(opened(settings), 7)
    batches = opened(settings)
    batches.restore(whole[used - 1].place)
    assert all(map(same, taken(batches, 7 - used), whole[used:]))


@pytest.mark.parametrize(("size", "share"), [(8, 0.25), (5, 0.29), (16, 0.1), (3, 0.9)])
def test_the_mixed_share_is_exact(root, size, share):
    settings = small(root, pretraining={"batch_size": size, "mix_share": share, "mix_collection": "test"})
    found = taken(opened(settings), 100)
    counts = np.cumsum([sum(visit.startswith("mixed/") for visit in batch.visits) for batch in found])
    exact = np.array([round((n + 1) * size * share * 100) // 100 for n in range(100)])
    assert (counts == exact).all()
    assert {len(batch.keys) for batch in found} == {size}


def test_targets_of_another_encoder_are_not_mixed_in(root, tmp_path):
    collection(tmp_path, rows=10, shards=2, layout=TokenLayout(2, (3, 4), 8))
    (tmp_path / "test").rename(root / "other")
    with pytest.raises(SystemicFault, match="another encoder, or for images of another size"):
        settings = small(root, pretraining={"mix_share": 0.5, "mix_collection": "other"})
        described(settings, settings.pretraining)


def test_damage_costs_its_own_visits_and_is_counted(root, tmp_path):
    store, _ = collection(tmp_path, rows=20, shards=2)
    for part in parts_of(store, "0"):
        part.write_bytes(b"PAR1" + bytes(part.stat().st_size - 8) + b"PAR1")
    found = taken(opened(small(tmp_path, pretraining={"batch_size": 4})), 6)
    assert {len(batch.keys) for batch in found} == {4}
    assert found[-1].damaged > 0
    assert {int(key[:4]) % 2 for batch in found for key in batch.keys} == {1}  # of the other shard


def test_data_without_one_good_sample_end_the_run(tmp_path):
    store, _ = collection(tmp_path, rows=10, shards=2)
    settings = small(tmp_path)
    batches = opened(settings)
    for path in [*parts_of(store, "0"), *parts_of(store, "1")]:
        path.write_bytes(b"no part")
    with pytest.raises(SystemicFault, match="not one sample"):
        taken(batches, 1)


def test_rows_that_were_arranged_anew_go_on_at_the_same_place(tmp_path, caplog):
    collection(tmp_path, rows=40, shards=2, part_rows=2)
    settings = small(tmp_path, pretraining={"batch_size": 4})
    digest = described(settings, settings.pretraining).digest
    place = taken(opened(settings), 3)[-1].place
    store = Store(tmp_path, "test", 2)
    compacted = gc.compact(store, ComputeSettings(), dry_run=False)
    assert compacted
    write_index(store)
    assert described(settings, settings.pretraining).digest == digest
    batches = opened(settings)
    batches.restore(place)
    found = taken(batches, 5)  # the remaining 20 of 32
    assert "lie otherwise" in caplog.text
    assert {visit.split("/")[1] for batch in found for visit in batch.visits} == {"0"}


@pytest.fixture
def tars(tmp_path, monkeypatch):
    """Two tars of nine pictures, of which one is broken."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "tars"
    folder.mkdir()
    for number in range(2):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for index in range(number, 9, 2):
                file = io.BytesIO()
                colours = np.random.default_rng(index).integers(0, 256, (40, 60, 3), np.uint8)
                Image.fromarray(colours).save(file, "PNG")
                content = file.getvalue() if index != 4 else b"no picture"
                for kind, data in (("png", content), ("txt", f"picture {index}".encode())):
                    about = tarfile.TarInfo(f"{index:03d}.{kind}")
                    about.size = len(data)
                    tar.addfile(about, io.BytesIO(data))
    return folder


def test_pictures_of_tars_become_the_encoders_tokens(tmp_path, tars):
    settings = small(
        tmp_path,
        targets={"encoder": "random-small", "image_size": 28},
        pretraining={"data": "tars", "tars": tars, "batch_size": 4},
    )
    found = taken(opened(settings), 4)  # two epochs of eight good pictures
    assert Counter(key for batch in found for key in batch.keys) == dict.fromkeys(found[0].keys + found[1].keys, 2)
    assert found[-1].damaged == 2
    encoder = load_encoder(settings.targets, device="cpu")
    pictures = {}
    for path in tars.iterdir():
        with tarfile.open(path) as tar:
            pictures |= {f"{path.name}#{m.name[:3]}": tar.extractfile(m).read() for m in tar if m.name.endswith("png")}
    for batch in found:
        assert batch.tokens.dtype == torch.float32
        for row, key in enumerate(batch.keys):
            assert batch.captions[row] == f"picture {int(key[-3:])}"
            pixels = to_uint8(pictures[key], settings.targets, settings.limits.pixels)
            assert torch.equal(batch.tokens[row], encoder.encode(pixels[None])[0])
    batches = opened(settings)
    batches.restore(found[0].place)
    assert all(map(same, taken(batches, 3), found[1:]))


def test_the_digest_of_tars_is_that_of_their_index_and_encoder(tmp_path, tars):
    def digest(**values):
        settings = small(
            tmp_path,
            targets={"encoder": "random-small", "image_size": 28} | values,
            pretraining={"data": "tars", "tars": tars},
        )
        return described(settings, settings.pretraining).digest

    first = digest()
    assert digest() == first
    assert digest(image_size=42) != first
    assert digest(seed=1) != first
    with tarfile.open(tars / "2.tar", "w") as tar:
        about = tarfile.TarInfo("100.txt")
        about.size = 4
        tar.addfile(about, io.BytesIO(b"more"))
    assert digest() != first


def test_what_fails_while_it_is_read_ahead_is_raised_where_it_is_used():
    def items():
        yield 1
        raise ValueError("broken")

    with ahead(items(), 2) as made:
        assert next(made) == 1
        with pytest.raises(ValueError, match="broken"):
            next(made)


def test_nothing_is_read_ahead_after_the_end():
    read = []

    def items():
        for number in itertools.count():
            read.append(number)
            yield number

    with ahead(items(), 2) as made:
        assert [next(made) for _ in range(3)] == [0, 1, 2]
    count = len(read)
    assert count <= 3 + 2 + 1
    assert not [thread for thread in threading.enumerate() if thread.name == "batches"]
    assert len(read) == count
