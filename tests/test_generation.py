"""Table 3: distances and scores of stored features, against closed forms and direct computation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from stores import TOGETHER

from gap3d.evaluation.feature_rows import FeatureRows
from gap3d.evaluation.features import Features, stage_of
from gap3d.evaluation.generation import METRICS, Measuring, Pair, measure
from gap3d.evaluation.matching import Known, Matched, match, of_key, of_path
from gap3d.evaluation.retrieved import nearest
from gap3d.metrics.bootstrap import mean_interval
from gap3d.metrics.extractors.clip import clip_score
from gap3d.metrics.frechet import FeatureMoments, frechet_distance, gaussian_distance
from gap3d.metrics.kernel import kernel_distance
from gap3d.records import Failure, Outcome, Status
from gap3d.schemas import CLOUD_FEATURES, PICTURE_FEATURES
from gap3d.settings import Limits
from gap3d.store import Store

VIEWS = {"inception": 4, "dinov2": 4, "pointnet": 1, "clip": 8, "clip_large": 8}
WIDTH = {"inception": 6, "dinov2": 5, "pointnet": 4, "clip": 7, "clip_large": 3}


def features_at(root, name, values, failed=()):
    """Features [V, D] of objects by extractor, committed by the real writer; of some, a row that failed."""
    store = Store(root, name, 2)
    side = {}
    for extractor, by_object in values.items():
        stage, schema = stage_of(extractor), CLOUD_FEATURES if extractor == "pointnet" else PICTURE_FEATURES
        metadata = {"extractor": {"width": WIDTH[extractor], "weights": "of a test", "trained": False}}
        for shard, digit in zip(store.shards, (0, 1), strict=True):
            with store.writer(stage, shard, schema, TOGETHER, Limits(), metadata) as writer:
                keys = []
                for key in list(by_object)[digit::2]:
                    for view, value in enumerate(by_object[key]):
                        keys.append(key if extractor == "pointnet" else f"{key}/{view:03d}")
                        data = {"object_id": key, "feature": np.asarray(value, np.float32)}
                        if schema is PICTURE_FEATURES:
                            data |= {"view": view, "yaw": 0.0}
                        bad = key in failed and view == 0
                        words = {"status": Status.EMPTY_RENDER, "reason": "by the test"} if bad else {"data": data}
                        writer.add(Outcome(stage=stage, key=keys[-1], **words), {"value": repr(value)})
                writer.finish(set(keys))
        side[extractor] = FeatureRows(Features(store, extractor), VIEWS[extractor])
    return side


def drawn(objects, seed, extractors=tuple(VIEWS), shift=0.0):
    """Normal numbers for every picture of so many objects."""
    source = np.random.default_rng(seed)
    return {
        name: {f"{key:03d}": source.normal(shift, 1, (VIEWS[name], WIDTH[name])) for key in range(objects)}
        for name in extractors
    }


def references(objects, seed):
    source = torch.Generator().manual_seed(seed)
    widths = {"clip_text": WIDTH["clip"], "clip_text_large": WIDTH["clip_large"], "clip_image": WIDTH["clip_large"]}
    return {
        name: {f"{key:03d}": torch.randn(width, generator=source) for key in range(objects)}
        for name, width in widths.items()
    }


def pairs_of(objects):
    return [Pair(f"{key:03d}", f"{key:03d}") for key in range(objects)]


def stacked(values, name, keys):
    return np.concatenate([values[name][key].astype(np.float32) for key in keys])


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """Twelve objects: numbers of true and of generated ones, and both as stored."""
    root = tmp_path_factory.mktemp("sides")
    ours, theirs = drawn(12, 0), drawn(12, 1, shift=0.5)
    return ours, theirs, features_at(root, "true", ours), features_at(root, "made", theirs)


def test_every_cell_is_what_direct_computation_over_all_features_gives(sides):
    ours, theirs, true, made = sides
    texts, keys = references(12, 2), [f"{key:03d}" for key in range(12)]
    found = measure(pairs_of(12), true, made, texts).cells
    for metric in METRICS:
        cell, name = found[metric.column], metric.extractor
        first, second = stacked(ours, name, keys), stacked(theirs, name, keys)
        if metric.kind == "kernel":
            assert cell.value == pytest.approx(100 * kernel_distance(first, second), rel=1e-12)
        elif metric.kind == "frechet":
            covariances = [torch.from_numpy(np.cov(each.astype(np.float64), rowvar=False)) for each in (first, second)]
            means = [torch.from_numpy(each.mean(0, dtype=np.float64)) for each in (first, second)]
            wanted = gaussian_distance(means[0], covariances[0], means[1], covariances[1])
            assert cell.value == pytest.approx(wanted, rel=1e-9)
        else:
            scores = [
                clip_score(torch.from_numpy(theirs[name][key].astype(np.float32)), texts[metric.column][key])
                for key in keys
            ]
            interval = mean_interval(scores, seed=0)
            assert (cell.value, cell.low, cell.high) == (interval.mean, interval.low, interval.high)
        assert cell.samples == 12


def test_the_distance_of_two_sampled_gaussians_is_the_closed_form(tmp_path):
    """Of N(0, 1) and N(m, s^2) in each of D channels: |m|^2 + D (1 - s)^2; the samples' own moments are made exact."""
    source, shift, spread, objects, width = np.random.default_rng(3), 0.7, 1.6, 12, WIDTH["inception"]
    made = []
    for move, scale in ((0.0, 1.0), (shift, spread)):
        rows = source.normal(0, 1, (objects * 4, width))
        rows -= rows.mean(0)
        rows = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows, rowvar=False))).T * scale + move
        values = {f"{key:03d}": each for key, each in enumerate(rows.reshape(objects, 4, width))}
        made.append(features_at(tmp_path, f"of {scale}", {"inception": values}))
    cells = measure(pairs_of(objects), *made, {}).cells
    assert cells["fd_inception"].value == pytest.approx(width * (shift**2 + (1 - spread) ** 2), rel=1e-6)
    assert cells["fd_inception"].note == ""
    assert cells["fd_dinov2"].value is None and cells["clip_text"].value is None


