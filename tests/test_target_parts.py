"""Target parts: every way of storing tokens is read back, from here and from URLs, and damage is found."""

import json

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from served import served
from stores import ONE_BY_ONE, flipped
from target_stores import LAYOUT, as_stored, tokens_of, write_part

from gap3d import gc
from gap3d.features.tokens import TokenLayout
from gap3d.store import Store
from gap3d.target_parts import DamagedPart, TargetPart, read_targets

VARIANTS = [(dtype, compression) for dtype in ("float16", "bfloat16", "int8") for compression in ("none", "zstd")]
WIDE = TokenLayout(registers=1, grid=(16, 16), width=256)  # 130 KB an image: more than a footer


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store", "test", 1)


def only(store):
    (part,) = store.manifest("targets", "0").parts
    return store.shard("targets", "0") / part


def images(count, layout=LAYOUT):
    return {f"{number:04d}/000": tokens_of(number, layout) for number in range(count)}


def prove(part, tokens, dtype, layout=LAYOUT):
    """The part holds these tokens, in the order of the keys, as the number format leaves them."""
    keys = []
    for group in range(part.groups):
        batch = part.read(group)
        assert len(batch.keys) == part.rows(group)
        for index, key in enumerate(batch.keys):
            cls, registers, patches = layout.split(tokens[key][None])
            assert torch.equal(batch.cls[index], cls[0])
            for found, exact in ((batch.registers[index], registers[0]), (batch.patches[index], patches[0])):
                kept = as_stored(exact, dtype)
                assert found.dtype == kept.dtype and found.shape == kept.shape
                if dtype == "int8":  # a tie may round to either side
                    half_a_step, half_precision = exact.abs().max() / 127 / 2, exact.abs().max() * 2**-11
                    assert (found.float() - exact).abs().max() <= 1.001 * (half_a_step + half_precision)
                    assert (found.float() - kept.float()).abs().mean() < 1e-4
                else:
                    assert torch.equal(found, kept)
        keys += batch.keys
    assert sorted(keys) == list(tokens)


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize(("dtype", "compression"), VARIANTS)
def test_what_is_written_is_read_in_every_variant(store, dtype, compression, verify):
    tokens = images(20)
    write_part(store, "0", tokens, dtype=dtype, compression=compression)
    with TargetPart(only(store), verify=verify) as part:
        prove(part, tokens, dtype)
        assert part.open(0).mapped == (compression == "none")
        assert part.layout == LAYOUT.describe(dtype)
        assert part.metadata["encoder"]["label"].startswith("UNTRAINED")
    assert [batch.keys for batch in read_targets(store, "0")] == [list(tokens)[n : n + 8] for n in (0, 8, 16)]


def test_a_stranger_decodes_int8_by_the_metadata_alone(store):
    tokens = images(3)
    write_part(store, "0", tokens, dtype="int8", compression="zstd")
    table = pq.read_table(only(store))
    layout = json.loads(table.schema.metadata[b"gap3d"])["tokens"]
    assert layout["patches"]["decode"] == "token = patches * patches_scale, one scale a token"
    for index, exact in enumerate(tokens.values()):
        values, scales = (
            np.frombuffer(table[name][index].as_py(), layout[name]["dtype"]).reshape(layout[name]["shape"])
            for name in ("patches", "patches_scale")
        )
        np.testing.assert_allclose(values * scales[:, None], exact[3:], atol=float(exact.abs().max()) / 127 * 0.51)


def test_compression_makes_parts_smaller_and_survives_compaction(store):
    tokens = {key: torch.zeros(LAYOUT.count, LAYOUT.width) for key in images(40)}
    plain = write_part(Store(store.root, "plain", 1), "0", tokens)
    write_part(store, "0", tokens, compression="zstd", part_rows=4)
    assert len(store.manifest("targets", "0").parts) == 10
    assert gc.compact(store, ONE_BY_ONE, dry_run=False) == [("targets", "0", 10)]
    with TargetPart(only(store)) as part:
        prove(part, tokens, "float16")
        assert not part.open(0).mapped
    (other,) = plain.parts
    assert only(store).stat().st_size < 0.5 * (store.root / "plain/targets/0" / other).stat().st_size


