"""Archives of strangers, unpacked once into the store: what would escape or explode is not.

An archive gets a folder of its own, ``<store>/unpacked/<sha256>``, that appears whole or not at all. No link is ever
made there, so no path in it leads out: a link to a file of the archive becomes a copy of it, all others are refused.
Archives within archives stay files.
"""

import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path, PureWindowsPath
from typing import IO

from filelock import FileLock

from gap3d.blobs import CHUNK, renew, sha256_of
from gap3d.fingerprints import digest_of
from gap3d.members import DAMAGED, Member, members, of_the_machine
from gap3d.parts import write_atomically
from gap3d.records import SystemicFault
from gap3d.settings import Limits
from gap3d.store import free_bytes
from gap3d.temporary import TemporaryFolder

log = logging.getLogger(__name__)

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
SUFFIXES = (".zip", *TAR_SUFFIXES)
RATIO = 200  # 3D files compress to a twentieth at best; what grows more than so much is made to explode
SMALL = 64 * 1024**2  # ... unless it stays below this
HOPS = 40  # links that lead to links
FORK = "__MACOSX"  # what Finder adds for each file: no content


@dataclass(frozen=True)
class Refusal:
    """A member that was not unpacked."""

    member: str
    reason: str


class Refused(Exception):
    """One member must not be unpacked; its text says why."""


def is_archive(path: Path) -> bool:
    """Whether a name is that of an archive which can be unpacked."""
    return path.name.lower().endswith(SUFFIXES)


def unpacked(path: Path, store_root: Path, limits: Limits) -> Path:
    """The folder with an archive's files; unpacked on the first call, found again by the later ones.

    Args:
        path: a zip, or a tar, compressed or not.
        store_root: root of the store.
        limits: ``archive_bytes`` and ``archive_members`` hold.

    Returns:
        The folder that stands for the archive: where all files lie in one folder of the archive, that folder.

    Raises:
        ValueError: it is no such archive, damaged, or a bomb; nothing of it is kept.
        SystemicFault: the disk can't hold it.
    """
    if path.is_symlink() or not path.is_file() or not is_archive(path):
        raise ValueError(f"{path} is no archive: name a file (not a link to one) that ends in {', '.join(SUFFIXES)}")
    root = store_root.expanduser().absolute() / "unpacked"
    seen = path.stat()
    note = root / "seen" / digest_of([str(path.absolute()), seen.st_size, seen.st_mtime_ns])
    sha256 = note.read_text() if note.is_file() else ""
    if not sha256 or not (root / sha256).is_dir():
        root.mkdir(parents=True, exist_ok=True)
        sha256 = sha256_of(path)
        with FileLock(root / f"{sha256}.lock"):
            if not (root / sha256).is_dir():
                unpack(path, root, sha256, limits)
        if (path.stat().st_size, path.stat().st_mtime_ns) != (seen.st_size, seen.st_mtime_ns):
            raise ValueError(f"{path} changed while it was read: run again when its copy is complete")
        write_atomically(note, sha256.encode())
    renew(root / sha256)
    return only_folder(root / sha256 / "files")


def trees(store_root: Path) -> list[Path]:
    """The folders that stand for the archives which were unpacked into a store."""
    return [only_folder(files) for files in sorted((store_root / "unpacked").glob("*/files")) if files.is_dir()]


def only_folder(files: Path) -> Path:
    """The folder that a person would name after unpacking by hand."""
    entries = list(files.iterdir())
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else files


def unpack(path: Path, root: Path, sha256: str, limits: Limits) -> None:
    """Unpack into ``root/sha256``, at once."""
    log.info("unpacking %s", path)
    home = TemporaryFolder(root, "part")
    try:
        tree = Tree(home.path / "files", path, limits)
        for member in members(path, tree.hold, min(tree.most, limits.archive_bytes)):
            tree.add(member)
        tree.add_links()
        listing = [asdict(refusal) for refusal in tree.refused]
        (home.path / "refused.json").write_text(json.dumps(listing, indent=1))
        os.sync()  # a folder whose name says that it is whole outlives a power cut
        home.path.chmod(0o755)
        home.path.replace(root / sha256)
    except OSError as error:
        raise SystemicFault(f"{path} can't be unpacked into {root}: {error}") from error
    finally:
        home.remove()
    for refusal in tree.refused[:20]:
        log.warning("%s: %s is left out: %s", path.name, refusal.member, refusal.reason)
    log.info("%s: %d files, %d members left out", path, len(tree.written), len(tree.refused))


