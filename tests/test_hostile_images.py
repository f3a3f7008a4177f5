"""Collections of images that somebody meant ill, or that a program wrote that knew no better."""

import os
import tarfile

from folders import counters
from pictures import of_images, pairs, picture, rows_of, run_images, write_tar

from pipelines import images as stage
from pipelines.command import open_store


def test_a_pipe_is_a_row_and_nobody_waits_for_its_writer(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.png").write_bytes(picture(0))
    os.mkfifo(tmp_path / "folder" / "pipe.png")
    settings = of_images(tmp_path / "store", tmp_path / "folder", "folder")
    stage.run(settings, open_store(settings).shards)
    assert {name: row[0] for name, row in rows_of(settings).items()} == {"a.png": "ok", "pipe.png": "unsupported"}
    write_tar(tmp_path / "tars" / "a.tar", pairs(0, 1))
    os.mkfifo(tmp_path / "tars" / "pipe.tar")
    tarred = of_images(tmp_path / "other", tmp_path / "tars")
    stage.run(tarred, open_store(tarred).shards)
    assert {name: row[0] for name, row in rows_of(tarred).items()} == {"a.tar#0000": "ok", "pipe.tar": "unsupported"}


def test_text_that_utf8_cannot_hold_costs_no_row(tmp_path):
    halves = b'{"caption": "half \\ud800", "licence": "half \\ud800"}'
    write_tar(tmp_path / "tars" / "a.tar", [("0.png", picture(0)), ("0.json", halves), *pairs(100, 1)])
    settings = of_images(tmp_path / "store", tmp_path / "tars")
    assert run_images(settings).by_status("dataset") == {"ok": 2}
    row = rows_of(settings, "dataset")["a.tar#0"][2]
    assert (row["captions"], row["licence"]) == (["half ?"], "half ?")


def test_names_that_are_shown_alike_are_two_rows(tmp_path):
    members = [(os.fsdecode(b"\xff.png"), picture(0)), ("\\udcff.png", picture(1)), *pairs(100, 1)]
    write_tar(tmp_path / "tars" / "a.tar", members)
    settings = of_images(tmp_path / "store", tmp_path / "tars")
    assert run_images(settings).by_status("dataset") == {"ok": 3}
    assert counters(run_images(settings)) == {"images": 0, "targets": 0, "dataset": 0}


def test_a_tar_whose_header_leads_back_to_itself_ends(tmp_path):
    header = bytearray(tarfile.TarInfo("1.png").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = tarfile.itn(-512, 12, tarfile.GNU_FORMAT)  # of its bytes: the next header is this one
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    tar = write_tar(tmp_path / "tars" / "a.tar", [("0.png", picture(0))])
    whole = tar.read_bytes()
    end = 512 + -(-len(picture(0)) // 512) * 512
    tar.write_bytes(whole[:end] + header + whole[end:])
    settings = of_images(tmp_path / "store", tmp_path / "tars")
    found = stage.run(settings, open_store(settings).shards)
    assert found.by_status("images") == {"ok": 1, "unsupported": 1}
    assert "leads back" in rows_of(settings)["a.tar"][1]
