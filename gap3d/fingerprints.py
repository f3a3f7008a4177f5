"""When is a row up to date: fingerprints of rows, digests of contents, versions of stages.

A row's fingerprint covers the content digests of what it read, the stage's result settings, the
stage's code version and its engine's version. Its digest covers only what it holds, so that
identical content stops the wave of recomputation.
"""

import ast
import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)  # dumps makes one for each call


def canonical(value: Any) -> bytes:
    """One byte string for equal values: JSON with sorted keys."""
    return ENCODER.encode(value).encode()


def digest_of(value: Any) -> str:
    """Short hex digest (128 bits) of a JSON value."""
    return hashlib.sha256(canonical(value)).hexdigest()[:32]


def settings_digest(section: BaseModel) -> str:
    """Digest of one group of result settings."""
    return digest_of(section.model_dump(mode="json"))


def row_digest(status: str, data: Mapping[str, Any] | None, exempt: Iterable[str] = ()) -> str:
    """Digest of a row's content.

    Args:
        status: the row's status; a failed row's digest is that of its status alone.
        data: column values; bytes and arrays are hashed as they lie in memory, an array of bytes [N] as the bytes.
        exempt: columns that say where content lies, not what it is.
    """
    state = hashlib.sha256(status.encode())
    for name in sorted(set(data or ()) - set(exempt)):
        value = (data or {})[name]
        if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 1:
            value = np.ascontiguousarray(value).data
        if isinstance(value, bytes | bytearray | memoryview):
            state.update(f"\0{name}\0{len(value)}\0".encode())
            state.update(value)
        elif isinstance(value, np.ndarray):
            state.update(f"\0{name}\0{value.dtype.str}{value.shape}\0".encode())
            state.update(np.ascontiguousarray(value).data)
        else:
            state.update(f"\0{name}\0".encode())
            state.update(canonical(value))
    return state.hexdigest()[:32]


def shard_digest(rows: Iterable[tuple[str, str]]) -> str:
    """Digest of a shard from its (key, row digest) pairs: where rows lie does not matter."""
    state = hashlib.sha256()
    for key, digest in sorted(rows):
        state.update(f"{key}\0{digest}\n".encode())
    return state.hexdigest()[:32]


def shard_of(fetch_group: str, shards: int) -> str:
    """Shard key: the leading bits of sha256(fetch_group), as zero-padded hex.

    Args:
        fetch_group: what is fetched at once, e.g. a repository at a commit.
        shards: number of shards, a power of two up to 2**32.
    """
    leading = int.from_bytes(hashlib.sha256(fetch_group.encode()).digest()[:4])
    return shard_keys(shards)[leading >> (32 - (shards - 1).bit_length())] if shards > 1 else "0"


def shard_keys(shards: int) -> list[str]:
    """All shard keys of a collection, in order."""
    width = len(f"{shards - 1:x}")
    return [f"{index:0{width}x}" for index in range(shards)]


def source_digest(paths: Iterable[Path]) -> str:
    """Digest of what modules do: their syntax trees without docstrings, so comments don't count."""
    state = hashlib.sha256()
    for path in sorted(paths, key=lambda p: p.name):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0] if node.body else None
                if (
                    isinstance(first, ast.Expr)
                    and isinstance(first.value, ast.Constant)
                    and isinstance(first.value.value, str)
                ):
                    node.body = node.body[1:]
        state.update(f"{path.name}\0{ast.dump(tree)}\0".encode())
    return state.hexdigest()[:16]


def stage_versions() -> dict[str, dict[str, Any]]:
    """The table ``gap3d/versions.toml``: per stage its version, its sources and their digest."""
    return tomllib.loads(resources.files("gap3d").joinpath("versions.toml").read_text())


def code_version(stage: str) -> str:
    """Version of a stage's code; bumped when its results change."""
    return str(stage_versions()[stage]["version"])
