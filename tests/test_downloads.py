"""Downloads as a whole: many objects over git and HTTP, most of them failing, in every way; kills; healing."""

import itertools
import os
import signal

import psutil
import pytest
from hostile_server import Site, serving
from networked import blob_url, contents, fetch, ledger, listed, program, settings_of, sha256, start, statuses, stray
from networked import write_catalog as write
from processes import alive, end, mentioning, wait_for
from repositories import Origin, configure

from gap3d.network.politeness import discreet

TOKEN = "hf_never_to_be_seen"
OBJ = b"mtllib look.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"
FILES = {  # by path: the status that it has in a repository that is well
    "a.obj": "ok",
    "deep/b.stl": "ok",
    "out.obj": "forbidden_reference",
    "large.stl": "lfs_pointer",
    "changed.stl": "hash_mismatch",
    "absent.stl": "missing",
}
OF_REPOSITORIES = {  # a repository's ill, and the status that it gives to all the objects
    "500": "unreachable",
    "503": "unreachable",
    "429": "unreachable",
    "reset": "unreachable",
    "stall": "unreachable",
    "cut": "unreachable",
    "401": "missing",
    "403": "missing",
    "404": "missing",
    "410": "missing",
}
OF_FILES = {
    "404": "missing",
    "410": "missing",
    "403": "missing",
    "500": "unreachable",
    "502": "unreachable",
    "503": "unreachable",
    "reset": "unreachable",
    "cut": "unreachable",
    "stall": "unreachable",
    "silent": "unreachable",
    "loop": "unreachable",
    "unsized": "unreachable",
    "(500)": "ok",
    "(cut)": "ok",
    "(reset)": "ok",
    "wrong": "hash_mismatch",
    "endless": "too_large",
    "long": "too_large",
}


@pytest.fixture
def site(tmp_path):
    with serving(Site(repositories=tmp_path / "origin")) as made:
        yield made


def repository(site, name, salt):
    """A repository with the files above; their rows."""
    large = b"solid of git-lfs\n"
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256(large)}\nsize {len(large)}\n".encode()
    files = {
        "a.obj": OBJ + salt,
        "look.mtl": b"newmtl m\n" + salt,
        "deep/b.stl": os.urandom(5000),
        "out.obj": b"mtllib ../../look.mtl\n" + salt,
        "large.stl": pointer,
        "changed.stl": b"solid new\n" + salt,
    }
    commit = Origin(site.repositories).commit(name, files)
    truth = {**files, "changed.stl": b"solid old\n", "absent.stl": b"", "large.stl": large}
    return {path: listed("github", blob_url(name, commit, path), sha256(truth[path])) for path in FILES}


def among(ills, sound):
    """These ills, with so many sound ones between the first."""
    pairs = itertools.zip_longest(ills, [""] * sound)
    return [ill for pair in pairs for ill in pair if ill is not None]


