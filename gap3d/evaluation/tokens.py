"""Token sets of any model, whoever made them: one door over what was generated, true targets, and plain shards."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow.parquet as pq
import torch
from torch import Tensor

from gap3d import dataset_index, fingerprints, manifest
from gap3d.evaluation.plain_sets import SHARDS, PlainSets, is_ours
from gap3d.evaluation.target_sets import TargetSets, of_parts, parquet
from gap3d.features.encoder import UNTRAINED
from gap3d.features.tokens import KINDS
from gap3d.records import Failure, Status
from gap3d.store import ALL, Store

log = logging.getLogger(__name__)

BATCH_BYTES = 1 << 24  # of a batch's float32 tokens: the allocator uses memory of that size again
NORMALISED = "layer norm"  # how targets' metadata describe what was done to them


class Rows(Protocol):
    """Where token sets lie: ``TargetSets`` or ``PlainSets``."""

    keys: list[str]
    shapes: dict[str, tuple[int, int]]

    def read(self, keys: Iterable[str], kinds: Sequence[str]) -> Iterator[tuple[str, dict[str, Tensor] | Failure]]:
        """By kind [N, C] of each key, or why it can't be had."""
        ...

    def close(self) -> None:
        """Close files."""
        ...


class TokenSets:
    """Token sets by key.

    Attributes:
        keys: of the sets, in the order in which they lie on the disk: in that order they are read quickest.
        shapes: number and width of the tokens of each kind; the same of all sets.
        failures: by key, why a set can't be had: those that are known to have failed, and those that ``read`` and
            ``batches`` were asked for and did not find, or found damaged or not finite.
        description: ``source`` (generated, dataset or shards), ``name``, ``digest`` of the content, ``label``,
            ``trained`` and ``normalised`` (None where nobody says), ``stored`` (number format of the patches in parts
            of this package), and what the makers say of themselves.
    """

    def __init__(self, rows: Rows, description: Mapping[str, Any], failures: Mapping[str, Failure]) -> None:
        self._rows = rows
        self.keys = rows.keys
        self.shapes = {kind: rows.shapes[kind] for kind in KINDS if kind in rows.shapes}
        self.failures = dict(failures)
        about: dict[str, Any] = {
            "sets": len(self.keys),
            "tokens": {kind: list(shape) for kind, shape in self.shapes.items()},
        }
        if isinstance(rows, TargetSets):
            about["stored"] = rows.about["tokens"]["patches"].get("dtype", "")
        self.description: dict[str, Any] = {**description, **about}
        self._there = set(self.keys)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which of ``cls``, ``registers`` and ``patches`` there are."""
        return tuple(self.shapes)

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: object) -> bool:
        return key in self._there

    @property
    def unread(self) -> int:
        """How many sets ``prepare`` would read."""
        return len(self) if isinstance(self._rows, PlainSets) and not self._rows.ready else 0

    def prepare(self, told: Callable[[int], object] = lambda _: None) -> None:
        """Read plain shards, which takes minutes where there are gigabytes; else ``read`` does it the first time.

        Args:
            told: is called with a number of sets that were read.
        """
        if isinstance(self._rows, PlainSets):
            self._rows.prepare(told)

    def read(self, keys: Sequence[str], kinds: Sequence[str] | None = None) -> tuple[list[str], dict[str, Tensor]]:
        """Some sets, all at once.

        Args:
            keys: whose, each once.
            kinds: of tokens; None takes all. Of CLS alone nothing else is read.

        Returns:
            The keys that can be had, in the order given, and by kind float32 [B, N, C] (CLS: [B, 1, C]). Of the others
            ``failures`` tells why.

        Raises:
            ValueError: there are no tokens of such a kind.
        """
        wanted = tuple(self.kinds if kinds is None else kinds)
        if lacking := set(wanted) - set(self.kinds):
            raise ValueError(
                f"{self.description['name']} has no {' and no '.join(sorted(lacking))}, only {', '.join(self.kinds)}"
            )
        for key in keys:
            if key not in self._there:
                self.failures.setdefault(key, Failure(Status.MISSING, f"{self.description['name']} has no such key"))
        found: dict[str, dict[str, Tensor]] = {}
        for key, tokens in self._rows.read((key for key in keys if key in self._there), wanted):
            fault = tokens if isinstance(tokens, Failure) else self._fault(tokens)
            if fault is None:
                found[key] = tokens  # type: ignore[assignment]
            else:
                self.failures[key] = fault
        good = [key for key in keys if key in found]
        batch = {}
        for kind in wanted:
            batch[kind] = torch.empty(len(good), *self.shapes[kind])
            for target, key in zip(batch[kind], good, strict=True):
                target.copy_(found[key][kind])
        return good, batch

    def batches(
        self, keys: Sequence[str] | None = None, kinds: Sequence[str] | None = None, size: int | None = None
    ) -> Iterator[tuple[list[str], dict[str, Tensor]]]:
        """Sets in the order of the keys, some at a time; see ``read``.

        Args:
            keys: whose; None takes all in the order of the disk.
            kinds: of tokens.
            size: sets at once; None takes as many as 16 MiB hold.
        """
        wanted = self.keys if keys is None else keys
        many = size or self.at_once(kinds)
        for start in range(0, len(wanted), many):
            good, batch = self.read(wanted[start : start + many], kinds)
            if good:
                yield good, batch

    def at_once(self, kinds: Sequence[str] | None = None) -> int:
        """How many sets a batch of bounded memory has."""
        return max(1, BATCH_BYTES // sum(4 * n * c for kind, (n, c) in self.shapes.items() if kind in (kinds or KINDS)))

    def close(self) -> None:
        """Close files and give scratch space back."""
        self._rows.close()

    def __enter__(self) -> "TokenSets":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fault(self, tokens: Mapping[str, Tensor]) -> Failure | None:
        """Why a set can't be measured."""
        for kind, part in tokens.items():
            if tuple(part.shape) != self.shapes[kind]:
                words = f"its {kind} are {list(part.shape)}, those of the first set {list(self.shapes[kind])}"
                return Failure(Status.UNSUPPORTED, words)
            # What is no number is its own extreme: a twentieth of the time of looking at all of them.
            if not torch.isfinite(torch.stack(torch.aminmax(part))).all():
                bad = part.numel() - int(torch.isfinite(part).sum())
                return Failure(Status.UNSUPPORTED, f"{bad} of {part.numel()} numbers of its {kind} are not finite")
        return None