def test_how_many_objects_are_read_at_once_changes_nothing_but_rounding(sides, monkeypatch):
    _, _, true, made = sides
    whole = measure(pairs_of(12), true, made, references(12, 2)).cells
    monkeypatch.setattr("gap3d.evaluation.feature_rows.AT_ONCE", 1)
    assert [len(each) for each in true["clip"].batches(["003", "001", "003"])] == [1, 1, 1]
    for name, cell in measure(pairs_of(12), true, made, references(12, 2)).cells.items():
        assert cell.value == pytest.approx(whole[name].value, rel=1e-9)


def test_a_set_has_no_distance_to_itself(sides):
    _, _, true, _ = sides
    cells = measure(pairs_of(12), true, true, {}).cells
    for column in ("fd_inception", "fd_dinov2", "fd_pointnet"):
        assert abs(cells[column].value) < 1e-6


def test_the_order_of_objects_and_of_rows_changes_no_digit(sides, tmp_path):
    ours, theirs, true, made = sides
    texts, order = references(12, 2), np.random.default_rng(5).permutation(12)
    turned = [{name: {f"{k:03d}": each[f"{k:03d}"] for k in order} for name, each in v.items()} for v in (ours, theirs)]
    true2, made2 = features_at(tmp_path, "true", turned[0]), features_at(tmp_path, "made", turned[1])
    shuffled = [pairs_of(12)[k] for k in order]
    assert measure(shuffled, true2, made2, texts) == measure(pairs_of(12), true, made, texts)


def test_objects_that_are_half_there_are_rows_and_leave_both_sets(tmp_path):
    ours, theirs = drawn(6, 0), drawn(6, 1)
    true, made = features_at(tmp_path, "true", ours, failed=["000"]), features_at(tmp_path, "made", theirs, ["001"])
    pairs = pairs_of(6)
    pairs[2] = Pair("002", failure=Failure(Status.CRASHED, "TRELLIS's process: exit code -11"))
    pairs.append(Pair("never/there", "nowhere"))
    found = measure(pairs, true, made, references(6, 2))
    rows = {each.key: each for each in found.samples}
    assert sorted(rows) == sorted(pair.key for pair in pairs)
    assert [rows[key].status for key in ("000", "001", "002", "003")] == [
        "empty_render",
        "empty_render",
        "crashed",
        "ok",
    ]
    assert "true object" in rows["000"].reason and "generated object" in rows["001"].reason
    assert rows["never/there"].status is Status.MISSING and rows["never/there"].reason
    assert set(rows["000"].values) == {"clip_text", "clip_text_large", "clip_image"}  # its pictures are there
    assert not rows["002"].values
    kept = ["003", "004", "005"]
    first, second = (stacked(each, "dinov2", kept) for each in (ours, theirs))
    assert found.cells["kd_dinov2"].value == pytest.approx(100 * kernel_distance(first, second), rel=1e-12)
    assert found.cells["kd_dinov2"].samples == 3 and found.cells["clip_text"].samples == 4


def test_unpaired_keeps_the_true_pictures_of_objects_whose_generation_failed(tmp_path):
    ours, theirs = drawn(6, 0, ("inception",)), drawn(6, 1, ("inception",))
    true, made = features_at(tmp_path, "true", ours), features_at(tmp_path, "made", theirs)
    pairs = [replace(pair, failure=Failure(Status.TIMEOUT, "")) if pair.key < "002" else pair for pair in pairs_of(6)]
    cell = measure(pairs, true, made, {}, Measuring(unpaired=True)).cells["fd_inception"]
    sets = [FeatureMoments(WIDTH["inception"]) for _ in range(2)]
    sets[0].update(stacked(ours, "inception", sorted(ours["inception"])))
    sets[1].update(stacked(theirs, "inception", ["002", "003", "004", "005"]))
    assert cell.value == pytest.approx(frechet_distance(*sets), rel=1e-9)
    assert cell.samples == 4
    assert measure(pairs, true, made, {}).cells["fd_inception"].value != cell.value


