"""Table 1 from token sets of anybody: closed forms, plain loops, one row for every expected pair."""

import math
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from shared_data import golden
from target_stores import LAYOUT, collection, tokens_of, write_index, write_part

from gap3d.evaluation import tokens
from gap3d.evaluation.alignment import cells_of, checks_of, kinds_of, measure
from gap3d.evaluation.encoder_check import encoder_check
from gap3d.evaluation.result import find
from gap3d.evaluation.tokens import open_tokens
from gap3d.metrics.alignment import MEASURES
from gap3d.metrics.bootstrap import mean_interval
from gap3d.records import Status
from gap3d.store import Store
from pipelines import alignment_metrics
from pipelines.command import load_settings

BOOTSTRAP = {"seed": 3, "level": 0.9, "resamples": 200}
RNG = np.random.default_rng(0)


def normalised(*shape):
    values = RNG.standard_normal(shape)
    values -= values.mean(-1, keepdims=True)
    return values / np.sqrt(np.square(values).mean(-1, keepdims=True))


def npz(path, keys, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, keys=np.array(keys), **arrays)
    return path


def measured(predicted, true, keys=None, quirks=()):
    """(samples, cells, checks) of two places."""
    with open_tokens(predicted) as ours, open_tokens(true) as theirs:
        kinds, pairs = kinds_of(ours, theirs), [(key, key) for key in keys or theirs.keys]
        samples = measure(ours, theirs, pairs)
        cells = cells_of(samples, kinds, quirks=quirks, **BOOTSTRAP)
        return samples, cells, checks_of(samples, kinds, ours, theirs)


@pytest.mark.parametrize("count", [1, 64, 7])
def test_turned_and_stretched_targets_have_the_cosine_ratio_and_error_of_the_closed_form(tmp_path, count):
    true, keys = normalised(5, count, 32), list("abcde")
    aside = normalised(5, count, 32)
    aside -= true * (aside * true).mean(-1, keepdims=True)
    aside /= np.sqrt(np.square(aside).mean(-1, keepdims=True))
    ratios, angles = np.linspace(0.5, 1.5, 5), np.linspace(0.1, 2, 5)
    predicted = ratios[:, None, None] * (np.cos(angles)[:, None, None] * true + np.sin(angles)[:, None, None] * aside)
    npz(tmp_path / "true.npz", keys, patches=true)
    npz(tmp_path / "predicted.npz", keys[::-1], tokens=predicted[::-1])  # another order, another name, no CLS
    samples, cells, checks = measured(tmp_path / "predicted.npz", tmp_path / "true.npz")
    errors = 1 + ratios**2 - 2 * ratios * np.cos(angles)
    truth = {"cosine_patches": np.cos(angles), "mse_patches": errors, "norm_ratio_patches": ratios}
    assert set(cells) == set(truth) and [each.key for each in samples] == keys
    for name, values in truth.items():
        assert [each.values[name] for each in samples] == pytest.approx(values, rel=1e-5)
        assert cells[name].value == pytest.approx(values.mean(), rel=1e-6) and cells[name].samples == 5
        interval = mean_interval([each.values[name] for each in samples], **BOOTSTRAP)
        assert (cells[name].low, cells[name].high) == (interval.low, interval.high)
    assert checks["identity"]["passed"] and checks["identity"]["applies"] and checks["complete"]["passed"]


def test_the_means_are_those_of_plain_loops_over_what_is_stored(tmp_path):
    store, true = collection(tmp_path / "store", 9)
    keys = list(true)
    predicted = {key: 0.7 * row.numpy() + 0.4 * RNG.standard_normal(row.shape) for key, row in true.items()}
    stacked = np.stack([predicted[key] for key in keys]).astype(np.float32)
    npz(tmp_path / "made.npz", keys, cls=stacked[:, 0], registers=stacked[:, 1:3], patches=stacked[:, 3:])
    _, cells, _ = measured(tmp_path / "made.npz", store)
    stored = {key: np.concatenate([row[:1].numpy(), row[1:].half().float().numpy()]) for key, row in true.items()}
    for kind, rows in (("cls", [0]), ("registers", [1, 2]), ("patches", range(3, LAYOUT.count))):
        found = []
        for key, made in zip(keys, stacked.astype(np.float64), strict=True):
            each = []
            for p, t in ((made[row], stored[key][row].astype(np.float64)) for row in rows):
                lengths = math.sqrt(p @ p), math.sqrt(t @ t)
                each.append([p @ t / lengths[0] / lengths[1], np.mean((p - t) ** 2), lengths[0] / lengths[1]])
            found.append(np.mean(each, axis=0))
        wanted = dict(zip(MEASURES, np.mean(found, axis=0), strict=True))
        assert {name: cells[f"{name}_{kind}"].value for name in MEASURES} == pytest.approx(wanted, rel=1e-7)