def worth(predicted: TokenSets, true: TokenSets) -> tuple[bool, str]:
    """(whether nothing is known to be untrained, that in words): nobody vouches for the shards of strangers."""
    said = {"predictions": predicted.description, "targets": true.description}
    if untrained := [f"{name}: {about['label']}" for name, about in said.items() if about["trained"] is False]:
        return False, "; ".join(untrained)
    unknown = " and ".join(name for name, about in said.items() if about["trained"] is None)
    return True, f"nobody says whether {unknown} are trained" if unknown else "trained"


def open_tokens(place: Store | Path | str) -> TokenSets:
    """Token sets at a place.

    Args:
        place: a store's collection (as an object or its folder): what was generated there, else its true targets; the
            folder of one of those stages; any folder of Parquet or .npz shards, at any depth, or one shard
            (``parquet_shard`` and ``npz_shard`` say what is in them).

    Raises:
        ValueError: there are no token sets, or they can't be understood; the message says what to do.
    """
    if isinstance(place, Store):
        return of_collection(place)
    path = Path(place).expanduser().absolute()
    if not path.exists():
        raise ValueError(f"{path} is not there: name a collection, or a folder of Parquet or .npz shards")
    if (store := collection_at(path)) is None:
        return of_shards(path)
    if path == store.folder:
        return of_collection(store)
    return of_generated(store) if path.name == "generated" else of_dataset(store)


def collection_at(place: Path) -> Store | None:
    """The collection whose folder it is, or one of whose stages of token sets it is; None where it is neither."""
    for folder in (place, place.parent) if place.name in ("generated", "dataset", "targets") else (place,):
        if Store.exists(folder.parent, folder.name):
            return Store.open(folder.parent, folder.name)
    return None


def of_collection(store: Store) -> TokenSets:
    """What was generated in a collection, else its true targets.

    Raises:
        ValueError: it has neither.
    """
    if (store.folder / "generated").is_dir():
        return of_generated(store)
    if (store.folder / "dataset").is_dir():
        return of_dataset(store)
    raise ValueError(
        f"collection {store.collection} has neither generated token sets nor a dataset: run `python -m "
        "pipelines.generate` or `pipelines.line` first"
    )


def of_generated(store: Store) -> TokenSets:
    """The token sets that an aligner made.

    Raises:
        ValueError: there are none, or they are of several checkpoints.
    """
    places: dict[str, tuple[Path, int]] = {}
    failures: dict[str, Failure] = {}
    digests = {}
    for shard in store.shards:
        held = store.manifest("generated", shard)
        digests[shard] = held.digest
        for key, row in held.rows.items():
            if row.part is None:
                failures[key] = Failure(row.status, row.reason)
            else:
                places[key] = (store.shard("generated", shard) / row.part, row.part_row or 0)
    if not places:
        failed = f": {len(failures)} prompts failed" if failures else ""
        raise ValueError(
            f"collection {store.collection} has no generated token set{failed}: `python -m pipelines.generate` makes "
            "them"
        )
    rows = TargetSets(places)
    said = [metadata(path) for path in sorted({path for path, _ in places.values()})]
    said = [each for each in said if each]
    if len(makers := {json.dumps([each.get("checkpoint"), each.get("sampling")], sort_keys=True) for each in said}) > 1:
        raise ValueError(
            f"collection {store.collection} holds token sets of {len(makers)} checkpoints or samplings: let `python -m "
            "pipelines.generate` finish"
        )
    about: dict[str, Any] = {name: said[0][name] for name in ("checkpoint", "sampling", "aligner") if name in said[0]}
    label = str(said[0].get("label", ""))
    described: dict[str, Any] = {
        "source": "generated",
        "name": store.collection,
        "digest": fingerprints.digest_of(digests),
        "label": label,
        "trained": UNTRAINED not in label,
        "normalised": False,
        **about,
    }
    return TokenSets(rows, described, failures)


