"""What a source looks like from outside: the names, sizes and times of everything that the catalog reads."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from gap3d.catalog import unreadable
from gap3d.settings import Settings


def watched(settings: Settings) -> list[Path]:
    """Folders and files of the user's whose change can change the catalog; none where the source never changes."""
    source = settings.source
    found: list[Path | None] = [*source.described_by, *settings.catalog.held_out, settings.catalog.denied]
    if source.kind == "folder":
        found += [source.path, source.captions, source.overrides]
    if source.kind == "tables":
        found += source.tables
    return [path.expanduser().absolute() for path in found if path is not None]


def files(place: Path) -> Iterator[bytes]:
    """A file, or all files below a folder in a stable order, of any type: companions count.

    Raises:
        SystemicFault: a folder can't be listed.
    """
    if not place.is_dir():
        yield os.fsencode(place)
        return
    for folder, folders, names in os.walk(place, onerror=unreadable):
        folders.sort()
        for name in sorted(names):
            yield os.fsencode(os.path.join(folder, name))  # noqa: PTH118 - a Path each would take most of the time


def look(places: list[Path]) -> str:
    """Digest of names, sizes and times; equal looks mean that nothing has to be read again."""
    state = hashlib.sha256()
    for place in places:
        state.update(b"%s\0" % os.fsencode(place))
        for path in files(place):
            try:
                stat = os.stat(path)  # noqa: PTH116 - see above
                state.update(b"%s\0%d\0%d\n" % (path, stat.st_size, stat.st_mtime_ns))
            except OSError:  # a dangling link, or gone since it was listed
                state.update(b"%s\0\n" % path)
    return state.hexdigest()[:32]
