"""What is told of a training while it runs."""

import re

import pytest
from trainings import small

from pipelines import pretrain
from pipelines.training import MEASURING, measured, measuring

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_validation_tells_how_far_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pipelines.progress.LINE_S", 0.0)  # every move is a line
    pretrain.run(small(tmp_path, pretraining={"steps": 2, "batch_size": 2, "validation_count": 4}))
    told = capsys.readouterr().err
    assert re.findall(r"2/2 .*measures (\d) of 4 held-out pairs", told)[:2] == ["2", "4"]


def test_workers_of_ray_note_it_where_their_driver_reads_it(tmp_path):
    measuring(tmp_path, 2, 4)
    assert measured(tmp_path) == (2, 4)
    measuring(tmp_path, 4, 4)
    assert measured(tmp_path) is None
    assert not (tmp_path / MEASURING).exists()