def test_how_many_are_read_at_once_changes_nothing(tmp_path, monkeypatch):
    store, true = collection(tmp_path / "store", 10)
    npz(tmp_path / "a.npz", list(true), patches=RNG.standard_normal((10, 15, 8)))
    whole = measured(tmp_path / "a.npz", store)
    for most in (1, 3 * 4 * 15 * 8):  # one set, three sets
        monkeypatch.setattr(tokens, "BATCH_BYTES", most)
        assert measured(tmp_path / "a.npz", store) == whole


def test_every_expected_pair_is_a_row_whatever_became_of_it(tmp_path):
    store, true = collection(tmp_path / "store", 8)
    write_index(store, rejected={"0003/000"})
    patches = RNG.standard_normal((8, 15, 8))
    patches[1, 2, 3] = np.nan
    npz(tmp_path / "a.npz", [key for key in true if key != "0004/000"], patches=np.delete(patches, 4, 0))
    keys = [*true, "nobody"]
    samples, cells, checks = measured(tmp_path / "a.npz", store, keys)
    assert [each.key for each in samples] == keys
    found = {each.key: (each.status, each.reason) for each in samples if each.status is not Status.OK}
    assert found == {
        "0001/000": (Status.UNSUPPORTED, "predicted tokens: 1 of 120 numbers of its patches are not finite"),
        "0003/000": (Status.NOT_ADMITTED, "true tokens: by the test"),
        "0004/000": (Status.MISSING, "predicted tokens: a.npz has no such key"),
        "nobody": (Status.MISSING, "predicted tokens: a.npz has no such key"),
    }
    assert cells["mse_patches"].samples == 5 and not checks["complete"]["passed"]
    assert cells["mse_patches"].value == pytest.approx(
        np.mean([each.values["mse_patches"] for each in samples if each.values])
    )


def test_nothing_measured_is_a_cell_that_says_so(tmp_path):
    store, true = collection(tmp_path / "store", 2)
    npz(tmp_path / "a.npz", list(true), cls=np.full((2, 8), np.nan))
    _, cells, checks = measured(tmp_path / "a.npz", store)
    assert {cell.value for cell in cells.values()} == {None} and "no pair" in cells["cosine_cls"].note
    assert not checks["identity"]["passed"] and not checks["complete"]["passed"]


def test_the_quirk_averages_the_means_of_batches_of_64(tmp_path):
    keys = [f"{number:03d}" for number in range(130)]
    true = normalised(130, 2, 8)
    npz(tmp_path / "t.npz", keys, patches=true)
    npz(tmp_path / "p.npz", keys, patches=true + np.linspace(0, 1, 130)[:, None, None] * normalised(130, 2, 8))
    samples, exact, _ = measured(tmp_path / "p.npz", tmp_path / "t.npz")
    _, paper, _ = measured(tmp_path / "p.npz", tmp_path / "t.npz", quirks=("batch_means",))
    for name, cell in paper.items():
        values = [each.values[name] for each in samples]
        batches = [np.mean(values[start : start + 64]) for start in (0, 64, 128)]
        assert cell.value == pytest.approx(np.mean(batches), rel=1e-12) and "batches of 64" in cell.note
        assert exact[name].value == pytest.approx(np.mean(values), rel=1e-12)
    assert paper["mse_patches"].value > 1.2 * exact["mse_patches"].value  # the last two weigh as much as the first 64


def test_the_identity_holds_on_the_reference_targets(tmp_path):
    _, tensors = golden("dinov2_reg_small.safetensors")
    true, raw = (tensors[f"output.{name}"].numpy() for name in ("target", "x_prenorm"))
    npz(tmp_path / "t.npz", ["a", "b"], cls=true[:, 0], patches=true[:, 5:])
    npz(tmp_path / "p.npz", ["a", "b"], cls=raw[:, 0], patches=raw[:, 5:])
    _, cells, checks = measured(tmp_path / "p.npz", tmp_path / "t.npz")
    assert checks["identity"]["applies"] and max(checks["identity"]["greatest_gap"].values()) < 1e-3
    truth = np.square(raw - true).mean(-1)[:, 5:].mean()
    assert cells["mse_patches"].value == pytest.approx(float(truth), rel=1e-5)


