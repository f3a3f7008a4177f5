"""Features as rows: what extractors give when they are called directly, a failure its own row, nothing twice."""

import json
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from balls import balls, commit, picture_of, settings_of
from generated_sets import collection, settings_at
from killed import Point, Run
from PIL import Image
from stores import TOGETHER, write

from gap3d.evaluation.extractors import VIEWS, identity, load
from gap3d.evaluation.features import Features
from gap3d.evaluation.objects import objects_of
from gap3d.evaluation.pictured import contents
from gap3d.evaluation.views import AROUND, Rendered, numbers_of
from gap3d.exports import folders
from gap3d.features.decoding import decode_image
from gap3d.records import Status, SystemicFault
from gap3d.schemas import CATALOG, RENDERS
from gap3d.settings import Limits
from gap3d.store import Store
from gap3d.trellis.process import Installation
from gap3d.trellis.turntable import PROTOCOLS
from pipelines import around, cloud_features, job, picture_features, trellis
from pipelines.evaluation import pictured
from pipelines.job import NotReady
from pipelines.shaper import Wanted

NAMES = ("a", "b", "c", "d")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Four balls with all features; of ``b`` a picture is damaged, ``c`` lacks a render, ``d`` a depth."""
    root, rows = tmp_path_factory.mktemp("measured"), balls(NAMES)
    rows["b/006"]["png"] = rows["b/006"]["png"][:99]
    rows["c/000"] = None
    rows["d/001"]["depth"] = None
    store, settings = commit(root, rows), settings_of(root)
    report = picture_features.run(settings)
    return store, settings, rows, report, cloud_features.run(settings)


def features_of(store, name):
    table = Features(store, name).table()
    return dict(zip(table.keys, table.features, strict=True))


@pytest.mark.parametrize("name", VIEWS)
def test_a_row_is_what_the_extractor_gives_of_the_picture(measured, name):
    store, settings, rows, *_ = measured
    found, extractor = features_of(store, name), load(name, settings.evaluation)
    assert len(found) == len(NAMES) * VIEWS[name] - 2
    for number in numbers_of(VIEWS[name])[:2]:
        image = decode_image(rows[f"a/{number:03d}"]["png"], 10**6)
        assert np.array_equal(found[f"a/{number:03d}"], extractor.features([image])[0].numpy())
    about = Features(store, name).about
    assert about["extractor"] == extractor.description == identity(name, settings.evaluation)
    assert about["extractor"]["label"].startswith("UNTRAINED") and about["views"] == VIEWS[name]


def test_rows_say_whose_they_are_and_from_which_side(measured):
    table = Features(measured[0], "dinov2").table()
    assert table.objects == [key[0] for key in table.keys]
    assert table.yaws.tolist() == [AROUND[int(key[2:])].yaw for key in table.keys]
    assert np.isnan(Features(measured[0], "pointnet").table().yaws).all()


def test_a_damaged_picture_a_lost_render_and_a_lost_depth_cost_a_row_each(measured):
    store, _, _, report, of_clouds = measured
    for name, count in VIEWS.items():
        statuses = {"ok": 4 * count - 2, "import_error": 2}
        assert report.by_status(f"features-{name}") == dict(sorted(statuses.items()))
        rows = Features(store, name).rows
        assert rows["b/006"].origin == "" and "damaged PNG" in rows["b/006"].reason
        assert rows["c/000"].origin == "renders"
        assert set(Features(store, name).failures) == {"b/006", "c/000"}
    assert of_clouds.by_status("clouds") == {"import_error": 2, "missing": 1, "ok": 1}
    assert of_clouds.by_status("features-pointnet") == of_clouds.by_status("clouds")
    rows = Features(store, "pointnet").rows
    assert rows["b"].reason.startswith("b/006: ") and rows["b"].origin == "clouds"
    assert rows["c"].origin == "renders"
    assert "d/001: d view 1 has no depth" in rows["d"].reason


def test_a_second_run_computes_nothing_and_other_weights_compute_their_own_rows(measured, tmp_path):
    shutil.copytree(measured[0].root, tmp_path, dirs_exist_ok=True)
    settings = settings_of(tmp_path)
    before = [picture_features.run(settings), cloud_features.run(settings)]
    assert [report.count("computed") for report in before] == [0, 0]
    other = settings_of(tmp_path, evaluation={"dinov2_size": 42})
    report = picture_features.run(other)
    assert {stage: report.count("computed", stage) for stage in report.stages() if report.count("computed", stage)} == {
        "features-dinov2": 15  # the damaged one is among them: it was never seen
    }
    fewer = settings_of(tmp_path, evaluation={"views": [8]})
    assert picture_features.run(fewer).stages() == ["features-clip", "features-clip_large"]


def clouds_of(store):
    (shard,) = store.shards
    rows = store.read(store.manifest("clouds", shard))
    return {key: np.frombuffer(row["points"], np.float32).reshape(-1, 3) for key, row in rows.items()}


def off_the_sphere(cloud):
    """Greatest distance from the sphere that fits a cloud best, over its radius."""
    system, right = np.c_[2 * cloud, np.ones(len(cloud))], (cloud.astype(float) ** 2).sum(1)
    *centre, rest = np.linalg.lstsq(system, right, rcond=None)[0]
    radius = np.sqrt(rest + np.square(centre).sum())
    return np.abs(np.linalg.norm(cloud - centre, axis=1) - radius).max() / radius


def test_a_cloud_lies_on_its_sphere_and_the_released_errors_bend_true_ones_alone(measured, tmp_path):
    assert off_the_sphere(clouds_of(measured[0])["a"]) < 1e-3
    store = commit(tmp_path, balls(["a"]))
    settings = settings_of(tmp_path, evaluation={"quirks": ["ray_depth"]})
    cloud_features.run(settings, source=pictured.rendered(store))
    assert off_the_sphere(clouds_of(store)["a"]) < 1e-3
    report = cloud_features.run(settings)
    assert report.count("computed") == 2
    assert off_the_sphere(clouds_of(store)["a"]) > 0.01


def test_where_the_order_counts_it_is_the_protocols_among_good_clouds(tmp_path):
    rows = balls([f"{number}" for number in range(5)])
    rows["2/001"]["depth"] = None
    store = commit(tmp_path, rows)
    settings = settings_of(tmp_path, evaluation={"quirks": ["batch_order"]})
    cloud_features.run(settings)
    order = [key for key in objects_of(store, None, 42) if key != "2"]
    assert order != sorted(order)
    clouds, found = clouds_of(store), features_of(store, "pointnet")
    wanted = load("pointnet", settings.evaluation).features([clouds[key] for key in order])
    for key, feature in zip(order, wanted.numpy(), strict=True):
        np.testing.assert_allclose(found[key], feature, rtol=1e-4, atol=1e-5)
    plain = load("pointnet", settings_of(tmp_path).evaluation).features([clouds[order[-1]]])[0].numpy()
    assert not np.allclose(found[order[-1]], plain, rtol=1e-3)
    backwards = cloud_features.run(settings, order=sorted(order))
    moved = sum(order.index(key) != sorted(order).index(key) for key in order)
    assert backwards.count("computed") == moved > 0


def test_the_order_of_renders_from_all_around_is_that_of_all_objects_of_their_collection(tmp_path):
    base = commit(tmp_path, dict.fromkeys(f"{number}/000" for number in range(8)), "balls")
    settings = settings_of(tmp_path, evaluation={"quirks": ["batch_order"], "count": 5, "points": 60})
    order, store = objects_of(base, 5, 42), Store(tmp_path, "balls-around", 1)
    around.copy(base, store, "catalog", "0", CATALOG, settings, set(order))
    write(store, balls(order), TOGETHER, "renders", RENDERS)
    cloud_features.run(settings, source=pictured.true_objects(settings), true=True)  # as the program does
    places = {key: int(row.inputs["place"]) for key, row in store.manifest("features-pointnet", "0").rows.items()}
    assert sorted(places, key=places.get) == order != objects_of(store, 5, 42)


def test_a_folder_of_the_same_pictures_has_the_same_features(measured, tmp_path):
    store, _, rows, *_ = measured
    good = [rows[f"a/{number:03d}"] for number in range(24)]
    folders.write(tmp_path / "pictures" / "a", good, object_id="a")
    (tmp_path / "pictures" / "empty").mkdir()
    source = pictured.source_of(settings_of(tmp_path), str(tmp_path / "pictures"))
    here = settings_of(tmp_path)
    made = picture_features.run(here, source=source, names=["dinov2", "clip"])
    assert made.by_status("features-dinov2") == {"missing": 4, "ok": 4}
    cloud_features.run(here, source=source)
    for name in ("dinov2", "clip", "pointnet"):
        other = features_of(store, name)
        found = features_of(source.store, name)
        assert {key for key in other if key[0] == "a"} == set(found)
        assert all(np.array_equal(other[key], value) for key, value in found.items())
    again = pictured.source_of(here, str(tmp_path / "pictures"))
    assert picture_features.run(here, source=again, names=["dinov2", "clip"]).count("computed") == 0
    (tmp_path / "pictures" / "a" / "000.png").write_bytes(good[1]["png"])
    assert picture_features.run(here, source=again, names=["dinov2"]).count("computed") == 1


def test_objects_of_trellis_are_seen_in_their_own_pictures(tmp_path):
    settings = settings_at(tmp_path)
    store, own = collection(settings, "made", ["a ball", ""])
    installation = Installation("trellis-text", "m", Path(__file__).parent / "trellis_stand_in")
    plan = trellis.Plan(store, installation, Wanted(tuple(PROTOCOLS.values()), 64, glb=False), None, {})
    trellis.run(plan, own)
    here = settings_of(tmp_path, evaluation={"points": 300, "quirks": ["ray_depth"]})
    source = pictured.source_of(here, "made:trellis-text")
    assert source.store.collection == "made-trellis-text"
    made = picture_features.run(here, source=source, names=["dinov2", "clip"])
    assert made.by_status("features-dinov2") == {"missing": 4, "ok": 4}
    (key,) = {row.rpartition("/")[0] for row in features_of(source.store, "clip")}
    place = store.folder / store.read(store.manifest(plan.stage, "0"))[key]["folder"]
    for name in ("dinov2", "clip"):
        extractor = load(name, here.evaluation)
        pictures = [Image.open(place / f"views{VIEWS[name]}" / f"{view:03d}.png") for view in range(VIEWS[name])]
        wanted = torch.cat([extractor.features([picture]) for picture in pictures]).numpy()
        assert np.array_equal(Features(source.store, name).table().features, wanted)
    failed = [row for row in Features(source.store, "clip").rows.values() if row.status is not Status.OK]
    assert {row.origin for row in failed} == {"prompts"}
    cloud_features.run(here, source=source)
    assert off_the_sphere(clouds_of(source.store)[key]) < 5e-3  # its sphere, stored at 64 pixels


def test_an_interrupted_run_computes_only_what_was_not_committed(tmp_path, monkeypatch):
    store = commit(tmp_path, balls(["a", "b"]))
    settings = settings_of(tmp_path, compute={"flush_rows": 1, "batch_size": 1})
    taken, take = [], job.take
    with monkeypatch.context() as patched:

        def interrupted(*given):
            take(*given)
            taken.append(given)
            if len(taken) == 11:
                raise KeyboardInterrupt

        patched.setattr(job, "take", interrupted)
        with pytest.raises(KeyboardInterrupt):
            picture_features.run(settings, names=["dinov2", "clip"])
    report = picture_features.run(settings, names=["dinov2", "clip"])
    assert [report.count("computed", f"features-{name}") for name in ("dinov2", "clip")] == [0, 16 - (11 - 8)]
    whole = commit(tmp_path / "whole", balls(["a", "b"]))
    picture_features.run(settings_of(tmp_path / "whole"), names=["clip"])
    assert store.manifest("features-clip", "0").digest == whole.manifest("features-clip", "0").digest


@pytest.mark.slow  # two programs
def test_a_killed_run_computes_only_what_was_not_committed(tmp_path, nursery):
    store = commit(tmp_path, balls(["a", "b"]))
    flags = ["--store", str(tmp_path), "--of", "balls-around", "--features", "clip,dinov2"]
    flags += ["--compute.flush_rows", "1", "--compute.batch_size", "1", "--evaluation.clip", "random-small"]
    flags += ["--evaluation.dinov2", "random-small", "--evaluation.dinov2_size", "28"]
    log = tmp_path / "log"
    run = Run("pipelines.picture_features", "", "", str(tmp_path / "scratch"), str(log), flags=flags)
    point = Point("pipelines.job:take", "after", call=11)
    assert nursery.run(replace(run, point=asdict(point))) == -signal.SIGKILL, log.read_text()
    assert nursery.run(run) == 0, log.read_text()
    said = log.read_text()
    assert "8 rows: 8 ok; computed 0" in said and "16 rows: 16 ok; computed 13" in said
    assert "clip: UNTRAINED random weights" in said
    assert store.manifest("features-clip", "0").complete


@pytest.mark.slow  # Ray, and three workers that import all there is
def test_a_picture_that_kills_its_worker_costs_its_own_row(tmp_path, nursery, ray_folder):
    store = commit(tmp_path, balls(["a", "b"]))
    flags = ["--store", str(tmp_path), "--of", "balls-around", "--features", "clip", "--compute.workers", "1"]
    flags += ["--compute.encoder_threads", "1", "--evaluation.clip", "random-small"]
    log = tmp_path / "log"
    run = Run(
        "pipelines.picture_features", "", "", str(tmp_path / "scratch"), str(log), flags=flags, setup="dying:doom"
    )
    assert nursery.run(replace(run, environment={"RAY_TMPDIR": ray_folder})) == 0, log.read_text()
    rows = Features(store, "clip").rows
    assert len(rows) == 16
    assert {key for key, row in rows.items() if row.status is Status.CRASHED} == {"b/006"}
    assert {row.status for row in rows.values()} == {Status.OK, Status.CRASHED}


def test_weights_that_cannot_be_had_abort_without_a_row(tmp_path):
    store = commit(tmp_path, balls(["a"]))
    settings = settings_of(tmp_path, evaluation={"clip": str(tmp_path / "nothing")})
    with pytest.raises(SystemicFault, match=r"--evaluation\.clip DIR"):
        picture_features.run(settings, names=["clip"])
    assert not store.manifest("features-clip", "0").rows


def test_what_is_no_source_is_told(tmp_path):
    settings = settings_of(tmp_path)
    commit(tmp_path, balls(["a"]), "other")
    with pytest.raises(ValueError, match="no such collection"):
        pictured.true_objects(settings)
    with pytest.raises(ValueError, match=r"nowhere is no collection .*there are: other"):
        pictured.source_of(settings, "nowhere")
    with pytest.raises(NotReady, match=r"shapes-gap3d of shard 0 .*pipelines\.trellis"):
        pictured.source_of(settings, "other:gap3d")
    (tmp_path / "pictures" / "a").mkdir(parents=True)
    with pytest.raises(ValueError, match="one of something else"):
        pictured.source_of(settings, str(tmp_path / "pictures"), "other")
    first = pictured.source_of(settings, str(tmp_path / "pictures"), "mine")
    assert json.loads((first.store.folder / "pictures.json").read_text())["kind"] == "folder"
    with pytest.raises(ValueError, match="choose another name"):
        pictured.source_of(settings, str(tmp_path), "mine")


def test_a_part_of_other_rows_aborts(tmp_path):
    views = Rendered(commit(tmp_path, balls(["a"]))).views("0", 4)["a"]
    wrong = replace(views[0], key="b/000")
    with pytest.raises(SystemicFault, match=r"is a/000, not b/000: run `python -m pipelines\.verify`"):
        contents([wrong], Limits())
    assert decode_image(picture_of(np.zeros((2, 2)), (1, 1, 1)), 4).size == (2, 2)


def test_an_extractor_that_is_none_is_a_sentence():
    assert picture_features.named("clip, inception") == ["inception", "clip"]
    with pytest.raises(ValueError, match="--features dino: choose of inception, dinov2"):
        picture_features.named("clip,dino")
