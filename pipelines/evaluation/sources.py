"""Generated objects of anybody, by one word of the command line: TRELLIS's, a collection's, pictures, meshes.

trellis:COLLECTION[:METHOD]  what pipelines.trellis made of a collection's prompts
collection:NAME              a collection of generated meshes, rendered from all around (first, where it is not yet)
pictures:DIR                 a folder of pictures of any generator, DIR/<object>/000.png ..., DIR/captions.csv
meshes:DIR                   a folder of meshes of any generator, which are rendered from all around first
retrieved:MODEL              no generation: see pipelines.evaluation.retrieved
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gap3d.catalog import read_captions, walk
from gap3d.evaluation.generation import Side
from gap3d.evaluation.matching import listed, match, of_key, of_path
from gap3d.evaluation.picture_folders import objects_in, views_in
from gap3d.evaluation.tokens import of_generated
from gap3d.fingerprints import digest_of
from gap3d.parts import write_atomically
from gap3d.records import Failure, Status
from gap3d.settings import Settings, SourceSettings
from gap3d.store import Store
from gap3d.trellis.seeds import caption_of
from pipelines import catalog, downloads
from pipelines.around import parent_of
from pipelines.command import open_store, require_catalog
from pipelines.evaluation import pictured, retrieved
from pipelines.evaluation.objects import Subject, TrueObjects, featured, from_all_around, paired, settings_in
from pipelines.evaluation.references import Picture
from pipelines.evaluation.seen import trained_on
from pipelines.evaluation.stated import renders_of, shapes_of, suffix_of
from pipelines.predictions import checkpoint_of
from pipelines.report import Report, merge
from pipelines.trellis import METHODS, stage_of

log = logging.getLogger(__name__)
KINDS = ("trellis", "collection", "pictures", "meshes", "retrieved")
CAPTIONS = "captions.csv"
SHOWN = 10  # names in a result
NOT_TRIED = Failure(Status.MISSING, "nothing was generated for it")
Found = tuple[Subject, Report]


def subject_of(settings: Settings, spec: str, model: str, true: TrueObjects) -> Found:
    """The objects that a word of the command line means, their features brought up to date.

    Args:
        settings: of the run.
        spec: ``KIND:PLACE``, see the module.
        model: what the row is called; empty lets it name itself.
        true: what they are compared with.

    Raises:
        ValueError: it means nothing, or none of its objects stands for a true one.
        NotReady: an earlier stage has to run.
    """
    kind, place = parted(spec)
    found: Mapping[str, Callable[[Settings, str, str, TrueObjects], Found]] = {
        "trellis": of_trellis,
        "collection": of_collection,
        "pictures": of_pictures,
        "meshes": of_meshes,
        "retrieved": of_retrieved,
    }
    return found[kind](settings, place, model, true)


def parted(spec: str) -> tuple[str, str]:
    """Kind and place.

    Raises:
        ValueError: there are no objects of such a kind, or no place is named.
    """
    kind, _, place = spec.partition(":")
    if kind not in KINDS or not place:
        raise ValueError(
            f"--generated {spec}: say what kind of objects it is: trellis:COLLECTION[:METHOD], collection:NAME, "
            "pictures:DIR, meshes:DIR or retrieved:MODEL"
        )
    return kind, place


def require(settings: Settings, spec: str) -> None:
    """Prove that there is something at a place, before hours of rendering what it is to be compared with.

    Raises:
        ValueError: there is not.
        NotReady: the training, or the catalog, is not there yet.
    """
    kind, place = parted(spec)
    if kind == "retrieved":
        checkpoint_of(settings, place)
    elif kind == "trellis":
        method_of(Store.open(settings.store, place.partition(":")[0], settings.blobs), place.partition(":")[2])
    elif kind == "collection":
        require_catalog(parent_of(settings, Store.open(settings.store, place, settings.blobs)))
    elif kind == "pictures":
        require_views(Path(place).expanduser().absolute(), settings.evaluation.views)
    elif not Path(place).expanduser().is_dir():
        raise ValueError(f"--generated {spec}: there is no such folder")


def require_views(root: Path, counts: Sequence[int]) -> None:
    """Raises ValueError unless an object of a folder has all of a protocol's views."""
    reason = ""
    for key, place in objects_in(root).items():
        for count in counts:
            lacking = [view.reason for view in views_in(place, key, count) if view.status is not Status.OK]
            if not lacking:
                return
            reason = reason or f"{place.name}: {lacking[0]}"
    raise ValueError(
        f"no object of {root} has the {' or '.join(map(str, counts))} views of the evaluation ({reason}): render each "
        "from that many yaws in equal steps, pitch 30, radius 2, field of view 40, in folders as docs/evaluation.md "
        "says; or give the objects themselves (--generated meshes:DIR)"
    )


def method_of(made: Store, method: str) -> str:
    """The method whose objects are meant; empty means the only one that there is.

    Raises:
        ValueError: there are none of it, or of several.
    """
    there = [each for each in METHODS if any(made.manifest(stage_of(each), shard).rows for shard in made.shards)]
    if method not in there if method else len(there) != 1:
        name = made.collection
        raise ValueError(
            f"collection {name} has objects of {', '.join(there) or 'no method'}: "
            + (f"say trellis:{name}:METHOD" if there else f"run `python -m pipelines.trellis --from {name}` first")
        )
    return method or there[0]


