"""prompts: what is to be generated, one row a prompt, in a collection of its own; images are read and checked.

python -m pipelines.prompts --prompts FILE --into NAME
"""

import argparse
import hashlib
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as a file, here or copied by `ray submit`: its folder is not where packages are looked for
    sys.path.pop(0)

from gap3d import fingerprints
from gap3d.features.decoding import decode_image
from gap3d.manifest import Manifest
from gap3d.parts import write_atomically
from gap3d.prompts import KINDS, Prompt, of_file, of_texts
from gap3d.records import Failure, Outcome, Status
from gap3d.schemas import PROMPTS
from gap3d.settings import Settings
from gap3d.store import Store
from gap3d.tars import stamp_of
from pipelines.command import parse, parser, resolved, say, sentences, stop
from pipelines.job import Item, Job, Row
from pipelines.job import run as run_job
from pipelines.report import Report
from pipelines.worker import Resources

STAGE = "prompts"
SHARD_ROWS = 1024  # prompts of one shard: some 3 GB of tokens at ViT-L and 518 pixels
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Reader:
    """The worker: reads the images that prompts name."""

    def __init__(self, settings: Settings) -> None:
        self.limits = settings.limits

    def process(self, payload: Prompt) -> list[Outcome]:
        """One prompt with an image."""
        begun = time.perf_counter()
        made = self.read(payload)
        return [replace(made, seconds=time.perf_counter() - begun)]

    def read(self, prompt: Prompt) -> Outcome:
        """The row of a prompt with an image."""
        try:
            image = image_of(prompt, self.limits.object_bytes)
            decode_image(image, self.limits.pixels)
        except Failure as known:
            reason = f"{prompt.place}: {prompt.image}: {known.reason}"
            return Outcome(stage=STAGE, key=prompt.key, status=known.status, reason=reason)
        return Outcome(stage=STAGE, key=prompt.key, data=data_of(prompt, image))

    def probe(self) -> None:
        """There is no engine."""

    def close(self) -> None:
        """Nothing is held."""


def image_of(prompt: Prompt, most: int) -> bytes:
    """The bytes of a prompt's image.

    Raises:
        Failure: they can't be had, or are too many.
    """
    assert prompt.image is not None
    try:
        if not prompt.image.is_file():
            raise Failure(Status.MISSING, "there is no such file")
        if (size := prompt.image.stat().st_size) > most:
            raise Failure(Status.TOO_LARGE, f"{size} bytes, at most {most} are taken")
        return prompt.image.read_bytes()
    except OSError as error:
        raise Failure(Status.MISSING, f"{error.strerror}: check that it can be read") from error


def data_of(prompt: Prompt, image: bytes | None) -> dict[str, Any]:
    """A row's columns."""
    return {
        "prompt": prompt.text,
        "image": image,
        "image_name": prompt.image.name if prompt.image else "",
        "image_sha256": hashlib.sha256(image).hexdigest() if image is not None else "",
        "index": prompt.index,
        "caption_index": prompt.caption_index,
    }


def make_job(settings: Settings, store: Store, prompts: Sequence[Prompt]) -> Job:
    """What this stage computes."""
    code = fingerprints.code_version(STAGE)
    by_shard: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_shard.setdefault(fingerprints.shard_of(prompt.key, len(store.shards)), []).append(prompt)

    def row_of(prompt: Prompt) -> Row:
        inputs = {"row": fingerprints.digest_of(data_of(replace(prompt, image=None), None)), "code": code}
        decided = None
        if prompt.fault is not None:
            inputs["fault"] = prompt.fault.reason
            decided = Outcome(stage=STAGE, key=prompt.key, status=prompt.fault.status, reason=prompt.fault.reason)
        elif prompt.image is None:
            decided = Outcome(stage=STAGE, key=prompt.key, data=data_of(prompt, None))
        else:
            inputs["image"] = f"{prompt.image}: {stamp_of(prompt.image)}"
        return Row(stage=STAGE, key=prompt.key, inputs=inputs, decided=decided, payload=prompt)

    def items(shard: str, todo: list[Row], _held: Mapping[str, Manifest]) -> list[Item]:
        return [Item(shard=shard, rows=(row,), payload=row.payload) for row in todo]

    return Job(
        stages=(STAGE,),
        schema={STAGE: PROMPTS},
        rows=lambda shard: [row_of(prompt) for prompt in by_shard.get(shard, [])],
        items=items,
        factory=partial(Reader, settings),
        resources=Resources(1),
        unit="image",
    )


