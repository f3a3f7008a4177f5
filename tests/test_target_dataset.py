"""The dataset of targets: everything once, in one order for any loader, resumed anywhere, damage skipped or raised."""

import itertools
import pickle
from collections import Counter

import fsspec
import pytest
import torch
from served import served
from stores import flipped
from target_stores import LAYOUT, as_stored, collection, tokens_of, write_index, write_part
from torch.utils.data import DataLoader

from gap3d.readers.batches import Collate
from gap3d.readers.shuffled import Damaged, DamagedSample
from gap3d.readers.targets import TargetDataset, TargetReader
from gap3d.target_parts import TargetPart

ROWS = 100


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return collection(tmp_path_factory.mktemp("targets") / "store", ROWS)


@pytest.fixture(scope="module")
def store(made):
    return made[0]


def loader(dataset, workers=0, **options):
    return DataLoader(dataset, dataset.batch_size, num_workers=workers, collate_fn=Collate(), **options)


def keys_of(batches):
    return [key for batch in batches for key in batch.keys]


def test_every_sample_is_the_one_of_its_key(made):
    store, tokens = made
    samples = list(TargetDataset(store))
    assert sorted(sample.key for sample in samples) == list(tokens)
    for sample in samples:
        exact = tokens[sample.key]
        assert torch.equal(sample.cls, exact[0])
        assert torch.equal(sample.registers, exact[1:3].half())
        assert torch.equal(sample.patches, exact[3:].half())
        assert (sample.object_id, sample.view) == (sample.key[:4], 0)
    assert [sample.position for sample in samples] == list(range(ROWS))


def test_a_split_is_what_the_index_says(made):
    store, tokens = made
    train, validation = (TargetDataset(store, split) for split in ("train", "validation"))
    assert sorted(s.key for s in validation) == list(tokens)[4::5]
    assert sorted(s.key for s in [*train, *validation]) == list(tokens)
    held = f"it has {len(train)} of 'train', {len(validation)} of 'validation'"
    with pytest.raises(ValueError, match=f"no good row of the split 'test': {held}"):
        TargetDataset(store, "test")


def test_rows_that_the_index_does_not_take_are_not_read(tmp_path):
    store, tokens = collection(tmp_path / "store", 20)
    write_index(store, rejected=("0003/000", "0010/000"))
    assert sorted(s.key for s in TargetDataset(store)) == sorted(set(tokens) - {"0003/000", "0010/000"})


@pytest.mark.parametrize(("workers", "lanes"), [(1, 1), (2, 1), (2, 2), (2, 3)])
def test_batches_are_the_same_for_any_number_of_workers(store, workers, lanes):
    dataset = TargetDataset(store, batch_size=7, lanes=lanes)
    alone = list(loader(dataset))
    assert sorted(keys_of(alone)) == sorted(sample.key for sample in dataset)
    for mine, theirs in itertools.zip_longest(alone, loader(dataset, workers)):
        assert (mine.keys, mine.captions, mine.position) == (theirs.keys, theirs.captions, theirs.position)
        assert torch.equal(mine.tokens, theirs.tokens)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("used", [0, 5, 14, 15])
def test_resumed_is_uninterrupted(store, used, workers):
    """Also with a state that another rank saved, another number of workers, and after a trip through a file."""

    def fresh(rank):
        return TargetDataset(store, batch_size=7, lanes=2, seed=3, rank=rank, ranks=1)

    dataset = fresh(0)
    whole = []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        whole += [(batch.keys, batch.captions) for batch in loader(dataset)]
    assert len(whole) == 30
    stopped = fresh(0)
    stopped.set_epoch(1)
    seen = list(itertools.islice(loader(stopped, 2 - workers), used))  # it has read ahead by then
    state = stopped.state_dict(seen[-1].position if seen else 0)
    resumed = fresh(0)
    resumed.load_state_dict(pickle.loads(pickle.dumps(state)))
    rest = [(batch.keys, batch.captions) for batch in loader(resumed, workers)]
    assert rest == whole[15 + used :]
    resumed.set_epoch(0)
    assert [(batch.keys, batch.captions) for batch in loader(resumed)] == whole[:15]


def test_without_a_loader_the_dataset_counts_itself(store):
    dataset, other = TargetDataset(store), TargetDataset(store)
    samples = iter(dataset)
    seen = [next(samples).key for _ in range(31)]
    other.load_state_dict(dataset.state_dict())
    assert other.state_dict() == dataset.state_dict()
    rest = [sample.key for sample in other]
    assert rest == [sample.key for sample in samples]
    assert sorted(seen + rest) == sorted(sample.key for sample in TargetDataset(store))


