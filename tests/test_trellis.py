"""The hand-over to TRELLIS, against a STAND-IN of its package (tests/trellis_stand_in): no TRELLIS runs here."""

import io
import json
import random
import signal
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from generated_sets import TRELLIS_LAYOUT, collection, settings_at
from killed import Point, Run
from PIL import Image
from processes import alive, mentioning, wait_for
from stores import TOGETHER, write

from gap3d.cameras import Camera
from gap3d.depth import decode_depth
from gap3d.prompts import of_file, of_texts
from gap3d.records import Status, SystemicFault
from gap3d.schemas import RENDERS
from gap3d.settings import Limits
from gap3d.store import Store
from gap3d.trellis import seeds
from gap3d.trellis.child import Refused, conditions
from gap3d.trellis.process import Installation, TrellisProcess
from gap3d.trellis.turntable import PROTOCOLS
from pipelines import prompts, trellis
from pipelines.job import NotReady
from pipelines.shaper import Shaper, Wanted
from pipelines.trellis import MODELS, Plan, renders_of

HERE = Path(__file__).parent
STAND_IN = HERE / "trellis_stand_in"
SIZE = 64
GOOD = ("a red chair", "a green lamp")


def random_tokens(number):
    return torch.randn(TRELLIS_LAYOUT.count, TRELLIS_LAYOUT.width, generator=torch.Generator().manual_seed(number))


def constant(level):
    """What the stand-in takes as an order to fail."""
    return torch.full((TRELLIS_LAYOUT.count, TRELLIS_LAYOUT.width), float(level))


def plan_of(store, method="gap3d", views=(4,), renders=None, said=None, **wanted):
    tables = tuple(PROTOCOLS[count] for count in views)
    return Plan(
        store, Installation(method, MODELS[method], STAND_IN), Wanted(tables, SIZE, **wanted), renders, said or {}
    )


def made(plan):
    """Rows by prompt, data by prompt."""
    (shard,) = plan.store.shards
    held = plan.store.manifest(plan.stage, shard)
    texts = {key: row["prompt"] for key, row in plan.store.read(plan.store.manifest("prompts", shard)).items()}
    data = plan.store.read(held)
    return {texts.get(key, ""): row for key, row in held.rows.items()}, {
        texts[key]: {**row, "place": plan.store.folder / row["folder"]} for key, row in data.items()
    }


def noise_of(seed):
    """What TRELLIS's image pipeline draws from a seed: occupied voxels [N, 3], their features [N, 8]."""
    torch.manual_seed(seed)
    voxels = torch.argwhere(torch.randn(1, 8, 16, 16, 16)[:, 0] > 0)[:, 1:]
    return voxels, torch.randn(len(voxels), 8)


def ply(path):
    content = path.read_bytes()
    head, _, body = content.partition(b"end_header\n")
    assert head.startswith(b"ply")
    return np.frombuffer(body, "<f4").reshape(-1, 11)


@pytest.fixture(scope="module")
def shaped(tmp_path_factory):
    """Two good objects and two that failed before, with all turntables."""
    settings = settings_at(tmp_path_factory.mktemp("shaped"))
    tokens = {text: random_tokens(number) for number, text in enumerate(GOOD)}
    store, own = collection(settings, "made", [*GOOD, "", "damaged"], tokens)
    plan = plan_of(store, views=(4, 8, 20), said=trellis.require_condition(store))
    return plan, own, trellis.run(plan, own)


def test_one_row_a_prompt_and_failures_are_passed_on(shaped):
    plan, _, report = shaped
    rows, data = made(plan)
    assert report.by_status(plan.stage) == {"import_error": 1, "missing": 1, "ok": 2}
    assert set(data) == set(GOOD)
    assert rows["damaged"].origin == "generated" and "empty" in rows[""].reason


def test_the_objects_are_those_of_the_evaluations_seed_and_of_nothing_drawn_before(shaped):
    plan, _, _ = shaped
    _, data = made(plan)
    for index, text in enumerate(GOOD):
        assert data[text]["seed"] == 42 * 1009 + index
        voxels, features = noise_of(data[text]["seed"])
        rows = ply(data[text]["place"] / "model.ply")
        assert data[text]["gaussians"] == len(voxels)
        x, y, z = ((voxels + 0.5) / 16 - 0.5).T
        np.testing.assert_allclose(rows[:, :3], np.stack([x, -z, y], axis=1), atol=1e-6)
        np.testing.assert_array_equal(rows[:, 3:], features.numpy())


