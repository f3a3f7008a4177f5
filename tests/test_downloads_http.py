"""Downloads by HTTP from a server that misbehaves: every row true, nothing hung, nothing asked for in vain."""

import gzip
import json
import threading
import time

import pytest
import requests
from hostile_server import Site, serving
from networked import contents, fetch, ledger, listed, settings_of, sha256, statuses, stray, write_catalog
from processes import wait_for

from gap3d.network import origins
from gap3d.network.http import within
from gap3d.network.politeness import Trouble
from gap3d.records import SystemicFault

BODY = bytes(range(256)) * 512
TOKEN = "hf_never_to_be_seen"
HUB = "/datasets/allenai/objaverse/resolve/main"


@pytest.fixture
def site():
    with serving(Site()) as made:
        yield made


@pytest.fixture
def museum(site, tmp_path):
    """Files of the Smithsonian, each with its ill; makes the settings, with a catalog of them."""

    def made(ills, network=None, **values):
        settings = settings_of(tmp_path, network, **values)
        rows = []
        for name, ill in ills.items():
            site.files[f"/{name}.glb"] = BODY + name.encode()
            if ill:
                site.ills[f"/{name}.glb"] = ill
            rows.append(listed("Smithsonian", f"{site.address}/{name}.glb", sha256(BODY + name.encode())))
        write_catalog(settings, rows)
        return settings

    return made


def by_name(found):
    return {identifier.rpartition("/")[2].partition(".")[0]: value for identifier, value in found.items()}


ILLS = {
    "good": ("", "ok", 1),
    "gone": ("404", "missing", 1),
    "removed": ("410", "missing", 1),
    "private": ("401", "missing", 1),
    "forbidden": ("403", "missing", 1),
    "odd": ("418", "missing", 1),
    "failing": ("500", "unreachable", 2),
    "passing": ("(503)", "ok", 2),
    "slow": ("stall", "unreachable", 2),
    "silent": ("silent", "unreachable", 2),
    "hesitant": ("hesitate", "unreachable", 1),
    "dripping": ("drip", "unreachable", 1),
    "reset": ("reset", "unreachable", 2),
    "short": ("unsized", "unreachable", 1),
    "wrong": ("wrong", "hash_mismatch", 1),
    "loop": ("loop", "unreachable", 22),
    "endless": ("endless", "too_large", 1),
    "long": ("long", "too_large", 1),
}


def test_every_way_to_misbehave_has_its_status_and_its_number_of_tries(museum, site):
    sooner = {"stall_s": 0.7, "object_s": 2.5}
    settings = museum({name: ill for name, (ill, *_) in ILLS.items()}, sooner, limits={"object_bytes": 1 << 20})
    begun = time.monotonic()
    fetch(settings)
    assert time.monotonic() - begun < 60
    assert by_name(statuses(settings)) == {name: status for name, (_, status, _) in ILLS.items()}
    tries = {name: sum(request.path == f"/{name}.glb" for request in site.requests) for name in ILLS}
    assert tries == {name: count for name, (_, _, count) in ILLS.items()}
    made = by_name(contents(settings))
    assert made["good"]["files"] == {"model.glb": BODY + b"good"}
    assert all(row.reason for row in ledger(settings).values() if row.status != "ok")
    assert stray(settings) == []
    site.heal()
    site.requests.clear()
    fetch(settings)
    again = {name for name, (_, status, _) in ILLS.items() if status == "unreachable"}
    assert site.asked() == {f"/{name}.glb" for name in again}
    assert {name for name, status in by_name(statuses(settings)).items() if status != "ok"} == {
        name for name, (_, status, _) in ILLS.items() if status not in ("ok", "unreachable")
    }
    site.requests.clear()
    fetch(settings_of(settings.store.parent, limits={"object_bytes": 1 << 21}))
    assert site.asked() == {"/endless.glb", "/long.glb"}


