"""Zips and tars as strangers make them, and what came out of them."""

import io
import json
import stat
import struct
import tarfile
import zipfile

GOOD = {"chairs/a.obj": b"v 0 0 0\n", "chairs/deep/er/b.mtl": b"newmtl m\n", "c.glb": bytes(range(256)) * 40}


def write_zip(path, entries):
    """Entries are (name or ZipInfo, bytes)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in entries:
            file.writestr(name, data)
    return path


def tar_entry(name, data=b"", kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data)
    return info, data


def write_tar(path, entries, mode="w", **options):
    with tarfile.open(path, mode, **options) as file:
        for info, data in entries:
            file.addfile(info, io.BytesIO(data))
    return path


def good_entries():
    return [tar_entry(name, data) for name, data in GOOD.items()]


def content(folder):
    """Bytes by path; proves that nothing but plain files and folders is there."""
    found = {}
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        assert stat.S_ISREG(mode) or stat.S_ISDIR(mode), path
        if stat.S_ISREG(mode):
            assert path.stat().st_nlink == 1
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


def everything(root):
    """All paths below a folder, without locks."""
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.name.endswith(".lock")}


def refusals(folder):
    """What is written down beside a folder which ``unpacked`` returned: the members that are not in it."""
    listing = next(parent / "refused.json" for parent in folder.parents if parent.parent.name == "unpacked")
    return json.loads(listing.read_text())


def left_out(folder):
    return {refusal["member"]: refusal["reason"] for refusal in refusals(folder)}


def lying_zip(path, claimed, data=bytes(80 * 1024**2)):
    """A zip whose headers say ``claimed`` bytes."""
    write_zip(path, [("bomb.obj", data), ("good.obj", b"v 0 0 0\n")])
    raw = bytearray(path.read_bytes())
    real = struct.pack("<I", len(data))
    for start in (raw.find(real), raw.rfind(real)):
        raw[start : start + 4] = struct.pack("<I", claimed)
    path.write_bytes(raw)
    return path
