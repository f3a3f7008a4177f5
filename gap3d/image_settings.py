"""Settings of images that nobody renders: the hub's pairs, MS-COCO, and collections of images."""

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, PositiveInt, field_validator, model_validator

from gap3d.section import Section

CaptionFile = Literal["json", "txt"]
"""Extensions of files that may hold an image's captions, in the order in which they are looked for."""


class ImageTextSettings(Section):
    """Image-text pairs of the hub: WebDataset tars (docs/method.md 1.2)."""

    repositories: dict[str, str] = Field(default={})
    """Dataset repositories and the revision of each: a commit. A branch or tag, such as main, is resolved to its
    commit by every run."""
    patterns: Annotated[tuple[str, ...], Field(min_length=1)] = ("*.tar",)
    """Which files of a repository, by their path in it, with * and ?."""
    count: PositiveInt | None = None
    """The first so many tars of every repository, by path; none takes all."""
    most_bytes: PositiveInt | None = None
    """Tars are taken in order while all together stay below this."""
    folder: Path | None = None
    """Where the tars lie, all in one flat folder. Default: tars, in the collection's folder."""

    @field_validator("folder")
    @classmethod
    def folder_holds_anywhere(cls, folder: Path | None) -> Path | None:
        """A job runs in no folder of the caller's."""
        return folder.expanduser().absolute() if folder else None


class CocoSettings(Section):
    """MS-COCO as image-text tars with the caption of the evaluation protocol (docs/method.md 8.1)."""

    path: Path | None = None
    """The folder that holds val2017 and annotations, as folders or as the official zips."""
    split: Annotated[str, Field(pattern=r"^(train|val)20\d\d$")] = "val2017"
    """Name of the image folder, and of the annotations that belong to it."""
    seed: int = 0
    """Of the draw of one caption an image; the protocol's is 0."""
    tar_images: PositiveInt = 1000
    """Images in one tar."""

    @field_validator("path")
    @classmethod
    def path_holds_anywhere(cls, path: Path | None) -> Path | None:
        """A job runs in no folder of the caller's."""
        return path.expanduser().absolute() if path else None


class ImageSettings(Section):
    """Images that are there already, in the place of renders: no objects, no views.

    Of the section ``catalog`` the shards, the seed, the share of the validation split and ``captioned`` apply.
    """

    kind: Literal["none", "tars", "folder"] = "none"
    """none: objects are rendered. tars: WebDataset tars of jpg, png or webp with txt or json. folder: image files."""
    path: Path | None = None
    """The folder of the tars or of the images, searched at any depth, or one tar. Default for tars: tars, in the
    collection's folder, where pipelines.image_text and pipelines.coco put them."""
    captions_from: Annotated[tuple[CaptionFile, ...], Field(min_length=1)] = get_args(CaptionFile)
    """Where the captions of an image are looked for, beside it and by its name; the first that has any is taken."""
    captions: Path | None = None
    """folder: CSV or Parquet with columns path and captions, over what lies beside the images.

    Default: captions.csv in the folder, if there."""

    @field_validator("path", "captions")
    @classmethod
    def paths_hold_anywhere(cls, path: Path | None) -> Path | None:
        """A job runs in no folder of the caller's."""
        return path.expanduser().absolute() if path else None

    @model_validator(mode="after")
    def folder_is_named(self) -> "ImageSettings":
        """A folder of images has no default."""
        if self.kind == "folder" and self.path is None:
            raise ValueError("images.kind = 'folder' needs images.path: name the folder (--images.path DIR)")
        return self
