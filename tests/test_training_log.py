"""Metrics of a training: JSON lines, and TensorBoard's own reading of the event files."""

import json
import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gap3d.training.log import EVENTS, METRICS, MetricsLog, read


def steps(folder):
    """(step, kind, loss) of every line."""
    return [(values["step"], values["kind"], values["loss"]) for values in read(folder / METRICS)]


def scalars(folder, tag):
    """(step, value) of a curve as TensorBoard shows it."""
    found = EventAccumulator(str(folder / EVENTS), size_guidance={"scalars": 0})
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars(tag)]


def write(log, numbers, scale=1.0):
    for step in numbers:
        log.write(step, "train", {"loss": scale / step, "learning_rate": 1e-4})


def test_tensorboard_reads_what_was_written(tmp_path):
    with MetricsLog(tmp_path) as log:
        write(log, range(1, 6))
        log.write(5, "validation", {"loss": 0.5, "cosine_patches": 0.75})
    assert scalars(tmp_path, "train/loss") == [(step, pytest.approx(1 / step)) for step in range(1, 6)]
    assert scalars(tmp_path, "validation/cosine_patches") == [(5, 0.75)]
    assert steps(tmp_path) == [*((step, "train", 1 / step) for step in range(1, 6)), (5, "validation", 0.5)]


def test_a_line_is_on_the_disk_before_the_run_goes_on(tmp_path):
    log = MetricsLog(tmp_path)  # never closed, as if killed
    write(log, [1, 2])
    assert steps(tmp_path) == [(1, "train", 1.0), (2, "train", 0.5)]
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == [1, 2]
    log.close()


def test_after_a_resumption_no_step_is_there_twice_in_either_form(tmp_path):
    killed = MetricsLog(tmp_path)
    write(killed, range(1, 8))
    killed.write(4, "validation", {"loss": 4.0})
    killed.write(6, "validation", {"loss": 6.0})
    with MetricsLog(tmp_path, resume_step=4) as log:
        assert [step for step, *_ in steps(tmp_path)] == [1, 2, 3, 4, 4]
        write(log, range(5, 8), scale=10.0)
    wanted = [(step, 1 / step if step < 5 else 10 / step) for step in range(1, 8)]
    assert [(step, loss) for step, kind, loss in steps(tmp_path) if kind == "train"] == wanted
    assert scalars(tmp_path, "train/loss") == [(step, pytest.approx(loss)) for step, loss in wanted]
    assert scalars(tmp_path, "validation/loss") == [(4, 4.0)]
    killed.close()


def test_a_run_that_begins_anew_keeps_nothing_of_an_earlier_one(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write(0, "validation", {"loss": 9.0})
        write(log, [1, 2, 3])
    with MetricsLog(tmp_path) as log:
        log.write(0, "validation", {"loss": 1.0})
        write(log, [1], scale=5.0)
    assert steps(tmp_path) == [(0, "validation", 1.0), (1, "train", 5.0)]
    assert scalars(tmp_path, "train/loss") == [(1, 5.0)]
    assert scalars(tmp_path, "validation/loss") == [(0, 1.0)]


def test_a_half_line_of_a_killed_run_is_dropped_and_other_damage_is_told(tmp_path):
    path = tmp_path / METRICS
    with MetricsLog(tmp_path) as log:
        write(log, [1, 2])
    with path.open("a") as file:
        file.write('{"step": 3, "kind": "tra')
    assert len(steps(tmp_path)) == 2
    with MetricsLog(tmp_path, resume_step=2) as log:
        write(log, [3])
    assert [step for step, *_ in steps(tmp_path)] == [1, 2, 3]
    path.write_text('{"step": 1}\nhalf\n{"step": 2}\n')
    with pytest.raises(ValueError, match="is no JSON"):
        MetricsLog(tmp_path, resume_step=2)
    assert path.read_text().startswith('{"step": 1}\nhalf')  # nothing was lost by the refusal


def test_numbers_that_are_none_are_null_in_json_and_themselves_in_tensorboard(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write(1, "train", {"loss": math.nan, "gradient_norm": math.inf})
    (line,) = (tmp_path / METRICS).read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail) == {
        "step": 1,
        "kind": "train",
        "loss": None,
        "gradient_norm": None,
    }
    assert math.isnan(scalars(tmp_path, "train/loss")[0][1])
    assert scalars(tmp_path, "train/gradient_norm")[0][1] == math.inf
