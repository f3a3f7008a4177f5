"""MS-COCO's own layout, and the caption of every image in the evaluation protocol (docs/method.md 8.1)."""

import io
import json
import random
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import JpegImagePlugin

from gap3d.records import Failure, Status
from gap3d.settings import CocoSettings
from gap3d.tars import stamp_of

ABOUT = ("file_name", "width", "height", "date_captured", "coco_url", "flickr_url")  # what is handed on as it is


@dataclass(frozen=True, kw_only=True)
class Image:
    """One image of the annotations.

    Attributes:
        captions: by annotation id, white space normalised, each once.
        caption: the drawn one; empty where there is none.
        about: what the annotations say of it, with the name and address of its licence.
    """

    id: int
    captions: tuple[str, ...]
    caption: str
    about: dict[str, Any]

    @property
    def key(self) -> str:
        """The id as COCO's file names have it; sorts as the number does."""
        return f"{self.id:012d}"

    def sample(self, jpg: bytes) -> dict[str, Any]:
        """The image as a member of a tar."""
        content = {"image_id": self.id, "captions": list(self.captions), **self.about}
        return {
            "__key__": self.key,
            "jpg": jpg,
            "txt": self.caption.encode(),
            "json": json.dumps(content, sort_keys=True, ensure_ascii=False).encode(),
        }


class Coco:
    """An opened copy of the data set.

    Args:
        pictures: the folder of images, on the disk or in a zip.
        annotations: the captions' file, likewise.
        stamp: of the zip that holds the images; empty for a folder.
    """

    def __init__(self, pictures: Any, annotations: Any, stamp: str) -> None:
        self.pictures, self.annotations, self.stamp = pictures, annotations, stamp

    def images(self, seed: int) -> list[Image]:
        """All images by id, each with its captions and the one that is drawn.

        Raises:
            ValueError: it is no file of captions.
        """
        try:
            content = json.loads(self.annotations.read_bytes())
            licences = {entry["id"]: entry for entry in content.get("licenses", [])}
            if not content["images"] or max(abs(entry["id"]) for entry in content["images"]) >= 2**63:
                raise ValueError("no images, or ids of more than 64 bits")
            captions: dict[int, list[str]] = {int(entry["id"]): [] for entry in content["images"]}
            for entry in sorted(content["annotations"], key=lambda entry: entry["id"]):
                captions.setdefault(entry["image_id"], []).append(legible(" ".join(entry["caption"].split())))
            entries = sorted(content["images"], key=lambda entry: entry["id"])
            return list(drawn(entries, captions, licences, seed))
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError, zipfile.BadZipFile) as error:
            raise ValueError(f"{self.annotations} is no file of COCO captions: {error!r}"[:500]) from error

    def file(self, image: Image) -> Any:
        """An image's file.

        Raises:
            Failure: ``forbidden_reference``: it is named as if it lay elsewhere.
        """
        name = str(image.about["file_name"])
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise Failure(Status.FORBIDDEN_REFERENCE, f"the annotations give it the file name {name!r}")
        return self.pictures / name

    def stamp_of(self, image: Image) -> str:
        """What tells that an image's file is as it was.

        Raises:
            Failure: ``missing``: there is no file.
        """
        file = self.file(image)
        try:
            there = file.is_file()
        except OSError:  # no file can have such a name
            there = False
        if not there:
            raise Failure(Status.MISSING, f"{file.name[:200]} is not among the images: copy it there, then run again")
        return self.stamp or stamp_of(file)

    def size_of(self, image: Image) -> int:
        """Bytes of an image that is there, as the file system or the zip tells them."""
        file = self.file(image)
        return file.root.getinfo(file.at).file_size if isinstance(file, zipfile.Path) else file.stat().st_size

    def jpg(self, image: Image, most_bytes: int, most_pixels: int) -> bytes:
        """An image's bytes, once they are proven to be a picture.

        Raises:
            Failure: ``missing``, ``too_large``, or ``unsupported`` for what can't be decoded.
        """
        file = self.file(image)
        try:
            with file.open("rb") as opened:
                data = opened.read(most_bytes + 1)
        except (FileNotFoundError, KeyError) as error:
            raise Failure(Status.MISSING, f"{file.name} is gone") from error
        except zipfile.BadZipFile as error:
            raise Failure(Status.UNSUPPORTED, f"damaged in its zip: {error}") from error
        if len(data) > most_bytes:
            raise Failure(Status.TOO_LARGE, f"more than limits.object_bytes = {most_bytes}")
        try:
            picture = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
            if picture.width * picture.height > most_pixels:
                raise Failure(
                    Status.TOO_LARGE, f"{picture.width} x {picture.height} pixels, the limit is {most_pixels}"
                )
            picture.load()
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise Failure(Status.UNSUPPORTED, f"no JPEG that can be read: {error}") from error
        return data


def legible(value: Any) -> Any:
    """The same; in a text, what JSON can spell and UTF-8 has not, half a character, replaced."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def drawn(
    entries: list[dict[str, Any]], captions: dict[int, list[str]], licences: dict[Any, Any], seed: int
) -> Iterator[Image]:
    """Images with the caption that is drawn for each, one draw an image.

    The draw goes by what the annotations list: a missing file changes no other image's caption.
    """
    rng = random.Random(seed)
    for entry in entries:
        mine = tuple(dict.fromkeys(caption for caption in captions[entry["id"]] if caption))
        licence = licences.get(entry.get("license"), {})
        yield Image(
            id=int(entry["id"]),
            captions=mine,
            caption=mine[rng.randint(0, len(mine) - 1)] if mine else "",
            about={
                **{name: legible(entry[name]) for name in ABOUT if name in entry},
                "file_name": legible(entry["file_name"]),
                "licence": str(legible(licence.get("name", ""))),
                "licence_url": str(legible(licence.get("url", ""))),
            },
        )


@contextmanager
def open_coco(settings: CocoSettings) -> Iterator[Coco]:
    """The data set in a folder, as folders or as the official zips.

    Raises:
        ValueError: it is not there.
    """
    if settings.path is None:
        raise ValueError("coco.path names no folder: --coco.path DIR, where val2017 and annotations lie")
    root, split = settings.path, settings.split
    file = f"annotations/captions_{split}.json"
    pictures, pictures_zip = root / split, root / f"{split}.zip"
    annotations, annotations_zip = root / file, root / f"annotations_trainval{split[-4:]}.zip"
    if not (pictures.is_dir() or pictures_zip.is_file()) or not (annotations.is_file() or annotations_zip.is_file()):
        raise ValueError(
            f"coco.path = {root} holds no {split} (or {pictures_zip.name}) with {file} (or {annotations_zip.name}): "
            "download both from cocodataset.org"
        )
    with inside(pictures, pictures_zip, split) as found, inside(annotations, annotations_zip, file) as captions:
        yield Coco(found, captions, "" if pictures.is_dir() else stamp_of(pictures_zip))


@contextmanager
def inside(plain: Path, packed: Path, member: str) -> Iterator[Any]:
    """A path on the disk where there is one, else the same in a zip, without unpacking it."""
    if plain.exists():
        yield plain
        return
    try:
        file = zipfile.ZipFile(packed)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{packed} is cut off or damaged ({error}): download it again") from error
    with file:
        yield zipfile.Path(file) / member
