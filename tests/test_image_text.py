"""Tars of the hub come whole, once and checked, whatever the hub and the machine do; one row each."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import dagster as dg
import pytest
from code_location import load
from hub_pairs import (
    LONG,
    OTHER,
    SAMPLES,
    SHORT,
    TARS,
    TOKEN,
    flat,
    forget,
    lying,
    rows_of,
    samples,
    settings_of,
    statuses,
    tar_of,
)
from hub_server import HubServer, commit_of
from webdataset_tars import read_back

from gap3d import tars
from gap3d.network import image_text as network
from gap3d.records import SystemicFault
from gap3d.store import ALL
from pipelines import image_text, verify
from pipelines.command import open_store

ROOT = Path(__file__).parents[1]


@pytest.fixture
def hub(monkeypatch):
    server = HubServer()
    server.repositories = {LONG: [{**TARS, "README.md": b"about"}], SHORT: [OTHER]}
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.close()


def test_every_tar_comes_with_a_row_and_lies_in_one_flat_folder(tmp_path, hub):
    settings = settings_of(tmp_path, image_text={"repositories": {LONG: "main", SHORT: "main"}})
    report = image_text.run(settings)
    assert lying(settings) == flat(LONG, TARS) | flat(SHORT, OTHER)
    rows = rows_of(settings)
    assert report.count("expected") == len(rows) == 6
    for path, data in TARS.items():
        status, _, row = rows[f"{LONG}/{path}"]
        assert (status, row["sha256"], row["bytes"]) == ("ok", hashlib.sha256(data).hexdigest(), len(data))
        assert (row["revision"], row["samples"], row["lacking"]) == (commit_of(0), 3, 0)
    assert (rows[f"{SHORT}/00000.tar"][2]["samples"], rows[f"{SHORT}/00000.tar"][2]["lacking"]) == (2, 1)
    found = read_back(sorted(image_text.folder_of(settings).glob("*Long*.tar")))
    read = {key: (sample["jpg"], sample["txt"].decode()) for key, sample in found.items()}
    assert read == {key: pair for content in SAMPLES.values() for key, pair in content.items()}


def test_the_second_run_asks_for_no_tar_and_a_new_commit_only_for_what_it_changes(tmp_path, hub):
    settings = settings_of(tmp_path)
    digest = image_text.run(settings).shards[0].digest
    forget(hub)
    assert image_text.run(settings).count("computed") == 0
    assert hub.bodies() == []
    hub.repositories[LONG].append({**TARS, "data/00001.tar": OTHER["00000.tar"]})
    image_text.run(settings)
    assert [entry[1].rpartition("/")[2] for entry in hub.bodies()] == ["00001.tar"]
    assert lying(settings) == flat(LONG, {**TARS, "data/00001.tar": OTHER["00000.tar"]})
    assert {row[2]["revision"] for row in rows_of(settings).values()} == {commit_of(1)}
    pinned = settings_of(tmp_path, image_text={"repositories": {LONG: commit_of(0)}})
    assert image_text.run(pinned).shards[0].digest == digest
    assert lying(settings) == flat(LONG, TARS)


def test_an_unchanged_tar_of_a_new_commit_keeps_its_digest(tmp_path, hub):
    settings = settings_of(tmp_path)
    digest = image_text.run(settings).shards[0].digest
    hub.repositories[LONG].append({**TARS, "README.md": b"other words"})
    forget(hub)
    assert image_text.run(settings).shards[0].digest == digest
    assert hub.bodies() == []
    assert {row[2]["revision"] for row in rows_of(settings).values()} == {commit_of(1)}


def test_count_and_bytes_bound_what_is_taken_and_the_rest_has_rows(tmp_path, hub):
    settings = settings_of(tmp_path, image_text={"count": 2})
    image_text.run(settings)
    assert sorted(statuses(settings).values()) == ["not_admitted"] * 3 + ["ok"] * 2
    assert len(hub.bodies()) == 2
    more = settings_of(tmp_path, image_text={"most_bytes": 3 * len(TARS["data/00000.tar"])})
    image_text.run(more)
    assert list(statuses(more).values()).count("ok") == 3
    assert len(hub.bodies()) == 3
    picked = settings_of(tmp_path, image_text={"patterns": ["*3.tar", "*4.tar"]})
    image_text.run(picked)
    assert statuses(picked) == dict.fromkeys(["data/00003.tar", "data/00004.tar"], "ok")


def test_the_disk_is_asked_before_the_hub_is(tmp_path, hub, monkeypatch):
    settings = settings_of(tmp_path)
    total = sum(map(len, TARS.values()))
    monkeypatch.setattr(tars, "free_bytes", lambda _: tars.RESERVE + total - 1)
    with pytest.raises(SystemicFault, match=r"make room for .* or take fewer tars"):
        image_text.run(settings)
    assert hub.bodies() == []
    assert open_store(settings).committed(image_text.STAGE, ALL).rows == {}
    monkeypatch.setattr(tars, "free_bytes", lambda _: tars.RESERVE + total)
    image_text.run(settings)
    monkeypatch.setattr(tars, "free_bytes", lambda _: 0)  # what is there needs no room
    assert image_text.run(settings).count("computed") == 0


def test_each_misbehaviour_costs_its_own_row_and_healing_repairs_it(tmp_path, hub):
    paths = sorted(TARS)
    hub.fault(paths[0], 404)
    hub.fault(paths[1], "wrong")
    hub.fault(paths[2], "cut 5000", "cut 4000")
    hub.fault(paths[3], "longer")
    settings = settings_of(tmp_path, limits={"network_attempts": 5})
    image_text.run(settings)
    expected = dict(zip(paths, ["missing", "hash_mismatch", "unreachable", "hash_mismatch", "ok"], strict=True))
    assert statuses(settings) == expected
    reasons = {key.rpartition("data/")[2]: row[1] for key, row in rows_of(settings).items()}
    assert "HTTP 404" in reasons["00000.tar"]
    assert "9000 of 10240" in reasons["00002.tar"]  # the second try went on where the first was cut
    whole = {name: data for name, data in lying(settings).items() if name.endswith(".tar")}
    assert whole == flat(LONG, {paths[4]: TARS[paths[4]]})
    forget(hub)
    image_text.run(settings)
    assert set(statuses(settings).values()) == {"ok"}
    assert lying(settings) == flat(LONG, TARS)
    ranges = {entry[1].rpartition("/")[2]: entry[2] for entry in hub.bodies()}
    assert ranges == {"00000.tar": None, "00001.tar": None, "00002.tar": "bytes=9000-", "00003.tar": None}


def test_a_stalled_connection_is_given_up_and_gone_on_with(tmp_path, hub):
    hub.fault("data/00002.tar", "stall 3000")
    settings = settings_of(tmp_path, network={"stall_s": 0.5})
    image_text.run(settings)
    assert lying(settings) == flat(LONG, TARS)
    assert [entry[2] for entry in hub.bodies() if entry[1].endswith("2.tar")] == [None, "bytes=3000-"]


def test_a_short_wait_is_kept_and_a_long_one_left_for_the_next_run(tmp_path, hub):
    hub.fault("data/00000.tar", (429, 1))
    began = time.monotonic()
    image_text.run(settings_of(tmp_path))
    assert time.monotonic() - began >= 1
    assert set(statuses(settings_of(tmp_path)).values()) == {"ok"}
    other = settings_of(tmp_path / "other")
    hub.fault("data/00000.tar", (429, 3600))
    forget(hub)
    image_text.run(other)
    assert set(statuses(other).values()) == {"unreachable"}  # the others are not even asked for
    assert len(hub.bodies()) == 1
    image_text.run(other)
    assert set(statuses(other).values()) == {"ok"}


def test_a_tar_over_the_limit_is_not_asked_for_until_the_limit_is_raised(tmp_path, hub):
    size = len(TARS["data/00000.tar"])
    hub.repositories[LONG] = [{"small.tar": TARS["data/00000.tar"], "large.tar": TARS["data/00000.tar"] + bytes(10240)}]
    settings = settings_of(tmp_path, limits={"repository_bytes": size})
    image_text.run(settings)
    assert statuses(settings) == {"small.tar": "ok", "large.tar": "too_large"}
    assert len(hub.bodies()) == 1
    image_text.run(settings_of(tmp_path))
    assert statuses(settings) == {"small.tar": "ok", "large.tar": "ok"}


def test_a_small_tar_without_a_sha256_is_checked_by_gits_own_digest(tmp_path, hub):
    hub.loose = {"data/00000.tar"}
    hub.fault("data/00000.tar", "wrong")
    settings = settings_of(tmp_path)
    image_text.run(settings)
    assert statuses(settings)["data/00000.tar"] == "hash_mismatch"
    image_text.run(settings)
    assert (
        rows_of(settings)[f"{LONG}/data/00000.tar"][2]["sha256"] == hashlib.sha256(TARS["data/00000.tar"]).hexdigest()
    )


def test_what_is_no_tar_is_told(tmp_path, hub):
    endless = io.BytesIO()
    with tarfile.open(fileobj=endless, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("0.jpg")
        info.pax_headers = {"size": "9" * 30}
        tar.addfile(info)
    cut = TARS["data/00000.tar"][:5000]
    hub.repositories[LONG] = [{"a.tar": b"not a tar", "b.tar": cut, "c.tar": endless.getvalue()}]
    settings = settings_of(tmp_path)
    image_text.run(settings)
    assert set(statuses(settings).values()) == {"unsupported"}


@pytest.mark.parametrize(
    ("repositories", "words"),
    [
        ({"lab/None": "main"}, "HTTP 401.*HF_TOKEN"),
        ({LONG: "v9"}, "HTTP 404"),
        ({}, "names no dataset"),
    ],
)
def test_what_the_hub_does_not_have_is_one_sentence(tmp_path, hub, repositories, words):
    with pytest.raises(ValueError, match=words):
        image_text.run(settings_of(tmp_path, image_text={"repositories": repositories}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": None}, "None bytes"),
        ({"size": -5}, "-5 bytes"),
        ({"oid": "/../../../../x"}, "oid '/../"),
        ({"lfs": {"oid": "zz", "size": 5, "pointerSize": 3}}, "sha256 'zz'"),
        ({"path": "../../x.tar"}, r"\.\./x\.tar"),
        ({"path": "a\0b.tar"}, "x00b"),
        ({"path": "\ud800.tar"}, "surrogates"),
        ({"next": "itself"}, "without an end"),
        ({"twice": True}, "twice"),
        ({"body": b"[" * 100_000}, "no JSON"),
        ({"body": b" " * 5000}, "more than 4096 bytes"),
    ],
)
def test_a_listing_that_lies_ends_the_run_in_one_sentence(tmp_path, hub, monkeypatch, changes, words):
    entry, body = {"type": "file", "path": "a.tar", "size": 5, "oid": "b" * 40}, changes.get("body")

    def tree(handler, _repository, _commit, _query):
        entries = [{**entry, **changes}] * (2 if "twice" in changes else 1) if body is None else []
        more = {"Link": f'<{hub.endpoint}{handler.path}>; rel="next"'} if "next" in changes else {}
        handler.send(200, json.dumps(entries).encode() if body is None else body, **more)

    monkeypatch.setattr(hub.handler, "tree", tree)
    monkeypatch.setattr(network, "PAGE_BYTES", 4096 if body and b" " in body else 1 << 20)
    settings = settings_of(tmp_path, {"pause_s": 0.1})
    with pytest.raises(SystemicFault, match=words):
        image_text.run(settings)
    assert not open_store(settings).committed("image_text", ALL).rows
    assert not image_text.folder_of(settings).exists()


def test_a_hub_that_does_not_answer_stops_the_run_without_rows(tmp_path, hub):
    settings = settings_of(tmp_path)
    hub.fault("tree", 503, 503)
    with pytest.raises(SystemicFault, match="HTTP 503"):
        image_text.run(settings)
    hub.close()
    with pytest.raises(SystemicFault, match="can't be asked"):
        image_text.run(settings)
    assert open_store(settings).committed(image_text.STAGE, ALL).rows == {}


def test_verify_notices_a_tar_that_changed_on_the_disk_and_the_next_run_mends_it(tmp_path, hub, monkeypatch, capsys):
    settings = settings_of(tmp_path)
    image_text.run(settings)
    preset = tmp_path / "settings.json"
    preset.write_text(settings.model_dump_json())
    monkeypatch.setattr(sys, "argv", ["verify", "--preset", str(preset)])
    verify.main()
    path = next(image_text.folder_of(settings).glob("*2.tar"))
    stat = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:  # a bit flips where no time tells
        file.seek(700)
        file.write(b"\xff\x00\xff")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(SystemExit) as ended:
        verify.main()
    assert ended.value.code == 1
    assert f"{path} is not what was written" in capsys.readouterr().out
    path.unlink()
    image_text.run(settings)
    assert lying(settings) == flat(LONG, TARS)


def test_a_tar_that_was_touched_is_read_again_and_a_changed_one_brought_again(tmp_path, hub):
    settings = settings_of(tmp_path)
    image_text.run(settings)
    forget(hub)
    first, second = sorted(image_text.folder_of(settings).glob("*.tar"))[:2]
    os.utime(first)
    second.chmod(0o644)
    second.write_bytes(b"changed")
    image_text.run(settings)
    assert len(hub.bodies()) == 1
    assert lying(settings) == flat(LONG, TARS)


def test_a_killed_run_is_gone_on_with(tmp_path, hub):
    hub.repositories[LONG] = [{"a.tar": TARS["data/00000.tar"], "b.tar": tar_of(samples(9, 300))}]
    whole = hub.repositories[LONG][0]["b.tar"]
    hub.fault("b.tar", "slow 0.02")
    settings = settings_of(tmp_path, compute={"workers": 0, "flush_rows": 1})
    preset = tmp_path / "settings.json"
    preset.write_text(settings.model_dump_json())
    command = [sys.executable, "-m", "pipelines.image_text", "--preset", str(preset)]
    with subprocess.Popen(command, cwd=ROOT) as process:
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size > 50_000 for path in tmp_path.glob("store/pairs/tars/.*.part")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    names = sorted(lying(settings))
    assert [name.endswith(".part") for name in names] == [True, False]
    kept = len(lying(settings)[names[0]])
    forget(hub)
    image_text.run(settings)
    assert lying(settings) == flat(LONG, hub.repositories[LONG][0])
    ((_, path, wanted, _, _),) = hub.bodies()
    assert path.endswith("b.tar") and wanted == f"bytes={kept}-" and 50_000 < kept < len(whole)


def test_a_damaged_beginning_is_thrown_away(tmp_path, hub):
    hub.fault("data/00000.tar", "cut 5000", "cut 0")
    settings = settings_of(tmp_path)
    image_text.run(settings)
    (part,) = image_text.folder_of(settings).glob(".*.part")
    part.write_bytes(bytes(5000))
    image_text.run(settings)
    assert lying(settings) == flat(LONG, TARS)


def test_the_token_goes_to_the_hub_only_as_a_header_and_nowhere_else(tmp_path, hub, caplog):
    hub.fault("data/00001.tar", 403)
    with caplog.at_level("DEBUG"):
        image_text.run(settings_of(tmp_path))
    told = {entry[1].startswith("/store/"): set() for entry in hub.log}
    for entry in hub.log:
        told[entry[1].startswith("/store/")].add(entry[3])
    assert told == {False: {f"Bearer {TOKEN}"}, True: {None}}
    reasons = [row[1] for row in rows_of(settings_of(tmp_path)).values()]
    assert any("HF_TOKEN" in reason for reason in reasons)
    stored = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
    for secret in (TOKEN, "X-Amz-Signature=secret"):
        assert secret.encode() not in stored
    assert TOKEN not in caplog.text


def test_a_tar_that_belongs_to_no_row_is_told(tmp_path, hub, caplog):
    settings = settings_of(tmp_path)
    image_text.run(settings)
    image_text.run(settings_of(tmp_path, image_text={"patterns": ["*0.tar"]}))
    assert "4 tars that are not among the rows" in caplog.text


@pytest.mark.slow
def test_two_workers_of_a_ray_cluster_bring_the_tars(tmp_path, hub):
    settings = settings_of(tmp_path, compute={"workers": 2})
    report = image_text.run(settings)
    assert (report.count("computed"), lying(settings)) == (5, flat(LONG, TARS))


def test_the_ui_shows_the_hubs_tars_where_they_are_named(tmp_path, monkeypatch, hub):
    preset = tmp_path / "settings.json"
    preset.write_text(settings_of(tmp_path).model_dump_json())
    load(monkeypatch, {"GAP3D_PRESET": str(preset)})
    from assets_defs.image_text import ASSETS, CHECKS
    from assets_defs.resources import Compute

    done = dg.materialize([*ASSETS, *CHECKS], resources={"compute": Compute()})
    (event,) = done.asset_materializations_for_node("image_text")
    assert (event.metadata["dagster/row_count"].value, event.metadata["pairs"].value) == (5, 15)
    assert all(check.passed for check in done.get_asset_check_evaluations())
    assert lying(settings_of(tmp_path)) == flat(LONG, TARS)
