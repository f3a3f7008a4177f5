"""Prompts: what tokens are to be generated of, as texts on a command line or as a file with one a row.

One row of a file is one prompt, whatever is wrong with it: what can't be used carries the fault that its row will have.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gap3d.catalog import known_columns, read_table
from gap3d.records import Failure, Status

COLUMNS = ("id", "prompt", "image", "index", "caption_index")
TABLES = (".csv", ".parquet")
KINDS = (".txt", *TABLES, ".jsonl")
ID_LENGTH = 200


@dataclass(frozen=True)
class Prompt:
    """One wanted token set.

    Attributes:
        key: the id of the file, else a hash of prompt and image; no two prompts have the same.
        text: what is asked for, with the suffix; of a prompt with an image, what is to change in it.
        image: of the picture that is edited; None where there is none.
        index: position in the set, from 0: what the seeds of the evaluation are made from (docs/method.md 8.3).
        caption_index: which of its object's captions the text is; goes into the same seeds.
        place: file and line, for messages.
        fault: why nothing can be generated of it.
    """

    key: str
    text: str
    image: Path | None
    index: int
    caption_index: int = 0
    place: str = ""
    fault: Failure | None = None


def of_texts(texts: Sequence[str], images: Sequence[Path] = (), suffix: str = "") -> list[Prompt]:
    """Prompts of a command line.

    Args:
        texts: one for each prompt.
        images: none, or one for each prompt.
        suffix: see ``of_rows``.

    Raises:
        ValueError: there are images, and not as many as prompts.
    """
    if images and len(images) != len(texts):
        raise ValueError(
            f"{len(images)} images for {len(texts)} prompts: give each --prompt its --image, or none of them"
        )
    rows = [{"prompt": text} | ({"image": str(images[i].absolute())} if images else {}) for i, text in enumerate(texts)]
    places = [f"prompt {number}" for number in range(1, len(rows) + 1)]
    return of_rows(zip(places, rows, strict=True), Path(), suffix)


def of_file(path: Path, suffix: str = "") -> list[Prompt]:
    """The prompts of a file.

    Args:
        path: ``.txt`` (UTF-8, one prompt a line), or ``.csv``, ``.parquet``, ``.jsonl`` (an object a line) with
            ``COLUMNS``, of which only ``prompt`` is needed; images are relative to the file's folder.
        suffix: see ``of_rows``.

    Raises:
        ValueError: it is of another kind, not to be read as one, has unknown columns, or no rows.
        OSError: it can't be read.
    """
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise ValueError(f"{path} is no file of prompts: it has to end in one of {', '.join(KINDS)}")
    if kind in TABLES:
        table = read_table(path, "prompt")
        known_columns(path, table, COLUMNS)
        rows: list[Mapping[str, Any] | Failure] = list(table)
    else:
        rows = list(lines_of(path, kind))
        known_columns(path, (row for row in rows if not isinstance(row, Failure)), COLUMNS)
    if not rows:
        raise ValueError(f"{path} holds no prompts")
    places = [f"{path.name} row {number}" for number in range(1, len(rows) + 1)]
    return of_rows(zip(places, rows, strict=True), path.parent.absolute(), suffix)


def lines_of(path: Path, kind: str) -> Iterator[Mapping[str, Any] | Failure]:
    """The rows of a text or JSON Lines file."""
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error
    for line in lines[:-1] if not lines[-1] else lines:
        if kind == ".txt":
            yield {"prompt": line}
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        yield found if isinstance(found, dict) else Failure(Status.UNSUPPORTED, f"no JSON object: {line[:80]!r}")


def of_rows(rows: Iterable[tuple[str, Mapping[str, Any] | Failure]], folder: Path, suffix: str = "") -> list[Prompt]:
    """Prompts of rows, in their order.

    Args:
        rows: each with its place; of a row that could not be read, the fault.
        folder: what the paths of images are relative to.
        suffix: appended to every prompt after one space (docs/method.md 8.5). It changes no key, so that the noise
            with it and without is the same.
    """
    made: list[Prompt] = []
    seen: dict[str, int] = {}
    for index, (place, row) in enumerate(rows):
        prompt = of_row(row, index, place, folder, suffix)
        seen[prompt.key] = count = seen.get(prompt.key, 0) + 1
        if count > 1:  # of equal prompts each has another noise; an id stands in one row only
            named = not isinstance(row, Failure) and prompt.key == cell(row, "id")
            fault = Failure(Status.DUPLICATE, f"{place}: the id {prompt.key} is that of an earlier row")
            prompt = replace(
                prompt, key=key_of(prompt.key, str(count)), fault=prompt.fault or (fault if named else None)
            )
        made.append(prompt)
    return made


def of_row(row: Mapping[str, Any] | Failure, index: int, place: str, folder: Path, suffix: str) -> Prompt:
    """One prompt; its key may be another's."""
    if isinstance(row, Failure):
        fault = Failure(row.status, f"{place}: {row.reason}")
        return Prompt(key_of(place, row.reason), "", None, index, place=place, fault=fault)
    text, image = cell(row, "prompt"), cell(row, "image")
    key = key_of(text, image)
    try:
        named = identifier(row)
        key = named or key
        if not isinstance(row.get("prompt") or "", str):
            raise Failure(Status.UNSUPPORTED, f"the prompt is {row['prompt']!r}, no text")
        if not text:
            raise Failure(Status.MISSING, "the prompt is empty")
        index, caption = (number(row, name, usual) for name, usual in (("index", index), ("caption_index", 0)))
    except Failure as known:
        fault = Failure(known.status, f"{place}: {known.reason}")
        return Prompt(key, text, None, index, place=place, fault=fault)
    suffixed = f"{text} {suffix.strip()}" if suffix.strip() else text
    return Prompt(key, suffixed, folder / image if image else None, index, caption, place)


def key_of(*parts: str) -> str:
    """A key of what has no id."""
    return hashlib.sha256("\0".join(("prompt", *parts)).encode()).hexdigest()[:32]


def cell(row: Mapping[str, Any], name: str) -> str:
    """A cell as text, without spaces about it; empty where there is none."""
    value = row.get(name)
    return "" if value is None else str(value).encode("utf-8", "replace").decode().strip()


def identifier(row: Mapping[str, Any]) -> str:
    """The id in a row.

    Raises:
        Failure: it can't be a key.
    """
    found = cell(row, "id")
    if len(found) > ID_LENGTH or not found.isprintable():
        raise Failure(
            Status.UNSUPPORTED, f"the id {found[:40]!r} is no printable text of at most {ID_LENGTH} characters"
        )
    return found


def number(row: Mapping[str, Any], name: str, usual: int) -> int:
    """A whole number in a row, or the usual one.

    Raises:
        Failure: it is none, or negative.
    """
    text = cell(row, name)
    if not text or text == "nan":
        return usual
    try:
        value = float(text)
        if value < 0 or value != int(value):
            raise ValueError
    except (ValueError, OverflowError):
        raise Failure(Status.UNSUPPORTED, f"{name} = {text!r} must be a whole number from 0") from None
    return int(value)
