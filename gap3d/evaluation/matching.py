"""Which true object a generated one stands for: told by its name (docs/method.md 8.3).

A name is an object_id, what a prompt's key begins with (``<object_id>/000``, ``<object_id>#3``), the SHA-256 of the
true object's file, or the path that the catalog knows it by, with its ending or without, in full or the last part.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
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
        return [name for name in (self.sha256, *of_path(self.identifier)) if name]


@dataclass(frozen=True)
class Matched:
    """Generated objects by the true ones that they stand for.

    Attributes:
        generated: key of the generated object, by object_id.
        strangers: keys of those that stand for none.
    """

    generated: Mapping[str, str]
    strangers: tuple[str, ...]


def of_path(path: str) -> list[str]:
    """What the file at a path can be called."""
    parts = PurePosixPath(path)
    return [path, path.removesuffix(parts.suffix), parts.name, parts.stem] if path else []


def of_key(key: str) -> list[str]:
    """What a prompt's key, or the name of a folder, can mean."""
    whole = key.partition("#")[0]
    return list(dict.fromkeys([key, whole, whole.rpartition("/")[0]]))


def match(generated: Mapping[str, Sequence[str]], true: Mapping[str, Known], collection: str) -> Matched:
    """Tell which true object each generated one stands for.

    Args:
        generated: what each can be called, by its key; the first is shown to people.
        true: all true objects by object_id.
        collection: of the true objects, for messages.

    Raises:
        ValueError: there are none, none of them means a true object, or two mean the same.
    """
    if not generated:
        raise ValueError("there are no generated objects: generate some first, or name another place (--generated)")
    called = by_name(true)
    found: dict[str, str] = {}
    strangers = []
    for key in sorted(generated):
        object_id = next((called[each] for each in generated[key] if called.get(each)), None)
        if object_id is None:
            strangers.append(key)
        elif object_id in found:
            one, other = generated[found[object_id]][0], generated[key][0]
            raise ValueError(
                f"{one!r} and {other!r} are both named as the true object {object_id}: one object is measured for "
                "each, so remove one of them"
            )
        else:
            found[object_id] = key
    if not found:
        names = sorted(each[0] for each in generated.values())
        raise ValueError(
            f"none of the {len(names)} generated objects ({listed(names)}) is named as one of the {len(true)} true "
            f"objects of collection {collection} ({listed(sorted(true))}): name them by object_id, by SHA-256 or by "
            "path, or name the collection of their true objects (--evaluation.true)"
        )
    return Matched(found, tuple(strangers))


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
