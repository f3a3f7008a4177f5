"""What an aligner predicts of a collection's captions, and Table 1 of it: made once, measured once."""

import logging

import numpy as np
import pytest
from target_stores import collection as targets_of
from trainings import small, trained

from gap3d.evaluation import queries
from gap3d.evaluation.result import find
from gap3d.evaluation.tokens import of_dataset
from gap3d.features.tokens import TokenLayout
from gap3d.prompts import of_file
from gap3d.records import SystemicFault
from pipelines import alignment_metrics, predictions
from pipelines.command import open_store
from pipelines.job import NotReady

ROWS = 9  # of them 6 have captions
SETTINGS = {"evaluation": {"steps": 2, "resamples": 50}}


@pytest.fixture(scope="module", autouse=True)
def one(one_thread):
    """Small models, on one thread."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A collection with both trainings: (settings, what was measured of them, the report)."""
    settings = small(tmp_path_factory.mktemp("made"), rows=ROWS, pretraining={"steps": 2}, finetuning={"steps": 2})
    settings = settings.model_copy(update={"evaluation": settings.evaluation.model_copy(update=SETTINGS["evaluation"])})
    for stage in ("pretrain", "finetune"):
        trained(settings, stage)
    report = alignment_metrics.run(settings)
    return settings, report


def test_every_model_of_the_settings_is_a_row_with_all_queries(made):
    settings, report = made
    store = open_store(settings)
    wanted = queries.queries_of(store, "longest")
    results = find(store.folder, "alignment")
    assert [each.model for each in results] == ["pretrained", "finetuned"]
    assert [(each.stage, each.shard, each.expected) for each in report.shards] == [
        ("alignment_metrics", f"test/{model}", len(wanted)) for model in ("pretrained", "finetuned")
    ]
    for result, stage in zip(results, ("pretrain", "finetune"), strict=True):
        assert result.counts == {"ok": len(wanted)} and (result.checkpoint["stage"], result.checkpoint["step"]) == (
            stage,
            2,
        )
        assert not result.trained and "UNTRAINED" in result.label
        assert result.protocol["predicted"]["sampling"]["steps"] == 2 and result.protocol["captions"] == "longest"
        assert all(check["passed"] for check in result.checks.values()) and set(result.checks) >= {
            "identity",
            "complete",
        }
        assert [name for name in result.cells if name.endswith("_cls")] == ["cosine_cls", "mse_cls", "norm_ratio_cls"]


def test_the_numbers_are_those_of_the_sets_in_the_store(made):
    settings, _ = made
    store = open_store(settings)
    result = find(store.folder, "alignment")[-1]
    found = predictions.predictions(settings, "finetuned", "test", "longest")
    keys = [query.key for query in found.queries]
    with found.sets as ours, of_dataset(store) as theirs:
        (_, p), (_, t) = ours.read(keys), theirs.read(keys)
    for kind in ours.kinds:
        p64, t64 = p[kind].numpy().astype(np.float64), t[kind].numpy().astype(np.float64)
        lengths = [np.sqrt(np.square(each).sum(-1)) for each in (p64, t64)]
        wanted = {
            "cosine": ((p64 * t64).sum(-1) / lengths[0] / lengths[1]).mean(),
            "mse": np.square(p64 - t64).mean(),
            "norm_ratio": (lengths[0] / lengths[1]).mean(),
        }
        assert {name: result.cells[f"{name}_{kind}"].value for name in wanted} == pytest.approx(wanted, rel=1e-6)


def test_the_second_run_generates_and_measures_nothing(made, monkeypatch):
    settings, report = made
    monkeypatch.setattr("pipelines.generator.Generator.generated", None)
    monkeypatch.setattr("gap3d.evaluation.alignment.Alignment", None)
    again = alignment_metrics.run(settings)
    assert again.count("computed") == 0 and report.count("computed") == 2 * 6
    assert [each.digest for each in again.shards] == [each.digest for each in report.shards]


