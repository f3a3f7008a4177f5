"""A shard of token sets as numpy saves arrays: ``keys`` [M], and ``cls`` [M, C], ``registers``, ``patches`` [M, N, C].

``tokens`` is another name of ``patches``. Arrays are read a row at a time, whatever their size.
"""

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
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, ValueError)


class NpzShard:
    """One file; see ``ParquetShard`` for what it offers.

    Raises:
        ValueError: it can't be read, or its arrays do not fit together.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with np.load(path, allow_pickle=False) as file:
                names = [name for name in ("keys", "key") if name in file.files]
                if not names:
                    raise ValueError(f"it has no array keys, only {', '.join(file.files[:8])}")
                self.keys = [str(key) for key in file[names[0]].reshape(-1).tolist()]
                found = {kind: [name for name in each if name in file.files] for kind, each in NAMES.items()}
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
                with packed.open(f"{name}.npy") as file:
                    self._about[kind] = self._head(file, name, kind)

    def precision(self, kind: str) -> str:
        """Number format of a kind."""
        return self._about[kind][1].name

    def rows(self) -> Iterator[tuple[int, Mapping[str, NDArray[Any]] | Failure]]:
        """(number, by kind [N, C]) of every row; of those after a damaged place, why there is nothing."""
        done = 0
        try:
            with ExitStack() as stack:
                packed = stack.enter_context(zipfile.ZipFile(self.path))
                files = {kind: stack.enter_context(packed.open(f"{name}.npy")) for kind, name in self._arrays.items()}
                for kind, file in files.items():
                    self._head(file, self._arrays[kind], kind)
                for row in range(len(self.keys)):
                    found = {kind: self._row(file, kind) for kind, file in files.items()}
                    yield row, found
                    done += 1
        except BROKEN as error:
            words = f"{self.path} is damaged from row {done} on ({error})"
            yield from ((row, Failure(Status.HASH_MISMATCH, words)) for row in range(done, len(self.keys)))

    def _row(self, file: IO[bytes], kind: str) -> NDArray[Any]:
        shape, dtype = self._about[kind]
        size = int(np.prod(shape[1:])) * dtype.itemsize
        data = file.read(size)
        if len(data) < size:
            raise ValueError(f"{self._arrays[kind]} ends there")
        values = np.frombuffer(data, dtype)
        return values.reshape(shape[1:] if len(shape) == 3 else (1, shape[1]))

    def _head(self, file: IO[bytes], name: str, kind: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and number format of an array; what follows in the file are its numbers."""
        version = npy.read_magic(file)
        if version not in HEADERS:
            raise ValueError(f"{self.path}: {name} is of a version of numpy's format that holds no plain numbers")
        shape, fortran, dtype = HEADERS[version](file)
        sides = (2, 3) if kind == "cls" else (3,)
        wanted = "[M, C]" if kind == "cls" else "[M, N, C]"
        if fortran or dtype.kind != "f" or len(shape) not in sides or shape[0] != len(self.keys) or 0 in shape:
            order = " in Fortran's order" if fortran else ""
            raise ValueError(
                f"{self.path}: {name} is {dtype} {list(shape)}{order} for {len(self.keys)} keys: save floats {wanted}, "
                "contiguous"
            )
        return shape, dtype
