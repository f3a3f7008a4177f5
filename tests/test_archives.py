"""An archive from a stranger gives its good files, and nothing outside its folder or beyond its bounds."""

import logging
import os
import signal
import stat
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib

import pytest
from archive_files import (
    GOOD,
    content,
    everything,
    good_entries,
    left_out,
    lying_zip,
    refusals,
    tar_entry,
    write_tar,
    write_zip,
)

from gap3d import archives
from gap3d.archives import unpacked
from gap3d.settings import Limits

LIMITS = Limits(archive_bytes=10**9)


COMPRESSIONS = {"gz": "w:gz", "bz2": "w:bz2", "xz": "w:xz", "ar": "w:"}


@pytest.mark.parametrize("suffix", archives.SUFFIXES)
def test_every_kind_of_archive_gives_the_files_that_went_in(tmp_path, suffix):
    path = tmp_path / f"toys{suffix}"
    if suffix == ".zip":
        write_zip(path, GOOD.items())
    else:
        write_tar(path, good_entries(), next(mode for end, mode in COMPRESSIONS.items() if suffix.endswith(end)))
    folder = unpacked(path, tmp_path / "store", LIMITS)
    assert content(folder) == GOOD
    assert refusals(folder) == []


def test_the_only_folder_of_an_archive_stands_for_it(tmp_path):
    path = write_zip(tmp_path / "toys.zip", [(f"toys4k/{name}", data) for name, data in GOOD.items()])
    assert content(unpacked(path, tmp_path / "store", LIMITS)) == GOOD


def test_an_archive_is_unpacked_once_wherever_it_lies(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "toys.zip", GOOD.items())
    folder = unpacked(path, tmp_path / "store", LIMITS)
    before = {p: p.stat().st_ino for p in folder.rglob("*")}
    copy = tmp_path / "elsewhere.zip"
    copy.write_bytes(path.read_bytes())
    assert unpacked(copy, tmp_path / "store", LIMITS) == folder
    monkeypatch.setattr(archives, "sha256_of", lambda _: pytest.fail("an unchanged archive is not read again"))
    assert unpacked(path, tmp_path / "store", LIMITS) == folder
    assert {p: p.stat().st_ino for p in folder.rglob("*")} == before


def test_a_changed_archive_is_unpacked_beside_the_old_one(tmp_path):
    path = write_zip(tmp_path / "toys.zip", GOOD.items())
    old = unpacked(path, tmp_path / "store", LIMITS)
    write_zip(path, [("new.obj", b"v 1 1 1\n" * 9)])
    assert content(unpacked(path, tmp_path / "store", LIMITS)) == {"new.obj": b"v 1 1 1\n" * 9}
    assert content(old) == GOOD


EVIL_NAMES = [
    "/etc/passwd",
    "../out.obj",
    "a/../../out.obj",
    "C:/out.obj",
    "C:out.obj",
    "//host/out.obj",
    "..",
    "x" * 300,
]


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
def test_names_that_lead_out_are_refused_and_cost_nothing_else(tmp_path, kind):
    evil = [*EVIL_NAMES, "..\\out.obj", "\\out.obj", "a\\..\\..\\out.obj"]
    path = tmp_path / "in" / f"evil.{kind}"
    path.parent.mkdir()
    if kind == "zip":
        write_zip(path, [*((name, b"evil") for name in evil), *GOOD.items()])
    else:
        write_tar(
            path, [*(tar_entry(name, b"evil") for name in evil), *good_entries()], "w:gz" if kind == "tgz" else "w"
        )
    folder = unpacked(path, tmp_path / "store", LIMITS)
    assert content(folder) == GOOD
    assert len(refusals(folder)) == len(evil)
    assert {p for p in everything(tmp_path) if p.endswith("out.obj")} == set()


