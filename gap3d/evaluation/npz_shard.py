"""A shard of token sets as numpy saves arrays: ``keys`` [M], and ``cls`` [M, C], ``registers``, ``patches`` [M, N, C].

``tokens`` is another name of ``patches``. Arrays are read a row at a time, whatever their size. Nothing is unpickled.
The file has one checksum an array, which its last byte proves: where one does not hold, any row may be the damaged one.
"""

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from gap3d.records import Failure, Status

NAMES = {"cls": ("cls",), "registers": ("registers",), "patches": ("patches", "tokens")}
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
# KeyError: an array's member is not named as numpy names it. RuntimeError: it is encrypted, or packed in a way that
# Python does not know. MemoryError: a header promises more keys than there can be.
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, RuntimeError, MemoryError)
MOST_BYTES = 1 << 30  # of a row, and of all keys: what is packed may unfold to anything


class NpzShard:
    """One file; see ``ParquetShard`` for what it offers.

    Raises:
        ValueError: it can't be read, or its arrays do not fit together.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if not zipfile.is_zipfile(path):
                raise ValueError("it is no archive of arrays, as np.savez writes them")
            with np.load(path, allow_pickle=False) as file:
                names = [name for name in ("keys", "key") if name in file.files]
                if not names:
                    raise ValueError(f"it has no array keys, only {', '.join(file.files[:8])}")
                if max(each.file_size for each in file.zip.infolist() if each.filename[:3] == "key") > MOST_BYTES:
                    raise ValueError(f"its keys unfold to more than {MOST_BYTES} bytes")
                self.keys = [str(key) for key in file[names[0]].reshape(-1).tolist()]
                found = {kind: [name for name in each if name in file.files] for kind, each in NAMES.items()}
                "".join(self.keys).encode()  # half a character can be neither written nor compared
        except BROKEN as error:
            words = "save keys as texts (np.array([...], dtype=str))" if "pickle" in str(error) else "save it again"
            raise ValueError(f"{path} can't be read as .npz ({error}): {words}") from error
        self._arrays = {kind: names[0] for kind, names in found.items() if names}
        if not self._arrays:
            raise ValueError(f"{path} has no array cls, registers, patches or tokens")
        self.kinds = tuple(self._arrays)
        self._about: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        with zipfile.ZipFile(path) as packed:
            for kind, name in self._arrays.items():
                try:
                    with packed.open(f"{name}.npy") as file:
                        self._about[kind] = self._head(file, name, kind)
                except BROKEN as error:
                    raise ValueError(f"{path}: {name} can't be read ({error}): save it again") from error

    def precision(self, kind: str) -> str:
        """Number format of a kind."""
        return self._about[kind][1].name

    def rows(self) -> Iterator[tuple[int, Mapping[str, NDArray[Any]] | Failure]]:
        """(number, by kind [N, C]) of every row; if anything is damaged, then every row again, and why it is nothing.

        Damage may be told after the last row only: whoever takes these believes a row's last word.
        """
        try:
            with ExitStack() as stack:
                packed = stack.enter_context(zipfile.ZipFile(self.path))
                files = {kind: stack.enter_context(packed.open(f"{name}.npy")) for kind, name in self._arrays.items()}
                for kind, file in files.items():
                    self._head(file, self._arrays[kind], kind)
                for row in range(len(self.keys)):
                    yield row, {kind: self._row(file, kind) for kind, file in files.items()}
                for kind, file in files.items():
                    if file.read(1):  # at the end, the checksum is compared
                        raise ValueError(f"{self._arrays[kind]} goes on after its last row")
        except BROKEN as error:
            words = f"{self.path} is damaged ({error}), and nobody can tell in which row: save it again"
            yield from ((row, Failure(Status.HASH_MISMATCH, words)) for row in range(len(self.keys)))

    def _row(self, file: IO[bytes], kind: str) -> NDArray[Any]:
        shape, dtype = self._about[kind]
        size = math.prod(shape[1:]) * dtype.itemsize
        data = file.read(size)
        if len(data) < size:
            raise ValueError(f"{self._arrays[kind]} ends there")
        values = np.frombuffer(data, dtype)
        return values.reshape(shape[1:] if len(shape) == 3 else (1, shape[1]))

    def _head(self, file: IO[bytes], name: str, kind: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and number format of an array; what follows in the file are its numbers."""
        version = npy.read_magic(file)
        if version not in HEADERS:
            raise ValueError(f"{name} is of a version of numpy's format that holds no plain numbers")
        shape, fortran, dtype = HEADERS[version](file)
        sides = (2, 3) if kind == "cls" else (3,)
        wanted = "[M, C]" if kind == "cls" else "[M, N, C]"
        if fortran or dtype.kind != "f" or len(shape) not in sides or shape[0] != len(self.keys) or 0 in shape:
            order = " in Fortran's order" if fortran else ""
            raise ValueError(
                f"{name} is {dtype} {list(shape)}{order} for {len(self.keys)} keys: save floats {wanted}, contiguous"
            )
        if (size := math.prod(shape[1:]) * dtype.itemsize) > MOST_BYTES:
            raise ValueError(f"a row of {name} {list(shape)} is {size} bytes, at most {MOST_BYTES} are taken")
        return shape, dtype