def test_anybodys_shards_of_the_same_numbers_give_the_same_row(made, tmp_path):
    settings, _ = made
    store = open_store(settings)
    found = predictions.predictions(settings, "pretrained", "test", "longest")
    with found.sets as sets:
        keys, tokens = sets.read(sets.keys)
    np.savez(tmp_path / "a.npz", keys=np.array(keys), **{kind: part.numpy() for kind, part in tokens.items()})
    result, _ = alignment_metrics.of_places(settings, tmp_path, store.folder / "targets", "theirs")
    ours = next(each for each in find(store.folder, "alignment") if each.model == "pretrained")
    assert {name: cell.value for name, cell in result.cells.items()} == pytest.approx(
        {name: cell.value for name, cell in ours.cells.items()}
    )
    assert result.counts == ours.counts and result.checkpoint == {}


def test_a_checkpoint_is_a_row_by_any_name_on_any_collection_of_its_shape(made):
    settings, _ = made
    other = small(settings.store, rows=5)
    folder = predictions.checkpoint_of(settings, "pretrained").folder
    targets_of(settings.store.parent / "unlike", 3, layout=TokenLayout(1, (2, 2), 8))
    assert other.store == settings.store
    ((result, _),) = alignment_metrics.of_aligners(settings, folder, "step two")
    assert result.model == "step two" and result.checkpoint["stage"] == "pretrain"
    unlike = settings.model_copy(update={"store": settings.store.parent / "unlike"})
    with pytest.raises(ValueError, match=r"the targets of collection test are .*encode it as the aligner's training"):
        predictions.predictions(unlike, folder, "test", "longest")
    with pytest.raises(ValueError, match="say pretrained or finetuned, or name the folder"):
        predictions.checkpoint_of(settings, "nobody")


def test_a_disk_that_is_too_small_is_told_before_anything_is_sampled(made, monkeypatch, caplog):
    settings, _ = made
    monkeypatch.setattr("pipelines.generator.Generator.generated", None)
    layout = predictions.checkpoint_of(settings, "pretrained").layout
    queued = len(queries.queries_of(open_store(settings), "all"))
    needed = queued * predictions.bytes_of(layout, "float16")
    assert needed == queued * (4 * 8 + 2 * 17 * 8)
    monkeypatch.setattr(predictions, "free_bytes", lambda _: predictions.RESERVE + needed - 1)
    with pytest.raises(SystemicFault, match=f"{queued} token sets of test-all-.* will take"):
        predictions.predictions(settings, "pretrained", "test", "all")
    monkeypatch.setattr(predictions, "LARGE", needed - 1)
    monkeypatch.setattr(predictions, "free_bytes", lambda _: predictions.RESERVE + needed)
    with caplog.at_level(logging.WARNING), pytest.raises(TypeError):  # then it would sample
        predictions.predictions(settings, "pretrained", "test", "all")
    assert f"{queued} token sets will take" in caplog.text


def test_without_a_training_it_is_said_what_to_run(tmp_path):
    settings = small(tmp_path, rows=5)
    with pytest.raises(
        NotReady, match=r"has no pretrained aligner: run `python -m pipelines.pretrain`, .*or leave it out"
    ):
        alignment_metrics.run(settings)


def test_other_models_can_be_asked_the_same(made, tmp_path, monkeypatch, capsys):
    settings, _ = made
    flags = ["--store", str(settings.store), "--collection", "test", "--catalog.shards", "2", "--which", "all"]
    monkeypatch.setattr("sys.argv", ["predictions", *flags, "--write", str(tmp_path / "queries.csv")])
    predictions.main()
    wanted = queries.queries_of(open_store(settings), "all")
    assert f"{len(wanted)} queries" in capsys.readouterr().out
    asked, own = of_file(tmp_path / "queries.csv"), predictions.prompts_of(wanted)
    assert [(each.key, each.text, each.index, each.caption_index, each.fault) for each in asked] == [
        (each.key, each.text, each.index, each.caption_index, None) for each in own
    ]
    assert (tmp_path / "queries.csv").read_text().splitlines()[0] == "id,prompt,index,caption_index"
