"""One door over token sets of any model: what comes out is what was written, in any order and any number at a time."""

import random
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from generated_sets import collection as generated
from generated_sets import settings_at
from target_stores import as_stored, collection, tokens_of, write_index, write_part

from gap3d.evaluation import plain_sets
from gap3d.evaluation.tokens import open_tokens
from gap3d.features.tokens import TokenLayout
from gap3d.prompts import of_texts
from gap3d.records import Status
from gap3d.store import Store

LAYOUT = TokenLayout(registers=2, grid=(3, 5), width=8)
KEYS = [f"image {number}" for number in range(7)]
RNG = np.random.default_rng(0)
CLS = RNG.standard_normal((7, 6), dtype=np.float32)
PATCHES = RNG.standard_normal((7, 5, 6), dtype=np.float32)
F16 = PATCHES.astype(np.float16)


def shuffled(keys, seed=0):
    found = list(keys)
    random.Random(seed).shuffle(found)
    return found


def read(place, keys, size=None, kinds=None):
    """By key and kind, as numpy arrays; and the failures."""
    with open_tokens(place) as sets:
        made = {}
        for good, batch in sets.batches(keys, kinds, size):
            for row, key in enumerate(good):
                made[key] = {kind: part[row].numpy() for kind, part in batch.items()}
        return made, sets.failures


@pytest.mark.parametrize(("dtype", "compression"), [("float16", "none"), ("bfloat16", "zstd"), ("int8", "none")])
def test_targets_of_a_dataset_come_as_they_are_stored_in_any_order(tmp_path, dtype, compression):
    store, tokens = collection(tmp_path, 20, dtype=dtype, compression=compression, part_rows=7)
    with open_tokens(store) as sets:
        assert sets.shapes == {"cls": (1, 8), "registers": (2, 8), "patches": (15, 8)}
        assert sets.description["source"] == "dataset" and sets.description["normalised"]
    for size in (1, 3, 20):
        keys = shuffled(tokens, size)
        found, failures = read(tmp_path / "test", keys, size)
        assert list(found) == keys and not failures
        for key, made in found.items():
            assert np.array_equal(made["cls"][0], tokens[key][0].numpy())
            stored = as_stored(tokens[key], dtype).float().numpy()
            assert np.array_equal(made["registers"], stored[1:3]) and np.array_equal(made["patches"], stored[3:])


def test_of_cls_alone_nothing_else_is_read(tmp_path, monkeypatch):
    store, tokens = collection(tmp_path, 20)
    monkeypatch.setattr("gap3d.target_parts.RowGroup.tokens", None)
    found, _ = read(store, list(tokens), kinds=["cls"])
    assert all(np.array_equal(found[key]["cls"][0], tokens[key][0]) for key in tokens)


def test_generated_sets_come_with_the_prompts_that_failed_and_the_keys_that_are_not_there(tmp_path):
    texts = ["a chair", "a lamp", "a dog"]
    store, _ = generated(
        settings_at(tmp_path), "made", texts, {text: tokens_of(n) for n, text in enumerate(texts[:2])}, LAYOUT
    )
    keys = [each.key for each in of_texts(texts)]
    for place in (store, store.folder, store.folder / "generated"):
        found, failures = read(place, [*keys, "nobody"])
        assert list(found) == keys[:2] and np.array_equal(found[keys[1]]["patches"], tokens_of(1)[3:].half().float())
        assert {key: why.status for key, why in failures.items()} == {
            keys[2]: Status.IMPORT_ERROR,
            "nobody": Status.MISSING,
        }
    assert "a damaged PNG" in failures[keys[2]].reason
    described = open_tokens(store).description
    assert (described["source"], described["trained"], described["normalised"]) == ("generated", False, False)


def test_images_without_targets_are_told_where_those_that_were_not_wanted_are_not(tmp_path, caplog):
    store, _ = collection(tmp_path, 6, shards=1)
    write_index(store, rejected={"0002/000"}, failed={"0001/000", "0004/000"})
    with open_tokens(store) as sets:
        assert sets.description["without_targets"] == {"import_error": 2} and len(sets) == 3
    assert "2 images of collection test have no targets (2 import_error)" in caplog.text