def test_to_resume_reads_nothing_that_is_skipped(store, monkeypatch):
    opened = []
    opening = TargetPart.open
    monkeypatch.setattr(TargetPart, "open", lambda part, group: opened.append(group) or opening(part, group))
    dataset = TargetDataset(store, interleave=1)
    dataset.load_state_dict({**dataset.state_dict(), "position": ROWS - 1})
    assert len(list(dataset)) == 1
    assert len(opened) == 1


def test_persistent_workers_see_a_new_epoch(store):
    dataset = TargetDataset(store, batch_size=10)
    kept = loader(dataset, 2, persistent_workers=True)
    for epoch in (0, 1, 2):
        dataset.set_epoch(epoch)
        assert keys_of(kept) == keys_of(loader(dataset))


@pytest.mark.parametrize("pad", [False, True])
def test_ranks_and_workers_read_all_of_it_between_them(made, pad):
    store, tokens = made
    ranks = [TargetDataset(store, batch_size=4, rank=rank, ranks=3, pad=pad) for rank in range(3)]
    read = [keys_of(loader(dataset, 2)) for dataset in ranks]
    assert [len(keys) for keys in read] == [len(dataset) for dataset in ranks] == ([34] * 3 if pad else [33, 33, 34])
    counts = Counter(itertools.chain(*read))
    assert set(counts) == set(tokens)
    assert sum(counts.values()) == (102 if pad else ROWS)


def test_a_state_of_another_dataset_is_refused(store):
    state = TargetDataset(store, batch_size=4).state_dict(8)
    for other, name in (
        (TargetDataset(store, "train", batch_size=4), "digest"),
        (TargetDataset(store, batch_size=4, seed=1), "seed"),
        (TargetDataset(store, batch_size=5), "batch_size"),
        (TargetDataset(store, batch_size=4, shuffle=False), "interleave"),
        (TargetDataset(store, batch_size=4, ranks=2, rank=1), "ranks"),
    ):
        with pytest.raises(ValueError, match=f"another {name}: make the dataset as it was"):
            other.load_state_dict(state)
    for nonsense in ({}, {"epoch": 0, "position": 0}, {**state, "position": -2}, {**state, "epoch": -1}):
        with pytest.raises(ValueError, match="no state of a dataset"):
            TargetDataset(store, batch_size=4).load_state_dict(nonsense)


def test_captions_are_drawn_evenly_and_again_the_same(store):
    dataset = TargetDataset(store)
    drawn = []
    for epoch in range(60):
        dataset.set_epoch(epoch)
        drawn.append({sample.key: sample.caption for sample in itertools.islice(dataset, 60)})
    counts = {number: Counter() for number in range(ROWS)}
    for found in drawn:
        for key, caption in found.items():
            counts[int(key[:4])][caption] += 1
    for number in range(ROWS):
        if number % 4:
            assert set(counts[number]) == {f"caption {number}.{i}" for i in range(number % 4)}
        else:
            assert set(counts[number]) == {""}
    thirds = sum((Counter(c[-1] for c in counts[n].elements()) for n in range(3, ROWS, 4)), Counter())
    assert all(0.8 < 3 * count / thirds.total() < 1.2 for count in thirds.values())
    dataset.set_epoch(59)
    assert drawn[-1].items() <= {sample.key: sample.caption for sample in dataset}.items()
    other = {sample.key: sample.caption for sample in TargetDataset(store, seed=5)}
    assert other != {sample.key: sample.caption for sample in TargetDataset(store)}


def test_neighbours_differ_from_epoch_to_epoch(tmp_path):
    store, _ = collection(tmp_path / "store", 320, part_rows=100)
    dataset, pairs = TargetDataset(store), []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        keys = [sample.key for sample in dataset]
        pairs.append({frozenset(pair) for pair in itertools.pairwise(keys)})
    assert len(pairs[0] & pairs[1]) / len(pairs[0]) < 0.02
    in_order = TargetDataset(store, shuffle=False)
    assert [sample.key for sample in in_order] == [sample.key for sample in in_order]