@pytest.mark.timeout(300)
def test_of_many_objects_most_fail_in_every_way_and_only_the_transient_are_asked_for_again(site, tmp_path, monkeypatch):
    configure(monkeypatch, f"{site.address}/")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    expected, healed, rows = {}, {}, []
    for index, ill in enumerate(among(OF_REPOSITORIES, 4)):
        for path, row in repository(site, f"o/r{index}", b"#%d" % index).items():
            rows.append(row)
            expected[row["identifier"]] = OF_REPOSITORIES.get(ill, FILES[path])
            healed[row["identifier"]] = FILES[path]
        if ill:
            site.ills[f"/o/r{index}.git"] = ill
    for index, ill in enumerate(among(OF_FILES, 6)):
        path, body = f"/{index}.glb", os.urandom(3000)
        site.files[path] = body
        rows.append(listed("Smithsonian", f"{site.address}{path}", sha256(body)))
        expected[rows[-1]["identifier"]] = OF_FILES.get(ill, "ok")
        healed[rows[-1]["identifier"]] = "ok"
        if ill:
            site.ills[path] = ill
    lost = blob_url("o/r1", "d" * 40, "a.obj")
    rows.append(listed("github", lost, "0" * 64))
    expected[lost] = "missing"
    assert len(rows) == 6 * (10 + 4) + (18 + 6) + 1

    settings = settings_of(tmp_path, compute={"workers": 2}, limits={"object_bytes": 1 << 20})
    write(settings, rows)
    program(tmp_path, settings)
    assert statuses(settings) == expected
    first = ledger(settings)
    assert all(row.reason for row in first.values() if row.status != "ok")
    assert stray(settings) == []

    site.heal()
    site.requests.clear()
    alone = settings_of(tmp_path, limits={"object_bytes": 1 << 20})
    assert fetch(alone).count("computed") > 0
    transient = {identifier for identifier, status in expected.items() if status == "unreachable"}
    assert statuses(settings) == {
        identifier: healed[identifier] if identifier in transient else status for identifier, status in expected.items()
    }
    asked = {path.partition(".git/")[0] for path in site.asked()}
    assert asked == {
        identifier.removeprefix(site.address).removeprefix("https://github.com").partition("/blob/")[0]
        for identifier in transient
    }
    again = ledger(settings)
    assert all(again[identifier] == first[identifier] for identifier in expected.keys() - transient)
    assert stray(settings) == []

    site.requests.clear()
    assert fetch(alone).count("computed") == 0
    assert site.requests == []
    said = (tmp_path / "log").read_bytes() + repr(again).encode()
    assert b"largest" in said  # the skew of the groups
    assert b"kB/s" in said  # the bar
    for content in [said, *(path.read_bytes() for path in settings.store.rglob("*") if path.is_file())]:
        assert TOKEN.encode() not in content
    assert {path: sha256(body) for row in contents(settings).values() for path, body in row["files"].items()}


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("workers", "requests"),
    [
        pytest.param(0, 2, marks=pytest.mark.slow),
        (0, 11),
        pytest.param(0, 30, marks=pytest.mark.slow),
        pytest.param(2, 25, marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_in_mid_download_leaves_nothing_torn_and_the_next_one_completes(
    site, tmp_path, monkeypatch, workers, requests
):
    configure(monkeypatch, f"{site.address}/")
    site.work_s = 0.05
    rows = [row for index in range(4) for row in repository(site, f"o/r{index}", b"#%d" % index).values()]
    for index in range(16):
        site.files[f"/{index}.glb"] = os.urandom(300_000)
        rows.append(listed("smithsonian", f"{site.address}/{index}.glb", sha256(site.files[f"/{index}.glb"])))
    compute = {"workers": workers, "flush_rows": 1}
    settings = settings_of(tmp_path, compute=compute)
    write(settings, rows)
    process = start(tmp_path, settings)
    wait_for(lambda: len(site.requests) >= requests or process.poll() is not None, 60, "requests")
    process.send_signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    scratch = str(tmp_path / "scratch")
    try:
        wait_for(lambda: not alive(mentioning(scratch)), 30, "nothing of the run is left")
    finally:
        end(mentioning(scratch))
    done = {identifier for identifier, row in ledger(settings).items() if row.status == "ok"}
    assert all(row["files"] for row in contents(settings).values())  # what is committed is whole

    site.requests.clear()
    fetch(settings_of(tmp_path, compute={**compute, "workers": 0}))
    found = statuses(settings)
    assert [found[row["identifier"]] for row in rows[:24]] == list(FILES.values()) * 4
    assert {found[row["identifier"]] for row in rows[24:]} == {"ok"}
    assert stray(settings) == []
    assert not {f"{site.address}{path}" for path in site.asked()} & done


@pytest.mark.timeout(60)
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_git_ends_as_a_whole_with_the_process_that_started_it(site, tmp_path, monkeypatch, workers):
    configure(monkeypatch, f"{site.address}/")
    rows = list(repository(site, "o/r", b"#").values())
    site.ills["/o/r.git"] = "silent"
    settings = settings_of(tmp_path, {"stall_s": 600.0, "repository_s": 600.0}, compute={"workers": workers})
    write(settings, rows)
    driver = start(tmp_path, settings)
    scratch = str(tmp_path / "scratch")
    try:
        wait_for(lambda: site.requests, 40, "git asks")
        group = [found for found in mentioning(scratch) if os.getpgid(found.pid) != os.getpgid(driver.pid)]
        (asking,) = [found for found in group if "remote-http" in found.name()]
        leader = psutil.Process(os.getpgid(asking.pid))
        gits = [found for found in group if os.getpgid(found.pid) == leader.pid]
        assert len(gits) >= 4  # the shell, its guard, git, and what asks
        leader.parent().kill()
        if not workers:
            driver.wait(10)
        wait_for(lambda: not alive(gits), 10, "git is gone")
    finally:
        driver.kill()
        driver.wait(10)
        end(mentioning(scratch))


def test_a_password_in_a_users_address_of_a_mirror_stays_out_of_rows_and_logs(site, tmp_path, monkeypatch, caplog):
    caplog.set_level("DEBUG")
    configure(monkeypatch, site.address.replace("//", "//user:secret@") + "/")
    rows = [row for ill in ("500", "404", "403", "") for row in repository(site, f"o/r{ill}", ill.encode()).values()]
    site.ills = {f"/o/r{ill}.git": ill for ill in ("500", "404", "403")}
    settings = settings_of(tmp_path)
    write(settings, rows)
    fetch(settings)
    assert [statuses(settings)[rows[index]["identifier"]] for index in (0, 6, 12, 18)] == [
        *("unreachable", "missing", "missing", "ok")
    ]
    assert "secret" not in caplog.text
    assert not any("secret" in row.reason for row in ledger(settings).values())
    assert discreet("https://u:p@h/a?X-Sig=1 and 'http://h/b?k=v' why?") == "https://h/a and 'http://h/b' why?"