def columns(form):
    """(columns of a plain shard, its patches) in one of the forms that they may have."""
    nested = pa.list_(pa.list_(pa.float32()))
    shape = pa.array([[5, 6]] * 7)
    match form:
        case "nested lists":
            return {"patches": pa.array(PATCHES.tolist(), nested)}, PATCHES
        case "nested lists of a fixed size, halves":
            kind = pa.list_(pa.list_(pa.float16(), 6), 5)
            return {"tokens": pa.array([list(map(list, each)) for each in F16], kind)}, F16
        case "flat lists":
            return {
                "tokens": pa.array(PATCHES.reshape(7, -1).tolist(), pa.list_(pa.float64())),
                "shape": shape,
            }, PATCHES
        case "tensors":
            kind = pa.fixed_shape_tensor(pa.float32(), (5, 6))
            flat = pa.FixedSizeListArray.from_arrays(pa.array(PATCHES.reshape(-1)), 30)
            return {"patches": pa.ExtensionArray.from_storage(kind, flat)}, PATCHES
        case "bytes of halves":
            return {"patches": pa.array([each.tobytes() for each in F16]), "patches_shape": shape}, F16
        case "bytes of bfloat16":
            wide = (PATCHES.view(np.uint32) >> 16).astype("<u2")
            cells = {"patches": pa.array([each.tobytes() for each in wide]), "shape": shape}
            return {**cells, "dtype": ["bfloat16"] * 7}, (wide.astype(np.uint32) << 16).view(np.float32)
    raise ValueError(form)


FORMS = [
    "nested lists",
    "nested lists of a fixed size, halves",
    "flat lists",
    "tensors",
    "bytes of halves",
    "bytes of bfloat16",
]


@pytest.mark.parametrize("form", FORMS)
def test_plain_parquet_of_every_form_is_understood(tmp_path, form):
    cells, patches = columns(form)
    pq.write_table(pa.table({"key": KEYS, **cells}), tmp_path / "a.parquet", row_group_size=3)
    keys = shuffled(KEYS)
    found, failures = read(tmp_path, keys, 2)
    assert list(found) == keys and not failures
    for row, key in enumerate(KEYS):
        assert set(found[key]) == {"patches"} and np.array_equal(found[key]["patches"], patches[row])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=lambda save: save.__name__)
@pytest.mark.parametrize("name", ["patches", "tokens"])
def test_npz_shards_below_folders_with_or_without_cls_are_understood(tmp_path, save, name):
    (tmp_path / "b").mkdir()
    save(tmp_path / "a.npz", keys=np.array(KEYS[:4]), cls=CLS[:4], **{name: PATCHES[:4]})
    save(tmp_path / "b" / "a.npz", keys=np.array(KEYS[4:]), cls=CLS[4:, None].astype(np.float64), **{name: PATCHES[4:]})
    with open_tokens(tmp_path) as sets:
        assert (sets.keys, sets.kinds) == (KEYS, ("cls", "patches"))
        good, batch = sets.read(KEYS[::-1])
    assert good == KEYS[::-1]
    assert np.array_equal(batch["cls"][:, 0], CLS[::-1]) and np.array_equal(batch["patches"], PATCHES[::-1])
    save(tmp_path / "alone.npz", keys=np.array(KEYS), cls=CLS)
    assert open_tokens(tmp_path / "alone.npz").shapes == {"cls": (1, 6)}


def test_parts_of_this_package_are_read_from_any_folder(tmp_path):
    store, tokens = collection(tmp_path / "store", 20)
    shutil.copytree(store.folder / "targets", tmp_path / "anywhere")
    found, failures = read(tmp_path / "anywhere", list(tokens))
    assert set(found) == set(tokens) and not failures
    assert open_tokens(tmp_path / "anywhere").description["normalised"]


def test_the_digest_is_of_the_content_and_of_nothing_else(tmp_path):
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "x.npz", keys=np.array(KEYS), cls=CLS + (folder == "c"))
    a, b, c = (open_tokens(tmp_path / folder).description["digest"] for folder in ("a", "b", "c"))
    assert a == b != c


def plain(path, keys=KEYS, patches=PATCHES, **more):
    cells = pa.array([each.tolist() for each in patches], pa.list_(pa.list_(pa.float32())))
    pq.write_table(pa.table({"key": keys, "patches": cells, **more}), path, row_group_size=2, write_page_checksum=True)