def test_links_that_lead_out_are_refused_and_what_goes_through_them_stays_inside(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    entries = [
        tar_entry("up", kind=tarfile.SYMTYPE, link=str(outside)),
        tar_entry("up/written.obj", b"through the link"),
        tar_entry("near", kind=tarfile.SYMTYPE, link="../../../outside"),
        tar_entry("near/written.obj", b"through the other"),
        tar_entry("read.obj", kind=tarfile.SYMTYPE, link=str(outside / "secret")),
        tar_entry("hard.obj", kind=tarfile.LNKTYPE, link="../../../outside/secret"),
        tar_entry("absolute.obj", kind=tarfile.LNKTYPE, link=str(outside / "secret")),
        tar_entry("loop", kind=tarfile.SYMTYPE, link="pool"),
        tar_entry("pool", kind=tarfile.SYMTYPE, link="loop"),
        *good_entries(),
    ]
    folder = unpacked(write_tar(tmp_path / "evil.tar", entries), tmp_path / "store", LIMITS)
    inside = {"up/written.obj": b"through the link", "near/written.obj": b"through the other"}
    assert content(folder) == GOOD | inside
    assert set(left_out(folder)) == {"up", "near", "read.obj", "hard.obj", "absolute.obj", "loop", "pool"}
    assert {p.name: p.read_bytes() for p in outside.iterdir()} == {"secret": b"secret"}


def test_links_within_an_archive_become_copies(tmp_path):
    entries = [
        tar_entry("early.obj", kind=tarfile.SYMTYPE, link="chairs/a.obj"),
        *good_entries(),
        tar_entry("chairs/deep/sym.obj", kind=tarfile.SYMTYPE, link="../a.obj"),
        tar_entry("hard.obj", kind=tarfile.LNKTYPE, link="chairs/a.obj"),
        tar_entry("chain.obj", kind=tarfile.SYMTYPE, link="hard.obj"),
    ]
    copies = dict.fromkeys(["early.obj", "chairs/deep/sym.obj", "hard.obj", "chain.obj"], GOOD["chairs/a.obj"])
    folder = unpacked(write_tar(tmp_path / "linked.tgz", entries, "w:gz"), tmp_path / "store", LIMITS)
    assert content(folder) == GOOD | copies
    link = zipfile.ZipInfo("linked.obj")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    out = zipfile.ZipInfo("out.obj")
    out.external_attr = link.external_attr
    zipped = write_zip(tmp_path / "linked.zip", [(link, "chairs/a.obj"), (out, "/etc/hostname"), *GOOD.items()])
    folder = unpacked(zipped, tmp_path / "store", LIMITS)
    assert content(folder) == GOOD | {"linked.obj": GOOD["chairs/a.obj"]}
    assert set(left_out(folder)) == {"out.obj"}


def test_devices_and_pipes_are_refused(tmp_path):
    kinds = {"fifo": tarfile.FIFOTYPE, "null": tarfile.CHRTYPE, "disk": tarfile.BLKTYPE}
    entries = [*(tar_entry(name, kind=kind) for name, kind in kinds.items()), *good_entries()]
    folder = unpacked(write_tar(tmp_path / "evil.tar", entries), tmp_path / "store", LIMITS)
    assert content(folder) == GOOD
    assert set(left_out(folder)) == set(kinds)


def test_a_zip_that_explodes_is_refused_as_a_whole(tmp_path):
    bomb = write_zip(tmp_path / "bomb.zip", [("bomb.obj", bytes(80 * 1024**2))])
    with pytest.raises(ValueError, match="200 times its own size"):
        unpacked(bomb, tmp_path / "store", LIMITS)
    big = write_zip(tmp_path / "big.zip", [(f"{n}.bin", os.urandom(1000)) for n in range(20)])
    with pytest.raises(ValueError, match="archive_bytes = 15000"):
        unpacked(big, tmp_path / "store", Limits(archive_bytes=15_000))
    assert everything(tmp_path / "store") == {"unpacked"}
    assert len(content(unpacked(big, tmp_path / "store", LIMITS))) == 20  # a raised limit unpacks it


def test_a_zip_that_lies_about_a_size_gives_no_byte_more_than_it_claims(tmp_path):
    folder = unpacked(lying_zip(tmp_path / "lie.zip", 1000), tmp_path / "store", LIMITS)
    assert content(folder) == {"good.obj": b"v 0 0 0\n"}
    assert "damaged" in left_out(folder)["bomb.obj"]


def test_members_that_share_their_bytes_are_counted_each(tmp_path):
    path = write_zip(tmp_path / "overlap.zip", [("a.obj", bytes(30 * 1024**2))])
    raw = path.read_bytes()
    start = raw.rfind(b"PK\x05\x06")
    directory = raw[raw.rfind(b"PK\x01\x02") : start]
    entries = b"".join(directory.replace(b"a.obj", b"%c.obj" % (97 + n)) for n in range(5))
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 5, 5, len(entries), raw.rfind(b"PK\x01\x02"), 0)
    path.write_bytes(raw[: raw.rfind(b"PK\x01\x02")] + entries + end)
    with pytest.raises(ValueError, match="200 times its own size"):
        unpacked(path, tmp_path / "store", LIMITS)


