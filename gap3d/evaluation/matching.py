"""Which true object a generated one stands for: told by its name (specification 8.3).

A name is an object_id, what a prompt's key begins with (``<object_id>/000``, ``<object_id>#3``), the SHA-256 of the
true object's file, or the path that the catalog knows it by, with its ending or without, in full or the last part.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Known:
    """A true object, as the catalog knows it.

    Attributes:
        sha256: of its file; empty where nobody knows it.
        identifier: its path, or address.
    """

    sha256: str = ""
    identifier: str = ""

    @property
    def names(self) -> list[str]:
        """What it can be called beside its object_id, the surest first."""
        path = PurePosixPath(self.identifier)
        whole = self.identifier.removesuffix(path.suffix)
        return [name for name in (self.sha256, self.identifier, whole, path.name, path.stem) if name]


@dataclass(frozen=True)
class Matched:
    """Generated objects by the true ones that they stand for.

    Attributes:
        generated: name of the generated object, by object_id.
        strangers: names that mean no true object.
    """

    generated: Mapping[str, str]
    strangers: tuple[str, ...]


def match(names: Iterable[str], true: Mapping[str, Known], collection: str) -> Matched:
    """Tell which true object each name means.

    Args:
        names: of generated objects.
        true: all true objects by object_id.
        collection: of the true objects, for messages.

    Raises:
        ValueError: there are no names, none means a true object, or two mean the same.
    """
    wanted = sorted(set(names))
    if not wanted:
        raise ValueError("there are no generated objects: generate some first, or name another place (--generated)")
    called = by_name(true)
    found: dict[str, str] = {}
    strangers = []
    for name in wanted:
        object_id = next((called[each] for each in spellings(name) if called.get(each)), None)
        if object_id is None:
            strangers.append(name)
        elif object_id in found:
            raise ValueError(
                f"{found[object_id]!r} and {name!r} are both named as the true object {object_id}: one object is "
                "measured for each, so remove one of them"
            )
        else:
            found[object_id] = name
    if not found:
        raise ValueError(
            f"none of the {len(wanted)} generated objects ({listed(wanted)}) is named as one of the {len(true)} true "
            f"objects of collection {collection} ({listed(sorted(true))}): name them by object_id, by SHA-256 or by "
            "path, or name the collection of their true objects (--evaluation.true)"
        )
    return Matched(found, tuple(strangers))


def spellings(name: str) -> list[str]:
    """A name, and what it can mean where it is a prompt's key."""
    return list(dict.fromkeys([name, name.partition("#")[0], name.partition("#")[0].rpartition("/")[0]]))


def by_name(true: Mapping[str, Known]) -> dict[str, str | None]:
    """object_id by every name; None for a name that several objects have."""
    called: defaultdict[str, set[str]] = defaultdict(set)
    for object_id, known in true.items():
        for name in known.names:
            called[name].add(object_id)
    found: dict[str, str | None] = {name: min(ids) if len(ids) == 1 else None for name, ids in called.items()}
    return found | {object_id: object_id for object_id in true}


def listed(names: Sequence[str]) -> str:
    """Some of them, for a message."""
    more = ", ..." if len(names) > SHOWN else ""
    return ", ".join(name[:40] for name in names[:SHOWN]) + more
