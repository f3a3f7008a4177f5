"""generate: token sets of prompts by a trained aligner, one row a prompt, in a collection of their own.

python -m pipelines.generate --prompt "a red chair" --prompt "a green lamp"
python -m pipelines.generate --prompt "make it red" --image chair.png
python -m pipelines.generate --prompts FILE --into NAME --checkpoint DIR
"""

import importlib.metadata
import json
import os
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

if not __package__:  # run as a file, here or copied by `ray submit`: its folder is not where packages are looked for
    sys.path.pop(0)

from gap3d import fingerprints, schemas
from gap3d.aligner.model import describe
from gap3d.aligner_settings import RANDOM_VLM
from gap3d.features.encoder import UNTRAINED, UNTRAINED_MARK
from gap3d.features.tokens import TokenLayout
from gap3d.manifest import Manifest
from gap3d.records import Status
from gap3d.settings import Settings
from gap3d.store import Store
from gap3d.training.run import FOLDER, RESULT, Stage, read_result
from pipelines import prompts
from pipelines.command import parse, parser, say, sentences, stop
from pipelines.generator import STAGE, Generator, Wish, digest_of, pooled_layout
from pipelines.job import Item, Job, NotReady, Row, parted, passed_on, require_complete
from pipelines.job import run as run_job
from pipelines.report import Report, merge
from pipelines.sets_page import write_page
from pipelines.worker import encoder_resources

DEADLINE_S = 4 * 3600.0  # a batch; of the paper's size a CPU takes half an hour for one sample


@dataclass(frozen=True)
class Checkpoint:
    """The aligner that generates.

    Attributes:
        folder: of its files.
        vlm: where its vision-language model lies, if not where it lay in training.
    """

    folder: Path
    vlm: str | None = None

    @cached_property
    def digest(self) -> str:
        """Of its files."""
        return digest_of(self.folder)

    @cached_property
    def said(self) -> dict[str, Any]:
        """What it says of itself (``Aligner.description``)."""
        return describe(self.folder)

    @property
    def layout(self) -> TokenLayout:
        """Of the tokens that it makes."""
        about = self.said["layout"]
        return TokenLayout(about["registers"], (about["grid"][0], about["grid"][1]), about["width"])

    @property
    def label(self) -> str:
        """What its tokens are worth; loud where something is untrained."""
        untrained = self.said.get("untrained", ["vision-language model"] if self.vlm and is_random(self.vlm) else [])
        return f"{UNTRAINED}: {', '.join(untrained)}: the tokens mean nothing" if untrained else "trained"

    @property
    def conditions(self) -> str:
        """Which vision-language model it is, as far as its files do not say."""
        return "as in training" if self.said.get("vlm") else self.vlm or "the paper's"


def is_random(vlm: str) -> bool:
    """Whether a vision-language model has random weights: made here, or saved as such in a folder."""
    config = Path(vlm) / "config.json"
    return vlm == RANDOM_VLM or (config.is_file() and bool(json.loads(config.read_text()).get(UNTRAINED_MARK)))