def test_frames_show_what_a_render_of_the_same_number_shows(shaped):
    plan, _, _ = shaped
    _, data = made(plan)
    text = GOOD[0]
    points = ((noise_of(data[text]["seed"])[0] + 0.5) / 16 - 0.5).numpy()
    for count in (4, 8, 20):
        folder = data[text]["place"] / f"views{count}"
        said = json.loads((folder / "transforms.json").read_text())
        assert len(said["frames"]) == count and said["ssaa"] == {4: 1, 8: 4, 20: 4}[count]
        for view, frame in enumerate(said["frames"]):
            camera = Camera(360 * view / count, 30.0, 2.0, 40.0)
            np.testing.assert_allclose(frame["transform_matrix"], camera.camera_to_world, atol=1e-9)
            pixels, _ = camera.project(points, SIZE)
            wanted = np.zeros((SIZE, SIZE), bool)
            wanted[tuple(np.floor(pixels[:, ::-1]).astype(int).clip(0, SIZE - 1).T)] = True
            image = np.asarray(Image.open(folder / frame["file_path"]))
            assert (image[..., 0] > 0).sum() > 500
            assert ((image[..., 0] > 0) != wanted).mean() < 0.005  # points on the border of a pixel
            assert set(np.unique(image[..., 2])) == {0, 10 * said["ssaa"]}


def test_depth_is_planar_and_background_is_told_apart(shaped):
    plan, _, _ = shaped
    _, data = made(plan)
    folder = data[GOOD[1]]["place"] / "views20"
    frame = json.loads((folder / "transforms.json").read_text())["frames"][7]
    depth = decode_depth((folder / frame["depth_path"]).read_bytes(), frame["depth"]["min"], frame["depth"]["max"])
    centre = SIZE // 2
    assert depth[centre, centre] == pytest.approx(1.6, abs=2e-3)  # the sphere of radius 0.4 from a distance of 2
    assert np.isinf(depth[0, 0])
    # Along the ray the edge of the sphere is further away than its planar depth says.
    limb = depth[centre][np.isfinite(depth[centre])]
    assert limb.max() < 2.0 - 0.4 * np.sin(np.arcsin(0.4 / 2)) + 0.02


def test_what_is_made_stands_in_the_row_and_beside_the_files(shaped):
    plan, _, _ = shaped
    _, data = made(plan)
    row = data[GOOD[0]]
    names = {file["path"] for file in row["files"]}
    assert {"model.ply", "model.glb", "object.json", "views4/000.png", "views20/019_depth.png"} <= names
    assert row["lacking"] == [] and row["method"] == "gap3d" and row["model"] == MODELS["gap3d"]
    about = json.loads((row["place"] / "object.json").read_text())
    assert about["prompt"] == GOOD[0] and "UNTRAINED" in about["label"]
    assert {path.name for path in row["place"].parent.iterdir()} == {each["place"].name for each in data.values()}


def test_a_second_run_starts_no_trellis_and_what_is_lost_is_made_again(shaped):
    plan, own, _ = shaped
    absent = replace(plan, installation=replace(plan.installation, python="/nonexistent"))
    assert trellis.run(absent, own).count("computed") == 0
    _, data = made(plan)
    before = data[GOOD[0]]
    (before["place"] / "views8" / "003.png").unlink()
    assert trellis.run(plan, own).count("computed") == 1
    _, data = made(plan)
    assert data[GOOD[0]]["files"] == before["files"]


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """One object for each way in which TRELLIS fails, and a good one at the end."""
    settings = settings_at(tmp_path_factory.mktemp("failed"), limits=Limits(attempts=1))
    texts = ["killed", "out of memory", "error", "empty", "without a mesh", "good"]
    tokens = {text: constant(level) for text, level in zip(texts, (1, 2, 3, 5, 6, 7), strict=True)}
    store, own = collection(settings, "made", texts, tokens)
    plan = plan_of(store)
    trellis.run(plan, own)
    return made(plan)


@pytest.mark.parametrize(
    ("text", "status", "words"),
    [
        ("killed", Status.CRASHED, "exit code -11"),
        ("out of memory", Status.OUT_OF_MEMORY, "20.00 GiB"),
        ("error", Status.INTERNAL_ERROR, "spconv: no kernel"),
        ("empty", Status.NO_GEOMETRY, "empty"),
        ("good", Status.OK, ""),
    ],
)
def test_a_failure_of_trellis_costs_its_own_row(failed, text, status, words):
    row = failed[0][text]
    assert row.status is status
    assert words in row.reason


