"""Archives of arrays from strangers: nothing of a damaged one is believed, and a hostile one is a sentence."""

import io
import re
import zipfile

import numpy as np
import pytest

from gap3d.evaluation.tokens import open_tokens
from gap3d.records import Status
from tests.test_token_sets import CLS, KEYS, PATCHES, RNG, read


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_of_a_damaged_npz_no_row_is_believed_for_its_checksum_is_of_all(tmp_path, save):
    many = [f"{number}" for number in range(4000)]
    save(tmp_path / "a.npz", keys=np.array(many), cls=RNG.standard_normal((4000, 6)))
    save(tmp_path / "b.npz", keys=np.array(["sound"]), cls=CLS[:1])
    with zipfile.ZipFile(tmp_path / "a.npz") as file:
        place = file.getinfo("cls.npy").header_offset + 4000 * 6 * 4
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[place] ^= 0x10
    (tmp_path / "a.npz").write_bytes(data)
    found, failures = read(tmp_path, [*many, "sound"])
    assert list(found) == ["sound"] and list(failures) == many
    assert {why.status for why in failures.values()} == {Status.HASH_MISMATCH}
    assert "nobody can tell in which row" in failures["7"].reason


def archive(path, flag=0, method=zipfile.ZIP_STORED, **members):
    """A .zip of arrays (or bytes) under the very names; flag and method stand in its headers."""
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            sink = io.BytesIO()
            if not isinstance(content, bytes):
                np.save(sink, content)
            file.writestr(name.replace("_npy", ".npy"), sink.getvalue() or content)
    data = bytearray(path.read_bytes())
    for start, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        for found in re.finditer(start, bytes(data)):
            at = found.start() + place
            data[at], data[at + 2] = flag, method
    path.write_bytes(data)


def header(dtype, shape):
    sink = io.BytesIO()
    np.lib.format.write_array_header_1_0(sink, {"descr": dtype, "fortran_order": False, "shape": shape})
    return sink.getvalue()


def single_array(path):
    with path.open("wb") as file:
        np.save(file, CLS)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (single_array, "no archive of arrays"),
        (lambda path: archive(path, keys_npy=np.array(KEYS), patches=PATCHES), "patches can't be read .*no item named"),
        (lambda path: archive(path, flag=1, keys_npy=np.array(KEYS), cls_npy=CLS), "encrypted.*save it again"),
        (lambda path: archive(path, method=99, keys_npy=np.array(KEYS), cls_npy=CLS), "compression method"),
        (lambda path: archive(path, keys_npy=header("<U8", (10**13,)), cls_npy=CLS), "a.npz can't be read as .npz"),
        (lambda path: archive(path, keys_npy=np.array(["x"]), patches_npy=header("<f4", (1, 10**9, 9))), "bytes, at m"),
        (lambda path: archive(path, keys_npy=np.array(["x\ud800"]), cls_npy=CLS[:1]), "a.npz can't be read as .npz"),
        (lambda path: archive(path, keys_npy=np.array(KEYS), cls_npy=CLS.astype(object)), "cls is object"),
    ],
)
def test_a_hostile_npz_is_a_sentence_and_takes_no_memory(tmp_path, write, words):
    write(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=words):
        open_tokens(tmp_path)
