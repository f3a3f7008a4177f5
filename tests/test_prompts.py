"""Files of prompts: one row each, whatever is in them."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from generated_sets import settings_at
from PIL import Image

from gap3d.prompts import of_file, of_texts
from gap3d.records import Status
from gap3d.store import Store
from pipelines import prompts

ROWS = [
    {"id": "a", "prompt": "a red chair", "image": "sub/x.png", "index": 7, "caption_index": 2},
    {"id": "b/001", "prompt": 'two "quoted", lamps\nand a line', "image": None, "index": None, "caption_index": None},
]


def write_as(kind, folder, rows):
    path = folder / f"rows{kind}"
    if kind == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        import csv

        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".parquet"])
def test_a_table_says_the_same_in_every_format(tmp_path, kind):
    first, second = of_file(write_as(kind, tmp_path, ROWS))
    assert (first.key, first.text, first.image) == ("a", "a red chair", tmp_path / "sub" / "x.png")
    assert (first.index, first.caption_index) == (7, 2)
    assert (second.key, second.text, second.image) == ("b/001", ROWS[1]["prompt"], None)
    assert (second.index, second.caption_index) == (1, 0)
    assert first.fault is second.fault is None


def test_a_text_file_has_one_prompt_a_line(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffein Stuhl\r\n\na chair\na chair\n".encode())
    found = of_file(path)
    assert [each.text for each in found] == ["ein Stuhl", "", "a chair", "a chair"]
    assert [each.index for each in found] == [0, 1, 2, 3]
    assert len({each.key for each in found}) == 4  # equal prompts are two samples
    assert [each.fault and each.fault.status for each in found] == [None, Status.MISSING, None, None]
    assert found[1].fault.reason == "p.txt row 2: the prompt is empty"


def test_keys_and_so_noises_depend_on_neither_order_nor_suffix(tmp_path):
    plain, turned = of_texts(["a", "b"]), of_texts(["b", "a"], suffix="on black.")
    assert {each.text: each.key for each in plain} == {each.text.split()[0]: each.key for each in turned}
    assert [each.text for each in turned] == ["b on black.", "a on black."]


def test_a_bad_row_costs_no_other_and_says_where_it_is(tmp_path):
    lines = [
        '{"prompt": "good"}',
        "no json",
        '{"id": "same", "prompt": "first"}',
        '{"id": "same", "prompt": "second"}',
        '{"prompt": 5}',
        '{"prompt": null}',
        '{"prompt": "x", "index": -1}',
        '{"prompt": "x", "caption_index": "two"}',
        json.dumps({"prompt": "x", "id": "a\nb"}),
        json.dumps({"prompt": "x", "id": "a" * 201}),
        "[1]",
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(lines))
    found = of_file(path)
    states = [each.fault.status if each.fault else None for each in found]
    bad = Status.UNSUPPORTED
    assert states == [None, bad, None, Status.DUPLICATE, bad, Status.MISSING, bad, bad, bad, bad, bad]
    assert len({each.key for each in found}) == len(lines)
    assert all(f"p.jsonl row {number}: " in each.fault.reason for number, each in enumerate(found, 1) if each.fault)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.json", "[]", "has to end in one of"),
        ("p.csv", "text\na\n", "needs one named prompt"),
        ("p.csv", "prompt,imagge\na,b\n", "unknown columns ..imagge"),
        ("p.jsonl", '{"prompt": "a", "sed": 1}\n', "unknown columns ..sed"),
        ("p.txt", "", "holds no prompts"),
        ("p.txt", b"\xff\xfe", "no text in UTF-8"),
    ],
)
def test_a_file_that_means_something_else_is_refused_as_a_whole(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=words):
        of_file(path)


def test_images_are_one_for_each_prompt_or_none():
    with pytest.raises(ValueError, match="1 images for 2 prompts"):
        of_texts(["a", "b"], ["x.png"])


@pytest.fixture
def pictures(tmp_path):
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG nothing")
    rows = [{"id": name, "prompt": name, "image": f"{name}.png"} for name in ("good", "bad", "absent")]
    return of_file(write_as(".jsonl", tmp_path, [*rows, {"id": "none", "prompt": "none", "image": ""}]))


def test_the_rows_of_prompts_hold_their_images_and_unreadable_ones_are_rows(tmp_path, pictures):
    store, own = prompts.collection_of(settings_at(tmp_path / "store"), "made", len(pictures))
    report = prompts.run(own, store, pictures)
    assert report.by_status("prompts") == {"import_error": 1, "missing": 1, "ok": 2}
    held = store.manifest("prompts", "0")
    rows = store.read(held)
    assert rows["good"]["image"] == (tmp_path / "good.png").read_bytes() and rows["none"]["image"] is None
    assert "row 2: " in held.rows["bad"].reason and "bad.png" in held.rows["bad"].reason
    assert prompts.run(own, store, pictures).count("computed") == 0
    Image.new("RGB", (9, 9)).save(tmp_path / "absent.png")
    assert prompts.run(own, store, pictures).count("computed") == 1
    assert store.manifest("prompts", "0").rows["absent"].status is Status.OK


def test_a_collection_of_sets_keeps_its_shards_and_is_no_other_collection(tmp_path):
    settings = settings_at(tmp_path)
    store, own = prompts.collection_of(settings, "many", 3000)
    assert len(store.shards) == own.catalog.shards == 4
    assert len(prompts.collection_of(settings, "many", 1)[0].shards) == 4
    Store(tmp_path, "demo", 8).shard("catalog", "0").mkdir(parents=True)
    with pytest.raises(ValueError, match="collection demo has a catalog"):
        prompts.collection_of(settings, "demo", 1)
    with pytest.raises(ValueError, match="can't name a collection"):
        prompts.collection_of(settings, "../x", 1)
    (settings.store / "blobs" / "00").mkdir(parents=True)  # the store's own, of objects' files
    with pytest.raises(ValueError, match="is a folder and no collection"):
        prompts.collection_of(settings, "blobs", 1)