def test_targets_that_say_they_are_normalised_and_are_not_fail_loudly(tmp_path, caplog):
    store = Store(tmp_path / "store", "test", 1)
    write_part(store, "0", {f"{number:04d}/000": 1.5 * tokens_of(number) for number in range(4)})
    write_index(store)
    keys = [f"{number:04d}/000" for number in range(4)]
    npz(tmp_path / "a.npz", keys, patches=RNG.standard_normal((4, 15, 8)))
    _, _, checks = measured(tmp_path / "a.npz", store)
    assert checks["identity"]["applies"] and not checks["identity"]["passed"]
    assert "the check identity FAILS" in caplog.text and "not what they say" in caplog.text


def test_of_other_models_targets_it_is_said_that_the_identity_does_not_apply(tmp_path, caplog):
    npz(tmp_path / "t.npz", ["a"], patches=3 * normalised(1, 4, 8))
    npz(tmp_path / "p.npz", ["a"], patches=normalised(1, 4, 8))
    _, _, checks = measured(tmp_path / "p.npz", tmp_path / "t.npz")
    assert checks["identity"]["passed"] and not checks["identity"]["applies"]
    assert checks["identity"]["note"].startswith("does not apply") and not caplog.text


def test_predictions_of_another_encoder_fail_a_check(tmp_path, caplog):
    store, true = collection(tmp_path / "store", 3)
    npz(tmp_path / "a.npz", list(true), patches=RNG.standard_normal((3, 15, 8)))
    with open_tokens(tmp_path / "a.npz") as ours, open_tokens(store) as theirs:
        samples = measure(ours, theirs, [(key, key) for key in true])
        assert "encoder" not in checks_of(samples, ["patches"], ours, theirs)
        for one, other in (("1", "1"), ("1", "2")):
            ours.description["aligner"] = {"about": {"encoder": {"weights": one}}}
            theirs.description["encoder"] = {"weights": other}
            assert checks_of(samples, ["patches"], ours, theirs)["encoder"]["passed"] is (one == other)
    assert "two languages" in caplog.text


def test_predictions_of_another_preprocessing_fail_a_check_of_both_tables_and_it_says_which(tmp_path, caplog):
    store, true = collection(tmp_path / "store", 3)
    npz(tmp_path / "a.npz", list(true), patches=RNG.standard_normal((3, 15, 8)))
    centre, trellis = ({"crop": crop, "alpha": "black"} for crop in ("centre", "TRELLIS"))
    about = {"weights": "1", "fingerprint": "2", "image_size": 518, "preprocessing": centre}
    with open_tokens(tmp_path / "a.npz") as ours, open_tokens(store) as theirs:
        assert encoder_check(ours, theirs) == {}
        theirs.description["encoder"] = about
        for change, words in (
            ({}, ""),
            ({"dtype": "bfloat16"}, ""),
            ({"image_size": 224}, "image_size 224 there, 518 here"),
            ({"preprocessing": trellis}, r"\(crop TRELLIS there, centre here\)"),
            ({"fingerprint": "3"}, r"\(fingerprint 3 there, 2 here\)"),
        ):
            ours.description["aligner"] = {"about": {"encoder": about | change}}
            check = encoder_check(ours, theirs)["encoder"]
            assert check["passed"] is (words == "")
            assert re.search(words, check.get("note", ""))


def test_tokens_that_can_not_be_compared_are_a_sentence(tmp_path):
    npz(tmp_path / "a.npz", ["a"], patches=normalised(1, 64, 8), cls=normalised(1, 16))
    npz(tmp_path / "b.npz", ["a"], patches=normalised(1, 15, 8), cls=normalised(1, 16))
    npz(tmp_path / "c.npz", ["a"], registers=normalised(1, 15, 8))
    with (
        open_tokens(tmp_path / "a.npz") as a,
        open_tokens(tmp_path / "b.npz") as b,
        open_tokens(tmp_path / "c.npz") as c,
    ):
        with pytest.raises(
            ValueError, match=r"patches can't be compared: a.npz has .*64 patches of width 8, and b.npz"
        ):
            kinds_of(a, b)
        with pytest.raises(ValueError, match="nothing can be compared"):
            kinds_of(a, c)