class Tree:
    """The files of one archive as they are written; counts what they really take.

    Args:
        folder: where; made here.
        archive: for messages.
        limits: see ``unpacked``.
    """

    def __init__(self, folder: Path, archive: Path, limits: Limits) -> None:
        folder.mkdir()
        self.folder = folder
        self.archive = archive
        self.limits = limits
        self.free = free_bytes(folder)
        self.most = max(SMALL, RATIO * archive.stat().st_size)
        self.written: dict[str, int] = {}
        self.refused: list[Refusal] = []
        self.links: dict[str, str] = {}
        self._bytes = 0
        self._seen = 0

    def add(self, member: Member) -> None:
        """Unpack a member, or note why not.

        Raises:
            ValueError: with it the archive is too much as a whole.
        """
        self._seen += 1
        if self._seen > self.limits.archive_members:
            raise ValueError(
                f"{self.archive} has more than limits.archive_members = {self.limits.archive_members} members: "
                "raise it if you trust the archive"
            )
        try:
            if member.refusal:
                raise Refused(member.refusal)
            name = safe(member.name)
            if member.open is None:
                self.links.setdefault(name, member.link)
                return
            try:
                source = member.open()
            except (*DAMAGED, OSError) as error:
                if isinstance(error, OSError) and of_the_machine(error):
                    raise
                raise Refused(f"damaged: {error}") from error
            with source:
                self.write(name, source)
        except Refused as error:
            self.refuse(member.name, str(error))

    def add_links(self) -> None:
        """Copies in place of the links, once all files are there."""
        for name in self.links:
            target, hops = name, 0
            while target in self.links and hops < HOPS:
                target, hops = self.links[target], hops + 1
            try:
                if target not in self.written:
                    raise Refused("a link to what is no file of the archive")
                with (self.folder / target).open("rb") as source:
                    self.write(name, source)
            except Refused as error:
                self.refuse(name, str(error))

    def refuse(self, name: str, reason: str) -> None:
        """Note what is left out; a name in whatever encoding as text that can be stored."""
        self.refused.append(Refusal(name.encode("utf-8", "backslashreplace").decode()[:1000], reason[:500]))

    def write(self, name: str, source: IO[bytes]) -> None:
        """One file, from its bytes as they come."""
        path = self.folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            target = path.open("xb")
        except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
            raise Refused("another member has this name, or that of one of its folders; the first counts") from error
        size = 0
        try:
            with target:
                while chunk := self.read(source):
                    size += len(chunk)
                    self.hold(self._bytes + size)
                    target.write(chunk)
        except Refused:
            path.unlink()
            raise
        finally:
            self._bytes += size
        path.chmod(0o444)
        self.written[name] = size

    def read(self, source: IO[bytes]) -> bytes:
        """The next bytes of a member, whatever its headers say of their number."""
        try:
            return source.read(CHUNK)
        except DAMAGED as error:
            raise Refused(f"damaged: {error}") from error
        except OSError as error:
            if of_the_machine(error):
                raise
            raise Refused(f"damaged: {error}") from error

    def hold(self, total: int) -> None:
        """Prove that the archive may be so large.

        Raises:
            ValueError: it may not.
            SystemicFault: the disk can't hold it.
        """
        if total > self.limits.archive_bytes:
            raise ValueError(
                f"{self.archive} unpacks to more than limits.archive_bytes = {self.limits.archive_bytes}: "
                "raise it if you trust the archive"
            )
        if total > self.most:
            raise ValueError(
                f"{self.archive} unpacks to more than {RATIO} times its own size, as archive bombs do: "
                "unpack it yourself if you trust it, and name the folder"
            )
        if total > self.free:
            raise SystemicFault(f"{self.archive} needs more than the {self.free / 1e9:.1f} GB that the disk has left")


def safe(name: str) -> str:
    """A member's name as a path below the tree.

    Raises:
        Refused: it leads out, here or on Windows, or can't be a file's name.
    """
    windows = PureWindowsPath(name)
    if "\0" in name:
        raise Refused("its name has a zero byte")
    if name.startswith("/") or windows.drive or windows.root:
        raise Refused("its name is absolute")
    if ".." in windows.parts:  # splits at both kinds of slash
        raise Refused("its name leads out of the archive")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or max(len(os.fsencode(part)) for part in parts) > 255 or len(os.fsencode(name)) > 2048:
        raise Refused("its name is empty or too long")
    if parts[0] == FORK:
        raise Refused("a resource fork of macOS, no content")
    return "/".join(parts)
