"""The catalog: which objects take part, with their captions, split, rank and shard."""

import ast
import csv
import errno
import hashlib
import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from gap3d import fingerprints
from gap3d.blobs import sha256_of
from gap3d.records import Failure, Outcome, Status, SystemicFault
from gap3d.references import FILE_TYPES, Closure, closure, file_type_of
from gap3d.settings import CatalogSettings

log = logging.getLogger(__name__)

UP_AXES = ("x", "y", "z", "-x", "-y", "-z")
CAPTION_BYTES = 1 << 24  # the longest cell of a table
NEEDED = {"path": ", with paths relative to the source folder"}
OVERRIDE_COLUMNS = ("path", "exclude", "yaw", "up_axis", "captions")


@dataclass(frozen=True)
class Override:
    """What the user says about one object against what the data says.

    Attributes:
        exclude: leave the object out.
        yaw: degrees; replaces the least-occluded choice.
        up_axis: which axis of the file points up.
        captions: replace the captions.
    """

    exclude: bool = False
    yaw: float | None = None
    up_axis: str | None = None
    captions: tuple[str, ...] | None = None


def object_id_of(source: str, identifier: str) -> str:
    """The key of an object: a hash of where it comes from, not of its bytes."""
    return hashlib.sha256(f"{source}\0{identifier}".encode()).hexdigest()[:32]


def parse_captions(text: str | Iterable[str] | None) -> list[str]:
    """Captions as given: a JSON list, a Python list, or one text; longest first, no doubles (docs/method.md 1.1)."""
    if text is None:
        return []
    found: Any = text
    if isinstance(text, str):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            try:
                found = ast.literal_eval(text)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                found = text
        if isinstance(found, str) or not isinstance(found, Iterable):
            found = [text if not isinstance(found, str) else found]
    texts = [str(caption).encode("utf-8", "replace").decode().strip() for caption in found if caption is not None]
    return sorted(dict.fromkeys(t for t in texts if t), key=len, reverse=True)


def read_table(path: Path, needed: str = "path") -> list[dict[str, Any]]:
    """Rows of a CSV or Parquet file.

    Raises:
        ValueError: it has no column of the needed name.
    """
    if path.suffix == ".parquet":
        rows = pq.read_table(path).to_pylist()
        names = list(rows[0]) if rows else [needed]
    else:
        csv.field_size_limit(CAPTION_BYTES)
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                rows, names = list(reader), list(reader.fieldnames or [])
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no CSV in UTF-8: {error}") from error
    if needed not in names:
        raise ValueError(f"{path} has columns {names}; it needs one named {needed}" + NEEDED.get(needed, ""))
    return rows