def test_an_answer_that_comes_after_its_time_is_closed(site):
    site.files["/late.glb"] = BODY
    came, let_go = [], threading.Event()

    def get():
        let_go.wait(10)
        came.append(requests.get(f"{site.address}/late.glb", stream=True, timeout=5))
        return came[0]

    with pytest.raises(Trouble, match="within the time"):
        within(0.01, get)
    let_go.set()
    wait_for(lambda: came and came[0].raw.closed, 10, "the late answer is closed")


def test_a_cut_transfer_goes_on_where_it_was_cut(museum, site):
    settings = museum({"once": "(cut)", "always": "cut"}, {"retries": 3})
    fetch(settings)
    assert by_name(statuses(settings)) == {"once": "ok", "always": "unreachable"}
    ranges = [request.headers.get("Range") for request in site.requests if request.path == "/once.glb"]
    assert ranges == [None, f"bytes={(len(BODY) + 4) // 2}-"]
    assert by_name(contents(settings))["once"]["files"]["model.glb"] == BODY + b"once"


def test_a_file_that_changed_between_two_tries_is_not_patched_together(museum, site):
    settings = museum({"changing": "(cut)"})
    (path,) = site.ills
    before = b"another file, which the server has while the first half comes" * 2000
    site.files[path] = [before, site.files[path]]
    fetch(settings)
    assert statuses(settings) == {f"{site.address}{path}": "ok"}
    assert [request.status for request in site.requests] == [200, 200]
    assert "Range" in site.requests[1].headers


def test_a_short_pause_is_kept_by_all_and_a_long_one_is_left_for_the_next_run(museum, site):
    settings = museum({"a": "(429 1)", "b": "", "c": ""}, {"pause_s": 1.5, "retries": 1})
    fetch(settings)
    assert set(statuses(settings).values()) == {"ok"}
    asked = next(index for index, request in enumerate(site.requests) if request.status == 429)
    refused = site.requests[asked]
    assert all(request.begun >= refused.begun + 1 for request in site.requests[asked + 1 :])


def test_objects_of_a_host_that_wants_long_quiet_are_not_asked_for_and_lose_no_attempt(museum, site):
    settings = museum(dict.fromkeys("abcdef", "429 3600"))
    fetch(settings)
    assert len(site.requests) == 1
    rows = by_name(ledger(settings))
    assert {row.status.value for row in rows.values()} == {"unreachable"}
    assert sorted(row.attempts for row in rows.values()) == [0, 0, 0, 0, 0, 1]
    assert all("3600 s" in row.reason or "35" in row.reason for row in rows.values())
    site.heal()
    fetch(settings)
    assert set(statuses(settings).values()) == {"ok"}


def test_an_unreachable_object_is_given_up_after_so_many_runs(museum, site):
    settings = museum({"failing": "500"}, {"retries": 0}, limits={"network_attempts": 3})
    for expected in (1, 2, 3, 3, 3):
        fetch(settings)
        assert len(site.requests) == expected


def test_lost_bytes_are_fetched_again(museum, site):
    settings = museum({"a": "", "b": ""})
    fetch(settings)
    lost = next((settings.store / "blobs").glob(f"*/{sha256(BODY + b'a')}"))
    lost.unlink()
    site.requests.clear()
    fetch(settings)
    assert site.asked() == {"/a.glb"}
    assert lost.read_bytes() == BODY + b"a"


def test_a_network_that_is_down_ends_the_run_and_writes_no_failure(museum, site):
    settings = museum({f"n{index}": "reset" for index in range(25)}, {"retries": 0})
    with pytest.raises(SystemicFault, match="check the network"):
        fetch(settings)
    assert ledger(settings) == {}
    site.heal()
    site.requests.clear()
    fetch(settings)
    assert list(statuses(settings).values()) == ["ok"] * 25


def test_a_host_that_answers_is_no_network_that_is_down(museum):
    settings = museum({f"n{index}": "500" for index in range(25)}, {"retries": 0})
    fetch(settings)
    assert list(statuses(settings).values()) == ["unreachable"] * 25


