"""Catalogs of objects that lie elsewhere, and what downloads made of them."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from gap3d.catalog import object_id_of
from gap3d.fingerprints import shard_of
from gap3d.records import Outcome
from gap3d.schemas import CATALOG
from pipelines import downloads
from pipelines.command import load_settings, open_store

GITHUB = "https://github.com/"
FAST = {"retries": 1, "pause_s": 0.1, "stall_s": 1.0, "object_s": 5.0, "repository_s": 20.0, "requests_per_s": 1000.0}


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def blob_url(repository, commit, path):
    """An identifier as Objaverse-XL writes it."""
    return f"{GITHUB}{repository}/blob/{commit}/{path}"


def listed(source, identifier, digest, file_type=None):
    """A row of a table of objects."""
    group = object_id_of(source, identifier)
    if source.lower() == "github":
        organisation, name, _, commit = identifier.removeprefix(GITHUB).split("/")[:4]
        group = f"github.com/{organisation}/{name}@{commit}"
    return {
        "source": source,
        "identifier": identifier,
        "sha256": digest,
        "version": digest,
        "file_type": file_type or identifier.rpartition(".")[2].lower(),
        "fetch_group": group,
    }


def settings_of(root, network=None, **values):
    """Settings for a store in a folder; without Ray unless asked for."""
    base = {
        "store": root / "store",
        "collection": "net",
        "source": {"kind": "tables", "tables": [root / "table.csv"]},
        "catalog": {"shards": 2},
        "compute": {"workers": 0},
        "network": {**FAST, **(network or {})},
    }
    return load_settings("demo", **{**base, **values})


def write_catalog(settings, rows):
    """Commit a catalog of these rows."""
    store, rows = open_store(settings), list(rows)
    for shard in store.shards:
        mine = [row for row in rows if shard_of(row["fetch_group"], len(store.shards)) == shard]
        with store.writer("catalog", shard, CATALOG, settings.compute, settings.limits) as writer:
            keys = set()
            for row in mine:
                key = object_id_of(row["source"], row["identifier"])
                keys.add(key)
                data = {"captions": [], "split": "train", "rank": 0, "licence": "", "cluster": key, "stamp": "", **row}
                writer.add(Outcome(stage="catalog", key=key, data=data), {"row": row["sha256"]})
            writer.finish(keys)


def fetch(settings):
    """Bring the downloads up to date; the report."""
    return downloads.run(settings, open_store(settings).shards)


def ledger(settings):
    """The manifests' rows by identifier."""
    store, found = open_store(settings), {}
    for shard in store.shards:
        names = store.read(store.manifest("catalog", shard), ["identifier"])
        held = store.manifest("downloads", shard)
        assert store.verify(held) == []
        found |= {names[key]["identifier"]: row for key, row in held.rows.items()}
    return found


def statuses(settings):
    """Status by identifier."""
    return {identifier: row.status.value for identifier, row in ledger(settings).items()}


def contents(settings):
    """Of every ok row the columns, with the files as {path: bytes} read from the store."""
    store, found = open_store(settings), {}
    for shard in store.shards:
        names = store.read(store.manifest("catalog", shard), ["identifier"])
        for key, row in store.read(store.manifest("downloads", shard)).items():
            files = {file["path"]: store.blobs.path(file["sha256"]).read_bytes() for file in row["files"]}
            assert {path: sha256(content) for path, content in files.items()} == {
                file["path"]: file["sha256"] for file in row["files"]
            }
            found[names[key]["identifier"]] = {**row, "files": files}
    return found


def stray(settings):
    """Files that a finished run should not leave: temporary ones, and blobs that no row lists."""
    store = open_store(settings)
    used = {sha256(content) for row in contents(settings).values() for content in row["files"].values()}
    left = [*(store.root / ".fetching").iterdir(), *store.root.rglob("*.tmp")]
    return [*left, *(path for path in store.blobs.all() if path.name not in used)]


def program(root, settings, check=True, **environment):
    """Run ``python -m pipelines.downloads`` with these settings; its output lies in ``log``."""
    process = start(root, settings, **environment)
    code = process.wait(300)
    assert not check or code == 0, (root / "log").read_text()[-4000:]
    return code


def start(root, settings, **environment):
    """Begin it."""
    (root / "resolved.json").write_text(settings.model_dump_json())
    (root / "scratch").mkdir(exist_ok=True)
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GAP3D_")}
    with (root / "log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines.downloads", "--verbose", "--preset", str(root / "resolved.json")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=Path(__file__).parents[1],
            env={**variables, "TMPDIR": str(root / "scratch"), "RAY_TMPDIR": "/tmp", **environment},
        )