def known_columns(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Refuse columns that mean nothing: a typing error would otherwise pass unseen.

    Raises:
        ValueError: the message names them.
    """
    unknown = {"(none: more cells than columns)" if name is None else name for row in rows for name in row}
    unknown -= set(columns)
    if unknown:
        raise ValueError(f"{path} has unknown columns {sorted(unknown)}; known are {', '.join(columns)}")


def read_captions(path: Path) -> dict[str, list[str]]:
    """Captions by path relative to the source folder."""
    rows = read_table(path)
    if rows and "captions" not in rows[0]:
        raise ValueError(f"{path} has columns {list(rows[0])}; it needs one named captions")
    return {str(row["path"]): parse_captions(row["captions"]) for row in rows}


def read_overrides(path: Path) -> dict[str, Override]:
    """Overrides by path.

    Raises:
        ValueError: an unknown column or an unusable value; the message names the line.
    """
    overrides = {}
    rows = read_table(path)
    known_columns(path, rows, OVERRIDE_COLUMNS)
    for number, row in enumerate(rows, start=2):
        cells = {name: str(value).strip() for name, value in row.items() if value is not None and str(value).strip()}
        if "path" not in cells:
            raise ValueError(f"{path} line {number}: the path is empty")
        exclude = cells.get("exclude", "false").lower()
        axis = cells.get("up_axis", "").lower() or None
        if exclude not in ("true", "false", "1", "0", "yes", "no"):
            raise ValueError(f"{path} line {number}: exclude = {exclude!r} must be true or false")
        if axis is not None and axis not in UP_AXES:
            raise ValueError(f"{path} line {number}: up_axis = {axis!r} must be one of {', '.join(UP_AXES)}")
        try:
            yaw = float(cells["yaw"]) if "yaw" in cells else None
            if yaw is not None and not math.isfinite(yaw):
                raise ValueError
        except ValueError:
            raise ValueError(f"{path} line {number}: yaw = {cells['yaw']!r} must be a number of degrees") from None
        overrides[cells["path"]] = Override(
            exclude=exclude in ("true", "1", "yes"),
            yaw=yaw,
            up_axis=axis,
            captions=tuple(parse_captions(cells["captions"])) if "captions" in cells else None,
        )
    return overrides


def walk(root: Path) -> Iterator[str]:
    """Paths of 3D files below a folder, relative to it, in a stable order."""
    ignored = 0
    for folder, folders, names in os.walk(root, onerror=unreadable):
        folders.sort()
        for name in sorted(names):
            if file_type_of(name) in FILE_TYPES:
                yield (Path(folder) / name).relative_to(root).as_posix()
            else:
                ignored += 1
    log.info("%s: %d files of other types are no objects of their own", root, ignored)


def unreadable(error: OSError) -> None:
    """A folder that can't be listed stops the catalog: without it, its objects would seem to be gone."""
    if error.errno == errno.ENAMETOOLONG:
        log.error("%s: nested too deep to be read; its files are left out", str(error.filename)[:200])
        return
    raise SystemicFault(f"{error.filename} can't be listed: {error.strerror}") from error


def stamp_of(root: Path, found: Closure) -> str:
    """Sizes and times of an object's files: equal stamps mean that nothing has to be read again."""
    entries: dict[str, list[int] | None] = {}
    for path in found.files:
        stat = (root / path).stat()
        entries[path] = [stat.st_size, stat.st_mtime_ns]
    for path in found.watched:
        entries[path] = None
    return json.dumps(entries, sort_keys=True)


def unchanged(root: Path, stamp: str) -> bool:
    """Whether all files still carry the sizes and times of a stamp, and missing ones are still missing."""
    for path, known in json.loads(stamp).items():
        try:
            stat = (root / path).stat()
        except (OSError, ValueError):
            if known is not None:
                return False
        else:
            if known != [stat.st_size, stat.st_mtime_ns]:
                return False
    return True


def version_of(root: Path, found: Closure) -> tuple[str, str]:
    """Digests of (the main file, the main file with its companions)."""
    hashes = {path: sha256_of(root / path) for path in found.files}
    return hashes[found.files[0]], fingerprints.digest_of([hashes, list(found.missing)])


def scan_object(root: Path, path: str, previous: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the source folder holds of one object, reading files only where they changed.

    Raises:
        Failure: the object can't be taken.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        raise Failure(Status.UNSUPPORTED, "the file name is not valid UTF-8: rename the file") from None
    if previous and unchanged(root, previous["stamp"]):
        return {name: previous[name] for name in ("sha256", "version", "stamp")}
    found = closure(root, path)
    stamp = stamp_of(root, found)
    sha256, version = version_of(root, found)
    return {"sha256": sha256, "version": version, "stamp": stamp}


def folder_rows(
    root: Path,
    captions: Mapping[str, list[str]],
    overrides: Mapping[str, Override],
    previous: Mapping[str, Mapping[str, Any]],
    *,
    source: str = "folder",
    paths: Iterable[str] | None = None,
) -> Iterator[Outcome]:
    """What the files of a folder are, one outcome for each; which of them take part is decided over all of them.

    Args:
        root: the folder.
        captions: by relative path.
        overrides: by relative path.
        previous: the catalog's data as it was, by object_id.
        source: name of the source, part of the object_id.
        paths: the files, where the caller has listed them already.
    """
    for path in walk(root) if paths is None else paths:
        shown = path.encode("utf-8", "backslashreplace").decode()
        # A name that is not UTF-8 can't be shown as it is; its bytes are its own all the same.
        object_id = object_id_of(source, path if shown == path else f"\0{os.fsencode(path).hex()}")
        override = overrides.get(path, Override())
        outcome = Outcome(stage="catalog", key=object_id, data={})
        try:
            if override.exclude:
                raise Failure(Status.EXCLUDED, "by the overrides")
            content = scan_object(root, path, previous.get(object_id))
            texts = captions.get(path, []) if override.captions is None else list(override.captions)
            data = {
                "source": source,
                "identifier": path,
                "file_type": file_type_of(path),
                "captions": texts,
                "pinned_yaw": override.yaw,
                "up_axis": override.up_axis,
                **content,
            }
            outcome = replace(outcome, data=data)
        except Failure as failure:
            named = failure.reason if failure.reason.startswith(shown) else f"{shown}: {failure.reason}"
            outcome = replace(outcome, status=failure.status, reason=named, data=None)
        except OSError as error:
            reason = f"{shown}: {error.strerror}: check that the file can be read"
            outcome = replace(outcome, status=Status.MISSING, reason=reason, data=None)
        yield outcome


def split_of(cluster: str, settings: CatalogSettings) -> str:
    """``train`` or ``validation``, by a seeded hash of the duplicate cluster."""
    share = int.from_bytes(hashlib.sha256(f"{settings.seed}:split:{cluster}".encode()).digest()[:8]) / 2**64
    return "validation" if share < settings.validation_share else "train"


def rank_of(object_id: str, seed: int) -> int:
    """Order of sampling: a seeded hash, so a new object shifts nobody else's rank."""
    return int.from_bytes(hashlib.sha256(f"{seed}:rank:{object_id}".encode()).digest()[:8]) >> 1


def log_unknown(what: str, table: Mapping[str, Any], paths: Iterable[str]) -> None:
    """Say which entries of a table name no object: a typing error would otherwise pass unseen."""
    unknown = sorted(set(table) - set(paths))
    if unknown:
        log.warning("%d of %d paths in the %s name no 3D file, e.g. %s", len(unknown), len(table), what, unknown[0])