def test_a_trellis_that_does_not_answer_costs_its_row_and_is_ended(tmp_path):
    settings = settings_at(tmp_path, limits=Limits(timeout_s=0.1))
    store, own = collection(settings, "made", ["silent"], {"silent": constant(4)})
    plan = plan_of(store)
    trellis.run(plan, own)
    (row,) = made(plan)[0].values()
    assert row.status is Status.TIMEOUT and row.limits == {"timeout_s": 0.1}
    assert not list((store.folder / "objects" / "gap3d").iterdir())


def test_an_object_without_a_glb_is_an_object(failed):
    row = failed[1]["without a mesh"]
    assert row["lacking"] == ["glb: ValueError: xatlas: no chart"]
    assert {file["path"] for file in row["files"]} >= {"model.ply", "views4/003.png"}
    assert not (row["place"] / "model.glb").exists()


def test_the_text_baseline_has_its_own_seeds_needs_no_tokens_and_keeps_no_object_of_a_gone_prompt(tmp_path):
    settings = settings_at(tmp_path)
    store, own = collection(settings, "made", GOOD)
    plan = plan_of(store, "trellis-text", glb=False)
    trellis.run(plan, own)
    _, data = made(plan)
    for index, text in enumerate(GOOD):
        assert data[text]["seed"] == 42 * 2003 + index and data[text]["model"] == "microsoft/TRELLIS-text-xlarge"
        assert data[text]["gaussians"] == len(noise_of(data[text]["seed"])[0])
        assert not (data[text]["place"] / "model.glb").exists()
    prompts.run(own, store, of_texts(GOOD[:1]))
    assert trellis.run(plan, own).count("computed") == 0
    assert [each.name for each in (store.folder / "objects" / "trellis-text").iterdir()] == [
        data[GOOD[0]]["place"].name
    ]


def test_the_image_baseline_sees_the_pictures_of_the_prompts(tmp_path):
    Image.new("RGBA", (32, 32), (255, 0, 0, 128)).save(tmp_path / "half.png")
    Image.new("RGB", (32, 32), (0, 0, 255)).save(tmp_path / "whole.png")
    settings = settings_at(tmp_path / "store", limits=Limits(attempts=1))
    store, own = collection(settings, "made", GOOD, images=[tmp_path / "half.png", tmp_path / "whole.png"])
    plan = plan_of(store, "trellis-image")
    trellis.run(plan, own)
    rows, data = made(plan)
    assert data[GOOD[0]]["seed"] == 42 * 1009
    assert "rembg" in rows[GOOD[1]].reason  # no alpha: TRELLIS cuts the object out
    black = plan_of(store, "trellis-image", black=True)  # as the released evaluation gives them: without alpha
    source = next(row.payload for row in black.rows("0") if row.payload.prompt == GOOD[0])
    given = Shaper(black.stage, black.installation, black.wanted, store.folder, Limits()).given(source, tmp_path)
    with Image.open(given["image"]) as image:
        assert image.mode == "RGB" and image.getpixel((0, 0)) == (128, 0, 0)


def test_the_image_baseline_sees_the_drawn_view_of_an_objects_renders(tmp_path):
    settings = settings_at(tmp_path)
    greys = [10, 20, 30, 40, 50]  # views, of which the first four are candidates
    write(
        Store(tmp_path, "toys", 1),
        {f"chair/00{view}": picture(grey) for view, grey in enumerate(greys)},
        TOGETHER,
        "renders",
        RENDERS,
    )
    table = tmp_path / "rows.jsonl"
    table.write_text(
        "".join(json.dumps({"id": name, "prompt": name, "index": 11}) + "\n" for name in ("chair", "lamp"))
    )
    store, own = prompts.collection_of(settings, "made", 2)
    prompts.run(own, store, of_file(table))
    plan = plan_of(store, "trellis-image", renders=renders_of(own, "toys"))
    trellis.run(plan, own)
    rows, data = made(plan)
    view = random.Random(42 * 1009 + 11).randint(0, 3)
    assert rows["lamp"].status is Status.MISSING
    assert data["chair"]["seed"] == 42 * 1009 + 11 + view
    assert json.loads((data["chair"]["place"] / "object.json").read_text())["view"] == view
    assert plan.renders["chair"][view].row == view


def picture(grey):
    """A renders row, as far as the baseline looks at it."""
    file = io.BytesIO()
    Image.new("RGBA", (32, 32), (grey, grey, grey, 128)).save(file, "PNG")
    return {field.name: None for field in RENDERS.columns if field.name != "key"} | {"png": file.getvalue()}