def test_int8_parts_survive_compaction(store):
    tokens = images(40)
    write_part(store, "0", tokens, dtype="int8", part_rows=4)
    gc.compact(store, ONE_BY_ONE, dry_run=False)
    with TargetPart(only(store)) as part:
        prove(part, tokens, "int8")
        assert part.open(0).mapped


@pytest.mark.parametrize(("dtype", "compression"), VARIANTS)
def test_a_part_in_another_place_is_read_alike(store, dtype, compression):
    tokens = images(20)
    write_part(store, "0", tokens, dtype=dtype, compression=compression)
    fsspec.filesystem("memory").pipe("/bucket/part.parquet", only(store).read_bytes())
    for place in ("memory://bucket/part.parquet", f"file://{only(store)}"):
        with TargetPart(place, verify=True) as part:
            prove(part, tokens, dtype)
            assert part.open(0).mapped == (compression == "none" and place.startswith("file"))


def test_of_a_served_part_only_the_footer_and_the_row_group_are_fetched(store):
    tokens = images(80, WIDE)
    write_part(store, "0", tokens, layout=WIDE)
    whole = only(store).stat().st_size
    with served(store.folder) as (url, sent), TargetPart(f"{url}/targets/0/{only(store).name}") as part:
        opening = sum(size for _, size in sent)
        sent.clear()
        batch = part.read(4)
        fetched = sum(size for _, size in sent)
    assert batch.keys == list(tokens)[32:40]
    assert torch.equal(batch.patches[7], tokens["0039/000"][2:].half())
    group = 8 * WIDE.width * (WIDE.count * 2 + 2)
    assert group < fetched < 1.02 * group
    assert opening < 100_000 < 0.02 * whole
    assert len(sent) <= 2


@pytest.mark.parametrize("place", ["here", "served"])
def test_a_damaged_row_group_is_found_if_asked_for_and_the_others_are_read(store, place):
    tokens = images(24)
    write_part(store, "0", tokens)
    content = only(store).read_bytes()
    at = content.index(tokens["0011/000"][3:].half().numpy().tobytes())
    only(store).write_bytes(flipped(content, at + 5))
    with served(store.folder) as (url, _):
        where = only(store) if place == "here" else f"{url}/targets/0/{only(store).name}"
        with TargetPart(where, verify=True) as part:
            assert part.read(0).keys == list(tokens)[:8]
            with pytest.raises(DamagedPart, match=r"row group 1 is damaged \(.*checksum"):
                part.read(1)
            assert part.read(2).keys == list(tokens)[16:]
        with TargetPart(where) as part:
            assert not torch.equal(part.read(1).patches[3], tokens["0011/000"][3:].half())


def test_a_part_that_is_cut_off_is_damaged_and_one_that_is_gone_is_not(store):
    write_part(store, "0", images(8))
    path = only(store)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DamagedPart, match="its footer is damaged"):
        TargetPart(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        TargetPart(path)


def test_a_stranger_file_is_refused_with_a_sentence(tmp_path):
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="no part of targets"):
        TargetPart(tmp_path / "other.parquet")


def test_a_row_is_found_in_its_row_group(store):
    tokens = images(20)
    write_part(store, "0", tokens)
    with TargetPart(only(store)) as part:
        for row, key in enumerate(tokens):
            group, index = part.find(row)
            assert part.open(group).keys[index] == key
        with pytest.raises(IndexError, match="20 rows, and row 20"):
            part.find(20)


def test_a_single_row_is_a_view_of_the_file_with_memory_of_its_own(store):
    tokens = images(8)
    write_part(store, "0", tokens)
    with TargetPart(only(store)) as part:
        group = part.open(0)
        patches = group.tokens("patches", 5)
        assert patches.untyped_storage().nbytes() == LAYOUT.patches * LAYOUT.width * 2
        assert patches.data_ptr() == group.tokens("patches").data_ptr() + 5 * LAYOUT.patches * LAYOUT.width * 2
        assert group.nbytes == 0
    assert torch.equal(patches, tokens["0005/000"][3:].half())  # the file is closed, its memory is not
