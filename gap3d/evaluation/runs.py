"""Run sheets: what a comparison over a file of prompts makes of every prompt, one run a column (Tables 3 and 4).

A sheet is TOML: ``title``, ``note``, and ``[[runs]]`` with the fields of ``Run``.
"""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import Field, PositiveInt, ValidationError, model_validator

from gap3d.evaluation_settings import Model
from gap3d.section import Section
from gap3d.trellis.seeds import Method

PACKAGE = "gap3d.evaluation.sheets"
STAGES: tuple[Model, ...] = get_args(Model)
PROMPTS, TRUE = "prompts", "true"
OF_METHOD = {  # what shapes the result of only some methods
    "model": ("gap3d",),
    "steps": ("gap3d",),
    "suffix": ("gap3d", "trellis-text"),
    "pictures": ("trellis-image",),
    "black": ("trellis-image",),
}


class Run(Section):
    """One run over the prompts."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,39}$")]
    """Of its collection, after the prefix."""
    title: str = ""
    """Of its column; empty: the name."""
    method: Method = "gap3d"
    """gap3d: an aligner's token sets, of which TRELLIS makes objects. The others are TRELLIS's own pipelines."""
    model: Annotated[str, Field(min_length=1)] = "finetuned"
    """gap3d: the collection's newest pretrained or finetuned aligner, or the folder of a checkpoint."""
    suffix: str = ""
    """Appended to every prompt after one space; the noise stays that of the prompt without it (docs/method.md 8.5)."""
    steps: PositiveInt = 50
    """gap3d: of the sampler; 50 for all 3D (docs/method.md 7)."""
    pictures: Annotated[str, Field(min_length=1)] = TRUE
    """trellis-image: what it sees. prompts: the prompts' own pictures. true: one of four renders of the prompt's
    object, of the collection of true objects. Else a collection of this store, whose renders are seen."""
    black: bool = False
    """trellis-image: it sees the pictures on black, without alpha, and cuts the object out itself."""
    weights: Annotated[str, Field(min_length=1)] | None = None
    """TRELLIS's: a hub id or a folder; none takes the paper's."""

    @property
    def head(self) -> str:
        """Of its column."""
        return self.title or self.name

    @model_validator(mode="after")
    def fields_have_an_effect(self) -> "Run":
        """A field that changes nothing is a mistake."""
        for field, methods in OF_METHOD.items():
            if field in self.model_fields_set and self.method not in methods:
                raise ValueError(f"{field} has no effect on {self.method}: it is for {' and '.join(methods)}")
        return self


class Sheet(Section):
    """The runs of a comparison, in the order of their columns."""

    title: Annotated[str, Field(min_length=1)]
    """Above the pictures."""
    note: str = ""
    """What to know of them."""
    runs: Annotated[tuple[Run, ...], Field(min_length=1)]
    """One or more."""

    @model_validator(mode="after")
    def names_are_apart(self) -> "Sheet":
        """Two runs in one collection would undo each other."""
        names = [run.name.lower() for run in self.runs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two runs are named {twice[0]}: each has a collection of its own")
        return self


def bundled() -> list[str]:
    """Names of the sheets that come with the package."""
    files = (path.name for path in resources.files(PACKAGE).iterdir())
    return sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml"))


def read_sheet(name: str) -> Sheet:
    """A sheet of the package's by name, or a TOML file by path; folders in a file are relative to the file's.

    Raises:
        ValueError: there is none, it is no TOML, or a field of it can't be used.
    """
    if name in bundled():
        return sheet_of(resources.files(PACKAGE).joinpath(f"{name}.toml").read_text(), name)
    path = Path(name).expanduser()
    if path.suffix != ".toml" or not path.is_file():
        raise ValueError(f"no run sheet {name!r}: choose one of {', '.join(bundled())}, or name a .toml file")
    sheet = sheet_of(path.read_text(), str(path))
    return sheet.model_copy(update={"runs": tuple(placed(run, path.parent.absolute()) for run in sheet.runs)})


def placed(run: Run, folder: Path) -> Run:
    """The same with its checkpoint's folder absolute."""
    model = run.model if run.model in STAGES else str(folder / Path(run.model).expanduser())
    return run.model_copy(update={"model": model})


def sheet_of(text: str, place: str) -> Sheet:
    """A sheet from its text.

    Raises:
        ValueError: one sentence about the first thing that is wrong.
    """
    try:
        return Sheet(**tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{place} is no TOML: {error}") from error
    except ValidationError as error:
        raise ValueError(f"{place}: {sentence_of(error)}") from error


def sentence_of(error: ValidationError) -> str:
    """The first of a sheet's mistakes: where, and what to do."""
    first: Any = error.errors()[0]
    steps = [f"run {step + 1}" if isinstance(step, int) else str(step) for step in first["loc"] if step != "runs"]
    where = ", ".join(steps)
    if first["type"] == "extra_forbidden":
        fields = (Run if len(first["loc"]) > 1 else Sheet).model_fields
        return f"{where} is no field: there are {', '.join(fields)}"
    said = str(first["msg"]).removeprefix("Value error, ")
    return f"{where}: {said}" if where else said