def of_retrieved(settings: Settings, place: str, model: str, true: TrueObjects) -> Found:
    """Objects that an aligner's predictions lead to."""
    found = retrieved.subject(settings, place, true)
    return replace(found, model=model or found.model), Report(shards=())


def of_trellis(settings: Settings, place: str, model: str, true: TrueObjects) -> Found:
    """What TRELLIS made of a collection's prompts."""
    name, _, method = place.partition(":")
    made = Store.open(settings.store, name, settings.blobs)
    method = method_of(made, method)
    stage = stage_of(method)
    source = pictured.source_of(settings, f"{name}:{method}")
    asked: dict[str, dict[str, Any]] = {}
    held: dict[str, Any] = {}
    own: dict[str, Picture] = {}
    for shard in made.shards:
        prompts = made.manifest("prompts", shard)
        asked |= made.read(prompts, ["prompt", "index", "caption_index", "image_name"])
        held |= made.manifest(stage, shard).rows
        own |= {
            key: Picture(made.shard("prompts", shard) / str(row.part), row.part_row or 0, "image", row.digest)
            for key, row in prompts.rows.items()
            if row.part and asked[key]["image_name"]
        }
    matched = match({key: of_key(key) for key in held}, true.known, true.base.collection)
    chosen = measured_of(true, matched.generated)
    side, report = featured(settings, source, list(chosen.values()), true=False)
    seen = {key: row.inputs.get("picture", "") for key, row in held.items()}
    pictures = pictures_of(seen, own, renders_by_digest(true))
    rows = {each: asked[key] for each, key in chosen.items() if key in asked}
    suffix = suffix_of(true.captions, rows)
    texts = texts_of(rows, suffix)
    about: dict[str, Any] = {
        "kind": stage,
        "collection": name,
        "shapes": shapes_of(made, stage, set(chosen.values())),
        "prompts": {
            "suffix": suffix.removeprefix(" "),
            "other_texts": sum(text != true.asked[each].caption for each, text in texts.items()),
        },
        "unmatched": unmatched(matched.strangers),
    }
    checkpoint: dict[str, Any] = {}
    untrained = []
    if method == "gap3d":
        with of_generated(made) as sets:
            about["tokens"] = sets.description
            if not sets.description["trained"]:
                untrained = ["aligner"]
            said = sets.description.get("aligner", {}).get("about", {})
            known = {each: said[each] for each in ("stage", "run", "step", "data") if each in said}
            checkpoint = {**known, "digest": sets.description["checkpoint"], "label": sets.description["label"]}
            checkpoint |= trained_on(known, true.base)
    return Subject(
        model=model or f"{name}: {method}",
        pairs=paired(true, chosen, NOT_TRIED),
        side=side,
        captions=texts,
        pictures={each: pictures[key] for each, key in chosen.items() if key in pictures},
        checkpoint=checkpoint,
        untrained=untrained,
        about=about,
    ), report


def pictures_of(
    seen: Mapping[str, str], own: Mapping[str, Picture], renders: Mapping[str, Picture]
) -> dict[str, Picture]:
    """The picture that belongs to each prompt: what the image baseline saw, for others the prompt's own.

    Args:
        seen: by key, the digest of the row whose picture was seen; empty where none was.
        own: the prompts' own pictures, by key.
        renders: of true objects, by digest.
    """
    known = {**renders, **{picture.digest: picture for picture in own.values()}}
    found = {key: known.get(digest) if digest else own.get(key) for key, digest in seen.items()}
    return {key: picture for key, picture in found.items() if picture is not None}


def renders_by_digest(true: TrueObjects) -> dict[str, Picture]:
    """Renders of true objects, which the image baseline sees, by the digest of their rows."""
    found = {}
    for store in (true.base, true.source.store):
        for shard in store.shards:
            for row in store.manifest("renders", shard).rows.values():
                if row.part:
                    path = store.shard("renders", shard) / row.part
                    found[row.digest] = Picture(path, row.part_row or 0, "png", row.digest)
    return found


def texts_of(asked: Mapping[str, Mapping[str, Any]], suffix: str) -> dict[str, str]:
    """The texts that pictures are scored against: prompts, less the suffix that was appended to every one of them.

    Args:
        asked: rows of prompts, by object_id.
        suffix: with the space before it.
    """
    return {key: str(row["prompt"]).removesuffix(suffix) for key, row in asked.items()}


def of_collection(settings: Settings, place: str, model: str, true: TrueObjects) -> Found:
    """A collection of this store, rendered from all around."""
    return of_meshes_in(settings, Store.open(settings.store, place, settings.blobs), model or place, true)


