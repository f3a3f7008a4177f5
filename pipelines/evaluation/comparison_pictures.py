"""The picture grids of a comparison, and what they show as JSON: a prompt a row, a run a column."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gap3d.atlas.palette import Palette
from gap3d.atlas.pictures import shrunk
from gap3d.evaluation.grids import MOST, Tile, grid
from gap3d.evaluation.runs import OF_METHOD, Run, Sheet
from gap3d.features.decoding import decode_image
from gap3d.features.encoder import UNTRAINED
from gap3d.features.images import without_alpha
from gap3d.manifest import LedgerRow, Manifest
from gap3d.parts import read_rows, write_atomically
from gap3d.prompts import Prompt
from gap3d.records import Failure, Status
from gap3d.settings import Settings
from gap3d.store import Store
from gap3d.trellis.seeds import view_of
from pipelines import prompts, sets_page
from pipelines.generate import Checkpoint
from pipelines.generator import STAGE as TOKENS
from pipelines.predictions import about
from pipelines.trellis import Place, model_of, stage_of

ABOUT = "comparison.json"
ROWS = 24  # of one picture
FRAME = re.compile(r"views(\d+)/000\.png")
NO_OBJECT = "no object: TRELLIS was not given"
NOT_OBJECTS = "Token sets, no objects: patch tokens in the colours of one palette"


@dataclass(frozen=True)
class Column:
    """A run over the prompts.

    Attributes:
        run: as the sheet has it.
        store: its collection.
        settings: that are its own.
        prompts: with its suffix, in the order of the file.
        checkpoint: of the aligner; None for TRELLIS's own pipelines.
        renders: that the image baseline sees, by object_id; None where it sees the prompts' own, or there are none.
        pictures_of: the collection of these.
    """

    run: Run
    store: Store
    settings: Settings
    prompts: Sequence[Prompt]
    checkpoint: Checkpoint | None = None
    renders: Mapping[str, list[Place]] | None = None
    pictures_of: str = ""

    @property
    def label(self) -> str:
        """What its aligner is worth."""
        return self.checkpoint.label if self.checkpoint else "trained"

    def stage(self, *, shaped: bool) -> str:
        """The last stage that it has rows of."""
        if shaped:
            return stage_of(self.run.method)
        return TOKENS if self.checkpoint else prompts.STAGE

    def manifests(self, stage: str) -> dict[str, Manifest]:
        """By shard."""
        return {shard: self.store.manifest(stage, shard) for shard in self.store.shards}

    def rows(self, stage: str) -> dict[str, LedgerRow]:
        """By key."""
        return {key: row for held in self.manifests(stage).values() for key, row in held.rows.items()}


@dataclass(frozen=True)
class Pictures:
    """What a comparison shows.

    Attributes:
        sheet: the runs.
        columns: in their order.
        prompts: of the file, without suffixes.
        shaped: whether there are objects.
    """

    sheet: Sheet
    columns: Sequence[Column]
    prompts: Sequence[Prompt]
    shaped: bool

    def write(self, folder: Path) -> list[Path]:
        """Write the grids and what they show; the grids' paths. Those of an earlier run that had more are removed."""
        count = -(-len(self.prompts) // ROWS)
        made = [folder / f"grid-{number:03d}.png" for number in range(1, count + 1)]
        for number, path in enumerate(made):
            page = f" ({number + 1} of {count})" if count > 1 else ""
            write_atomically(path, self.page(self.prompts[number * ROWS : (number + 1) * ROWS], page))
        for path in set(folder.glob("grid-*.png")) - set(made):
            path.unlink()
        about = {**self.about(), "pictures": [path.name for path in made]}
        write_atomically(folder / ABOUT, json.dumps(about, indent=1).encode())
        return made

    def page(self, shown: Sequence[Prompt], page: str) -> bytes:
        """The grid of some prompts, a PNG."""
        columns = [self.tiles(column, shown) for column in self.columns]
        heads = [column.run.head for column in self.columns]
        for head, tiles in reversed(self.seen(shown)):
            columns.insert(0, tiles)
            heads.insert(0, head)
        rows = [prompt.text or prompt.place for prompt in shown]
        title = self.sheet.title if self.shaped else f"{self.sheet.title}. {NOT_OBJECTS}"
        cells = [list(row) for row in zip(*columns, strict=True)]
        return grid(rows, heads, cells, title + page, warning=self.warning, side=self.side, limit=len(rows))

    @property
    def warning(self) -> str:
        """What is untrained, and in which columns."""
        loud: dict[str, list[str]] = {}
        for column in self.columns:
            if UNTRAINED in column.label:
                loud.setdefault(column.label, []).append(column.run.head)
        return ". ".join(f"{label} ({'; '.join(heads)})" for label, heads in loud.items())

    @property
    def side(self) -> int | None:
        """Pixels of a tile: tokens are enlarged by whole numbers, frames are shown as large as a grid shows them."""
        return max((max(enlarged(each).shape) for each in self.painted.values()), default=None)

    @cached_property
    def painted(self) -> dict[tuple[str, str], NDArray[np.uint8]]:
        """Patch tokens as colours, uint8 [rows, columns, 3], by run and key; one palette for all of one layout."""
        if self.shaped:
            return {}
        groups: dict[tuple[int, ...], list[Column]] = {}
        for column in self.columns:
            said = sets_page.said(column.store, column.manifests(TOKENS)) if column.checkpoint else {}
            if said:
                groups.setdefault((*said["tokens"]["grid"], said["tokens"]["cls"]["shape"][0]), []).append(column)
        found = {}
        for (rows, columns, _), group in groups.items():
            palette = Palette((rows, columns), len(group) * len(self.prompts))
            for name, patches in tokens(group):
                palette.fit(name, patches, None)
            palette.settle(3)
            for name, patches in tokens(group):
                palette.project(name, patches, None, paint=True)
            for name, painting in palette.paintings().items():
                run, _, key = name.partition("/")
                found[run, key] = painting.tokens
        return found

    def tiles(self, column: Column, shown: Sequence[Prompt]) -> list[Tile]:
        """One run's tiles of some prompts."""
        stage = column.stage(shaped=self.shaped)
        rows = column.rows(stage)
        frames = self.frames(column, stage, {prompt.key for prompt in shown}) if self.shaped else {}
        made = []
        for prompt in shown:
            row = rows.get(prompt.key)
            if row is None or row.status is not Status.OK:
                made.append(Tile(status=f"{row.status}: {row.reason}" if row else f"no row of {stage}"))
            elif self.shaped:
                made.append(frames[prompt.key])
            elif column.checkpoint is None:
                made.append(Tile(status=NO_OBJECT))
            else:
                picture = self.painted.get((column.run.name, prompt.key))
                status = "its tokens are not all finite"
                made.append(Tile(status=status) if picture is None else Tile(picture=enlarged(picture)))
        return made

    def frames(self, column: Column, stage: str, keys: set[str]) -> dict[str, Tile]:
        """The first frame of the objects with these keys."""
        found = {}
        for held in column.manifests(stage).values():
            for key, row in column.store.read(held, ["folder", "files"], keys & set(held.rows)).items():
                names = [name for name in (file["path"] for file in row["files"]) if FRAME.fullmatch(name)]
                if not names:
                    found[key] = Tile(status="no frames were asked for (--turntables)")
                    continue
                first = min(names, key=lambda name: int(name.removeprefix("views").partition("/")[0]))
                found[key] = self.picture((column.store.folder / row["folder"] / first).read_bytes(), MOST)
        return found

    def seen(self, shown: Sequence[Prompt]) -> list[tuple[str, list[Tile]]]:
        """The columns before the runs: pictures that are part of prompts, and those that the image baseline sees."""
        made = []
        if any(prompt.image for prompt in self.prompts):
            made.append(("Picture of the prompt", self.images(shown)))
        for column in self.columns:
            if column.renders is not None:
                made.append((f"Seen by {column.run.head}", [self.render(column.renders, each) for each in shown]))
        return made

    def images(self, shown: Sequence[Prompt]) -> list[Tile]:
        """The pictures that are part of prompts; they are the same in every run."""
        first = self.columns[0]
        rows = first.rows(prompts.STAGE)
        wanted = {prompt.key for prompt in shown if prompt.image}
        pictures = {}
        for held in first.manifests(prompts.STAGE).values():
            for key, stored in first.store.read(held, ["image"], wanted & set(held.rows)).items():
                pictures[key] = self.picture(stored["image"], MOST)
        missing = {key: f"{row.status}: {row.reason}" for key, row in rows.items() if row.status is not Status.OK}
        return [pictures.get(each.key) or Tile(status=missing.get(each.key, "no picture")) for each in shown]

    def render(self, renders: Mapping[str, Sequence[Place]], prompt: Prompt) -> Tile:
        """The view of a prompt's object that the image baseline sees."""
        views = renders.get(prompt.key.partition("/")[0])
        if not views or prompt.fault:
            return Tile(status="no render")
        place = views[view_of(prompt.index, len(views))]
        return self.picture(read_rows(place.part, [place.row], ["png"]).column("png")[0].as_py(), MOST)

    def picture(self, content: bytes, side: int) -> Tile:
        """A picture file as a tile, on black, of at most ``side`` pixels."""
        try:
            image = without_alpha(decode_image(content, self.columns[0].settings.limits.pixels), "black")
        except Failure as known:
            return Tile(status=f"{known.status}: {known.reason}")
        return Tile(picture=shrunk(np.asarray(image), side))

    def about(self) -> dict[str, Any]:
        """All that is needed to make it again, and what became of every prompt in every run."""
        rows = {column.run.name: column.rows(column.stage(shaped=self.shaped)) for column in self.columns}
        return {
            "title": self.sheet.title,
            "note": self.sheet.note,
            "shows": "Objects" if self.shaped else NOT_OBJECTS,
            "warning": self.warning,
            "runs": [said_of(column) for column in self.columns],
            "prompts": [
                {
                    "key": prompt.key,
                    "prompt": prompt.text,
                    "image": prompt.image.name if prompt.image else "",
                    "index": prompt.index,
                    "caption_index": prompt.caption_index,
                    "runs": {name: became(held.get(prompt.key)) for name, held in rows.items()},
                }
                for prompt in self.prompts
            ],
        }


def enlarged(tokens: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same, a token a square of pixels."""
    times = max(1, MOST // max(tokens.shape[:2]))
    return tokens.repeat(times, 0).repeat(times, 1)


def tokens(columns: Sequence[Column]) -> Iterator[tuple[str, Tensor]]:
    """Run and key of every good set, with its patch tokens [N, C]."""
    for column in columns:
        held = column.manifests(TOKENS)
        good = {row.key for one in held.values() for row in one.rows.values() if row.status is Status.OK}
        for key, patches in sets_page.sets(column.store, held, good):
            yield f"{column.run.name}/{key}", patches


def became(row: LedgerRow | None) -> dict[str, str]:
    """What became of a prompt in a run."""
    if row is None:
        return {"status": "missing", "reason": "it has no row"}
    return {"status": str(row.status), **({"reason": row.reason} if row.reason else {"digest": row.digest})}


def said_of(column: Column) -> dict[str, Any]:
    """A run as it was; fields that its method leaves without effect are not part of it."""
    idle = {field for field, methods in OF_METHOD.items() if column.run.method not in methods}
    said: dict[str, Any] = {"collection": column.store.collection, **column.run.model_dump(mode="json", exclude=idle)}
    said["weights"] = model_of(column.run.weights, column.run.method)
    if column.renders is not None:
        said["pictures"] = column.pictures_of
    if column.checkpoint:
        said |= {"checkpoint": about(column.checkpoint), "vlm": column.checkpoint.conditions}
        said["sampling"] = column.settings.sampling.model_dump(mode="json", exclude={"batch_size"})
    return said
