"""Table 2 and Figure 2 of a small real collection: measured once, drawn with the right pictures, of any model's shards.

The aligner has UNTRAINED random weights.
"""

import io
import json
import shutil
import subprocess
import sys
import tarfile
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from folders import small
from pictures import of_images, pairs, run_images, write_tar
from PIL import Image
from target_stores import write_index, write_part

from gap3d import dataset_index
from gap3d.aligner.model import build_aligner
from gap3d.aligner_settings import AlignerSettings
from gap3d.evaluation.grids import LEAST, MARKED, PAGE, Sheet, fitted
from gap3d.evaluation.queries import queries_of
from gap3d.evaluation.result import find
from gap3d.evaluation.tokens import of_dataset, open_tokens
from gap3d.features.tokens import TokenLayout
from gap3d.store import Store
from gap3d.target_parts import TargetPart
from pipelines import retrieval_metrics
from pipelines.command import open_store
from pipelines.evaluation.subjects import of_places
from pipelines.evaluation.true_pictures import GONE, true_pictures

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def line(walked, tmp_path_factory):
    """Four rendered boxes, two of them with captions, and a finished training."""
    root = tmp_path_factory.mktemp("line")
    shutil.copytree(walked[0] / "store", root / "store")
    section = {"models": ("finetuned",), "steps": 2, "resamples": 50}
    settings = small(root / "store", walked[0] / "objects", evaluation=section)
    store = open_store(settings)
    shard = next(shard for shard in store.shards if store.manifest("targets", shard).parts)
    with TargetPart(store.shard("targets", shard) / next(iter(store.manifest("targets", shard).parts))) as part:
        about = part.layout
    layout = TokenLayout(about["registers"]["shape"][0], tuple(about["grid"]), about["cls"]["shape"][0])
    aligner = AlignerSettings(vlm="random-small", soft_tokens=4, width=32, blocks=1, heads=2, dtype="float32")
    training = store.folder / "aligner" / "finetune-a-b"
    build_aligner(aligner, layout, "cpu").save(training / "checkpoint", {"step": 7, "encoder": {"trained": False}})
    (training / "result.json").write_text(json.dumps({"checkpoint": "checkpoint", "digest": "d"}))
    flags = ["--preset", str(root / "settings.json")]
    (root / "settings.json").write_text(settings.model_dump_json())
    return SimpleNamespace(settings=settings, store=store, layout=layout, flags=flags)


@pytest.fixture(scope="module")
def once(line):
    """Its report, and the result that it left."""
    report = retrieval_metrics.run(line.settings)
    (result,) = find(line.store.folder, "retrieval")
    return SimpleNamespace(report=report, result=result)


def similar(line, predicted, kind):
    """(query, keys of the images, the most similar first, their cosines) of every query, by numpy in float64."""
    with open_tokens(predicted) as mine, of_dataset(line.store) as true:
        (_, images), (keys, asked) = true.read(true.keys, [kind]), mine.read(mine.keys, [kind])
        images, asked = (np.asarray(rows[kind], np.float64).mean(1) for rows in (images, asked))
        cosines = asked @ images.T / np.linalg.norm(asked, axis=1)[:, None] / np.linalg.norm(images, axis=1)
        order = np.argsort(-cosines, axis=1)
        return {key: ([true.keys[n] for n in order[row]], cosines[row][order[row]]) for row, key in enumerate(keys)}


def pictures(line):
    """The renders on black, as a grid shows them, by key."""
    found = {}
    for shard in line.store.shards:
        for key, row in line.store.read(line.store.manifest("renders", shard), ["png"]).items():
            found[key] = np.asarray(fitted(np.asarray(Image.open(io.BytesIO(row["png"])).convert("RGBA")), LEAST))
    return found


def test_a_finished_training_is_measured_on_the_images_of_the_collection(line, once):
    queries, result = queries_of(line.store, "longest"), once.result
    assert (len(queries), result.model, result.collection) == (2, "finetuned", "test")
    assert once.report.count("computed", "retrieval_metrics") == 2
    assert (result.protocol["captions"], result.checkpoint["step"]) == ("longest", 7)
    assert result.protocol["predicted"]["sampling"]["steps"] == 2
    assert result.checks["database"] == {"passed": True, "measured": 4, "expected": 4}
    assert not result.trained and "UNTRAINED" in result.label and "vision-language model" in result.label
    rows = {row["key"]: row for row in pq.read_table(result.folder / "samples.parquet").to_pylist()}
    assert rows.keys() == {query.key for query in queries}
    place = line.settings.store / result.protocol["predicted"]["name"]
    for kind in ("cls", "patches"):
        wanted = {key: 1 + order.index(key) for key, (order, _) in similar(line, place, kind).items()}
        assert {key: row[f"rank_{kind}"] for key, row in rows.items()} == wanted
        for at in (1, 5, 10):
            share = 100 * np.mean([rank <= at for rank in wanted.values()])
            assert result.cells[f"{kind}_r{at}"].value == pytest.approx(share)