def test_mirrors_are_asked_in_place_of_hosts_and_thingiverse_at_the_address_of_the_file(site, tmp_path):
    identifiers = {
        "https://www.thingiverse.com/thing:123/files?fileId=45": "/t/download:45",
        "https://www.thingiverse.com/thing:6/files?fileId=7": "/t/download:7",
    }
    site.files = dict.fromkeys(identifiers.values(), b"solid\n")
    mirrors = {"https://www.": "http://127.0.0.1:1/", "https://www.thingiverse.com/": f"{site.address}/t/"}
    settings = settings_of(tmp_path, {"instead_of": mirrors})
    rows = [listed("thingiverse", identifier, sha256(b"solid\n"), "stl") for identifier in identifiers]
    rows.append(listed("thingiverse", "https://www.thingiverse.com/", sha256(b"solid\n"), "stl"))
    rows.append(listed("smithsonian", "file:///etc/passwd", sha256(b""), "glb"))
    write_catalog(settings, rows)
    fetch(settings)
    assert list(map(statuses(settings).get, [row["identifier"] for row in rows])) == ["ok", "ok", "missing", "missing"]
    assert site.asked() == set(identifiers.values())


def test_identifiers_are_read_as_the_objaverse_package_reads_them():
    from objaverse.xl.thingiverse import ThingiverseDownloader

    identifier = "https://www.thingiverse.com/thing:3019563/files?fileId=4833402"
    file = ThingiverseDownloader.get_file_id_from_file_identifier(identifier)
    assert origins.thingiverse(identifier) == f"https://www.thingiverse.com/download:{file}"
    url = "https://github.com/o/r.x/blob/" + "a" * 40 + "/d%20 (1)/#é/blob/m.obj"
    place = origins.github(url)
    assert place.repository == "https://github.com/o/r.x.git"
    assert place.path == "/".join(url.split("/")[7:])


