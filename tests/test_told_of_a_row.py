"""What a row of the evaluation tells beside its numbers: rounded tokens, and objects that its model was trained on."""

import json
from contextlib import ExitStack

import numpy as np
import pytest
from evaluation_results import data_of, result
from target_stores import collection

from gap3d.evaluation.result import Sample, save
from gap3d.store import ALL
from pipelines import alignment_metrics, retrieval_metrics
from pipelines.command import load_settings
from pipelines.evaluation.seen import trained_on
from pipelines.evaluation.subjects import of_places
from pipelines.evaluation_report import write


@pytest.mark.parametrize("dtype", ["int8", "float16"])
def test_numbers_of_tokens_that_are_kept_as_int8_say_so_and_others_do_not(tmp_path, dtype):
    store, true = collection(tmp_path / "store", 6, dtype=dtype)
    rows = np.stack([each.numpy() for each in true.values()])
    np.savez(
        tmp_path / "made.npz", keys=np.array(list(true)), cls=rows[:, 0], registers=rows[:, 1:3], patches=rows[:, 3:]
    )
    settings = load_settings("demo", store=tmp_path / "store", collection="test")
    places = str(tmp_path / "made.npz"), str(store.folder / "targets")
    aligned, _ = alignment_metrics.of_places(settings, *places, "mine")
    with ExitStack() as closing:
        found, _ = retrieval_metrics.measured(settings, of_places(settings, *places, closing))
    told = {name for each in (aligned, found) for name, cell in each.cells.items() if "kept as int8" in cell.note}
    measures = {f"{measure}_{kind}" for measure in ("cosine", "mse", "norm_ratio") for kind in ("registers", "patches")}
    assert told == (measures | {f"patches_r{at}" for at in (1, 5, 10)} if dtype == "int8" else set())


def test_a_model_that_was_trained_on_what_it_is_measured_on_says_on_how_much(tmp_path):
    store, _ = collection(tmp_path, 10)
    digest = store.manifest("dataset", ALL).digest
    assert trained_on({"data": digest}, store) == {"trained_on": "trained on 8 of the collection's 10 images"}
    assert trained_on({"data": "another"}, store) == trained_on({}, store) == {}


@pytest.mark.parametrize(
    ("section", "seen"),
    [
        ({}, True),
        ({"collection": "test"}, True),
        ({"collection": "other"}, False),
        ({"collection": "other", "mix_collection": "test", "mix_share": 0.1}, True),
        ({"data": "tars"}, False),
    ],
)
def test_a_collection_that_has_grown_since_is_known_by_the_settings_of_the_training(tmp_path, section, seen):
    store, _ = collection(tmp_path, 4)
    settings = load_settings("demo", store=tmp_path, collection="test")
    settings = settings.model_copy(update={"finetuning": settings.finetuning.model_copy(update=section)})
    run = store.folder / "aligner" / "finetune-a-b"
    checkpoint = run / "checkpoints" / "step-1"
    checkpoint.mkdir(parents=True)
    (run / "settings.json").write_text(settings.model_dump_json())
    found = trained_on({"stage": "finetune", "data": "another"}, store, checkpoint)
    assert bool(found) == seen and ("as it was then" in json.dumps(found)) == seen


def test_the_report_tells_of_a_row_that_its_model_was_trained_on_these_objects(tmp_path):
    mine = result(collection="demo")
    told = "trained on 8 of the collection's 10 images"
    for model, checkpoint in (("a", {"step": 1, "trained_on": told}), ("b", {"step": 1})):
        save(
            tmp_path / "demo",
            result(model=model, collection="demo", cells=mine.cells, checkpoint=checkpoint),
            [Sample("a")],
        )
    (table,) = (each for each in data_of(write(tmp_path / "demo").read_text())["tables"] if each["number"] == "2")
    rows = {row["name"]: [each["trained_on"] for each in row["ours"]] for row in table["blocks"][0]["rows"]}
    assert rows == {"a": [told], "b": [""]}