def test_numbers_that_are_not_finite_and_other_shapes_cost_their_row_and_no_other(tmp_path):
    rows = PATCHES.tolist()
    rows[1][2][3] = float("nan")
    rows[2][4][5] = 1e300  # infinite as float32
    rows[3] = rows[3][:-1]
    rows[4] = [[1.0, 2.0], [3.0]]
    rows[5] = None
    cells = pa.array(rows, pa.list_(pa.list_(pa.float64())))
    pq.write_table(pa.table({"key": KEYS, "patches": cells}), tmp_path / "a.parquet")
    found, failures = read(tmp_path, KEYS, 3)
    assert list(found) == [KEYS[0], KEYS[6]]
    reasons = {key: why.reason for key, why in failures.items()}
    assert {why.status for why in failures.values()} == {Status.UNSUPPORTED}
    assert reasons[KEYS[1]] == "1 of 30 numbers of its patches are not finite" == reasons[KEYS[2]]
    assert reasons[KEYS[3]] == "its patches are [4, 6], those of the first row [5, 6]"
    assert "no rectangle" in reasons[KEYS[4]] and "null" in reasons[KEYS[5]]


def test_a_damaged_row_group_of_a_plain_shard_costs_its_rows_and_no_other(tmp_path):
    plain(tmp_path / "a.parquet")
    with pq.ParquetFile(tmp_path / "a.parquet") as file:
        column = file.metadata.row_group(1).column(1)
        place = column.dictionary_page_offset + column.total_compressed_size - 9
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[place] ^= 0xFF
    (tmp_path / "a.parquet").write_bytes(data)
    found, failures = read(tmp_path, KEYS)
    assert list(found) == [KEYS[0], KEYS[1], *KEYS[4:]]
    assert {key: why.status for key, why in failures.items()} == dict.fromkeys(KEYS[2:4], Status.HASH_MISMATCH)
    assert "row group 1 is damaged" in failures[KEYS[2]].reason


def test_damage_of_a_part_of_the_store_costs_the_rows_of_its_row_group(tmp_path):
    store, tokens = collection(tmp_path, 20, shards=1)
    (part,) = store.manifest("targets", "0").parts
    path = store.shard("targets", "0") / part
    data = bytearray(path.read_bytes())
    with pq.ParquetFile(path) as file:
        column = next(
            c for c in (file.metadata.row_group(1).column(i) for i in range(6)) if "patches" in c.path_in_schema
        )
    data[column.data_page_offset + column.total_compressed_size - 5] ^= 0x10
    path.write_bytes(data)
    found, failures = read(store, list(tokens))
    assert list(failures) == list(tokens)[8:16] and len(found) == 12
    assert {why.status for why in failures.values()} == {Status.HASH_MISMATCH}


def test_rows_that_the_dataset_does_not_take_are_failures_with_its_reason(tmp_path):
    store, tokens = collection(tmp_path, 4)
    write_index(store, rejected={"0002/000"})
    found, failures = read(store, list(tokens))
    assert "0002/000" not in found and failures["0002/000"].reason == "by the test"


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda folder: None, "holds no token sets: name a collection"),
        (lambda folder: (folder / "a.txt").write_text("x"), "holds no token sets"),
        (lambda folder: (folder / "a.parquet").write_bytes(b"nothing"), "a.parquet can't be read as Parquet"),
        (lambda folder: (folder / "a.npz").write_bytes(b"nothing"), "a.npz can't be read as .npz"),
        (lambda folder: plain(folder / "a.parquet", keys=[*KEYS[:6], KEYS[0]]), "key 'image 0' stands in"),
        (lambda folder: [plain(folder / f"{n}.parquet") for n in "ab"], "key 'image 0' stands in .*a.parquet and"),
        (lambda folder: plain(folder / "a.parquet", keys=[*KEYS[:6], None]), "row 6 has no key"),
        (lambda folder: plain(folder / "a.parquet", tokens=[[1.0]] * 7), "patches and tokens, which are the same"),
        (lambda folder: pq.write_table(pa.table({"id": KEYS}), folder / "a.parquet"), "has no column key, only id"),
        (lambda folder: pq.write_table(pa.table({"key": KEYS}), folder / "a.parquet"), "no column cls, registers, pat"),
        (
            lambda folder: pq.write_table(pa.table({"key": KEYS, "cls": [[1]] * 7}), folder / "a.parquet"),
            "column cls is list<.*int64>: give lists of floats",
        ),
        (
            lambda folder: pq.write_table(pa.table({"key": KEYS, "tokens": [[1.0]] * 7}), folder / "a.parquet"),
            "flat, and no column shape",
        ),
        (lambda folder: plain(folder / "a.parquet", keys=[], patches=PATCHES[:0]), "hold no row"),
        (lambda folder: np.savez(folder / "a.npz", cls=CLS), "no array keys"),
        (lambda folder: np.savez(folder / "a.npz", keys=np.array(KEYS)), "no array cls, registers"),
        (lambda folder: np.savez(folder / "a.npz", keys=np.array(KEYS, object), cls=CLS), "save keys as texts"),
        (lambda folder: np.savez(folder / "a.npz", keys=np.array(KEYS[1:]), cls=CLS), r"\[7, 6\] for 6 keys"),
        (lambda folder: np.savez(folder / "a.npz", keys=np.array(KEYS), patches=CLS), r"save floats \[M, N, C\]"),
        (
            lambda folder: [
                np.savez(folder / "a.npz", keys=np.array(["x"]), cls=CLS[:1]),
                np.savez(folder / "b.npz", keys=np.array(["y"]), patches=PATCHES[:1]),
            ],
            "b.npz has patches, .*a.npz has cls: all shards of a model need the same",
        ),
        (
            lambda folder: [
                plain(folder / "a.parquet"),
                write_part(Store(folder, "test", 1), "0", {"0000/000": tokens_of(0)}),
            ],
            "holds target parts .* beside other shards",
        ),
    ],
)
def test_what_does_not_fit_is_a_sentence_that_says_what_to_do(tmp_path, write, words):
    folder = tmp_path / "place"
    folder.mkdir()
    write(folder)
    with pytest.raises(ValueError, match=words):
        open_tokens(folder)


