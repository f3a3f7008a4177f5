"""Runs over a file of prompts, by small UNTRAINED aligners and the STAND-IN of TRELLIS; and the grids of them."""

import io
import json
import random
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from generated_sets import TRELLIS_LAYOUT, settings_at
from PIL import Image
from stores import TOGETHER, write
from test_grids import places

from gap3d.aligner.model import build_aligner
from gap3d.aligner.sampler import noise_of
from gap3d.aligner_settings import AlignerSettings
from gap3d.evaluation.runs import bundled, read_sheet
from gap3d.features.tokens import TokenLayout
from gap3d.prompts import of_file
from gap3d.records import SystemicFault
from gap3d.schemas import CATALOG, RENDERS
from gap3d.settings import CatalogSettings
from gap3d.store import Store
from gap3d.target_parts import TargetPart
from gap3d.trellis.turntable import PROTOCOLS
from pipelines import around, comparison, evaluation_prompts
from pipelines.comparison import Shaping, make, planned
from pipelines.evaluation import comparison_pictures
from pipelines.evaluation.comparison_pictures import NO_OBJECT, Pictures
from pipelines.job import NotReady
from pipelines.shaper import Wanted
from pipelines.trellis import candidates

STAND_IN = Path(__file__).parent / "trellis_stand_in"
PHRASE = "The background is black and no other objects are present."  # docs/method.md 8.5, character by character
SIZE = 96  # pixels of a frame: a grid shows it pixel by pixel
PLAIN = """
title = "a comparison"
[[runs]]
name = "plain"
model = "pretrained"
steps = 2
"""
PROMPTED = """
[[runs]]
name = "prompted"
model = "pretrained"
suffix = "The background is black and no other objects are present."
steps = 2
"""
BASELINES = """
[[runs]]
name = "text"
method = "trellis-text"
[[runs]]
name = "image"
method = "trellis-image"
"""
SHEET = PLAIN + PROMPTED + BASELINES
PROMPTS = [
    {"id": "chair", "prompt": "a red chair", "index": 3, "caption_index": 2},
    {"id": "none", "prompt": ""},
    {"id": "lamp", "prompt": "a green lamp", "index": 11},
]
GOOD = ("chair", "lamp")


def trained(store, stage, layout, *, still=False):
    """A finished training; of a still aligner the tokens are the noise that they began as."""
    folder = store / "demo" / "aligner" / f"{stage}-a-b"
    settings = AlignerSettings(vlm="random-small", soft_tokens=4, width=16, blocks=1, heads=1, dtype="float32")
    aligner = build_aligner(settings, layout, "cpu")
    if still:
        for weight in aligner.dit.parameters():
            torch.nn.init.zeros_(weight)
    aligner.save(folder / "checkpoint", {"step": 7, "encoder": {"trained": True}})
    (folder / "result.json").write_text(json.dumps({"checkpoint": "checkpoint", "digest": "d"}))


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def scene(seed):
    """A picture of a true object, uint8 [SIZE, SIZE, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def render(seed, yaw):
    """A renders row, as far as it is looked at here."""
    file = io.BytesIO()
    Image.fromarray(scene(seed)).convert("RGBA").save(file, "PNG")
    empty = {field.name: None for field in RENDERS.columns if field.name != "key"}
    return {**empty, "png": file.getvalue(), "yaw": yaw}


def sheet_in(folder, text=SHEET):
    (folder / "runs.toml").write_text(text)
    return read_sheet(str(folder / "runs.toml"))


def rows_of(columns, *, shaped):
    """Ledger rows and data, by run and key."""
    rows, data = {}, {}
    for column in columns:
        stage = column.stage(shaped=shaped)
        rows |= {(column.run.name, key): row for key, row in column.rows(stage).items()}
        for held in column.manifests(stage).values():
            data |= {(column.run.name, key): row for key, row in column.store.read(held).items()}
    return rows, data


def sets(column):
    """Tokens [T, C] by key."""
    found = {}
    for shard, held in column.manifests("generated").items():
        for part in held.parts:
            with TargetPart(column.store.shard("generated", shard) / part) as opened:
                for group in range(opened.groups):
                    batch = opened.read(group)
                    for key, *tokens in zip(batch.keys, batch.cls, batch.registers, batch.patches, strict=True):
                        found[key] = torch.cat([tokens[0][None], *(each.float() for each in tokens[1:])])
    return found


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Three runs with objects: (how they are planned anew, columns, reports, the figure's folder, its pixels)."""
    root = tmp_path_factory.mktemp("compared")
    settings = settings_at(root / "store")
    trained(root / "store", "pretrain", TRELLIS_LAYOUT)
    views = {
        f"{key}/00{view}": render(10 * row + view, 90.0 * view) for row, key in enumerate(GOOD) for view in range(4)
    }
    write(Store(root / "store", "toys", 1), views, TOGETHER, "renders", RENDERS)
    file = written(root / "prompts.jsonl", PROMPTS)
    shaping = Shaping(STAND_IN, sys.executable, Wanted((PROTOCOLS[4],), SIZE, glb=False))
    sheet = sheet_in(root, 'title = "objects"' + PROMPTED + BASELINES)

    def plan(shaping=shaping):
        return planned(settings, sheet, file, "made", vlm=None, true="toys", shaping=shaping)

    columns = plan()
    reports = make(columns, shaping)
    pictures = Pictures(sheet, columns, of_file(file), shaped=True)
    (grid,) = pictures.write(root / "figure")
    return plan, columns, reports, root / "figure", np.asarray(Image.open(grid))


