"""Captions beside an image: the text or JSON file of the same name."""

import json
from typing import Any, get_args

from gap3d.catalog import CAPTION_BYTES, parse_captions
from gap3d.image_settings import CaptionFile

FIELDS = ("captions", "caption", "annotations")  # of a JSON object, the first that gives a caption
EXTENSIONS: tuple[CaptionFile, ...] = get_args(CaptionFile)


def captions_in(content: bytes, extension: str) -> list[str]:
    """Captions of one file, longest first; none where it has none, or can't be understood.

    Args:
        content: of the file.
        extension: ``txt`` is one caption. ``json`` is a text, a list of them, or an object with ``caption`` or
            ``captions`` (BLIP3-o, img2dataset), or COCO's ``annotations``; in lists, objects with ``caption`` too.
    """
    if len(content) > CAPTION_BYTES:
        return []
    text = content.decode("utf-8-sig", "replace")
    if extension == "txt":
        return parse_captions([text])
    try:
        return parse_captions(texts(json.loads(text)))
    except (ValueError, RecursionError):
        return []


def texts(value: Any) -> list[str]:
    """The captions in a JSON value."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for each in value if isinstance(each, str | dict) for text in texts(each)]
    if isinstance(value, dict):
        return next((found for name in FIELDS if (found := texts(value.get(name)))), [])
    return []


def licence_in(content: bytes) -> str:
    """The licence that a JSON object names (COCO's converter writes it); empty where it names none."""
    try:
        found = json.loads(content[:CAPTION_BYTES])
    except (ValueError, RecursionError):
        return ""
    named = found.get("licence") or found.get("license") if isinstance(found, dict) else None
    return named.encode("utf-8", "replace").decode() if isinstance(named, str) else ""  # JSON knows half characters