@pytest.mark.parametrize("objects", [0, 1])
def test_too_few_objects_are_a_sentence_and_no_number(tmp_path, objects):
    sides = [features_at(tmp_path, name, drawn(objects, seed)) for seed, name in enumerate(("true", "made"))]
    found = measure(pairs_of(objects), *sides, references(objects, 2))
    for metric in METRICS:
        cell = found.cells[metric.column]
        if metric.kind in ("text", "image") and objects:
            assert math.isfinite(cell.value) and cell.low is None
        else:
            assert cell.value is None and (not objects or "at least 2" in cell.note) and cell.note
    assert len(found.samples) == objects


def test_a_metric_that_no_object_has_is_a_note_and_no_fault_of_the_objects(tmp_path):
    ours = drawn(4, 0)
    true, made = features_at(tmp_path, "true", ours), features_at(tmp_path, "made", drawn(4, 1), failed=())
    made["pointnet"] = features_at(tmp_path, "flat", drawn(4, 1, ("pointnet",)), failed=list(ours["pointnet"]))[
        "pointnet"
    ]
    found = measure(pairs_of(4), true, made, {"clip_text": references(4, 2)["clip_text"]})
    assert found.cells["fd_pointnet"].value is None and "4 are empty_render" in found.cells["fd_pointnet"].note
    assert found.cells["clip_image"].note == "no prompt has a picture"
    assert all(each.status is Status.OK for each in found.samples)


def test_few_features_of_many_channels_are_told_beside_the_number(tmp_path):
    sides = [features_at(tmp_path, name, drawn(3, seed, ("pointnet",))) for seed, name in enumerate(("a", "b"))]
    cell = measure(pairs_of(3), *sides, {}).cells["fd_pointnet"]
    assert cell.value is not None and "3 features of 4 channels" in cell.note


def test_features_of_other_weights_are_refused(tmp_path):
    true = features_at(tmp_path, "true", drawn(3, 0, ("inception",)))
    made = features_at(tmp_path, "made", {"dinov2": drawn(3, 1, ("dinov2",))["dinov2"]})
    with pytest.raises(ValueError, match="6 channels and generated ones 5"):
        measure(pairs_of(3), true, {"inception": made["dinov2"]}, {})


def test_the_nearest_object_is_that_of_a_plain_loop_and_the_first_of_equals():
    source = torch.Generator().manual_seed(0)
    database, predicted = torch.randn(40, 16, generator=source), torch.randn(9, 16, generator=source)
    database[33] = database[4] * 3  # the same direction
    predicted[0] = database[33]
    keys = [f"{number:02d}/000" for number in range(40)]
    found = nearest(predicted, database, keys)
    for one, query in zip(found, predicted, strict=True):
        cosines = [float(torch.cosine_similarity(query, each, dim=0)) for each in database]
        assert one.cosine == pytest.approx(max(cosines), abs=1e-6)
        assert cosines[keys.index(one.key)] == pytest.approx(max(cosines), abs=1e-6)
    assert found[0].key == "04/000"
    assert nearest(predicted[:0], database, keys) == []


TRUE = {
    "a" * 32: Known("1" * 64, "toys/chair/chair_001.blend"),
    "b" * 32: Known("2" * 64, "toys/lamp/lamp_001.blend"),
    "c" * 32: Known("3" * 64, "toys/lamp/twin.blend"),
    "d" * 32: Known("4" * 64, "toys/chair/twin.blend"),
}


@pytest.mark.parametrize(
    "name",
    [
        *("a" * 32, "a" * 32 + "/000", "a" * 32 + "#3", "a" * 32 + "/000#1", "1" * 64),
        *("toys/chair/chair_001.blend", "toys/chair/chair_001", "chair_001.blend", "chair_001"),
    ],
)
def test_an_object_is_known_by_each_of_its_names(name):
    assert match({name: of_key(name), "stranger": ["stranger"]}, TRUE, "toys") == Matched(
        {"a" * 32: name}, ("stranger",)
    )


def of_keys(*keys):
    return {key: of_key(key) for key in keys}


def test_a_mesh_is_known_by_its_file_whatever_its_type():
    assert match({"hash": of_path("made/chair_001.glb")}, TRUE, "toys").generated == {"a" * 32: "hash"}
    assert match({"hash": of_path("d" * 32 + ".obj")}, TRUE, "toys").generated == {"d" * 32: "hash"}


def test_a_name_that_two_objects_have_means_neither():
    assert match(of_keys("twin", "toys/lamp/twin"), TRUE, "toys").generated == {"c" * 32: "toys/lamp/twin"}


def test_names_that_mean_nothing_and_names_that_mean_the_same_are_sentences():
    with pytest.raises(ValueError, match=r"none of the 2 generated objects \(x, y\).*name them by object_id"):
        match(of_keys("y", "x"), TRUE, "toys")
    with pytest.raises(ValueError, match=r"'1{64}' and 'chair_001' are both named as the true object a{32}"):
        match(of_keys("chair_001", "1" * 64), TRUE, "toys")
    with pytest.raises(ValueError, match="no generated objects"):
        match({}, TRUE, "toys")