@pytest.mark.parametrize(("dtype", "compression"), [("float16", "zstd"), ("int8", "none"), ("bfloat16", "none")])
def test_variants_give_the_same_samples_in_the_same_order(made, tmp_path, dtype, compression):
    store, tokens = made
    other, _ = collection(tmp_path / "store", ROWS, dtype=dtype, compression=compression)
    plain, variant = (list(loader(TargetDataset(s, batch_size=9))) for s in (store, other))
    assert len({tuple(batch.keys) for batch in variant}) == len(plain)
    for batch in variant:
        for key, found in zip(batch.keys, batch.tokens, strict=True):
            cls = tokens[key][:1].to(found.dtype)
            torch.testing.assert_close(found, torch.cat([cls, as_stored(tokens[key][1:], dtype)]), atol=1e-2, rtol=0)


def test_a_dataset_at_a_url_is_the_same(made):
    store, _ = made
    here = [(batch.keys, batch.captions) for batch in loader(TargetDataset(store.folder, "train", batch_size=8))]
    memory = fsspec.filesystem("memory")
    memory.put(str(store.folder), "/bucket/test", recursive=True)
    with served(store.folder) as (url, sent):
        for place in ("memory://bucket/test", f"file://{store.folder}", url):
            dataset = TargetDataset(place, "train", batch_size=8, verify=True)
            for workers in (0, 2):
                assert [(batch.keys, batch.captions) for batch in loader(dataset, workers)] == here
        assert len(sent) > 10
    with pytest.raises(ValueError, match="no dataset index: run"):
        TargetDataset("memory://bucket/nothing")


def test_a_dataset_in_object_storage_is_the_same(made, monkeypatch):
    moto = pytest.importorskip("moto.server", reason="moto is not installed: pip install -e '.[dev]'")
    store, _ = made
    here = [(batch.keys, batch.captions) for batch in loader(TargetDataset(store, batch_size=8))]
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # another test's server, which is gone
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.get_host_and_port()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret that stands nowhere")
        s3 = fsspec.filesystem("s3")
        s3.mkdir("bucket")
        s3.put(str(store.folder), "bucket/test", recursive=True)
        dataset = TargetDataset("s3://bucket/test", batch_size=8, verify=True)
        for workers in (0, 2):
            assert [(batch.keys, batch.captions) for batch in loader(dataset, workers)] == here
    finally:
        server.stop()
        fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_an_index_is_kept_while_the_next_one_is_made(tmp_path):
    store, tokens = collection(tmp_path / "store", 40)
    before = TargetDataset(store, batch_size=8)
    renewed = {key: tokens_of(1000 + number) for number, key in enumerate(tokens)}
    for index, shard in enumerate(store.shards):
        write_part(store, shard, {key: row for n, (key, row) in enumerate(renewed.items()) if n % 2 == index})
    write_index(store, captions=lambda number: ["another"])
    for dataset, expected, caption in ((before, tokens, "caption"), (TargetDataset(store), renewed, "another")):
        for sample in dataset:
            assert torch.equal(sample.patches, expected[sample.key][3:].half())
            assert sample.caption.startswith(caption) or not sample.caption
    assert before.digest != TargetDataset(store).digest


@pytest.fixture
def damaged(tmp_path):
    """A store with one damaged row group, and the keys of that group."""
    store, tokens = collection(tmp_path / "store", ROWS)
    row = store.manifest("targets", "0").rows["0020/000"]
    path = store.shard("targets", "0") / row.part
    content = path.read_bytes()
    path.write_bytes(flipped(content, content.index(tokens["0020/000"][3:].half().numpy().tobytes())))
    with TargetPart(path) as part:
        return store, part.read(part.find(row.part_row)[0]).keys


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_row_groups_are_skipped_and_counted_and_nothing_moves(damaged, workers):
    store, lost = damaged
    whole = list(loader(TargetDataset(store, batch_size=7)))
    found = list(loader(TargetDataset(store, batch_size=7, verify=True, on_damage="skip"), workers))
    assert sorted(damage.key for batch in found for damage in batch.damaged) == sorted(lost)
    assert all("checksum" in damage.reason for batch in found for damage in batch.damaged)
    for batch, other in zip(found, whole, strict=True):
        assert batch.position == other.position
        keep = [index for index, key in enumerate(other.keys) if key not in lost]
        assert batch.keys == [other.keys[index] for index in keep]
        assert torch.equal(batch.tokens, other.tokens[keep])


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_row_groups_are_raised(damaged, workers):
    store, lost = damaged
    with pytest.raises(DamagedSample, match=r"row group \d is damaged") as caught:
        list(loader(TargetDataset(store, batch_size=7, verify=True), workers))
    assert any(key in str(caught.value) for key in lost)