@pytest.fixture
def hub(site, monkeypatch):
    """The hub, with a token that is nobody else's business; the objects' uids."""
    uids = [f"{index:032x}" for index in range(4)]
    paths = {uid: f"glbs/000-00{index}/{uid}.glb" for index, uid in enumerate(uids)}
    site.files = {f"{HUB}/{path}": BODY + uid.encode() for uid, path in paths.items()}
    site.files[f"{HUB}/object-paths.json.gz"] = gzip.compress(json.dumps(paths).encode())
    monkeypatch.setenv("HF_ENDPOINT", site.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return uids


def sketchfab(uid):
    return listed("Sketchfab", f"https://sketchfab.com/3d-models/{uid}", sha256(BODY + uid.encode()), "glb")


def test_sketchfab_objects_come_from_the_hub_whose_table_is_fetched_once(site, hub, tmp_path):
    settings = settings_of(tmp_path)
    write_catalog(settings, [*map(sketchfab, hub), sketchfab("f" * 32)])
    fetch(settings)
    assert sorted(statuses(settings).values()) == ["missing", *["ok"] * 4]
    assert sum("object-paths" in request.path for request in site.requests) == 1
    assert {request.headers["Authorization"] for request in site.requests} == {f"Bearer {TOKEN}"}
    site.requests.clear()
    fetch(settings)
    assert site.requests == []


def test_a_token_goes_to_the_hub_only_and_into_no_row_and_no_log(site, hub, tmp_path, caplog):
    caplog.set_level("DEBUG")
    with serving(Site()) as other:
        for index, uid in enumerate(hub[:3]):
            path = next(path for path in site.files if uid in path)
            other.files[path] = BODY + uid.encode()
            site.ills[path] = [f"elsewhere {other.address}{path}?X-Amz-Signature=signed", "403", "500"][index]
        other.ills[next(path for path in other.files if hub[0] in path)] = "reset"
        settings = settings_of(tmp_path)
        write_catalog(settings, map(sketchfab, hub))
        fetch(settings)
        assert [statuses(settings)[sketchfab(uid)["identifier"]] for uid in hub] == [
            *("unreachable", "missing", "unreachable", "ok")
        ]
        assert "HF_TOKEN" in ledger(settings)[sketchfab(hub[1])["identifier"]].reason
        assert other.requests
        assert not any("Authorization" in request.headers for request in other.requests)
    said = [record.getMessage() for record in caplog.records if record.name.startswith(("gap3d", "pipelines"))]
    assert said
    assert not any(TOKEN in text or "signed" in text for text in said)
    for path in settings.store.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes()
    assert not any(TOKEN in row.reason or "signed" in row.reason for row in ledger(settings).values())


def test_what_was_refused_without_a_token_is_asked_for_again_with_one(site, hub, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    settings = settings_of(tmp_path)
    write_catalog(settings, map(sketchfab, hub))
    path = next(path for path in site.files if hub[0] in path)
    site.ills[path] = "401"
    fetch(settings)
    assert sorted(statuses(settings).values()) == ["missing", "ok", "ok", "ok"]
    site.heal()
    assert fetch(settings).count("computed") == 0
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    fetch(settings)
    assert set(statuses(settings).values()) == {"ok"}


@pytest.mark.parametrize(("ill", "fault"), [("404", SystemicFault), ("wrong", SystemicFault), ("500", None)])
def test_a_hub_without_its_table_makes_no_object_missing(site, hub, tmp_path, ill, fault):
    site.ills[f"{HUB}/object-paths.json.gz"] = ill
    settings = settings_of(tmp_path)
    write_catalog(settings, map(sketchfab, hub))
    if fault:
        with pytest.raises(fault):
            fetch(settings)
        assert ledger(settings) == {}
    else:
        fetch(settings)
        assert set(statuses(settings).values()) == {"unreachable"}
    site.heal()
    fetch(settings)
    assert set(statuses(settings).values()) == {"ok"}


RAW = {
    "redirect to no host": b"HTTP/1.1 302 F\r\nLocation: http://[bad/x\r\nContent-Length: 0\r\n\r\n",
    "redirect to no port": b"HTTP/1.1 302 F\r\nLocation: http://127.0.0.1:99999/x\r\nContent-Length: 0\r\n\r\n",
    "redirect to no text": b"HTTP/1.1 302 F\r\nLocation: /\xff\r\nContent-Length: 0\r\n\r\n",
    "redirect to a file": b"HTTP/1.1 302 F\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n",
    "terminal": b"HTTP/1.1 404 \x1b[2J\x07\r\nContent-Length: 0\r\n\r\n",
    "length squared": b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\nx",
    "endless length": b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nx",
    "endless pause": b"HTTP/1.1 503 S\r\nRetry-After: " + b"9" * 5000 + b"\r\nContent-Length: 0\r\n\r\n",
    "pause to no date": b"HTTP/1.1 503 S\r\nRetry-After: Fri, 31 Dec 99999999999 23:59:59 GMT\r\n\r\n",
}


def test_headers_that_no_server_should_send_are_rows_with_a_status_of_their_own(museum, site, tmp_path):
    settings = museum({name.replace(" ", "_"): f"raw {index}" for index, name in enumerate(RAW)}, {"retries": 0})
    site.raw = list(RAW.values())
    rows = [listed("smithsonian", name, sha256(b"x"), "glb") for name in ("http://[bad/x.glb", "http://a..b/x.glb")]
    write_catalog(bad := settings_of(tmp_path, {"retries": 0}, collection="bad"), rows)
    fetch(settings)
    fetch(bad)
    expected = {name.replace(" ", "_"): "missing" for name in list(RAW)[:5]}
    expected |= {name.replace(" ", "_"): "unreachable" for name in list(RAW)[5:]}
    assert by_name(statuses(settings)) == expected
    assert set(statuses(bad).values()) == {"missing"}
    assert not any("\x1b" in row.reason or "\x07" in row.reason for row in ledger(settings).values())
