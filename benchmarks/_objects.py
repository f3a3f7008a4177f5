"""The objects that benchmarks render: the bundled ones, or a folder of 3D files."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from gap3d.samples import write_samples
from render.job import FILE_TYPES, Model


@contextmanager
def objects(folder: Path | None) -> Iterator[Path]:
    """The folder; without one, the bundled objects in a temporary one, and a line that says so."""
    if folder is not None:
        yield folder.resolve()
        return
    print("of the bundled objects; docs/numbers.md has figures of real ones, which are not distributed: --folder")
    with TemporaryDirectory() as made:
        write_samples(Path(made))
        yield Path(made).resolve()


def files(folder: Path, count: int) -> list[Path]:
    """So many 3D files, spread evenly over the folder's sorted list."""
    found = sorted(path for path in folder.rglob("*") if file_type(path) in FILE_TYPES)
    if not found:
        sys.exit(f"{folder} has no 3D file ({', '.join(sorted(FILE_TYPES))}): name another with --folder")
    count = min(count, len(found))
    return [found[index * len(found) // count] for index in range(count)]


def model(path: Path) -> Model:
    """What Blender is asked to open."""
    return Model(path.parent, path.name, file_type(path))


def file_type(path: Path) -> str:
    """As in ``FILE_TYPES``."""
    return path.suffix.lower().removeprefix(".")
