"""Settings of images that nobody renders: the hub's pairs, MS-COCO, and collections of images."""

from typing import Annotated, Literal, get_args

from pydantic import Field, PositiveInt, model_validator

from gap3d.section import Place, Section

CaptionFile = Literal["json", "txt"]
"""Extensions of files that may hold an image's captions, in the order in which they are looked for."""


class ImageTextSettings(Section):
    """Image-text pairs of the hub: WebDataset tars (docs/method.md 1.2)."""

    repositories: dict[str, str] = Field(default={})
    """Hub dataset repositories, and the revision of each: a commit. A branch or tag, such as main, is resolved to its
    commit by every run."""
    patterns: Annotated[tuple[str, ...], Field(min_length=1)] = ("*.tar",)
    """Files that are taken of a repository, by their path in it, with * and ?."""
    count: PositiveInt | None = None
    """Number of tars taken of every repository, the first by path; default: all."""
    most_bytes: PositiveInt | None = None
    """Total size of the tars, bytes: they are taken in order while all together stay below this. Default: no bound."""
    folder: Place | None = None
    """Folder that the tars are downloaded to, without subfolders. Default: tars, in the collection's folder."""


class CocoSettings(Section):
    """MS-COCO as image-text tars with the caption of the evaluation protocol (docs/method.md 8.1)."""

    path: Place | None = None
    """Folder that holds MS-COCO's val2017 and annotations, as folders or as the official zips."""
    split: Annotated[str, Field(pattern=r"^(train|val)20\d\d$")] = "val2017"
    """Name of the image folder, such as val2017, and of the annotations that belong to it."""
    seed: int = 0
    """Seed of the draw of one caption for each image; the protocol's is 0."""
    tar_images: PositiveInt = 1000
    """Number of images in one tar."""


class ImageSettings(Section):
    """Images that are there already, in the place of renders: no objects, no views.

    Of the section ``catalog`` the shards, the seed, the share of the validation split and ``captioned`` apply.
    """

    kind: Literal["none", "tars", "folder"] = "none"
    """Kind of pictures in the place of renders. none: objects are rendered. tars: WebDataset tars of jpg, png or webp
    with txt or json. folder: image files."""
    path: Place | None = None
    """Folder of the tars or of the images, searched at any depth, or one tar. Default for tars: tars, in the
    collection's folder, where pipelines.image_text and pipelines.coco put them."""
    captions_from: Annotated[tuple[CaptionFile, ...], Field(min_length=1)] = get_args(CaptionFile)
    """File types in which the captions of an image are looked for, beside it and by its name; the first that has any is
    taken."""
    captions: Place | None = None
    """folder: CSV or Parquet file with columns path and captions, in preference to what lies beside the images.

    Default: captions.csv in the folder, if there."""

    @model_validator(mode="after")
    def folder_is_named(self) -> "ImageSettings":
        """A folder of images has no default."""
        if self.kind == "folder" and self.path is None:
            raise ValueError("images.kind = 'folder' needs images.path: name the folder (--images.path DIR)")
        return self
