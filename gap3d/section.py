"""What the groups of settings have in common: their base, and the types of paths, weights and names of collections."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""What can name a collection."""
KNOWN_WEIGHTS = ("point-e", "torchvision")
"""What names weights that the program knows, whatever lies in the folder where it runs."""
NOT_COLLECTIONS = ("blobs", "samples")  # folders of a store


class Section(BaseModel):
    """A group of settings: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def absolute(path: Path) -> Path:
    """A path that holds anywhere: neither a job nor a worker on another node runs in the caller's folder.

    Raises:
        ValueError: it is of a user whom nobody knows.
    """
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"{path} can't be found: {error}") from error


def of_home(path: Path) -> Path:
    """The same, but below ``~`` as it is: for everybody who runs it, and nothing is asked where it is not used."""
    return path if path.parts[:1] == ("~",) else absolute(path)


def of_weights(named: str) -> str:
    """A file or folder that is there, absolute; anything else, such as a hub id, as it is."""
    if not named or named in KNOWN_WEIGHTS or named.startswith("random-small"):
        return named
    try:
        path = absolute(Path(named))
        return str(path) if path.exists() else named
    except OSError:  # longer than a file's name can be
        return named


def of_folder(place: str) -> str:
    """A folder, absolute; a URL, or nothing, as it is."""
    return str(absolute(Path(place))) if place and "://" not in place else place


def of_collection(name: str) -> str:
    """A name that a collection can have.

    Raises:
        ValueError: it can't.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} can't name a collection: letters, digits, '.', '_' and '-', the first no sign")
    if name in NOT_COLLECTIONS:
        raise ValueError(f"{name!r} is a folder and no collection: it is the store's own, choose another name")
    return name


Place = Annotated[Path, AfterValidator(absolute)]
HomePlace = Annotated[Path, AfterValidator(of_home)]
Weights = Annotated[str, AfterValidator(of_weights)]
Folder = Annotated[str, AfterValidator(of_folder)]
Collection = Annotated[str, AfterValidator(of_collection)]