def test_the_phrase_of_table_4_is_the_papers_after_one_space():
    runs = {run.name: run for run in read_sheet("table4").runs}
    assert [run.name for run in runs.values() if run.suffix] == ["pretrained-prompted"]
    assert runs["pretrained-prompted"].suffix == PHRASE
    plain, prompted = runs["pretrained"], runs["pretrained-prompted"]
    assert plain.model_copy(update={"name": "", "title": "", "suffix": PHRASE}) == prompted.model_copy(
        update={"name": "", "title": ""}
    )
    assert {run.steps for name in bundled() for run in read_sheet(name).runs} == {50}
    assert {run.method for run in read_sheet("table3").runs} == {"gap3d", "trellis-image", "trellis-text"}


@pytest.mark.parametrize("still", [True, False])
def test_a_prompt_begins_from_the_same_noise_with_and_without_the_phrase(tmp_path, still):
    layout = TokenLayout(registers=2, grid=(3, 5), width=8)
    trained(tmp_path / "store", "pretrain", layout, still=still)
    file = written(tmp_path / "prompts.jsonl", PROMPTS)
    sheet = sheet_in(tmp_path, PLAIN + PROMPTED)
    columns = planned(settings_at(tmp_path / "store"), sheet, file, "made", vlm=None, true="demo", shaping=None)
    make(columns, None)
    found = [{key: row["prompt"] for (_, key), row in rows_of([each], shaped=False)[1].items()} for each in columns]
    assert found[0] == {"chair": "a red chair", "lamp": "a green lamp"}
    assert found[1] == {key: f"{words} {PHRASE}" for key, words in found[0].items()}
    plain, prompted = map(sets, columns)
    for key, noise in zip(GOOD, noise_of(GOOD, layout, 0), strict=True):
        assert torch.equal(plain[key], prompted[key]) == still  # where the aligner moves nothing, only noise is left
        assert torch.allclose(plain[key], noise, atol=2e-3) == still


def test_every_objects_seed_is_the_evaluations(compared):
    _, data = rows_of(compared[1], shaped=True)
    for key, index, caption in (("chair", 3, 2), ("lamp", 11, 0)):
        view = random.Random(42 * 1009 + index).randint(0, 3)
        assert data["prompted", key]["seed"] == 42 * 1009 + index + caption
        assert data["text", key]["seed"] == 42 * 2003 + index + caption
        assert data["image", key]["seed"] == 42 * 1009 + index + view


def test_the_cells_of_the_grid_are_the_frames_of_their_run_and_prompt(compared):
    _, columns, _, _, pixels = compared
    _, data = rows_of(columns, shaped=True)
    corners = []
    for row, (key, index) in enumerate(zip(GOOD, (3, 11), strict=True)):
        pictures = [scene(10 * row + random.Random(42 * 1009 + index).randint(0, 3))]  # what the image baseline sees
        for column in columns:
            path = column.store.folder / data[column.run.name, key]["folder"] / "views4" / "000.png"
            pictures.append(np.asarray(Image.open(path).convert("RGB")))
        corners.append([places(pixels, picture) for picture in pictures])
    assert all(len(found) == 1 for row in corners for found in row)
    (tops, lefts), (lower, others) = (zip(*(found[0] for found in row), strict=True) for row in corners)
    assert lefts == others == tuple(sorted(lefts)) and len(set(lefts)) == 4
    assert len(set(tops)) == len(set(lower)) == 1
    assert lower[0] - tops[0] >= 2 * SIZE  # the row of the failed prompt is between them