def test_the_program_measures_anybodys_shards_once_and_keeps_every_row(tmp_path, program, monkeypatch, capsys):
    store, true = collection(tmp_path / "store", 8)  # of the rows 1, 2, 3, 5, 6, 7 have captions
    keys = list(true)
    npz(tmp_path / "theirs" / "a.npz", keys[:7], patches=RNG.standard_normal((7, 15, 8)))
    flags = ["--predicted", tmp_path / "theirs", "--true", "test", "--model", "Theirs", "--store", tmp_path / "store"]
    flags += ["--evaluation.quirks", "paper", "--evaluation.resamples", "50"]
    first = program("pipelines.alignment_metrics", *flags)
    assert first.returncode == 0, first.stderr
    assert "6 rows: 1 missing, 5 ok; computed 6" in first.stdout and "Theirs on test: 5 of 6 pairs" in first.stdout
    (result,) = find(store.folder, "alignment")
    assert (result.model, result.quirks, result.counts) == ("Theirs", ("batch_means",), {"missing": 1, "ok": 5})
    assert result.protocol["captions"] == "longest" and result.protocol["predicted"]["tokens"] == {"patches": [15, 8]}
    rows = pq.read_table(result.folder / "samples.parquet").to_pylist()
    assert [row["key"] for row in rows] == [keys[number] for number in (1, 2, 3, 5, 6, 7)]
    assert rows[-1]["status"] == "missing" and "theirs has no such key" in rows[-1]["reason"]
    assert result.cells["cosine_patches"].value == pytest.approx(np.mean([row["cosine_patches"] for row in rows[:5]]))
    monkeypatch.setattr("sys.argv", ["alignment_metrics", *map(str, flags)])
    alignment_metrics.main()
    assert "computed 0" in capsys.readouterr().out and find(store.folder, "alignment") == [result]
    for more in (["--checkpoint", "there"], ["--predicted", str(tmp_path / "nowhere")]):
        monkeypatch.setattr("sys.argv", ["alignment_metrics", *map(str, flags), *more])
        with pytest.raises(SystemExit, match="1"):
            alignment_metrics.main()
        assert re.search("name one of them|is not there", capsys.readouterr().err)


def test_keys_that_are_nobodys_are_told_with_the_way_to_the_right_ones(tmp_path, caplog):
    store, true = collection(tmp_path / "store", 4)
    settings = load_settings("demo", store=tmp_path / "store", collection="test", catalog={"shards": 2})
    npz(tmp_path / "a.npz", ["x"], patches=normalised(1, 15, 8))
    with pytest.raises(ValueError, match=r"predicted are 'x' and others.*pipelines.predictions --measured"):
        alignment_metrics.of_places(settings, tmp_path / "a.npz", store.folder, "m")
    npz(tmp_path / "b.npz", ["x", *true], patches=normalised(5, 15, 8))
    result, _ = alignment_metrics.of_places(settings, tmp_path / "b.npz", "test", "m")
    assert result.counts == {"ok": 3} and "2 predicted sets are not asked for" in caplog.text


def test_both_sides_can_be_collections_by_name(tmp_path):
    collection(tmp_path, 6)
    settings = load_settings("demo", store=tmp_path, collection="mine")
    result, _ = alignment_metrics.of_places(settings, "test", "test", "itself")
    assert result.collection == "test" and result.cells["mse_patches"].value == 0
    assert result.folder.parent.parent.parent == tmp_path / "test"


def test_a_renamed_collection_is_measured_under_its_new_name(tmp_path):
    collection(tmp_path, 6)
    settings = load_settings("demo", store=tmp_path, collection="mine")
    alignment_metrics.of_places(settings, "test", "test", "itself")
    (tmp_path / "test").rename(tmp_path / "renamed")
    for _ in range(2):
        result, report = alignment_metrics.of_places(settings, "renamed", "renamed", "itself")
        assert report.shard == f"{result.collection}/{result.model}" == "renamed/itself"
    assert not report.computed


def test_between_plain_folders_every_key_of_either_is_a_pair(tmp_path):
    settings = load_settings("demo", store=tmp_path / "store", collection="mine")
    npz(tmp_path / "p.npz", ["a", "b", "c"], patches=normalised(3, 4, 8))
    npz(tmp_path / "t.npz", ["b", "c", "d"], patches=normalised(3, 4, 8))
    result, report = alignment_metrics.of_places(settings, tmp_path / "p.npz", tmp_path / "t.npz", "m")
    assert result.counts == {"missing": 2, "ok": 2} and report.expected == 4
    assert result.label == "nobody says whether predictions and targets are trained"
    assert result.folder.is_relative_to(tmp_path / "store" / "mine") and result.collection == "t.npz"
    other = load_settings("demo", store=tmp_path / "store", collection="mine", evaluation={"seed": 1})
    assert alignment_metrics.of_places(other, tmp_path / "p.npz", tmp_path / "t.npz", "m")[0] != result
    assert len(find(tmp_path / "store" / "mine", "alignment")) == 2
