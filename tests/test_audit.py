"""verify of a dataset: what checksums can't see is found, and a sound dataset has nothing wrong with it."""

import csv
import shutil
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from folders import small, write_box
from hypothesis import given
from hypothesis import strategies as st
from stores import TOGETHER, flipped, only_part, write

from gap3d import manifest
from gap3d.audit import Audit, Statistics, audit, compare_with_source
from gap3d.features.tokens import TORCH_DTYPES, targets_from_prenorm
from gap3d.moments import round_off
from gap3d.parts import PartWriter, written_with
from pipelines import catalog, targets, verify
from pipelines.command import open_store


@pytest.fixture
def line(walked, tmp_path):
    """(store, settings, the source's folder) of a copy of a finished line: four good boxes and a broken file."""
    shutil.copytree(walked[0], tmp_path / "copy")
    settings = small(tmp_path / "copy" / "store", tmp_path / "copy" / "objects")
    return open_store(settings), settings, tmp_path / "copy" / "objects"


def faults(store, count=None):
    return audit(store, count, lambda _: None).faults


def change_tokens(store, change):
    """Write a part of targets anew, under its name, with what ``change`` does to its first row's patches; its key."""
    shard = next(s for s in store.shards if store.manifest("targets", s).parts)
    folder, held = store.shard("targets", shard), store.manifest("targets", shard)
    (part,) = held.parts
    table = pq.read_table(folder / part)
    rows = table.to_pylist()
    patches = np.frombuffer(rows[0]["patches"], np.float16).reshape(-1, len(rows[0]["cls"])).copy()
    change(patches)
    rows[0]["patches"] = patches.tobytes()
    writer = PartWriter(folder, *written_with(folder / part, "targets"))
    for row in rows:
        writer.add(row.pop("key"), "", {**row, "cls": np.array(row["cls"], np.float32)})
    (folder / writer.close()).replace(folder / part)
    assert store.verify(held) == []
    return table["key"][0].as_py()