def test_a_part_that_is_gone_ends_the_run_however_damage_is_treated(tmp_path):
    store, _ = collection(tmp_path / "store", 20)
    dataset = TargetDataset(store, on_damage="skip")
    for path in store.shard("targets", "1").glob("*.parquet"):
        path.unlink()
    with pytest.raises(FileNotFoundError):
        list(dataset)


def test_a_part_of_other_rows_is_damage(tmp_path):
    store, tokens = collection(tmp_path / "store", 20)
    dataset = TargetDataset(store, on_damage="skip")
    parts = [store.shard("targets", shard) / dataset.index.parts[i].rpartition("/")[2] for i, shard in enumerate("01")]
    parts[1].write_bytes(parts[0].read_bytes())
    samples = list(dataset)
    assert sum(isinstance(sample, Damaged) for sample in samples) == 10
    assert len(samples) == len(tokens)


def test_a_footer_has_no_checksum_and_what_damages_it_is_damage(tmp_path):
    store, tokens = collection(tmp_path / "store", 20)
    dataset = TargetDataset(store, on_damage="skip")
    path = store.shard("targets", "0") / dataset.index.parts[0].rpartition("/")[2]
    content = path.read_bytes()
    counts = Counter()
    for place in range(content.rindex(b"ARROW:schema"), len(content), 31):  # the schema with its metadata, in base64
        path.write_bytes(flipped(content, place))
        samples = list(dataset)
        assert len(samples) == len(tokens)
        counts[sum(isinstance(sample, Damaged) for sample in samples)] += 1
    assert set(counts) <= {0, 10}  # of 20 rows 10 lie in that part
    assert counts[10] > 20


def test_batches_of_damage_alone_keep_their_place(damaged):
    store, lost = damaged
    found = list(loader(TargetDataset(store, batch_size=1, verify=True, on_damage="skip")))
    assert [batch.position for batch in found] == list(range(1, ROWS + 1))
    assert sum(batch.tokens.shape == (0, 0, 0) for batch in found) == len(lost)


def test_tokens_of_a_batch_are_joined_in_the_layouts_order(made):
    store, tokens = made
    dataset = TargetDataset(store, batch_size=4)
    as_float = DataLoader(dataset, 4, collate_fn=Collate(torch.float32))
    for batch in as_float:
        assert batch.tokens.dtype == torch.float32
        cls, registers, patches = LAYOUT.split(batch.tokens)
        for index, key in enumerate(batch.keys):
            assert torch.equal(cls[index], tokens[key][0])
            assert torch.equal(registers[index], tokens[key][1:3].half().float())
            assert torch.equal(patches[index], tokens[key][3:].half().float())


def test_memory_of_batches_is_used_again_when_nobody_has_it_any_more(store):
    collate = Collate()
    batches = iter(DataLoader(TargetDataset(store, batch_size=4), 4, collate_fn=collate))
    first, second = next(batches), next(batches)
    kept = first.tokens[1]  # a view is enough to hold it
    address, copy = first.tokens.data_ptr(), kept.clone()
    del first
    addresses = {next(batches).tokens.data_ptr() for _ in range(9)}
    assert address not in addresses
    assert second.tokens.data_ptr() not in addresses
    assert len(addresses) <= 2
    assert torch.equal(kept, copy)


def test_samples_go_to_other_processes_with_their_own_bytes(store):
    alone = {sample.key: sample.patches for sample in TargetDataset(store)}
    singly = DataLoader(TargetDataset(store), batch_size=None, num_workers=1)
    for sample in singly:
        assert torch.equal(sample.patches, alone[sample.key])
        assert sample.patches.untyped_storage().nbytes() == LAYOUT.patches * LAYOUT.width * 2


def test_no_more_row_groups_are_held_than_are_interleaved(tmp_path):
    store, _ = collection(tmp_path / "store", 400, part_rows=100, compression="zstd")
    dataset = TargetDataset(store, interleave=5)
    one = 8 * LAYOUT.width * 2 * (LAYOUT.count - 1)
    most = 0
    with TargetReader(dataset.index, 0, verify=False) as reader:
        for place in dataset.order().places():
            reader.sample(place, 0)
            most = max(most, reader.nbytes)
    assert one < most <= 5 * one