def of_dataset(store: Store) -> TokenSets:
    """The true targets that a dataset lists.

    Raises:
        ValueError: there is no dataset, or no good row in it.
    """
    index = dataset_index.load(store, columns=("key", "target", *dataset_index.LYING))
    rows = index.table.to_pylist()
    if not rows:
        index.places()  # says so
    folder = store.folder / "targets"
    places = {row["key"]: (folder / row["target_shard"] / row["target_part"], row["target_row"]) for row in rows}
    held = manifest.read(store.shard("dataset", ALL), "dataset", ALL)
    failures = {key: Failure(row.status, row.reason) for key, row in held.rows.items() if row.part is None}
    lost = Counter(str(why.status) for why in failures.values() if why.status is not Status.NOT_ADMITTED)
    if lost:
        log.warning(
            "%d images of collection %s have no targets (%s): they are no part of what is measured",
            lost.total(),
            store.collection,
            ", ".join(f"{count} {status}" for status, count in sorted(lost.items())),
        )
    sets = TargetSets(places)
    said = sets.about
    encoder = said.get("encoder", {})
    label = str(encoder.get("label", ""))
    described: dict[str, Any] = {
        "source": "dataset",
        "name": store.collection,
        "digest": fingerprints.shard_digest([(row["key"], row["target"]) for row in rows]),
        "label": label,
        "trained": False if UNTRAINED in label else encoder.get("trained"),
        "normalised": normalised(said),
        "without_targets": dict(sorted(lost.items())),
        "encoder": encoder,
        "settings": said.get("settings", {}),
    }
    return TokenSets(sets, described, failures)


def of_shards(path: Path) -> TokenSets:
    """The token sets of a folder of shards, or of one shard.

    Raises:
        ValueError: there are none, or shards of several kinds.
    """
    paths = [path] if path.is_file() else sorted(each for each in path.rglob("*") if shard_like(each))
    if not paths or paths[0].suffix.lower() not in SHARDS:
        raise ValueError(
            f"{path} holds no token sets: name a collection, or a folder of .parquet (columns key, cls, patches) or "
            ".npz shards (arrays keys, cls, patches)"
        )
    ours = [each for each in paths if each.suffix.lower() == ".parquet" and is_ours(schema_of(each))]
    if ours and len(ours) < len(paths):
        raise ValueError(f"{path} holds target parts ({ours[0].name}) beside other shards: part them into two folders")
    described: dict[str, Any] = {"source": "shards", "name": path.name, "label": "", "trained": None}
    described["digest"], described["normalised"] = digest_of_files(path, paths), None
    rows: TargetSets | PlainSets
    if ours:
        places = of_parts(ours)
        if not places:
            raise ValueError(f"{path} holds parts without a row")
        rows = TargetSets(places)
        said = rows.about
        label = str(said.get("label") or said.get("encoder", {}).get("label", ""))
        described |= {"label": label, "trained": UNTRAINED not in label if label else None}
        described |= {"normalised": normalised(said)}
    else:
        rows = PlainSets(paths)
        if not rows.keys:
            raise ValueError(f"the shards of {path} hold no row: write the token sets into them first")
    return TokenSets(rows, described, {})


def shard_like(path: Path) -> bool:
    """Whether a file is a shard, by its name; manifests of a store are Parquet too."""
    return path.suffix.lower() in SHARDS and path.is_file() and path.name != manifest.NAME and path.name[0] != "."


def schema_of(path: Path) -> Any:
    """The Arrow schema of a Parquet file.

    Raises:
        ValueError: it is none.
    """
    with parquet(path):
        return pq.read_schema(path)


def metadata(path: Path) -> dict[str, Any]:
    """What a part says of itself; nothing where it is damaged, which its rows will tell."""
    try:
        said: dict[str, Any] = json.loads((schema_of(path).metadata or {}).get(b"gap3d", b"{}"))
    except ValueError:
        return {}
    return said


def normalised(said: Mapping[str, Any]) -> bool:
    """Whether a part's tokens are layer-normed."""
    return str(said.get("tokens", {}).get("normalisation", "")).startswith(NORMALISED)


def digest_of_files(root: Path, paths: Sequence[Path]) -> str:
    """What files hold, whatever their folder is called."""
    state = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            name = path.relative_to(root).as_posix() if path != root else path.name
            state.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return state.hexdigest()[:32]