def test_a_tar_that_explodes_is_refused_while_it_does(tmp_path):
    bomb = write_tar(tmp_path / "bomb.tgz", [tar_entry("bomb.obj", bytes(80 * 1024**2))], "w:gz")
    with pytest.raises(ValueError, match="200 times its own size"):
        unpacked(bomb, tmp_path / "store", LIMITS)
    sparse = tmp_path / "holes"
    with sparse.open("wb") as file:
        file.truncate(80 * 1024**2)
        file.write(b"end")
    subprocess.run(["tar", "-cSf", tmp_path / "sparse.tar", "-C", tmp_path, "holes"], check=True)
    assert (tmp_path / "sparse.tar").stat().st_size < 20_000
    with pytest.raises(ValueError, match="200 times its own size"):
        unpacked(tmp_path / "sparse.tar", tmp_path / "store", LIMITS)
    copies = [tar_entry("a.obj", os.urandom(10**6))]
    copies += [tar_entry(f"{n}.obj", kind=tarfile.LNKTYPE, link="a.obj") for n in range(300)]
    with pytest.raises(ValueError, match="200 times its own size"):
        unpacked(write_tar(tmp_path / "copies.tar", copies), tmp_path / "store", LIMITS)
    assert everything(tmp_path / "store") == {"unpacked"}


def test_a_header_is_not_read_into_memory_whole(tmp_path):
    path = tmp_path / "header.tgz"
    info = tarfile.TarInfo("long")
    info.type, info.size = tarfile.XHDTYPE, 100 * 1024**2
    squeeze = zlib.compressobj(wbits=31)
    with path.open("wb") as file:
        file.write(squeeze.compress(info.tobuf()))
        for _ in range(100):
            file.write(squeeze.compress(bytes(1024**2)))
        file.write(squeeze.flush())
    with pytest.raises(ValueError, match="a header of 104857600 bytes"):
        unpacked(path, tmp_path / "store", LIMITS)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_more_members_than_the_limit_are_refused_as_a_whole(tmp_path, kind):
    path = tmp_path / f"many.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as file:
            for number in range(1_000):
                file.writestr(f"{number % 100}/{number}.obj", b"")
    else:
        write_tar(path, [tar_entry(f"{n % 100}/{n}.obj") for n in range(1_000)])
    with pytest.raises(ValueError, match="archive_members = 500"):
        unpacked(path, tmp_path / "store", Limits(archive_members=500))
    assert everything(tmp_path / "store") == {"unpacked"}


