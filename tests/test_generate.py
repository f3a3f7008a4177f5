"""Token sets of prompts, by a small aligner with UNTRAINED random weights."""

import json
import os
import re
import shutil
import signal
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from generated_sets import settings_at
from killed import Point, Run
from PIL import Image

from gap3d.aligner.model import build_aligner, load_aligner
from gap3d.aligner.random_vlm import random_vlm
from gap3d.aligner_settings import AlignerSettings, SamplingSettings
from gap3d.features.tokens import TokenLayout
from gap3d.prompts import of_file, of_texts
from gap3d.records import Status, SystemicFault
from gap3d.settings import ComputeSettings
from gap3d.store import Store
from gap3d.target_parts import TargetPart
from pipelines import generate, prompts
from pipelines.generate import Checkpoint
from pipelines.generator import Wish
from pipelines.job import NotReady
from pipelines.sets_page import write_page

LAYOUT = TokenLayout(registers=2, grid=(3, 5), width=8)
SAMPLING = SamplingSettings(steps=3, batch_size=2)
TEXTS = ["a red chair", "a green lamp", "a small dog", "a house by the sea", "a ship"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aligner")
    settings = AlignerSettings(vlm="random-small", soft_tokens=4, width=32, blocks=2, heads=2, dtype="float32")
    aligner = build_aligner(settings, LAYOUT, "cpu")
    aligner.save(folder, {"step": 7, "encoder": {"trained": False}})
    return Checkpoint(folder)


def run(settings, checkpoint, found, name="made"):
    """(store, report) of some prompts."""
    store, own = prompts.collection_of(settings, name, len(found))
    prompts.run(own, store, found)
    return store, generate.run(own, store, checkpoint)


def sets(store):
    """Tokens [T, C] by key, as every reader of targets reads them."""
    made = {}
    for shard in store.shards:
        for part in store.manifest("generated", shard).parts:
            with TargetPart(store.shard("generated", shard) / part, verify=True) as opened:
                for group in range(opened.groups):
                    batch = opened.read(group)
                    for key, *tokens in zip(batch.keys, batch.cls, batch.registers, batch.patches, strict=True):
                        made[key] = torch.cat([tokens[0][None].half(), *tokens[1:]])
    return made


def stored(store):
    """Everything in the rows, by key."""
    held = [store.manifest("generated", shard) for shard in store.shards]
    return {key: row for one in held for key, row in store.read(one).items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, checkpoint):
    """All prompts in one run."""
    return run(settings_at(tmp_path_factory.mktemp("whole"), sampling=SAMPLING), checkpoint, of_texts(TEXTS))


def test_a_reader_of_targets_reads_what_the_aligner_made(whole, checkpoint):
    store, report = whole
    assert report.by_status("generated") == {"ok": len(TEXTS)}
    keys = [each.key for each in of_texts(TEXTS)]
    wanted = load_aligner(checkpoint.folder, "cpu").generate(TEXTS, keys, SAMPLING)
    for key, tokens in zip(keys, wanted, strict=True):
        assert torch.allclose(sets(store)[key].float(), tokens, atol=2e-3)


def test_the_part_says_what_made_it_and_that_it_is_untrained(whole, checkpoint):
    store, _ = whole
    part = next(iter(store.manifest("generated", "0").parts))
    with TargetPart(store.shard("generated", "0") / part) as opened:
        said = opened.metadata
    assert said["checkpoint"] == checkpoint.digest and said["sampling"]["steps"] == 3
    assert "UNTRAINED" in said["label"] and "vision-language model" in said["label"]
    assert said["tokens"]["grid"] == [3, 5] and said["tokens"]["normalisation"].startswith("none")
    row = stored(store)[of_texts(TEXTS)[2].key]
    assert (row["prompt"], row["seed"], row["checkpoint"]) == (TEXTS[2], 0, checkpoint.digest)


def test_progress_moves_by_steps_of_the_sampler(tmp_path, checkpoint, monkeypatch, capsys):
    monkeypatch.setattr("pipelines.progress.LINE_S", 0.0)  # every move is a line
    run(settings_at(tmp_path, sampling=SAMPLING), checkpoint, of_texts(TEXTS[:2]))
    told = [int(count) for count in re.findall(r"^generated:.* (\d+)/6 \[", capsys.readouterr().err, re.MULTILINE)]
    assert sorted(set(told)) == [0, 1, 2, 3, 4, 5, 6]
    assert told == sorted(told)


def test_a_set_depends_on_neither_batch_nor_order_nor_what_was_made_before(tmp_path, checkpoint, whole):
    settings = settings_at(tmp_path, sampling=SAMPLING.model_copy(update={"batch_size": 5}))
    run(settings, checkpoint, of_texts(TEXTS[3:]))
    store, report = run(settings, checkpoint, of_texts(TEXTS[::-1]))
    assert report.count("computed", "generated") == 3
    assert stored(store) == stored(whole[0])


def test_equal_prompts_are_two_samples_and_ids_name_rows(tmp_path, checkpoint):
    table = tmp_path / "rows.jsonl"
    rows = [{"id": f"dog/00{number}", "prompt": "a dog"} for number in range(2)]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    store, _ = run(settings_at(tmp_path / "store", sampling=SAMPLING), checkpoint, of_file(table))
    made = stored(store)
    assert [(made[f"dog/00{n}"]["object_id"], made[f"dog/00{n}"]["view"]) for n in range(2)] == [("dog", 0), ("dog", 1)]
    assert made["dog/000"]["patches"] != made["dog/001"]["patches"]


def test_an_image_changes_the_set_and_a_bad_one_is_a_row(tmp_path, checkpoint):
    Image.new("RGBA", (30, 40), (200, 10, 10, 255)).save(tmp_path / "a.png")
    Image.new("RGBA", (30, 40), (10, 10, 200, 255)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"nothing")
    rows = [
        {"id": name or "none", "prompt": "make it red", "image": name and f"{name}.png"} for name in ("a", "b", "c", "")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store, report = run(settings_at(tmp_path / "s", sampling=SAMPLING), checkpoint, of_file(tmp_path / "rows.jsonl"))
    assert report.by_status("generated") == {"import_error": 1, "ok": 3}
    assert store.manifest("generated", "0").rows["c"].origin == "prompts"
    patches = {row["patches"] for row in stored(store).values()}
    assert len(patches) == 3


def test_only_what_changed_is_made_again(tmp_path, checkpoint, whole):
    store, _ = whole
    held = store.manifest("generated", "0")

    def due(settings, checkpoint, store=store):
        """Why rows would be made again, by their prompt."""
        rows = generate.make_job(settings, store, checkpoint).rows("0")
        found = {row.payload.text: held.rows[row.key].needs(row.inputs, settings.limits) for row in rows}
        return {text: reason for text, reason in found.items() if reason}

    settings = settings_at(tmp_path, sampling=SAMPLING)
    assert due(settings, checkpoint) == {}
    sampled = partial(settings_at, tmp_path)
    assert due(sampled(sampling=SAMPLING.model_copy(update={"batch_size": 7})), checkpoint) == {}
    other = sampled(sampling=SAMPLING.model_copy(update={"guidance": 1.5}))
    assert due(other, checkpoint) == dict.fromkeys(TEXTS, "changed: sampling")
    for path in checkpoint.folder.iterdir():
        shutil.copy(path, tmp_path)
    about = json.loads((tmp_path / "aligner.json").read_text())
    (tmp_path / "aligner.json").write_text(json.dumps({**about, "about": {"step": 8}}))
    assert due(settings, Checkpoint(tmp_path)) == dict.fromkeys(TEXTS, "changed: checkpoint")
    ours, own = prompts.collection_of(settings_at(tmp_path), "other", len(TEXTS))
    prompts.run(own, ours, [*of_texts(TEXTS[1:], suffix="on black."), *of_texts(TEXTS[:1])])
    assert due(settings, checkpoint, ours) == {f"{text} on black.": "changed: text" for text in TEXTS[1:]}


def test_pooled_sets_are_the_means_of_whole_ones_and_rows_of_their_own(tmp_path, checkpoint, whole):
    settings = settings_at(tmp_path, sampling=SAMPLING.model_copy(update={"pooled": True}))
    store, report = run(settings, checkpoint, of_texts(TEXTS))
    assert report.by_status("generated") == {"ok": len(TEXTS)}
    made = sets(store)
    for key, tokens in sets(whole[0]).items():
        cls_and_registers, patches = tokens.split([3, 15])
        assert torch.equal(made[key][:3], cls_and_registers)
        torch.testing.assert_close(made[key][3:].float(), patches.float().mean(0, keepdim=True), atol=2e-3, rtol=0)
    rows = generate.make_job(settings, whole[0], checkpoint).rows("0")
    held = whole[0].manifest("generated", "0").rows
    assert {held[row.key].needs(row.inputs, settings.limits) for row in rows} == {"changed: pooled"}
    assert write_page(store, settings, checkpoint.label).exists()


@pytest.mark.slow
def test_workers_of_ray_make_the_same_bytes(tmp_path, checkpoint, whole):
    compute = ComputeSettings(workers=2, encoder_threads=1, lease_wait_s=0)
    settings = settings_at(tmp_path, sampling=SAMPLING).model_copy(update={"compute": compute})
    store, _ = run(settings, checkpoint, of_texts(TEXTS))
    assert stored(store) == stored(whole[0])


def test_the_program_is_killed_and_run_again_as_if_nothing_had_been(tmp_path, checkpoint, whole, nursery):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    flags = ["--prompts", str(tmp_path / "texts.txt"), "--into", "made", "--store", str(tmp_path / "store")]
    flags += ["--checkpoint", str(checkpoint.folder), "--sampling.steps", "3", "--sampling.batch_size", "2"]
    flags += ["--compute.workers", "0", "--compute.encoder_threads", "1", "--compute.flush_rows", "1"]
    log, again = tmp_path / "log", tmp_path / "again"
    run = Run("pipelines.generate", "", "", str(tmp_path / "scratch"), str(log), flags=flags)
    point = Point("pipelines.generator:Generator.generated", call=4)
    assert nursery.run(replace(run, point=asdict(point))) == -signal.SIGKILL, log.read_text()
    assert nursery.run(replace(run, log=str(again))) == 0, again.read_text()
    store = Store.open(tmp_path / "store", "made")
    assert stored(store) == stored(whole[0])
    said = again.read_text()
    assert "5 rows: 5 ok; computed 3" in said  # a batch of two was in flight, another behind it
    page = next(line.split()[-1] for line in said.splitlines() if line.startswith("page:"))
    content = Path(page).read_text()
    assert all(text in content for text in TEXTS) and content.count("data:image/png") == len(TEXTS)
    assert "UNTRAINED" in content and "UNTRAINED" in said and "pipelines.trellis" in said


def test_a_released_checkpoint_generates_and_says_what_is_not_known_of_it(tmp_path):
    settings = AlignerSettings(vlm="random-small", soft_tokens=4, width=16, blocks=1, heads=1, dtype="float32")
    build_aligner(settings, TokenLayout(4, (37, 37), 8), "cpu").save(tmp_path / "released", {"step": 1})
    (tmp_path / "released" / "aligner.json").unlink()
    released = Checkpoint(tmp_path / "released", "random-small")
    store, report = run(settings_at(tmp_path / "s", sampling=SAMPLING), released, of_texts(TEXTS[:1]))
    assert report.by_status("generated") == {"ok": 1}
    (made,) = sets(store).values()
    assert made.shape == (1374, 8)
    assert "UNTRAINED" in released.label and released.conditions == "random-small"
    random_vlm(3).save(tmp_path / "vlm")
    assert "UNTRAINED" in Checkpoint(tmp_path / "released", str(tmp_path / "vlm")).label
    assert Checkpoint(tmp_path / "released", "Qwen/Qwen2.5-VL-3B-Instruct").label == "trained"


def test_the_newest_finetuned_aligner_is_taken_before_a_pretrained_one(tmp_path):
    def finished(name, when, checkpoint="checkpoints/step-00000002"):
        folder = tmp_path / "demo" / "aligner" / name
        (folder / checkpoint).mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps({"checkpoint": checkpoint, "digest": name}))
        os.utime(folder / "result.json", (when, when))
        return folder / checkpoint

    with pytest.raises(NotReady, match="no trained aligner"):
        generate.trained_in(tmp_path, "demo")
    first = finished("pretrain-a-b", 30)
    assert generate.trained_in(tmp_path, "demo") == first
    old, new = finished("finetune-a-b", 10), finished("finetune-a-c", 20)
    assert generate.trained_in(tmp_path, "demo") == new
    new.rmdir()
    assert generate.trained_in(tmp_path, "demo") == old


def test_a_checkpoint_that_changes_under_the_run_stops_it(tmp_path, checkpoint):
    with pytest.raises(SystemicFault, match="is being written"):
        generate.Generator(checkpoint.folder, "another", settings_at(tmp_path))
    with pytest.raises(SystemicFault, match="no checkpoint of an aligner"):
        generate.digest_of(tmp_path)


def test_numbers_that_are_not_finite_are_a_row_and_a_gpu_makes_whole_batches(tmp_path, checkpoint, whole):
    settings = settings_at(tmp_path, sampling=SAMPLING)
    worker = generate.Generator(checkpoint.folder, checkpoint.digest, settings)
    worker.probe()
    broken = torch.full((LAYOUT.count, LAYOUT.width), torch.nan)
    assert worker.outcome(Wish("k", "t"), broken, 0.0).status is Status.INTERNAL_ERROR
    # What a GPU is given: the whole batch, of which one row is due.
    batch = [Wish(each.key, each.text, due=number == 1) for number, each in enumerate(of_texts(TEXTS[:3]))]
    (made,) = worker.generated(batch)
    tokens = np.frombuffer(made.data["patches"], np.float16)
    wanted = np.frombuffer(stored(whole[0])[batch[1].key]["patches"], np.float16)
    np.testing.assert_allclose(tokens, wanted, atol=2e-3)