def run(settings: Settings, store: Store, prompts: Sequence[Prompt]) -> Report:
    """Bring the rows of these prompts up to date; rows of others are forgotten."""
    here = settings.model_copy(update={"compute": settings.compute.model_copy(update={"workers": 0})})
    return run_job(make_job(here, store, prompts), store, here, store.shards)


def collection_of(settings: Settings, name: str, prompts: int | None = None) -> tuple[Store, Settings]:
    """The collection of generated sets with a name, and settings that are its own.

    Args:
        settings: of the run.
        name: of the collection.
        prompts: how many it is to have, where it may be new; None wants it to be there.

    Raises:
        ValueError: the name can't be one, there is no such collection, or it is one of another kind.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} can't name a collection: letters, digits, '.', '_' and '-', the first no sign")
    if Store.exists(settings.store, name):
        store = Store.open(settings.store, name, settings.blobs)
        if any((store.folder / stage).is_dir() for stage in ("catalog", "images")):
            raise ValueError(
                f"collection {name} has a catalog: choose another name for what is generated (--into NAME)"
            )
    elif prompts is None:
        raise ValueError(f"there is no collection {name} in {settings.store}: run `python -m pipelines.generate` first")
    elif (settings.store / name).is_dir() and any(path.is_dir() for path in (settings.store / name).iterdir()):
        raise ValueError(f"{settings.store / name} is a folder and no collection: choose another name (--into NAME)")
    else:
        shards = 1 << max(0, -(-prompts // SHARD_ROWS) - 1).bit_length()
        store = Store(settings.store, name, shards, settings.blobs)
    catalog = settings.catalog.model_copy(update={"shards": len(store.shards)})
    return store, settings.model_copy(update={"collection": name, "catalog": catalog})


def add_flags(made: argparse.ArgumentParser) -> None:
    """Flags that say what is to be generated."""
    made.add_argument(
        "--prompt", action="append", default=[], help="what is to be generated; may be given several times"
    )
    made.add_argument(
        "--image", action="append", default=[], type=Path, help="a picture that the prompt edits; one for each --prompt"
    )
    made.add_argument("--prompts", type=Path, help=f"a file of prompts: {', '.join(KINDS)}")
    made.add_argument("--suffix", default="", help="text that is appended to every prompt after a space")
    made.add_argument("--into", help="collection that takes them (default: made of the file's name, or of the prompts)")


def wanted(known: argparse.Namespace, settings: Settings) -> tuple[list[Prompt], str]:
    """The prompts that flags name, and the name of their collection.

    Raises:
        ValueError: there are none, or both texts and a file.
    """
    if bool(known.prompt) == bool(known.prompts):
        raise ValueError("name what is to be generated: --prompt TEXT, once or several times, or --prompts FILE")
    if known.prompts:
        if known.image:
            raise ValueError("--image goes with --prompt: in a file of prompts, images are a column")
        found = of_file(known.prompts, known.suffix)
        stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", known.prompts.stem)
    else:
        found = of_texts(known.prompt, known.image, known.suffix)
        stem = hashlib.sha256("\0".join(f"{each.key} {each.text}" for each in found).encode()).hexdigest()[:8]
    return found, known.into or f"{settings.collection}-{stem}"


def bring_up_to_date(known: argparse.Namespace, settings: Settings) -> tuple[Store, Settings, Report]:
    """The collection that flags name, with its prompts up to date."""
    prompts, name = wanted(known, settings)
    store, own = collection_of(settings, name, len(prompts))
    report = run(own, store, prompts)
    write_atomically(store.folder / "settings.json", resolved(own).model_dump_json(indent=1).encode())
    return store, own, report


def main() -> None:
    """The program."""
    made = parser(__doc__ or "")
    add_flags(made)
    known, settings = parse(made)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)
    with sentences(made):
        store, _, report = bring_up_to_date(known, settings)
        say(*report.lines(), f"collection: {store.folder}")


if __name__ == "__main__":
    main()
