"""Raw files at an fsspec URL: a served folder, and object storage that speaks S3 on loopback."""

import hashlib
import os

import pytest
from folders import counters, digests, run_line, small, write_objects

from gap3d import gc
from gap3d.blobs import OtherBytes
from gap3d.records import SystemicFault
from gap3d.remote import blobs_at
from pipelines import downloads
from pipelines.command import open_store


@pytest.fixture(scope="module")
def s3():
    """A server of S3 with an empty bucket."""
    server = pytest.importorskip("moto.server", reason="moto is not installed: pip install -e '.[dev]'")
    thread = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    thread.start()
    yield thread
    thread.stop()


@pytest.fixture(params=["file", "s3"])
def url(request, tmp_path, monkeypatch):
    """An empty place for raw files."""
    if request.param == "file":
        return f"file://{tmp_path}/served/blobs"
    import boto3

    _, port = request.getfixturevalue("s3").get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "a secret that stands nowhere",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = f"b{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:20]}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/raw/blobs"


def made(tmp_path, content=b"some bytes"):
    path = tmp_path / hashlib.sha256(content).hexdigest()[:8]
    path.write_bytes(content)
    return path


def test_what_is_put_in_comes_out_and_is_listed_once(url, tmp_path):
    blobs = blobs_at(url)
    content = os.urandom(300_000)
    for _ in range(2):
        sha256, size = blobs.add(made(tmp_path, content))
    assert (sha256, size) == (hashlib.sha256(content).hexdigest(), len(content))
    blobs.add(made(tmp_path, b""))
    blobs.unpack({"a/b.obj": sha256}, tmp_path / "tree")
    assert (tmp_path / "tree" / "a" / "b.obj").read_bytes() == content
    found = {entry.name: entry.bytes for entry in blobs_at(url).entries()}
    assert found == {sha256: len(content), hashlib.sha256(b"").hexdigest(): 0}
    assert blobs_at(url).holds(sha256) and not blobs_at(url).holds("0" * 64)


def test_other_bytes_than_expected_are_not_taken_in(url, tmp_path):
    blobs = blobs_at(url)
    with pytest.raises(OtherBytes):
        blobs.add(made(tmp_path), "0" * 64)
    assert list(blobs.entries()) == []


def test_bytes_that_were_damaged_there_are_removed_and_said_to_be_lost(url, tmp_path):
    blobs = blobs_at(url)
    sha256, _ = blobs.add(made(tmp_path))
    blobs.fs.pipe_file(blobs.remote(sha256), b"same bytes")
    with pytest.raises(FileNotFoundError, match="damaged, and removed"):
        blobs.unpack({"a.obj": sha256}, tmp_path / "tree")
    assert not blobs_at(url).holds(sha256)


def test_the_line_makes_the_same_of_raw_files_that_lie_elsewhere_and_gc_reaches_them(walked, url, tmp_path):
    here = small(walked[0] / "store", walked[0] / "objects")
    there = small(tmp_path / "there", walked[0] / "objects", blobs=url)
    assert counters(run_line(there))["downloads"] == 5
    assert digests(there) == digests(here)
    assert set(counters(run_line(there)).values()) == {0}
    assert not (tmp_path / "there" / "blobs").exists()
    store = open_store(there)
    names = {entry.name for entry in store.blobs.entries()}
    assert names == {entry.name for entry in open_store(here).blobs.entries()}
    lost = next(iter(names))
    store.blobs.remove(lost)
    assert counters(run_line(there))["downloads"] >= 1
    assert {entry.name for entry in open_store(there).blobs.entries()} == names
    stray, _ = store.blobs.add(made(tmp_path, b"of no object"))
    assert [removal.place for removal in gc.collect(store, 0, 0, dry_run=False) if stray in removal.place]
    assert {entry.name for entry in store.blobs.entries()} == names
    written = [path for path in (tmp_path / "there").rglob("*") if path.is_file()]
    assert not [path for path in written if b"a secret that stands nowhere" in path.read_bytes()]


def test_a_place_that_does_not_answer_is_a_fault_of_the_machine_and_no_rows(tmp_path, monkeypatch):
    pytest.importorskip("s3fs")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    from pipelines import catalog

    write_objects(tmp_path / "objects")
    settings = small(tmp_path / "store", tmp_path / "objects", blobs="s3://nowhere/blobs")
    catalog.run(settings)
    store = open_store(settings)
    with pytest.raises((SystemicFault, OSError)):
        downloads.run(settings, store.shards)
    assert not [row for shard in store.shards for row in store.manifest("downloads", shard).rows]


def test_a_file_system_that_is_not_installed_is_a_sentence():
    with pytest.raises(ValueError, match=r"gcs://\.\.\. needs another package"):
        blobs_at("gcs://bucket/blobs")