def test_a_prompt_without_a_picture_is_a_row_of_the_image_baseline(tmp_path):
    store, own = collection(settings_at(tmp_path), "made", GOOD[:1])
    plan = plan_of(store, "trellis-image")
    trellis.run(plan, own)
    assert [row.status for row in made(plan)[0].values()] == [Status.MISSING]
    with pytest.raises(ValueError, match="no collection toys"):
        renders_of(own, "toys")
    with pytest.raises(NotReady, match="no renders"):
        renders_of(own, "made")


def test_a_condition_is_the_tokens_and_its_negative_zeros():
    tokens = random_tokens(0).half()
    found = conditions(tokens.numpy(), "cpu")
    assert torch.equal(found["cond"], tokens.float()[None]) and not found["neg_cond"].any()
    assert found["neg_cond"].shape == found["cond"].shape == (1, 1374, 1024)
    with pytest.raises(Refused, match="no condition of TRELLIS"):
        conditions(tokens[:-1].numpy(), "cpu")
    tokens[3, 5] = torch.nan
    with pytest.raises(Refused, match="not all finite"):
        conditions(tokens.numpy(), "cpu")


def test_tokens_of_another_shape_are_refused_before_trellis_is_asked(tmp_path):
    layout = replace(TRELLIS_LAYOUT, grid=(16, 16), width=64)
    tokens = {GOOD[0]: torch.zeros(layout.count, layout.width)}
    store, _ = collection(settings_at(tmp_path), "made", GOOD[:1], tokens, layout)
    with pytest.raises(ValueError, match=r"\[261, 64\], and TRELLIS is conditioned on \[1374, 1024\]"):
        trellis.require_condition(store)


def test_sets_of_other_prompts_are_refused(tmp_path):
    store, own = collection(settings_at(tmp_path), "made", GOOD[:1], {GOOD[0]: random_tokens(0)})
    prompts.run(own, store, of_texts(GOOD[:1], suffix="on black."))
    with pytest.raises(NotReady, match="of other prompts"):
        trellis.run(plan_of(store), own)


def test_seeds_and_draws_are_those_of_the_released_evaluation():
    for index in (0, 7, 1249):
        assert seeds.caption_of(index, 5) == random.Random(42 * 2003 + index).randint(0, 4)
        assert seeds.view_of(index, 4) == random.Random(42 * 1009 + index).randint(0, 3)
        assert seeds.seed_of("gap3d", index, 3) == 42 * 1009 + index + 3
        assert seeds.seed_of("trellis-text", index, 3) == 42 * 2003 + index + 3


def test_a_pipeline_that_does_not_load_says_what_is_missing():
    with pytest.raises(SystemicFault, match=r"no CUDA device.*microsoft/broken can't be loaded.*NVIDIA"):
        TrellisProcess(Installation("gap3d", "microsoft/broken", STAND_IN))


def test_a_killed_run_takes_its_trellis_along_and_goes_on(tmp_path, nursery):
    store, _ = collection(settings_at(tmp_path / "store"), "made", GOOD)
    flags = ["--from", "made", "--store", str(tmp_path / "store"), "--baseline", "trellis-text", "--no-glb"]
    flags += ["--trellis", str(STAND_IN), "--turntables", "4", "--frame-size", str(SIZE), "--compute.flush_rows", "1"]
    run = Run("pipelines.trellis", "", "", str(tmp_path / "scratch"), str(tmp_path / "log"), flags=flags)
    point = Point("pipelines.shaper:finish", call=2)
    assert nursery.run(replace(run, point=asdict(point))) == -signal.SIGKILL, Path(run.log).read_text()
    wait_for(lambda: not alive(mentioning(run.scratch)), 10, "TRELLIS's process has ended")
    assert nursery.run(run) == 0, Path(run.log).read_text()
    assert "2 rows: 2 ok; computed 1" in Path(run.log).read_text()
    assert len(list((store.folder / "objects" / "trellis-text").iterdir())) == 2


def test_without_trellis_the_program_says_how_to_install_it(tmp_path, nursery):
    store, _ = collection(settings_at(tmp_path / "store"), "made", GOOD[:1])
    flags = ["--from", "made", "--store", str(tmp_path / "store"), "--baseline", "trellis-text"]
    log = tmp_path / "log"
    assert nursery.run(Run("pipelines.trellis", "", "", str(tmp_path / "scratch"), str(log), flags=flags)) == 1
    said = log.read_text()
    assert "git clone --recurse-submodules https://github.com/microsoft/TRELLIS.git" in said
    assert "--trellis /path/to/TRELLIS" in said and "Traceback" not in said
    assert not store.manifest("shapes-trellis-text", "0").rows  # no prompt is to blame