@pytest.mark.parametrize("shape", [[5, None], "5x6", 30, [5.0, 6.0], {"rows": 5}])
@pytest.mark.parametrize("packed", [True, False])
def test_a_shape_that_is_none_costs_its_rows_and_nothing_where_lists_tell_it_themselves(tmp_path, shape, packed):
    flat = [row.tobytes() if packed else row.ravel().tolist() for row in PATCHES]
    sound = [5, 6] if isinstance(shape, list) and None in shape else shape
    table = {"key": KEYS, "shape": [shape, *[sound] * 6]}
    pq.write_table(pa.table({**table, "patches": flat}), tmp_path / "a.parquet")
    if sound is shape:
        with pytest.raises(ValueError, match=r"no row .* can be read; .* no list of whole numbers"):
            open_tokens(tmp_path)
    else:
        found, failures = read(tmp_path, KEYS)
        assert len(found) == 6 and "no list of whole numbers" in failures[KEYS[0]].reason
    pq.write_table(pa.table({**table, "patches": PATCHES.tolist()}), tmp_path / "a.parquet")
    assert len(read(tmp_path, KEYS)[0]) == 7


def test_a_collection_without_token_sets_and_a_place_that_is_not_there_say_so(tmp_path):
    with pytest.raises(ValueError, match="neither generated token sets nor a dataset"):
        open_tokens(Store(tmp_path, "empty", 1))
    with pytest.raises(ValueError, match="is not there"):
        open_tokens(tmp_path / "nowhere")
    store, _ = generated(settings_at(tmp_path), "failed", ["a chair"], {})
    with pytest.raises(ValueError, match="no generated token set: 1 prompts failed"):
        open_tokens(store)
    with pytest.raises(ValueError, match="has no registers"):
        np.savez(tmp_path / "a.npz", keys=np.array(KEYS), cls=CLS)
        open_tokens(tmp_path / "a.npz").read(KEYS, ["registers"])


def test_a_row_group_of_any_size_is_never_held_in_memory(tmp_path):
    rows, shape = 64, (64, 1024)  # 16 MiB of float32, in one row group
    values = RNG.standard_normal((rows, *shape), dtype=np.float32)
    kind = pa.list_(pa.list_(pa.float32(), shape[1]), shape[0])
    cells = pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(values.reshape(-1), 1024), type=kind)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"key": list(map(str, range(rows))), "patches": cells}), path, row_group_size=rows)
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gap3d.evaluation.parquet_shard.CHUNK", 1 << 18)
            with open_tokens(path) as sets:
                for keys, batch in sets.batches(shuffled(sets.keys), size=4):
                    assert torch.equal(batch["patches"], torch.from_numpy(values[list(map(int, keys))]))
    finally:
        pa.set_memory_pool(before)
    assert pool.max_memory() < values.nbytes / 3


def test_a_scratch_disk_that_is_too_small_is_told_before_anything_is_read(tmp_path, monkeypatch):
    plain(tmp_path / "a.parquet")
    monkeypatch.setattr(plain_sets.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with open_tokens(tmp_path) as sets, pytest.raises(ValueError, match="set TMPDIR to a folder on a larger disk"):
        sets.read(KEYS)