def test_verify_reads_every_part_that_was_committed_whatever_its_stage(tmp_path, monkeypatch, capsys):
    settings = small(tmp_path / "store", tmp_path / "objects", catalog={"shards": 1})
    store = open_store(settings)
    stages = ["shapes-trellis-image", "features-clip_large", "clouds", "renders", "of_a_newer_version"]
    for stage in stages:
        write(store, {f"{index:03d}": stage * 200 for index in range(50)}, TOGETHER)
        (store.folder / "plain").rename(store.folder / stage)
    code, said = run_verify(settings, tmp_path, monkeypatch, capsys)
    assert code == 0 and "5 parts read, 0 shards damaged" in said
    paths = [only_part(store, store.committed(stage, "0")) for stage in stages]
    for path in paths:
        path.write_bytes(flipped(path.read_bytes(), path.stat().st_size // 2))
    code, said = run_verify(settings, tmp_path, monkeypatch, capsys)
    assert code == 1 and "5 parts read, 5 shards damaged" in said
    assert all(f"{path.relative_to(store.folder)}: " in said and str(path.parent) in said for path in paths)


def test_verify_says_which_program_mends_a_stage_and_never_to_remove_what_a_newer_version_wrote(
    tmp_path, monkeypatch, capsys
):
    settings = small(tmp_path / "store", tmp_path / "objects", catalog={"shards": 1})
    store = open_store(settings)
    for stage in ("newer", "shapes-gap3d", "strange"):
        with monkeypatch.context() as patch:
            patch.setattr(manifest, "SCHEMA_VERSION", 99 if stage == "newer" else manifest.SCHEMA_VERSION)
            write(store, {f"{index:03d}": stage * 200 for index in range(50)}, TOGETHER)
            (store.folder / "plain").rename(store.folder / stage)
    for stage in ("shapes-gap3d", "strange"):
        path = only_part(store, store.committed(stage, "0"))
        path.write_bytes(flipped(path.read_bytes(), path.stat().st_size // 2))
    code, said = run_verify(settings, tmp_path, monkeypatch, capsys)
    assert code == 1 and "2 parts read, 2 shards damaged" in said
    assert "schema version 99, this program reads" in said
    removed = [words for words in said.splitlines() if words.startswith("to mend: rm -r ")]
    shapes = store.shard("shapes-gap3d", "0")
    assert removed == [f"to mend: rm -r {shapes}, then run `python -m pipelines.trellis` again"]
    assert f"{store.shard('strange', '0')}: this version knows no such stage" in said


def run_verify(settings, tmp_path, monkeypatch, capsys):
    """(exit code, what the program said)."""
    preset = tmp_path / "resolved.json"
    preset.write_text(settings.model_dump_json())
    monkeypatch.setattr(sys, "argv", ["verify", "--preset", str(preset)])
    try:
        verify.main()
        code = 0
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    return code, said.out + said.err


def test_a_sound_dataset_has_no_faults_and_a_table_of_its_true_statistics(line, tmp_path, monkeypatch, capsys):
    store, settings, _ = line
    code, said = run_verify(settings, tmp_path, monkeypatch, capsys)
    assert code == 0, said
    table = {words[0]: words[1:] for words in map(str.split, said.splitlines()) if words}
    assert table["dataset"][:4] == ["5", "4", "1", "import_error"]
    rows = [row for s in store.shards for row in store.read(store.manifest("targets", s)).values()]
    width = len(rows[0]["cls"])
    for kind in ("cls", "registers", "patches"):
        flat = [np.frombuffer(row[kind], np.float16) if kind != "cls" else np.array(row[kind]) for row in rows]
        tokens = np.concatenate(flat).reshape(-1, width).astype(np.float64)
        variance = tokens.var(-1)
        exact = [np.abs(tokens.mean(-1)).max(), variance.min(), variance.mean(), variance.max()]
        exact.append(np.linalg.norm(tokens, axis=-1).mean())
        assert table[kind][:2] == ["4", str(len(tokens))]
        np.testing.assert_allclose([float(cell) for cell in table[kind][2:7]], exact, atol=6e-5)
        assert table[kind][7:] == ["0", "0"]


def test_an_index_that_takes_fewer_than_there_are_is_sound(line):
    from pipelines import dataset

    store, settings, _ = line
    dataset.run(settings.model_copy(update={"dataset": settings.dataset.model_copy(update={"count": 2})}))
    assert faults(store, 2) == []
    assert faults(store, 1) == ["the index has 2 good rows, dataset.count is 1"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_found_under_valid_checksums(line, tmp_path, monkeypatch, capsys, value):
    store, settings, _ = line

    def put(patches):
        patches[-1, 0] = value

    key = change_tokens(store, put)
    assert faults(store) == [f"1 rows have patches tokens that are no targets (mean 0, variance 1): {key}"]
    code, said = run_verify(settings, tmp_path, monkeypatch, capsys)
    assert code == 1 and key in said and said.endswith("then verify again\n")
    (words,) = [line.split() for line in said.splitlines() if line.startswith("patches ")]
    assert words[-2:] == ["1", "1"]


@pytest.mark.parametrize("change", [lambda p: np.add(p, 0.01, out=p), lambda p: np.multiply(p, 1.01, out=p)])
def test_a_drift_of_a_hundredth_is_found(line, change):
    key = change_tokens(line[0], change)
    assert faults(line[0]) == [f"1 rows have patches tokens that are no targets (mean 0, variance 1): {key}"]


def forget(store, stage, shard, key):
    held = store.manifest(stage, shard)
    rows = {name: row for name, row in held.rows.items() if name != key}
    manifest.write(store.shard(stage, shard), replace(held, rows=rows))


def test_a_target_that_the_index_lost_is_found(line):
    store = line[0]
    key = min(store.read(store.manifest("dataset", "all")))
    forget(store, "dataset", "all", key)
    assert faults(store) == [f"1 rows of targets are not in the index: {key}"]


def test_an_object_that_targets_lost_is_found(line):
    store = line[0]
    key, row = min(store.read(store.manifest("dataset", "all")).items())
    shard = row["target_shard"]
    forget(store, "targets", shard, key)
    assert faults(store) == [
        f"1 objects of catalog/{shard} have no row in targets: {key.partition('/')[0]}",
        f"1 rows of the index have no target: {key}",
    ]


def test_an_index_that_is_older_than_the_catalog_is_found(line):
    store, settings, folder = line
    with (folder / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "captions"), ("a.obj", "another cube"), ("b.obj", "a tall box")])
    catalog.run(settings)
    (fault,) = faults(store)
    assert fault.startswith("1 rows of the index are not as catalog has them: ")


def test_an_index_that_is_older_than_the_targets_is_found(line):
    store, _, folder = line
    changed = small(store.root, folder, targets={"image_size": 42})
    targets.run(changed, store.shards)
    assert len(faults(store)) == 1
    assert faults(store)[0].startswith("4 rows of the index name another content or place than targets have: ")


def test_an_object_that_only_the_catalog_has_is_found(line):
    store, settings, folder = line
    write_box(folder / "new.obj", 5.0)
    catalog.run(settings)
    assert any("have no row in targets" in fault for fault in faults(store))


def test_a_cluster_on_both_sides_of_the_split_is_found():
    entry = {"captions": [], "split": "train", "rank": 1, "licence": "", "source": "", "identifier": "", "cluster": "c"}
    listed = {f"{name}/000": {**entry, "object_id": name} for name in "ab"}
    made = Audit()
    compare_with_source(made, listed, {"a": entry, "b": entry}, "catalog")
    assert made.faults == []
    listed["b/000"]["split"] = "validation"
    compare_with_source(made, listed, {"a": entry, "b": {**entry, "split": "validation"}}, "catalog")
    assert made.faults == ["1 clusters are on both sides of the split: c"]


def stored(tokens, kind):
    """As they come back from the store; int8 with a scale per token."""
    if kind != "int8":
        return tokens.to(TORCH_DTYPES[kind])
    scale = tokens.abs().amax(-1, keepdim=True) / 127
    return (tokens / scale).round() * scale


@given(st.sampled_from(["float32", "float16", "bfloat16", "int8"]), st.sampled_from([8, 64, 1024]), st.integers(0, 99))
def test_no_true_target_is_called_strange_in_any_number_format(kind, width, seed):
    shape = (3, 7, width)
    tokens = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) ** 3  # a few numbers that stand out
    found = Statistics("patches", round_off(kind, width))
    found.add(["a", "b", "c"], stored(targets_from_prenorm(tokens), kind))
    assert not found.strange and found.tokens == 21 and found.not_finite == 0