def of_meshes(settings: Settings, place: str, model: str, true: TrueObjects) -> Found:
    """A folder of meshes: brought through our own line, from all around, in a collection of its own."""
    root = Path(place).expanduser().absolute()
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", root.name).strip("-.") or "objects"
    name = f"{slug}-meshes-{digest_of(str(root))[:8]}"
    if Store.exists(settings.store, name):
        shards = len(Store.open(settings.store, name, settings.blobs).shards)
    else:
        shards = shards_for(sum(1 for _ in walk(root)))
    own = settings_in(settings, name, SourceSettings(kind="folder", path=root), shards)
    store = open_store(own)
    # The folder may be another one than at the last time: what is unchanged is known by its size and time.
    taken = merge([catalog.run(own), downloads.run(own, store.shards)])
    write_atomically(store.folder / "settings.json", own.model_dump_json(indent=1).encode())
    made, report = of_meshes_in(settings, store, model or root.name, true)
    return made, merge([taken, report])


def shards_for(objects: int) -> int:
    """Shards of a collection of so many objects."""
    return 1 << max(0, -(-objects // pictured.SHARD_OBJECTS) - 1).bit_length()


def of_meshes_in(settings: Settings, store: Store, model: str, true: TrueObjects) -> Found:
    """The objects of a collection's catalog; those that stand for measured ones are rendered."""
    base = parent_of(settings, store)
    rows: dict[str, dict[str, Any]] = {}
    for shard in base.shards:
        rows |= base.read(base.manifest("catalog", shard), ["identifier", "captions"])
    names = {key: [*of_path(row["identifier"] or key), key] for key, row in rows.items()}
    matched = match(names, true.known, true.base.collection)
    chosen = measured_of(true, matched.generated)
    if not chosen:
        raise ValueError(
            f"the objects of {base.collection} stand for true ones, and for none of the {len(true.asked)} that are "
            "measured: raise --evaluation.count, or generate objects of `python -m pipelines.evaluation_prompts`"
        )
    source, rendered = from_all_around(settings, store, list(chosen.values()))
    side, report = featured(settings, source, list(chosen.values()), true=False)
    captions = {key: row["captions"] for key, row in rows.items() if row["captions"]}
    about = {
        "kind": "collection",
        "collection": store.collection,
        "pictures": source.store.collection,
        "renders": renders_of(source.store),
    }
    strangers = [rows[key]["identifier"] or key for key in matched.strangers]
    made = subject_by_name(model, true, chosen, captions, side, about, strangers)
    return made, merge([rendered, report])


def of_pictures(settings: Settings, place: str, model: str, true: TrueObjects) -> Found:
    """A folder with a folder of pictures for every object."""
    root = Path(place).expanduser().absolute()
    objects = objects_in(root)
    table = root / CAPTIONS
    said = read_captions(table) if table.is_file() else {}
    names = {path.name for path in objects.values()}
    if strange := sorted(set(said) - names):
        words = (
            f"{table} has captions of {len(strange)} folders that are not in {root}, e.g. {strange[0]!r}: its column "
            f"path holds names such as {min(names)!r}"
        )
        if not names & set(said):
            raise ValueError(words)
        log.warning("%s", words)
    captions = {key: said[path.name] for key, path in objects.items() if said.get(path.name)}
    matched = match({key: of_key(key) for key in objects}, true.known, true.base.collection)
    chosen = measured_of(true, matched.generated)
    source = pictured.source_of(settings, str(root))
    side, report = featured(settings, source, list(chosen.values()), true=False)
    about = {"kind": "pictures", "folder": root.name, "collection": source.store.collection}
    strangers = [objects[key].name for key in matched.strangers]
    return subject_by_name(model or root.name, true, chosen, captions, side, about, strangers), report


def subject_by_name(
    model: str,
    true: TrueObjects,
    generated: Mapping[str, str],
    captions: Mapping[str, Sequence[str]],
    side: Side,
    about: Mapping[str, Any],
    strangers: Sequence[str],
) -> Subject:
    """Objects whose names tell which true ones they stand for.

    One with captions of its own has the one of them that the evaluation's seeds draw; else it has the true object's.
    """
    if strangers:
        log.warning("%d generated objects stand for no true one: %s", len(strangers), listed(strangers))
    if missing := [true.known[each].identifier or each for each in true.asked if each not in generated]:
        log.warning("%d of %d objects have nothing generated: %s", len(missing), len(true.asked), listed(missing))
    texts = {object_id: asked.caption for object_id, asked in true.asked.items()}
    own = {object_id: captions[key] for object_id, key in generated.items() if key in captions}
    texts |= {each: given[caption_of(true.asked[each].index, len(given))] for each, given in own.items()}
    return Subject(
        model=model,
        pairs=paired(true, generated, NOT_TRIED),
        side=side,
        captions=texts,
        about={**about, "captions_of_its_own": len(own), "unmatched": unmatched(strangers)},
    )


def measured_of(true: TrueObjects, generated: Mapping[str, str]) -> dict[str, str]:
    """Keys of the generated objects that are measured, by object_id, in the protocol's order."""
    return {object_id: generated[object_id] for object_id in true.asked if object_id in generated}


def unmatched(strangers: Sequence[str]) -> dict[str, Any]:
    """Generated objects that stand for no true one, for a result."""
    return {"count": len(strangers), "such_as": list(strangers[:SHOWN])}
