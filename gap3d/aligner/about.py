"""``aligner.json``, which lies beside an aligner's weights: what it is made of, and what is known of its training."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, NonNegativeInt, PositiveInt, ValidationError

from gap3d.aligner_settings import AlignerSettings
from gap3d.features.weights import first_line
from gap3d.records import SystemicFault

ABOUT = "aligner.json"
VERSION = 1  # of its form


class _Geometry(BaseModel):
    channels: PositiveInt
    registers: NonNegativeInt
    condition_width: PositiveInt
    width: PositiveInt
    blocks: PositiveInt
    heads: PositiveInt


class _Layout(BaseModel):
    registers: NonNegativeInt
    grid: tuple[PositiveInt, PositiveInt]
    width: PositiveInt


class _Vlm(BaseModel):
    vlm: str
    weights: str
    label: str


class _Training(BaseModel):
    encoder: dict[str, Any] = {}


class _Form(BaseModel):
    """What has to be there, and of which kind; there may be more."""

    version: Literal[1]
    settings: AlignerSettings
    geometry: _Geometry
    layout: _Layout
    vlm: _Vlm | None
    about: _Training


def read_about(folder: Path) -> dict[str, Any] | None:
    """What an aligner says of itself (``Aligner.description``); None where it says nothing, as a released one.

    Raises:
        SystemicFault: the file can't be read, or is none of these.
    """
    path = folder / ABOUT
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        _Form.model_validate(found)
    except ValidationError as error:
        worst = error.errors(include_url=False)[0]
        where = ".".join(map(str, worst["loc"])) or "it"
        said = f"{where}: {worst['msg']}"
    except (OSError, ValueError, RecursionError) as error:
        said = first_line(error)
    else:
        return found
    raise SystemicFault(
        f"aligner {str(folder)!r} can't be used: {ABOUT} is damaged, or of another version than this program's "
        f"{VERSION} ({said}): take another checkpoint, or copy this one anew"
    )
