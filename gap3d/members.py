"""The members of a zip or tar in their order, one pass, believing no header."""

import bz2
import errno
import gzip
import io
import lzma
import os
import posixpath
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gap3d.settings import GIB

HEADER = 16 * 1024**2  # longest piece that is read at once: names and other headers are far shorter
DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
)


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file of an archive as its headers describe it.

    Attributes:
        open: its bytes; None for what is no regular file.
        link: the name of the member that it stands for.
        refusal: why it is not unpacked, where that is known already.
    """

    name: str
    open: Callable[[], IO[bytes]] | None = None
    link: str = ""
    refusal: str = ""


def of_the_machine(error: OSError) -> bool:
    """Whether the disk fails; a decompressor's errors have no number, and a place that no file has is a header's."""
    return error.errno not in (None, errno.EINVAL)


def beside(name: str, target: str) -> str:
    """What a link means by its target; an absolute or outer one is left as what no member is called."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), target))


def members(path: Path, hold: Callable[[int], None], most: int) -> Iterator[Member]:
    """The members of an archive; each is to be read before the next one is asked for.

    Args:
        path: a .zip, or else a tar.
        hold: raises where so many bytes are too many.
        most: bytes after which a tar is taken for a bomb, whatever of it is unpacked.

    Raises:
        ValueError: it is damaged beyond its members, or a bomb.
    """
    try:
        if path.name.lower().endswith(".zip"):
            with open_zip(path) as file:
                hold(sum(info.file_size for info in file.infolist()))  # may be a lie: what is written is counted too
                yield from zip_members(file)
        else:
            with open_stream(path) as plain:
                stream = Stream(plain, path, most + GIB)  # headers and what is refused come on top
                yield from tar_members(tarfile.TarFile(fileobj=stream), stream)  # type: ignore[arg-type]
    except (*DAMAGED, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is cut off, damaged or no archive ({error}): download it again") from error
    except OSError as error:
        if of_the_machine(error):
            raise
        raise ValueError(f"{path} is damaged ({error}): download it again") from error


def open_zip(path: Path) -> zipfile.ZipFile:
    """A zip; names without a declared encoding are UTF-8 where all are, else the format's own code page."""
    try:
        return zipfile.ZipFile(path, metadata_encoding="utf-8")
    except UnicodeDecodeError:
        return zipfile.ZipFile(path)


def zip_members(file: zipfile.ZipFile) -> Iterator[Member]:
    """What the central directory lists."""
    for info in file.infolist():
        name = info.filename.replace("\\", "/")  # some programs write Windows' own
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.is_dir():
            continue
        if info.flag_bits & 1:
            yield Member(name=name, refusal="encrypted")
        elif kind == stat.S_IFLNK and info.file_size <= 4096:
            try:
                yield Member(name=name, link=beside(name, os.fsdecode(file.read(info))))
            except (*DAMAGED, OSError) as error:
                if isinstance(error, OSError) and of_the_machine(error):
                    raise
                yield Member(name=name, refusal=f"damaged: {error}")
        elif kind not in (0, stat.S_IFREG):
            yield Member(name=name, refusal="no regular file")
        else:
            yield Member(name=name, open=lambda info=info: file.open(info))  # type: ignore[misc]


def open_stream(path: Path) -> Any:
    """The bytes of a tar, decompressed as they are read."""
    name = path.name.lower()
    for ending, decompressed in (("gz", gzip.open), ("bz2", bz2.open), ("xz", lzma.open)):
        if name.endswith(ending):
            return decompressed(path, "rb")
    return path.open("rb")


class Stream:
    """A decompressed tar that reads no more at once than a header needs, and ends where the archive is a bomb.

    A header says how long it is; tarfile would read so much into memory. ``last`` is what was read last.
    """

    def __init__(self, file: IO[bytes], archive: Path, most: int) -> None:
        self._file = file
        self._archive = archive
        self._most = most
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes."""
        if not 0 <= size <= HEADER:
            raise ValueError(f"{self._archive} has a header of {size} bytes: unpack it yourself if you trust it")
        self.last = self._file.read(size)
        return self.last

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        """Go on from a position."""
        if position > self._most:
            raise ValueError(f"{self._archive} unpacks to more than {self._most} bytes, as archive bombs do")
        return self._file.seek(position, whence)

    def tell(self) -> int:
        """The position."""
        return self._file.tell()


def tar_members(file: Any, stream: Stream) -> Iterator[Member]:
    """What the headers of a TarFile describe."""
    for info in headers(file):
        if info.isdir():
            continue
        if info.isreg():
            yield Member(name=info.name, open=lambda info=info: file.extractfile(info))  # type: ignore[misc]
        elif info.issym():
            yield Member(name=info.name, link=beside(info.name, info.linkname))
        elif info.islnk():
            yield Member(name=info.name, link=posixpath.normpath(info.linkname))
        else:
            yield Member(name=info.name, refusal="no regular file")
    end_mark(stream)


def headers(file: Any) -> Iterator[tarfile.TarInfo]:
    """What the headers of a TarFile say, one after another.

    Raises:
        ReadError: one says that the next lies at or before it: tarfile would go round for ever.
    """
    while (info := file.next()) is not None:
        file.members = []  # it would keep every one
        if file.offset <= info.offset:
            raise tarfile.ReadError(f"the header of {info.name!r} leads back")
        yield info


def end_mark(stream: Stream) -> None:
    """Raises ReadError unless a tar's headers ended with its end: tarfile takes a cut or a damaged one for it."""
    if stream.last != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("no end mark where its headers end")
