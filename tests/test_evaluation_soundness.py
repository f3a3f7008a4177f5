"""What is altered, lost or impossible in a result is told; what is sound is not."""

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from gap3d.evaluation.result import Cell, Result, Sample, read, read_samples, save
from gap3d.evaluation.soundness import impossible, not_identical, not_measured, remade, unaccounted
from gap3d.features.tokens import targets_from_prenorm
from gap3d.metrics.alignment import Alignment
from gap3d.records import Status


def result(table, cells, **values):
    made = {"model": "finetuned", "collection": "test", "fingerprint": "0" * 32, "trained": False, "label": "UNTRAINED"}
    return Result(table=table, cells=cells, **{**made, **values})


@pytest.fixture
def alignment(tmp_path):
    """Measured tokens of four samples, and one that failed."""
    generator = torch.Generator().manual_seed(0)
    true = {kind: targets_from_prenorm(torch.randn(4, count, 16, generator=generator)) for kind, count in KINDS.items()}
    predicted = {kind: 0.7 * part + torch.randn(part.shape, generator=generator) for kind, part in true.items()}
    measured = Alignment()
    measured.add(predicted, true)
    samples = [
        Sample(f"{number}", values={name: values[number] for name, values in measured.values.items()})
        for number in range(4)
    ]
    cells = {name: Cell(value, samples=4) for name, value in measured.means().items() if "gap" not in name}
    return save(tmp_path, result("alignment", cells), [*samples, Sample("4", Status.MISSING, "not there")])


KINDS = {"cls": 1, "patches": 6}


@pytest.fixture
def retrieval(tmp_path):
    ranks = (1, 3, 7, 40)
    cells = {f"cls_r{at}": Cell(100 * sum(rank <= at for rank in ranks) / 4, samples=4) for at in (1, 5, 10)}
    samples = [Sample(f"{number}", values={"rank_cls": rank}) for number, rank in enumerate(ranks)]
    return save(tmp_path, result("retrieval", cells), samples)


CHECKS = (unaccounted, impossible, remade, not_measured, not_identical)


def test_samples_are_read_back_as_they_were_given(alignment, retrieval):
    assert read_samples(retrieval.folder)[1] == Sample("1", values={"rank_cls": 3.0})
    assert [sample.status for sample in read_samples(alignment.folder)] == [Status.OK] * 4 + [Status.MISSING]


def test_an_object_that_lacks_one_measure_counts_in_the_means_of_the_others(tmp_path):
    samples = [Sample(f"{number}", values={"clip_text": score}) for number, score in enumerate((20.0, 22.0))]
    samples.append(Sample("2", Status.EMPTY_RENDER, "fd_pointnet: too few points", {"clip_text": 27.0}))
    assert remade(save(tmp_path, result("generation", {"clip_text": Cell(23.0, samples=3)}), samples)) == []
    (sentence,) = remade(save(tmp_path / "other", result("generation", {"clip_text": Cell(21.0, samples=2)}), samples))
    assert "clip_text" in sentence


@pytest.mark.parametrize("check", CHECKS)
def test_what_was_measured_is_sound(alignment, retrieval, check):
    assert check(alignment) == check(retrieval) == []


def altered(made, **cells):
    """The same folder, with numbers in its JSON changed."""
    content = json.loads((made.folder / "result.json").read_text())
    for name, value in cells.items():
        content["cells"][name]["value"] = value
    (made.folder / "result.json").write_text(json.dumps(content))
    return read(made.folder)


def test_a_number_that_its_samples_do_not_give_is_told(alignment, retrieval):
    (sentence,) = remade(altered(alignment, cosine_patches=0.9))
    assert sentence.startswith("cosine_patches is 0.9, and its 4 samples make it 0.")
    (sentence,) = remade(altered(retrieval, cls_r5=75))
    assert sentence == "cls_r5 is 75, and its 4 samples make it 50"


def test_places_of_an_unsorted_list_count_where_they_were_asked_for(tmp_path):
    samples = [
        Sample("a", values={"rank_cls": 1, "place_cls": 10}),
        Sample("b", values={"rank_cls": 9, "place_cls": 1}),
    ]
    cells = {"cls_r1": Cell(50.0), "cls_r5": Cell(50.0), "cls_r10": Cell(100.0)}
    assert remade(save(tmp_path, result("retrieval", cells, quirks=("unsorted_list",)), samples)) == []


def rewritten(made, change):
    """The same folder, with its samples changed."""
    rows = pq.read_table(made.folder / "samples.parquet").to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows), made.folder / "samples.parquet")
    return made


def test_a_lost_a_doubled_and_an_altered_sample_are_told(alignment, retrieval):
    lost = unaccounted(rewritten(alignment, lambda rows: rows.pop()))
    assert lost[0] == "the samples are 4 ok, and the result counts 1 missing, 4 ok"
    assert "1 samples stand twice, e.g. '0'" in unaccounted(rewritten(retrieval, lambda rows: rows.append(rows[0])))


def test_an_altered_sample_has_another_digest(retrieval):
    found = unaccounted(rewritten(retrieval, lambda rows: rows[2].update(rank_cls=2.0)))
    assert found == ["the samples are not those that were measured: their digest is another"]


def test_samples_that_are_cut_short_are_told(retrieval):
    path = retrieval.folder / "samples.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    for check in (unaccounted, remade, not_identical):
        (sentence,) = check(retrieval)
        assert "can't be read" in sentence and "measure again" in sentence


def test_an_error_that_cosine_and_ratio_contradict_is_told(alignment):
    found = not_identical(rewritten(alignment, lambda rows: rows[1].update(mse_cls=rows[1]["mse_cls"] + 0.5)))
    assert [sentence.partition(" ")[0] for sentence in found] == ["1:"]


def test_targets_that_are_not_normalised_break_the_identity(alignment):
    assert len(not_identical(rewritten(alignment, lambda rows: rows[0].update(identity_gap_patches=0.4)))) == 1


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"cosine_cls": 1.2}, "cosine_cls is 1.2, outside -1 to 1"),
        ({"mse_patches": -0.1}, "mse_patches is -0.1, outside 0 to inf"),
        ({"patches_r10": 101.0}, "patches_r10 is 101, outside 0 to 100"),
        ({"fd_inception": -1.0}, "fd_inception is -1, outside 0 to inf"),
        ({"cls_r1": 50.0, "cls_r5": 40.0, "cls_r10": 60.0}, "recalls of cls fall: 50, 40, 60"),
        ({"clip_text": float("nan")}, "clip_text is nan"),
    ],
)
def test_what_can_not_be_is_told(cells, words):
    assert words in impossible(result("alignment", {name: Cell(value) for name, value in cells.items()}))


def test_a_kernel_distance_below_zero_and_a_distance_of_rounding_are_possible():
    assert impossible(result("generation", {"kd_dinov2": Cell(-0.3), "fd_dinov2": Cell(-1e-12)})) == []


def test_a_cell_without_a_value_says_why():
    made = result("generation", {"fd_pointnet": Cell(None, note="no depth"), "kd_dinov2": Cell(1.0)})
    assert not_measured(made) == ["fd_pointnet: no depth"]
    assert impossible(replace(made, cells={"fd_pointnet": Cell(None)})) == []
