"""An object's files, checked and taken into the store: one row of downloads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gap3d import fingerprints
from gap3d.blobs import Blobs, OtherBytes
from gap3d.network import lfs
from gap3d.records import Failure, Status
from gap3d.references import Closure
from gap3d.settings import Limits


def bundle(
    root: Path, found: Closure, wanted: Mapping[str, Any], blobs: Blobs, limits: Limits, otherwise: str
) -> dict[str, Any]:
    """Check an object's files and copy them in.

    Args:
        root: the folder that holds them.
        found: the main file and its companions.
        wanted: the catalog's row, of which file_type and sha256 are used.
        blobs: takes the files.
        limits: bytes of an object.
        otherwise: what to say where the main file has other bytes.

    Returns:
        The row's columns.

    Raises:
        Failure: ``too_large``, ``lfs_pointer`` or ``hash_mismatch``.
    """
    sizes = sum((root / path).stat().st_size for path in found.files)
    if sizes > limits.object_bytes:
        raise Failure(Status.TOO_LARGE, f"{sizes} bytes with companions, at most {limits.object_bytes} are taken")
    main, *companions = found.files
    if lfs.pointer_in(root / main):
        raise Failure(Status.LFS_POINTER, "a git-lfs pointer, not the model: run `git lfs pull` in its repository")
    try:
        added = [blobs.add(root / main, wanted["sha256"])]
    except OtherBytes as error:
        raise Failure(Status.HASH_MISMATCH, otherwise) from error
    added += [blobs.add(root / path) for path in companions]
    files = [
        {"path": path, "sha256": sha256, "bytes": size} for path, (sha256, size) in zip(found.files, added, strict=True)
    ]
    pairs = [[file["path"], file["sha256"]] for file in files]
    return {
        "bundle": fingerprints.digest_of([wanted["file_type"], *pairs]),
        "file_type": wanted["file_type"],
        "main": main,
        "files": files,
        "missing": list(found.missing),
        "bytes": sizes,
    }
