"""Results of the evaluation: whole or not there, one row a sample, read back as they were written."""

import json
import math
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from gap3d.evaluation.quirks import QUIRKS, of_table
from gap3d.evaluation.result import Cell, Result, Sample, find, known, read, read_samples, save
from gap3d.evaluation_settings import EvaluationSettings
from gap3d.metrics.bootstrap import mean_interval
from gap3d.records import Status, SystemicFault

RESULT = Result(
    table="alignment",
    model="mine / <b>",
    collection="coco",
    cells={"cosine_cls": Cell(0.5, 0.4, 0.6, 2), "mse_cls": Cell(None, note="no sample")},
    fingerprint="0123456789abcdef",
    trained=False,
    label="UNTRAINED: encoder",
    quirks=("batch_means",),
    protocol={"seed": 0},
)
SAMPLES = [
    Sample("a/000", values={"cosine_cls": 0.25}),
    Sample("b/000", Status.MISSING, "no prediction"),
    Sample("c/000", values={"cosine_cls": 0.75}),
]


def test_a_result_is_read_back_as_it_was_written(tmp_path):
    made = save(tmp_path, RESULT, SAMPLES)
    assert read(made.folder) == made
    assert known(tmp_path, "alignment", RESULT.model, RESULT.fingerprint) == made
    assert find(tmp_path, "alignment") == [made]
    assert find(tmp_path, "retrieval") == []
    assert made.counts == {"missing": 1, "ok": 2}
    assert made.reasons == ("b/000: missing: no prediction",)


def test_every_sample_is_a_row(tmp_path):
    made = save(tmp_path, RESULT, SAMPLES)
    rows = pq.read_table(made.folder / "samples.parquet").to_pylist()
    assert rows == [
        {"key": each.key, "status": each.status, "reason": each.reason, "cosine_cls": each.values.get("cosine_cls")}
        for each in SAMPLES
    ]


def test_a_sample_stands_once(tmp_path):
    with pytest.raises(ValueError, match="1 samples stand twice"):
        save(tmp_path, RESULT, [*SAMPLES, SAMPLES[0]])


def test_the_digest_of_samples_follows_their_content_and_not_their_order(tmp_path):
    made = save(tmp_path, RESULT, SAMPLES)
    assert save(tmp_path / "turned", RESULT, SAMPLES[::-1]).samples_digest == made.samples_digest
    other = [replace(SAMPLES[0], values={"cosine_cls": 0.26}), *SAMPLES[1:]]
    assert save(tmp_path / "other", RESULT, other).samples_digest != made.samples_digest


def test_a_number_that_is_none_is_refused_and_nothing_is_left(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save(tmp_path, replace(RESULT, cells={"cosine_cls": Cell(math.nan)}), SAMPLES)
    assert find(tmp_path, "alignment") == []
    assert list((tmp_path / "evaluation/alignment").iterdir()) == []


def test_a_model_s_name_leads_nowhere(tmp_path):
    for model in ("../../up", "..", "/etc", "", "ä" * 300, ".hidden"):
        made = save(tmp_path, replace(RESULT, model=model), SAMPLES)
        assert made.folder.parent == tmp_path / "evaluation/alignment"
        assert known(tmp_path, "alignment", model, RESULT.fingerprint) == made


def test_a_damaged_result_is_measured_again_and_told_in_the_history(tmp_path):
    made = save(tmp_path, RESULT, SAMPLES)
    for damage in ("{", "[]", json.dumps({"version": 1}), json.dumps({"version": 99})):
        (made.folder / "result.json").write_text(damage)
        assert known(tmp_path, "alignment", RESULT.model, RESULT.fingerprint) is None
        with pytest.raises(SystemicFault, match="remove its folder, then measure again"):
            find(tmp_path, "alignment")
    save(tmp_path, RESULT, SAMPLES)
    assert len(find(tmp_path, "alignment")) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from gap3d.evaluation import result
from tests.test_evaluation_results import RESULT, SAMPLES

synced, left = result.fsync_path, int(sys.argv[2])
def dying(path):
    global left
    synced(path)
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
result.fsync_path = dying
result.save(Path(sys.argv[1]), RESULT, SAMPLES)
"""


def test_a_killed_save_leaves_nothing_that_counts(tmp_path):
    """Of the four places where it syncs, the last is after the rename."""
    for place in range(4):
        died = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(place)], env={**os.environ})
        assert died.returncode == -signal.SIGKILL
        assert len(find(tmp_path, "alignment")) == (place == 3)
    made = save(tmp_path, RESULT, SAMPLES)
    assert list((tmp_path / "evaluation/alignment").iterdir()) == [made.folder]


def test_runs_that_save_the_same_at_once_leave_one_that_readers_always_find_whole(tmp_path):
    first = save(tmp_path, RESULT, SAMPLES)
    with ThreadPoolExecutor(4) as threads:
        saves = [threads.submit(save, tmp_path, RESULT, SAMPLES) for _ in range(100)]
        while not all(each.done() for each in saves):
            assert find(tmp_path, "alignment") == [first] and len(read_samples(first.folder)) == 3
        assert {each.result().made_at for each in saves} == {first.made_at}
        (first.folder / "result.json").write_text("{")
        saves = [threads.submit(save, tmp_path, RESULT, SAMPLES) for _ in range(20)]
    (left,) = find(tmp_path, "alignment")
    assert left.made_at in {each.result().made_at for each in saves}
    assert list((tmp_path / "evaluation/alignment").iterdir()) == [left.folder]


def test_two_names_of_one_folder_are_not_taken_for_each_other(tmp_path):
    save(tmp_path, replace(RESULT, model="step 30"), SAMPLES)
    assert known(tmp_path, "alignment", "step-30", RESULT.fingerprint) is None
    assert save(tmp_path, replace(RESULT, model="step-30"), SAMPLES).model == "step-30"


def test_a_cell_of_hits_is_a_percentage_with_its_interval():
    interval = mean_interval([0.0, 1.0, 1.0, 1.0], seed=0)
    cell = Cell.of(interval, 100)
    assert (cell.value, cell.low, cell.high, cell.samples) == (75, interval.low * 100, interval.high * 100, 4)
    assert Cell.of(mean_interval([1.0], seed=0)) == Cell(1.0, None, None, 1)


def test_quirks_are_named_or_refused():
    assert EvaluationSettings(quirks=("paper",)).quirks == tuple(QUIRKS)
    assert EvaluationSettings(quirks=("ray_depth", "unsorted_list")).quirks == ("unsorted_list", "ray_depth")
    assert of_table(tuple(QUIRKS), "retrieval") == ("unsorted_list", "float16_vectors")
    with pytest.raises(ValidationError, match="quirks nonsense are unknown"):
        EvaluationSettings(quirks=("nonsense",))
