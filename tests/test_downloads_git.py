"""Downloads from git repositories: the named commit, the needed files, their true bytes; every failure a true row."""

import csv
import os
from pathlib import Path

import pytest
from hostile_server import Site, serving
from networked import blob_url, contents, fetch, ledger, listed, settings_of, sha256, statuses, stray, write_catalog
from repositories import Origin, configure, fetches, git
from shared_data import DATA, needs_data

from gap3d.network import lfs

OBJ = b"mtllib %s\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"


@pytest.fixture
def origin(tmp_path, monkeypatch):
    """Repositories that git finds where it looks for github.com, and its trace."""
    made = Origin(tmp_path / "origin")
    monkeypatch.setenv("GIT_TRACE", str(tmp_path / "trace"))
    configure(monkeypatch, f"file://{made.folder}/")
    return made


def rows_of(name, commit, files, mains):
    return [listed("github", blob_url(name, commit, path), sha256(files[path])) for path in mains]


def fetched(tmp_path, rows, **values):
    settings = settings_of(tmp_path, **values)
    write_catalog(settings, rows)
    fetch(settings)
    return settings


@needs_data
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_file_of_the_real_repositories_has_the_bytes_of_a_checkout_of_its_commit(tmp_path, monkeypatch):
    with (DATA / "repos.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    configure(monkeypatch, f"file://{DATA / 'repos'}/")
    rows = [listed("github", row["file_identifier"], row["sha256"], row["file_type"]) for row in table]
    settings = fetched(tmp_path, rows, network={"stall_s": 30.0, "repository_s": 300.0})
    pointers = {row["file_identifier"] for row in table if row["notes"]}
    expected = {row["file_identifier"]: "lfs_pointer" if row["notes"] else "ok" for row in table}
    assert len(pointers) == 87
    assert {row["is_head"] for row in table} == {"True", "False"}
    assert statuses(settings) == expected
    made = contents(settings)
    for row in table:
        if row["file_identifier"] not in pointers:
            assert sha256(made[row["file_identifier"]]["files"][row["path"]]) == row["sha256"]
    assert any(len(row["files"]) > 1 for row in made.values())
    assert stray(settings) == []


def test_an_object_has_its_companions_and_nothing_else_of_the_repository(tmp_path, origin):
    files = {
        "a/odd %20 (1).obj": OBJ % b"look.mtl",
        "a/look.mtl": b"newmtl m\nmap_Kd maps/c.<UDIM>.png\nmap_Ks ../shared/s.png\n",
        "a/maps/c.1001.png": b"first tile",
        "a/maps/c.1002.png": b"second tile",
        "shared/s.png": b"shared",
        "b/two.obj": OBJ % b"../a/look.mtl",
        "large.bin": os.urandom(1 << 20),
    }
    commit = origin.commit("o/r", files)
    rows = rows_of("o/r", commit, files, ["a/odd %20 (1).obj", "b/two.obj"])
    settings = fetched(tmp_path, rows)
    one, two = (contents(settings)[row["identifier"]] for row in rows)
    assert one["files"] == {path: files[path] for path in files if path not in ("b/two.obj", "large.bin")}
    assert next(iter(one["files"])) == one["main"] == "a/odd %20 (1).obj"
    assert set(two["files"]) == {*one["files"], "b/two.obj"} - {one["main"]}
    # One fetch of the commit, then one for each round: main files, materials, textures.
    said = fetches(tmp_path / "trace")
    assert len(said) == 4
    assert sum("--depth=1" in words for words in said) == 1
    git_blob = git(origin.path("o/r"), "rev-parse", f"{commit}:large.bin")
    assert git_blob not in (tmp_path / "trace").read_text()
    assert stray(settings) == []


def test_what_a_reference_means_does_not_depend_on_what_else_was_fetched(tmp_path, origin):
    files = {
        "one.obj": OBJ % b"one.mtl",
        "one.mtl": b"newmtl m\nmap_Kd deep/c.png\n",
        "two.obj": OBJ % b"two.mtl",
        "two.mtl": b"newmtl m\nmap_Kd c.png\n",
        "c.png": b"beside",
        "deep/c.png": b"deep",
    }
    commit = origin.commit("o/r", files)
    rows = rows_of("o/r", commit, files, ["two.obj", "one.obj"])
    made = contents(fetched(tmp_path, rows))
    assert set(made[rows[1]["identifier"]]["files"]) == {"one.obj", "one.mtl", "deep/c.png"}


def test_bytes_are_those_of_a_checkout_whatever_the_user_has_configured(tmp_path, origin, monkeypatch):
    text = OBJ % b"a.mtl"
    files = {
        ".gitattributes": b"*.obj text eol=crlf\n",
        "plain/.gitattributes": b"*.obj text eol=lf\n",
        "a.obj": text,
        "plain/a.obj": text,
        "as is.stl": b"solid\n",
    }
    commit = origin.commit("o/r", files)
    elsewhere = tmp_path / "attributes"
    elsewhere.write_text("* text eol=crlf\n")
    more = {"core.autocrlf": "true", "core.attributesFile": str(elsewhere)}
    configure(monkeypatch, f"file://{origin.folder}/", **more)
    checked_out = {**files, "a.obj": text.replace(b"\n", b"\r\n")}
    rows = rows_of("o/r", commit, checked_out, ["a.obj", "plain/a.obj", "as is.stl"])
    assert set(statuses(fetched(tmp_path, rows)).values()) == {"ok"}


def test_nothing_of_a_repository_runs_and_no_link_or_reference_leads_out(tmp_path, origin, monkeypatch):
    (tmp_path / "secret.mtl").write_text("newmtl secret\n")
    ran = tmp_path / "ran"
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for name in ("post-checkout", "reference-transaction", "post-index-change"):
        (hooks / name).write_text(f"#!/bin/sh\necho hook >> {ran}\n")
        (hooks / name).chmod(0o755)
    program = f"echo filter >> {ran}; cat"
    more = {
        "core.hooksPath": str(hooks),
        "core.askPass": f"echo asked >> {ran}",
        "filter.strange.smudge": program,
        "filter.lfs.smudge": program,
        "filter.lfs.required": "true",
        "protocol.ext.allow": "always",
        "submodule.recurse": "true",
    }
    configure(monkeypatch, f"file://{origin.folder}/", **more)
    files = {
        ".gitattributes": b"*.stl filter=strange\n*.obj filter=lfs\n",
        ".gitmodules": f'[submodule "m"]\n\tpath = m\n\turl = ext::sh -c "echo module >> {ran}"\n'.encode(),
        "good.stl": b"solid\n",
        "out.obj": OBJ % b"link.mtl",
        "link.mtl": str(tmp_path / "secret.mtl"),
        "up.obj": OBJ % b"../git/config",
        "linked.obj": "models/real.obj",
        "models/real.obj": OBJ % b"real.mtl",
        "folder": "models",
        "through.obj": OBJ % b"folder/real.mtl",
        "models/real.mtl": b"newmtl real\n",
        "main.obj": "/etc/passwd",
        "loop.obj": "loop.obj",
    }
    commit = origin.commit("o/r", files, modules=("m",))
    truth = {**files, "linked.obj": files["models/real.obj"], "main.obj": b"", "loop.obj": b"", "m/in.stl": b""}
    mains = ["good.stl", "out.obj", "up.obj", "linked.obj", "through.obj", "main.obj", "loop.obj", "m/in.stl"]
    settings = fetched(tmp_path, rows_of("o/r", commit, truth, mains))
    found = {identifier.rpartition(commit)[2][1:]: status for identifier, status in statuses(settings).items()}
    assert found == {
        "good.stl": "ok",
        "out.obj": "forbidden_reference",
        "up.obj": "forbidden_reference",
        "linked.obj": "ok",
        "through.obj": "ok",
        "main.obj": "forbidden_reference",
        "loop.obj": "missing",
        "m/in.stl": "missing",
    }
    made = {row["main"]: row["files"] for row in contents(settings).values()}
    assert made["through.obj"]["folder/real.mtl"] == b"newmtl real\n"
    assert set(made["linked.obj"]) >= {"linked.obj"}
    assert not ran.exists()


def test_a_name_that_no_checkout_has_costs_its_own_row_and_never_leads_out_of_the_folder_it_is_laid_out_in(
    tmp_path, origin
):
    files = {"a.stl": b"solid a\n", "l": "d/d/d/d", "d/d/d/d/b.stl": b"solid b\n", f"{'n' * 300}.stl": b"solid n\n"}
    commit = origin.commit("o/r", files)
    paths = ["l/../../../../a.stl", "d/../a.stl", "./a.stl", "d//a.stl", "a.stl\0", "a" * 100_000, f"{'n' * 300}.stl"]
    rows = [listed("github", blob_url("o/r", commit, path), sha256(files["a.stl"]), "stl") for path in paths]
    good = rows_of("o/r", commit, {**files, "l/b.stl": b"solid b\n"}, ["a.stl", "l/b.stl"])
    settings = fetched(tmp_path, [*rows, *good])
    assert [statuses(settings)[row["identifier"]] for row in rows] == ["missing"] * len(rows)
    assert [statuses(settings)[row["identifier"]] for row in good] == ["ok", "ok"]


def test_tiles_of_a_texture_are_files_of_the_repository_and_nothing_else(tmp_path, origin):
    (tmp_path / "1001.png").write_bytes(b"secret")
    materials = {
        "out": b"newmtl m\nmap_Kd out.<UDIM>.png\n",
        "through": b"newmtl m\nmap_Kd home/<UDIM>.png\n",
        "odd": b"newmtl m\nmap_Kd odd.<UDIM>.png\nmap_Ks %s/<UDIM>.png\n" % (b"n" * 300),
    }
    files = {f"{name}.obj": OBJ % f"{name}.mtl".encode() for name in materials}
    files |= {f"{name}.mtl": content for name, content in materials.items()}
    files |= {
        "out.1001.png": str(tmp_path / "1001.png"),
        "home": str(tmp_path),
        "odd.1001.png": "nowhere",
        "odd.1002.png/in": b"a folder",
        "odd.1003.png": b"a tile",
    }
    commit = origin.commit("o/r", files)
    rows = rows_of("o/r", commit, files, [f"{name}.obj" for name in materials])
    settings = fetched(tmp_path, rows)
    assert [statuses(settings)[row["identifier"]] for row in rows] == [*["forbidden_reference"] * 2, "ok"]
    assert set(contents(settings)[rows[2]["identifier"]]["files"]) == {"odd.obj", "odd.mtl", "odd.1003.png"}
    assert not any(b"secret" in path.read_bytes() for path in settings.store.rglob("*") if path.is_file())


def test_absent_paths_other_bytes_and_lost_commits_are_rows_and_never_another_commit(tmp_path, origin):
    old = {"a.stl": b"solid old\n", "gone.stl": b"solid gone\n"}
    first = origin.commit("o/r", old)
    new = {"a.stl": b"solid new\n"}
    second = origin.commit("o/r", new)
    rows = [
        *rows_of("o/r", first, old, ["a.stl", "gone.stl"]),
        *rows_of("o/r", second, old, ["gone.stl"]),
        listed("github", blob_url("o/r", "f" * 40, "a.stl"), sha256(new["a.stl"])),
        listed("github", blob_url("o/none", second, "a.stl"), sha256(new["a.stl"])),
        listed("GitHub", "https://github.com/o/r/tree/main/a.stl/../../..", "0" * 64, "stl"),
    ]
    rows.append({**listed("github", blob_url("o/r", second, "a.stl"), sha256(old["a.stl"]))})
    settings = fetched(tmp_path, rows)
    expected = ["ok", "ok", *["missing"] * 4, "hash_mismatch"]
    assert [statuses(settings)[row["identifier"]] for row in rows] == expected
    reasons = {identifier: row.reason for identifier, row in ledger(settings).items()}
    assert "commit is gone" in reasons[rows[3]["identifier"]]
    assert "repository" in reasons[rows[4]["identifier"]]
    assert stray(settings) == []
    before = (tmp_path / "trace").read_text()
    assert fetch(settings).count("computed") == 0
    assert (tmp_path / "trace").read_text() == before


@pytest.mark.parametrize("filters", ["true", "false"])
def test_a_server_that_gives_branches_only_is_asked_for_those(tmp_path, origin, monkeypatch, filters):
    old = {"a.stl": b"solid old\n"}
    first = origin.commit("o/r", old)
    origin.commit("o/r", {"a.stl": b"solid new\n"})
    git(origin.path("o/r"), "config", "uploadpack.allowAnySHA1InWant", "false")
    git(origin.path("o/r"), "config", "uploadpack.allowFilter", filters)
    configure(monkeypatch, f"file://{origin.folder}/", **{"protocol.version": "0"})
    lost = listed("github", blob_url("o/r", "e" * 40, "a.stl"), sha256(old["a.stl"]))
    rows = [*rows_of("o/r", first, old, ["a.stl"]), lost]
    assert list(statuses(fetched(tmp_path, rows)).values()).count("ok") == 1
    assert statuses(settings_of(tmp_path))[lost["identifier"]] == "missing"


def test_a_server_that_has_the_files_of_a_repository_and_no_git_is_asked_too(tmp_path, origin, monkeypatch):
    files = {"a.obj": OBJ % b"a.mtl", "a.mtl": b"newmtl a\n"}
    commit = origin.commit("o/r", files)
    origin.commit("o/r", {"a.obj": b"v 0 0 0\n"})
    git(origin.path("o/r"), "update-server-info")
    bare = origin.path("o/r")
    site = Site({f"/o/r.git/{path.relative_to(bare)}": path.read_bytes() for path in bare.rglob("*") if path.is_file()})
    with serving(site):
        configure(monkeypatch, f"{site.address}/")
        settings = fetched(tmp_path, rows_of("o/r", commit, files, ["a.obj"]))
    assert [row["files"] for row in contents(settings).values()] == [files]


def test_hosts_that_do_not_exist_or_refuse_are_unreachable(tmp_path, origin, monkeypatch):
    gone = {"http://refusing.test/": "http://127.0.0.1:1/", "http://unknown.test/": "http://nowhere.invalid/"}
    for address in gone.values():
        configure(monkeypatch, address)
        rows = [listed("smithsonian", f"{start}{number}.glb", "0" * 64) for number, start in enumerate(gone)]
        rows.append(listed("github", blob_url("o/r", "a" * 40, "a.stl"), "0" * 64))
        settings = fetched(tmp_path, rows, network={"instead_of": gone, "retries": 0})
        assert set(statuses(settings).values()) == {"unreachable"}


def test_ssh_is_the_users_and_asks_nobody(tmp_path, origin, monkeypatch):
    said = tmp_path / "said"
    ssh = tmp_path / "ssh"
    ssh.write_text(
        f'#!/bin/sh\necho "$@" > {said}\ntest -t 0 && echo terminal >> {said}\n'
        'echo "a@b: Permission denied (publickey)." >&2\nexit 255\n'
    )
    ssh.chmod(0o755)
    rows = [listed("github", blob_url("o/r", "a" * 40, "a.stl"), "0" * 64)]
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for number, more in enumerate([{}, {"core.sshCommand": f"{ssh} -mine"}]):
        configure(monkeypatch, "ssh://git@host.test/", **more)
        settings = fetched(tmp_path / str(number), rows)
        assert list(statuses(settings).values()) == ["missing"]
        assert ("-mine" if more else "BatchMode=yes") in said.read_text()
        assert "terminal" not in said.read_text()


def test_a_repository_that_takes_too_much_room_is_tried_again_when_the_limit_is_raised(tmp_path, origin):
    files = {"a.stl": os.urandom(3 << 20), "b.stl": b"solid\n"}
    rows = rows_of("o/r", origin.commit("o/r", files), files, ["a.stl", "b.stl"])
    settings = fetched(tmp_path, rows, limits={"repository_bytes": 2 << 20})
    assert set(statuses(settings).values()) == {"too_large"}
    assert fetch(settings).count("computed") == 0
    assert stray(settings) == []
    raised = settings_of(tmp_path, limits={"repository_bytes": 200 << 20, "object_bytes": 1 << 20})
    fetch(raised)
    assert sorted(statuses(raised).values()) == ["ok", "too_large"]


def test_a_tree_that_lists_more_files_than_memory_can_hold_is_too_large(tmp_path, origin, monkeypatch):
    good = origin.commit("o/r", {"a.stl": b"solid a\n"})
    bare = origin.path("o/r")
    tree = git(bare, "rev-parse", f"{good}^{{tree}}")
    for _ in range(9):
        tree = git(bare, "mktree", given="".join(f"040000 tree {tree}\t{name}\n" for name in "abcdefghij").encode())
    bomb = git(bare, "commit-tree", "-m", "a milliard of files", tree)
    git(bare, "update-ref", "refs/heads/bomb", bomb)
    monkeypatch.setattr("gap3d.network.git.PRINTED_BYTES", 1 << 20)
    rows = [listed("github", blob_url("o/r", commit, "a.stl"), sha256(b"solid a\n")) for commit in (good, bomb)]
    settings = fetched(tmp_path, rows)
    assert [statuses(settings)[row["identifier"]] for row in rows] == ["ok", "too_large"]
    assert "lists more files" in ledger(settings)[rows[1]["identifier"]].reason


def test_a_git_that_is_not_there_ends_the_run_and_writes_no_row(tmp_path, origin, monkeypatch):
    from gap3d.records import SystemicFault

    files = {"a.stl": b"solid\n"}
    rows = rows_of("o/r", origin.commit("o/r", files), files, ["a.stl"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemicFault, match="git is not installed"):
        fetched(tmp_path, rows)
    assert ledger(settings_of(tmp_path)) == {}


def pointer(content):
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256(content)}\nsize {len(content)}\n".encode()


@pytest.fixture
def large(origin):
    """A repository with git-lfs objects: those of ``kept`` are there, the others are lost."""
    kept = {"main.stl": b"solid large\n", "tex.png": b"texture", "huge.stl": b"huge" * 1000}
    lost = {"lost.stl": b"solid lost\n", "lost.png": b"lost texture"}
    plain = {
        "textured.obj": OBJ % b"textured.mtl",
        "textured.mtl": b"newmtl m\nmap_Kd tex.png\nmap_Ks lost.png\n",
    }
    files = plain | {name: pointer(content) for name, content in {**kept, **lost}.items()}
    commit = origin.commit("o/r", {".gitattributes": b"*.stl filter=lfs\n*.png filter=lfs\n", **files})
    for content in kept.values():
        place = origin.path("o/r") / "lfs" / "objects" / sha256(content)[:2] / sha256(content)[2:4] / sha256(content)
        place.parent.mkdir(parents=True)
        place.write_bytes(content)
    truth = {**plain, **kept, **lost}
    return {
        path: listed("github", blob_url("o/r", commit, path), sha256(truth[path]))
        for path in truth
        if path[-3:] != "png"
    }


@pytest.mark.skipif(lfs.state() == "absent", reason="git-lfs is not installed")
def test_git_lfs_brings_what_pointers_stand_for_and_a_lost_one_is_a_row(tmp_path, large):
    rows = [large[name] for name in ("main.stl", "lost.stl", "huge.stl", "textured.obj")]
    settings = fetched(tmp_path, rows, limits={"object_bytes": 1000})
    assert [statuses(settings)[row["identifier"]] for row in rows] == ["ok", "lfs_pointer", "too_large", "ok"]
    made = contents(settings)[large["textured.obj"]["identifier"]]
    assert made["files"]["tex.png"] == b"texture"
    assert made["missing"] == ["lost.png"]
    assert fetch(settings).count("computed") == 0


def test_without_git_lfs_a_pointer_is_a_row_that_is_tried_again_once_it_is_there(tmp_path, large, monkeypatch):
    without = tmp_path / "programs"
    without.mkdir()
    for folder in os.environ["PATH"].split(os.pathsep):
        for program in Path(folder).glob("*"):
            if program.name != "git-lfs" and not (without / program.name).exists():
                (without / program.name).symlink_to(program)
    rows = [large["main.stl"], large["textured.obj"]]
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(without))
        settings = fetched(tmp_path, rows)
        assert [statuses(settings)[row["identifier"]] for row in rows] == ["lfs_pointer", "ok"]
        assert contents(settings)[rows[1]["identifier"]]["missing"] == ["lost.png", "tex.png"]
        assert "install git-lfs" in ledger(settings)[rows[0]["identifier"]].reason
        assert fetch(settings).count("computed") == 0
    if lfs.state() == "installed":
        fetch(settings)
        assert statuses(settings)[rows[0]["identifier"]] == "ok"