def test_a_tar_whose_header_leads_back_is_damaged_and_read_once(tmp_path):
    entries = [tar_entry("a.obj", b"v 0 0 0\n"), tar_entry("b.obj", b"v 1 1 1\n")]
    path = write_tar(tmp_path / "round.tar", entries, format=tarfile.GNU_FORMAT)
    raw = bytearray(path.read_bytes())
    raw[1024 + 124 : 1024 + 136] = tarfile.itn(-1024, 12, tarfile.GNU_FORMAT)  # b.obj is as long as back to a.obj
    raw[1024 + 148 : 1024 + 156] = b" " * 8
    raw[1024 + 148 : 1024 + 156] = b"%06o\0 " % sum(raw[1024:1536])
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"the header of 'b\.obj' leads back"):
        unpacked(path, tmp_path / "store", LIMITS)
    assert everything(tmp_path / "store") == {"unpacked"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_equal_names_the_first_counts_and_case_makes_a_difference(tmp_path):
    entries = [("a.obj", b"first"), ("a.obj", b"second"), ("./a.obj", b"third"), ("A.obj", b"other"), ("a.obj/b", b"x")]
    for path in (
        write_zip(tmp_path / "twice.zip", entries),
        write_tar(tmp_path / "twice.tar", [tar_entry(*entry) for entry in entries]),
    ):
        folder = unpacked(path, tmp_path / "store", LIMITS)
        assert content(folder) == {"a.obj": b"first", "A.obj": b"other"}
        assert [refusal["member"] for refusal in refusals(folder)] == ["a.obj", "./a.obj", "a.obj/b"]


def test_names_in_any_encoding_are_kept_or_told(tmp_path):
    tar = write_tar(
        tmp_path / "latin.tar", [tar_entry(os.fsdecode(b"caf\xe9.obj"), b"1"), tar_entry("caf\u00e9.obj", b"2")]
    )
    folder = unpacked(tar, tmp_path / "store", LIMITS)
    assert {os.fsencode(path.name) for path in folder.iterdir()} == {b"caf\xe9.obj", "caf\u00e9.obj".encode()}
    zipped = write_zip(tmp_path / "plain.zip", [("cafXX.obj", b"1"), ("b.obj", b"2")])
    zipped.write_bytes(zipped.read_bytes().replace(b"cafXX", "caf\u00e9".encode()))  # UTF-8 that does not say so
    assert set(content(unpacked(zipped, tmp_path / "store", LIMITS))) == {"caf\u00e9.obj", "b.obj"}
    zipped.write_bytes(zipped.read_bytes().replace("caf\u00e9".encode(), b"caf\x82\x82"))  # the format's code page
    assert set(content(unpacked(zipped, tmp_path / "store", LIMITS))) == {"caf\u00e9\u00e9.obj", "b.obj"}
    evil = write_tar(tmp_path / "evil.tar", [tar_entry(os.fsdecode(b"../caf\xe9.obj"), b"1"), *good_entries()])
    folder = unpacked(evil, tmp_path / "store", LIMITS)
    assert left_out(folder) == {"../caf\\udce9.obj": "its name leads out of the archive"}


def test_windows_separators_and_finder_leavings(tmp_path):
    entries = [("chairs\\a.obj", b"1"), ("__MACOSX/chairs/._a.obj", b"2"), ("chairs\\b.obj", b"3")]
    folder = unpacked(write_zip(tmp_path / "windows.zip", entries), tmp_path / "store", LIMITS)
    assert content(folder) == {"a.obj": b"1", "b.obj": b"3"}
    assert folder.name == "chairs"


def test_archives_within_archives_and_links_to_archives_are_not_followed(tmp_path):
    inner = write_zip(tmp_path / "inner.zip", GOOD.items()).read_bytes()
    outer = write_zip(tmp_path / "outer.zip", [("inner.zip", inner)])
    assert content(unpacked(outer, tmp_path / "store", LIMITS)) == {"inner.zip": inner}
    (tmp_path / "link.zip").symlink_to(outer)
    with pytest.raises(ValueError, match="not a link"):
        unpacked(tmp_path / "link.zip", tmp_path / "store", LIMITS)
    with pytest.raises(ValueError, match="is no archive"):
        unpacked(tmp_path, tmp_path / "store", LIMITS)


def test_a_damaged_member_costs_only_itself_and_an_encrypted_one_too(tmp_path):
    path = write_zip(
        tmp_path / "hurt.zip", [("hurt.obj", os.urandom(5000)), ("locked.obj", b"12345678"), *GOOD.items()]
    )
    raw = bytearray(path.read_bytes())
    raw[2000] ^= 255
    for sign, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        second = raw.index(sign, raw.index(sign) + 4)
        raw[second + offset] |= 1
    path.write_bytes(raw)
    folder = unpacked(path, tmp_path / "store", LIMITS)
    assert content(folder) == GOOD
    assert set(left_out(folder)) == {"hurt.obj", "locked.obj"}


def test_members_at_places_that_no_file_has_are_damaged_and_the_disk_is_not_blamed(tmp_path):
    path = write_zip(tmp_path / "shifted.zip", GOOD.items())
    raw = bytearray(path.read_bytes())
    (place,) = struct.unpack_from("<I", raw, len(raw) - 6)
    struct.pack_into("<I", raw, len(raw) - 6, place + 100)  # the directory says it lies later: members begin before 0
    path.write_bytes(raw)
    folder = unpacked(path, tmp_path / "store", LIMITS)
    assert content(folder).items() <= GOOD.items()
    assert "chairs/a.obj" in left_out(folder)


@pytest.mark.parametrize(
    "name", ["cut.zip", "cut.tar", "cut.tgz", "cut.tar.xz", "border.tar", "noise.tar", "noise.zip"]
)
def test_a_cut_or_foreign_archive_is_one_sentence_and_leaves_nothing(tmp_path, name):
    path = tmp_path / name
    entries = [*good_entries(), tar_entry("last.bin", os.urandom(50_000))]
    if name.startswith("noise"):
        path.write_bytes(os.urandom(5000))
    elif name == "border.tar":  # as if the last header and all after it had never come
        write_tar(path, entries)
        path.write_bytes(path.read_bytes()[: 512 * 2 * 2])
    else:
        if name.endswith("zip"):
            write_zip(path, [(info.name, data) for info, data in entries])
        else:
            write_tar(path, entries, {"tar": "w", "tgz": "w:gz", ".xz": "w:xz"}[name[-3:]])
        path.write_bytes(path.read_bytes()[:-20_000])
    with pytest.raises(ValueError, match="download it again"):
        unpacked(path, tmp_path / "store", LIMITS)
    assert everything(tmp_path / "store") == {"unpacked"}


def test_what_is_left_out_is_logged(tmp_path, caplog):
    path = write_zip(tmp_path / "evil.zip", [("../evil.obj", b"1"), *GOOD.items()])
    with caplog.at_level(logging.WARNING):
        unpacked(path, tmp_path / "store", LIMITS)
    assert "evil.zip: ../evil.obj is left out: its name leads out of the archive" in caplog.text


def test_a_killed_run_leaves_nothing_half_and_the_next_one_completes(tmp_path):
    entries = {f"{n}.bin": os.urandom(1000) for n in range(4_000)}
    path = tmp_path / "many.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name, data in entries.items():
            file.writestr(name, data)
    store = tmp_path / "store"
    program = (
        "import sys; from pathlib import Path; from gap3d.archives import unpacked; from gap3d.settings import Limits"
    )
    call = f"{program}; unpacked(Path({str(path)!r}), Path({str(store)!r}), Limits())"
    with subprocess.Popen([sys.executable, "-c", call]) as process:
        deadline = time.monotonic() + 60
        while not list(store.glob("unpacked/part-*/files/2*.bin")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    halves = [entry.name for entry in (store / "unpacked").iterdir() if not entry.name.endswith(".lock")]
    assert len(halves) == 1 and halves[0].startswith("part-")
    assert content(unpacked(path, store, LIMITS)) == entries
    assert not list(store.glob("unpacked/part-*"))
