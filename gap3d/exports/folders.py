"""An object's folder: its pictures, depths and transforms.json, as TRELLIS lays them out (docs/method.md 2.1)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gap3d.parts import write_atomically
from gap3d.transforms import transforms


def write(place: Path, rows: Sequence[Mapping[str, Any]], **head: Any) -> None:
    """Write an object's folder; transforms.json comes last, so that a folder with one is whole.

    Args:
        place: the folder; pictures of an earlier export go, what else lies there stays.
        rows: the object's renders rows.
        head: what transforms.json says beside the cameras.
    """
    (place / "transforms.json").unlink(missing_ok=True)
    named = {f"{row['view']:03d}.png" for row in rows}
    named |= {f"{row['view']:03d}_depth.png" for row in rows if row["depth"]}
    for picture in place.glob("[0-9][0-9][0-9]*.png"):
        if picture.name not in named:
            picture.unlink()
    for row in rows:
        write_atomically(place / f"{row['view']:03d}.png", row["png"])
        if row["depth"]:
            write_atomically(place / f"{row['view']:03d}_depth.png", row["depth"])
    write_atomically(place / "transforms.json", json.dumps({**head, **transforms(rows)}, indent=1).encode())