def trained_in(store: Path, collection: str, stages: Sequence[Stage] = ("finetune", "pretrain")) -> Path:
    """The last checkpoint of a collection's newest finished training, of finetuning before pretraining.

    Args:
        store: its folder.
        collection: that was trained on.
        stages: those that may be taken, the first of them before the next.

    Raises:
        NotReady: there is none.
        SystemicFault: the result of one is damaged.
    """
    folder = store / collection / FOLDER
    for stage in stages:
        results = sorted(folder.glob(f"{stage}-*/{RESULT}"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in results:
            checkpoint = path.parent / read_result(path)["checkpoint"]
            if checkpoint.is_dir():
                return checkpoint
    which = f"{stages[0].removesuffix('e')}ed" if len(stages) == 1 else "trained"
    programs = " and ".join(f"`python -m pipelines.{stage}`" for stage in reversed(stages))
    raise NotReady(
        f"collection {collection} in {store} has no {which} aligner: run {programs}, name another --collection, or a "
        "checkpoint (--checkpoint DIR)"
    )


def make_job(settings: Settings, store: Store, checkpoint: Checkpoint) -> Job:
    """What this stage computes, over any shards."""
    section, sampling = settings.targets, sampling_of(settings)
    layout = stored_layout(settings, checkpoint)
    common = {
        "checkpoint": checkpoint.digest,
        "vlm": checkpoint.conditions,
        "sampling": fingerprints.digest_of(sampling),
        "store_dtype": section.store_dtype,
        "compression": section.compression,
        "code": fingerprints.code_version(STAGE),
        "engine": f"transformers {importlib.metadata.version('transformers')}",
        **({"pooled": "mean of the patches"} if settings.sampling.pooled else {}),
    }
    schema = schemas.generated(layout.registers, layout.patches, layout.width, section.store_dtype, section.compression)
    batches: dict[str, list[list[Wish]]] = {}

    def rows(shard: str) -> list[Row]:
        held = require_complete(store, prompts.STAGE, shard, "prompts")
        found = store.read(held, ["prompt", "image_name", "image_sha256"])
        made, good = [], []
        for key, row in sorted(held.rows.items()):
            if row.status is not Status.OK:
                made.append(passed_on(STAGE, key, prompts.STAGE, row))
                continue
            text, image = found[key]["prompt"], found[key]["image_sha256"]
            part = str(store.shard(prompts.STAGE, shard) / str(row.part)) if found[key]["image_name"] else ""
            good.append(Wish(key, text, image, part, row.part_row or 0))
            inputs = {"text": fingerprints.digest_of(text), "image": image, **common}
            made.append(Row(stage=STAGE, key=key, inputs=inputs, payload=good[-1]))
        size = settings.sampling.batch_size
        batches[shard] = [good[start : start + size] for start in range(0, len(good), size)]
        return made

    def items(shard: str, todo: list[Row], _held: Mapping[str, Manifest]) -> list[Item]:
        due = {row.key: row for row in todo}
        made = []
        for batch in batches[shard]:  # the same batches in every run: what is beside a sample is the same
            mine = tuple(due[wish.key] for wish in batch if wish.key in due)
            if mine:
                payload = [replace(wish, due=wish.key in due) for wish in batch]
                made.append(Item(shard=shard, rows=mine, payload=payload))
        return made

    return Job(
        stages=(STAGE,),
        schema={STAGE: schema},
        rows=rows,
        items=items,
        factory=partial(Generator, checkpoint.folder, checkpoint.digest, settings, checkpoint.vlm),
        singly=parted,
        resources=encoder_resources(settings),
        unit="step",
        units=settings.sampling.steps,
        deadline_s=DEADLINE_S,
        metadata={STAGE: metadata(settings, checkpoint)},
    )


def metadata(settings: Settings, checkpoint: Checkpoint) -> dict[str, Any]:
    """What every part says about its token sets."""
    tokens = stored_layout(settings, checkpoint).describe(settings.targets.store_dtype)
    tokens["normalisation"] = "none: as the sampler left them"
    if settings.sampling.pooled:
        tokens["pooled"] = f"patches are one token, the mean of a grid of {checkpoint.said['layout']['grid']}"
    return {
        "tokens": tokens,
        "checkpoint": checkpoint.digest,
        "label": checkpoint.label,
        "aligner": checkpoint.said,
        "sampling": sampling_of(settings),
    }


def sampling_of(settings: Settings) -> dict[str, Any]:
    """What shapes the numbers of a set, whatever is kept of it."""
    return settings.sampling.model_dump(mode="json", exclude={"batch_size", "pooled"})


def stored_layout(settings: Settings, checkpoint: Checkpoint) -> TokenLayout:
    """Of what is kept of a set."""
    return pooled_layout(checkpoint.layout) if settings.sampling.pooled else checkpoint.layout


def run(settings: Settings, store: Store, checkpoint: Checkpoint, shards: Sequence[str] = ()) -> Report:
    """Bring the token sets of a collection's prompts up to date; one batch alone needs no Ray."""
    rows = sum(len(store.manifest(prompts.STAGE, shard).rows) for shard in store.shards)
    if rows <= settings.sampling.batch_size and not os.environ.get("RAY_ADDRESS"):
        settings = settings.model_copy(update={"compute": settings.compute.model_copy(update={"workers": 0})})
    return run_job(make_job(settings, store, checkpoint), store, settings, shards or store.shards)


def main() -> None:
    """The program."""
    made = parser(__doc__ or "")
    prompts.add_flags(made)
    made.add_argument(
        "--checkpoint", type=Path, help="folder of an aligner (default: the one that --collection trained)"
    )
    made.add_argument("--vlm", help="its vision-language model, a hub id or folder (default: where training found it)")
    made.add_argument("--report", type=Path, help="write the run's report (JSON) here")
    known, settings = parse(made)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)
    with sentences(made):
        folder = known.checkpoint or trained_in(settings.store, settings.collection)
        vlm = str(Path(known.vlm).absolute()) if known.vlm and Path(known.vlm).exists() else known.vlm
        checkpoint = Checkpoint(folder.expanduser().absolute(), vlm)
        store, own, read = prompts.bring_up_to_date(known, settings)
        report = merge([read, run(own, store, checkpoint)])
        if known.report:
            report.save(known.report)
        page = write_page(store, own, checkpoint.label)
        onward = ["python", "-m", "pipelines.trellis", "--store", str(settings.store), "--from", store.collection]
        say(
            *report.lines(),
            f"aligner: {checkpoint.folder} ({checkpoint.label})",
            f"tokens:  {store.folder / STAGE}",
            f"page:    {page}",
            f"3D:      {shlex.join(onward)}",
        )


if __name__ == "__main__":
    main()