def test_a_second_run_measures_nothing_and_a_quirk_is_another_result(line, once):
    again = retrieval_metrics.run(line.settings)
    assert again.count("computed") == 0 and again.count("found") == once.report.count("found") == 2
    assert find(line.store.folder, "retrieval") == [once.result]
    section = line.settings.evaluation.model_copy(update={"quirks": ("unsorted_list", "float16_vectors")})
    retrieval_metrics.run(line.settings.model_copy(update={"evaluation": section}))
    first, quirky = find(line.store.folder, "retrieval")
    assert first == once.result
    assert quirky.quirks == ("unsorted_list", "float16_vectors") and len(quirky.protocol["quirks"]) == 2
    assert quirky.cells["cls_r10"].value == first.cells["cls_r10"].value == 100
    shutil.rmtree(quirky.folder)


def test_the_figure_shows_the_true_picture_and_the_most_similar_ones_and_frames_the_true_one(line, once):
    place, shown = line.settings.store / once.result.protocol["predicted"]["name"], pictures(line)
    for kind in ("cls", "patches"):
        with Image.open(once.result.folder / f"figure_{kind}.png") as image:
            assert "UNTRAINED" in image.text["Warning"]
            sheet = np.asarray(image.convert("RGB"))
        found = similar(line, place, kind)
        top = 0
        for query in queries_of(line.store, "longest"):
            order, _ = found[query.key]
            keys = [query.truth, *order]
            lefts = [Sheet(None, LEAST, 5).left(column) for column in range(5)]
            boxes = [[sheet[y : y + LEAST, x : x + LEAST] for x in lefts] for y in range(top, len(sheet) - LEAST + 1)]
            tops = [
                top + y
                for y, row in enumerate(boxes)
                if all(np.array_equal(box, shown[key]) for box, key in zip(row, keys, strict=True))
            ]
            assert len(tops) == 1  # below the row before
            corners = [tuple(sheet[tops[0] - 3, x - 3]) for x in lefts]
            marked, page = (tuple(bytes.fromhex(colour[1:])) for colour in (MARKED, PAGE))
            assert corners == [page, *(marked if key == query.truth else page for key in order)]
            top = tops[0] + LEAST


def test_all_captions_are_sought_with_sets_of_which_the_means_are_kept(line):
    section = line.settings.evaluation.model_copy(update={"captions": "all"})
    settings = line.settings.model_copy(update={"evaluation": section})
    report = retrieval_metrics.run(settings)
    assert report.count("computed", "retrieval_metrics") == len(queries_of(line.store, "all")) == 3
    (result,) = (each for each in find(line.store.folder, "retrieval") if each.protocol["captions"] == "all")
    place = settings.store / result.protocol["predicted"]["name"]
    with open_tokens(place) as sets:
        assert sets.shapes["patches"] == (1, line.layout.width) and sets.shapes["cls"] == (1, line.layout.width)
    rows = {row["key"]: row for row in pq.read_table(result.folder / "samples.parquet").to_pylist()}
    for key, (order, _) in similar(line, place, "patches").items():
        assert rows[key]["rank_patches"] == 1 + order.index(key.partition("#")[0])
    assert retrieval_metrics.run(settings).count("computed") == 0
    shutil.rmtree(result.folder)


def test_the_program_measures_any_model_and_one_without_cls_has_patches_alone(line, program, tmp_path):
    with of_dataset(line.store) as true:
        keys, tokens = true.read(true.keys, ["patches"])
    rows = [{"key": key, "patches": each[:3].tolist()} for key, each in zip(keys, tokens["patches"], strict=True)]
    mine, table = tmp_path / "mine", tmp_path / "queries.csv"
    mine.mkdir()
    pq.write_table(pa.Table.from_pylist(rows[1:]), mine / "a.parquet")
    table.write_text("key,truth,caption\n" + "".join(f"{key},{key},it\n" for key in keys))
    flags = ["--predicted", mine, "--true", "test", "--queries", table, "--model", "some <b>"]
    ran = program("pipelines.retrieval_metrics", *line.flags, *flags)
    assert ran.returncode == 0, ran.stderr
    (result,) = (each for each in find(line.store.folder, "retrieval") if each.model == "some <b>")
    assert set(result.cells) == {"patches_r1", "patches_r5", "patches_r10"}
    assert result.counts == {"missing": 1, "ok": 3} and "of 3 of 4 queries" in result.cells["patches_r1"].note
    assert (result.folder / "figure_patches.png").exists() and str(result.folder) in ran.stdout
    assert "4 rows: 1 missing, 3 ok; computed 4" in ran.stdout
    with ExitStack() as closing:
        subject = of_places(line.settings, str(mine), "test", closing, "some <b>", table)
        again, report = retrieval_metrics.measured(line.settings, subject)
    assert (again, report.computed) == (result, 0)
    shutil.rmtree(result.folder)