def test_a_failed_prompt_is_a_labelled_cell_of_every_column(compared):
    _, columns, _, folder, _ = compared
    pictures = Pictures(read_sheet("table4"), columns, of_file(folder.parent / "prompts.jsonl"), shaped=True)
    for shaped in (True, False):
        each = replace(pictures, shaped=shaped)
        for column in columns:
            tiles = each.tiles(column, each.prompts)
            assert tiles[1].picture is None and "the prompt is empty" in tiles[1].status
            objects = shaped or column.checkpoint
            assert all((tile.picture is not None) == bool(objects) for tile in (tiles[0], tiles[2]))
            assert objects or {tiles[0].status, tiles[2].status} == {NO_OBJECT}
    about = json.loads((folder / "comparison.json").read_text())
    assert [row["key"] for row in about["prompts"]] == ["chair", "none", "lamp"]
    assert all(row["runs"][run["name"]]["status"] for row in about["prompts"] for run in about["runs"])
    assert "UNTRAINED" in about["warning"] and about["runs"][0]["suffix"] == PHRASE


def test_a_second_comparison_computes_nothing_and_its_pictures_are_the_same(compared):
    plan, _, first, folder, _ = compared
    absent = Shaping(STAND_IN, "/nonexistent", Wanted((PROTOCOLS[4],), SIZE, glb=False))
    columns = plan(absent)
    reports = make(columns, absent)
    assert sum(report.count("computed") for report in first.values()) > 0
    assert sum(report.count("computed") for report in reports.values()) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "grid-002.png").write_bytes(b"of an earlier run that had more prompts")
    sheet = read_sheet(str(folder.parent / "runs.toml"))
    Pictures(sheet, columns, of_file(folder.parent / "prompts.jsonl"), shaped=True).write(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def program(monkeypatch, capsys, *flags):
    """Run the program here: (exit code, what it printed, what it complained of)."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr(sys, "argv", ["comparison", *map(str, flags)])
    code = 0
    try:
        comparison.main()
    except SystemExit as end:
        code = end.code
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    return code, *capsys.readouterr()


def test_without_trellis_the_figure_says_that_it_shows_no_objects(tmp_path, monkeypatch, capsys):
    layout = TokenLayout(registers=2, grid=(8, 8), width=8)
    trained(tmp_path / "store", "pretrain", layout)
    Image.new("RGB", (96, 96), (200, 10, 10)).save(tmp_path / "red.png")
    rows = [
        {"prompt": "make it blue", "image": "red.png"},
        {"prompt": "make it green", "image": "absent.png"},
        {"prompt": "a lamp"},
    ]
    file = written(tmp_path / "edits.jsonl", rows)
    (tmp_path / "two.toml").write_text(SHEET)
    titles = []
    kept = comparison_pictures.grid
    monkeypatch.setattr(
        comparison_pictures, "grid", lambda *given, **how: (titles.append((given, how)), kept(*given, **how))[1]
    )
    flags = ["--prompts", file, "--runs", tmp_path / "two.toml", "--store", tmp_path / "store", "--into", "edits"]
    flags += ["--compute.workers", "0", "--compute.encoder_threads", "1"]
    code, said, _ = program(monkeypatch, capsys, *flags)
    assert (
        code == 0
        and "nothing is an object" in said
        and "UNTRAINED" in said
        and "pipelines.generation_metrics" not in said
    )
    ((captions, heads, cells, title), how) = titles[0]
    assert "Token sets, no objects" in title and "UNTRAINED" in how["warning"]
    assert captions == ["make it blue", "make it green", "a lamp"]
    assert heads == ["Picture of the prompt", "plain", "prompted", "text", "image"]
    assert np.array_equal(cells[0][0].picture, np.full((96, 96, 3), (200, 10, 10)))
    assert [tile.picture is not None for tile in cells[0]] == [True, True, True, False, False]
    assert all(tile.picture is None and "absent.png: there is no such file" in tile.status for tile in cells[1])
    assert cells[2][0].status == "no picture" and cells[2][1].picture.shape == (256, 256, 3)
    assert cells[2][1].picture[::32, ::32].std() > 10  # a square a token
    code, said, _ = program(monkeypatch, capsys, *flags)
    assert code == 0 and "computed 0" in said and not any(f"computed {number}" in said for number in range(1, 4))
    code, _, complaint = program(monkeypatch, capsys, *flags, "--measure")
    assert code == 1 and "--measure needs objects" in complaint


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('sufix = "on black"', "run 1, sufix is no field: there are name, title, method, model"),
        ("black = true", "run 1: black has no effect on gap3d: it is for trellis-image"),
        ('method = "point-e"', "run 1, method: Input should be 'gap3d'"),
        ("steps = 0", "run 1, steps: Input should be greater than 0"),
        ('name = "a/b"', "run 1, name: String should match"),
        ('[[runs]]\nname = "A"', "two runs are named a"),
        ("[other]", "other is no field: there are title, note, runs"),
        ("name =", "is no TOML"),
    ],
)
def test_a_run_sheet_with_a_mistake_is_refused_with_a_sentence(tmp_path, line, words):
    name = "" if line.startswith("name") else 'name = "a"'
    with pytest.raises(ValueError, match=r"runs\.toml") as caught:
        sheet_in(tmp_path, f'title = "t"\n[[runs]]\n{name}\n{line}\n')
    assert words in str(caught.value) and "\n" not in str(caught.value).split("TOML")[0]


def test_a_sheet_that_is_not_there_names_those_that_are(tmp_path):
    with pytest.raises(ValueError, match="figure4, table3, table4"):
        read_sheet("table5")
    sheet = sheet_in(tmp_path, 'title = "t"\n[[runs]]\nname = "a"\nmodel = "mine/last"\n')
    assert sheet.runs[0].model == str(tmp_path / "mine" / "last")


def test_nothing_is_made_unless_every_run_can_begin(tmp_path, monkeypatch):
    layout = TokenLayout(registers=2, grid=(3, 5), width=8)
    store = tmp_path / "store"
    trained(store, "pretrain", layout)
    file, settings = written(tmp_path / "prompts.jsonl", PROMPTS), settings_at(store)

    def plan(sheet, shaping=None, true="demo"):
        return planned(settings, sheet, file, "made", vlm=None, true=true, shaping=shaping)

    with pytest.raises(NotReady, match=r"pipelines\.finetune"):
        plan(read_sheet("table4"))
    wanted = Shaping(STAND_IN, sys.executable, Wanted((PROTOCOLS[4],)))
    with pytest.raises(ValueError, match=r"makes \[18, 8\], and TRELLIS is conditioned on \[1374, 1024\]"):
        plan(sheet_in(tmp_path), wanted)
    with pytest.raises(SystemicFault, match="no checkpoint of an aligner"):
        plan(sheet_in(tmp_path, f'title = "t"\n[[runs]]\nname = "a"\nmodel = "{tmp_path}"\n'))
    baseline = sheet_in(tmp_path, 'title = "t"\n[[runs]]\nname = "a"\nmethod = "trellis-image"\n')
    with pytest.raises(ValueError, match="no collection toys"):
        plan(baseline, wanted, "toys")
    assert [path.name for path in store.iterdir()] == ["demo"]
    monkeypatch.setattr(comparison, "free_bytes", lambda _: 100)
    with pytest.raises(SystemicFault, match="are free"):
        plan(sheet_in(tmp_path))


def test_the_image_baseline_chooses_among_the_four_views_of_the_protocol_wherever_they_stand():
    yaws = [0.0, 18.0, 45.0, 90.0, 180.0, 270.0]
    assert candidates([(yaw, yaw) for yaw in yaws]) == [0.0, 90.0, 180.0, 270.0]
    assert candidates([(yaw, yaw) for yaw in yaws[:5]]) == yaws[:4]
    assert candidates([(None, 7)]) == [7]


def test_the_evaluations_prompts_are_the_drawn_captions_of_the_shuffled_objects(tmp_path):
    settings = settings_at(tmp_path, catalog=CatalogSettings(shards=1))
    content = {}
    for number in range(40):
        captions = [f"caption {number}.{each}" for each in range(number % 4)]
        empty = {field.name: None for field in CATALOG.columns if field.name != "key"}
        content[f"object{number:02d}"] = {**empty, "sha256": f"{(number * 7919) % 1000:03d}", "captions": captions}
    store = Store(tmp_path, settings.collection, 1)
    write(store, content, TOGETHER, "catalog", CATALOG)
    path = evaluation_prompts.evaluation_prompts(
        settings.model_copy(update={"evaluation": settings.evaluation.model_copy(update={"count": 9})})
    )
    order = sorted(content, key=lambda key: content[key]["sha256"])
    random.Random(42).shuffle(order)
    order = [key for key in order if content[key]["captions"]][:9]
    found = of_file(path)
    assert [each.key for each in found] == order and [each.index for each in found] == list(range(9))
    for each in found:
        captions = content[each.key]["captions"]
        assert each.caption_index == random.Random(42 * 2003 + each.index).randint(0, len(captions) - 1)
        assert each.text == captions[each.caption_index]
    derived = Store(tmp_path, f"{settings.collection}-around", 1)  # of renders of these few alone
    around.copy(store, derived, "catalog", "0", CATALOG, settings, set(order))
    section = settings.evaluation.model_copy(update={"count": 9, "true": derived.collection})
    settings = settings.model_copy(update={"evaluation": section})
    assert of_file(evaluation_prompts.evaluation_prompts(settings)) == found
    with pytest.raises(ValueError, match="no object in the catalog of empty has a caption"):
        evaluation_prompts.rows_of(Store(tmp_path, "empty", 1), None, 42)