def test_what_anybody_predicts_is_matched_with_the_queries_of_a_collection_or_by_key(line, tmp_path):
    queries = queries_of(line.store, "all")
    with of_dataset(line.store) as true:
        keys, tokens = true.read(true.keys, ["cls"])
    cls = dict(zip(keys, tokens["cls"][:, 0].numpy(), strict=True))

    def subject(name, rows, true="test", **how):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "a.npz", keys=np.array(list(rows)), cls=np.array(list(rows.values())))
        with ExitStack() as closing:
            found = of_places(line.settings, str(tmp_path / name), true, closing, **how)
            return found, retrieval_metrics.measured(line.settings, found)[0]

    few = {queries_of(line.store, "longest")[0].key: cls[queries[0].truth]}
    found, result = subject("few", few)  # the other query is expected
    assert (found.captions, result.counts, result.model) == ("longest", {"missing": 1, "ok": 1}, "few")
    shutil.rmtree(result.folder)
    every = {query.key: cls[query.truth] for query in queries}
    found, result = subject("every", every)
    assert (found.captions, result.counts) == ("by key", {"ok": 3})
    assert [each.caption for each in found.queries] == [
        query.caption for query in sorted(queries, key=lambda query: query.key)
    ]
    assert result.cells["cls_r1"].value == 100
    shutil.rmtree(result.folder)
    found, result = subject("plain", every, str(tmp_path / "every"))
    assert found.home == line.store.folder and not list(result.folder.glob("*.png"))
    assert "there are no pictures" in result.protocol["figure"]
    shutil.rmtree(result.folder)
    with pytest.raises(ValueError, match="no prediction means an image that is there: predicted keys are 'x'"):
        subject("strange", {"x": cls[keys[0]]})


def test_memory_stays_within_the_stated_bound_of_bytes_however_many_tokens_there_are(tmp_path):
    layout, store = TokenLayout(registers=1, grid=(16, 32), width=1024), Store(tmp_path, "large", 1)
    rows = np.random.default_rng(0).standard_normal((96, 1, layout.width), np.float32)
    tokens = {f"{n:04d}/000": torch.from_numpy(row).expand(layout.count, -1) for n, row in enumerate(rows)}
    write_part(store, "0", tokens, layout=layout)
    write_index(store)
    program = [sys.executable, str(Path(__file__).parent / "retrieval_memory.py"), str(store.folder)]
    ran = subprocess.run(program, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=True)
    lines = [tuple(map(int, line.split())) for line in ran.stdout.splitlines()]
    assert len(lines) == 3
    for most, bound, _ in lines:
        assert most <= bound
    assert lines[0][1] < lines[0][2] / 4 and lines[2][1] < lines[2][2] / 4


def test_pictures_of_a_collection_of_images_are_its_images_and_those_that_are_gone_say_so(tmp_path):
    write_tar(tmp_path / "tars" / "a.tar", pairs(3))
    settings = of_images(tmp_path / "store", tmp_path / "tars")
    run_images(settings)
    store = open_store(settings)
    wanted = {}
    for row in dataset_index.load(store).rows():
        with tarfile.open(tmp_path / "tars" / "a.tar") as tar:
            data = tar.extractfile(f"{row.identifier.partition('#')[2]}.png").read()
        wanted[row.key] = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert len(wanted) == 3
    (store.folder / "settings.json").write_text(settings.model_dump_json())
    for seen_from in (
        settings,
        small(tmp_path / "store", tmp_path, collection="other"),
    ):
        found = true_pictures(seen_from, store, wanted.keys())
        assert found.keys() == wanted.keys()
        assert all(np.array_equal(found[key], picture) for key, picture in wanted.items())
    (tmp_path / "tars" / "a.tar").unlink()
    assert set(true_pictures(settings, store, wanted.keys()).values()) == {GONE}
