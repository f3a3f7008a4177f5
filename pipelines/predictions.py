"""predictions: the token sets that an aligner makes of a collection's captions, for the evaluation to measure.

python -m pipelines.predictions --model pretrained
python -m pipelines.predictions --checkpoint DIR --measured coco --which drawn
python -m pipelines.predictions --measured coco --which drawn --write FILE
"""

import csv
import io
import logging
import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple, get_args

if not __package__:  # run as a file, here or copied by `ray submit`: its folder is not where packages are looked for
    sys.path.pop(0)

from gap3d.evaluation.queries import Query, Which, queries_of, usual
from gap3d.evaluation.tokens import TokenSets, of_dataset, of_generated
from gap3d.features.tokens import TORCH_DTYPES, TokenLayout
from gap3d.parts import write_atomically
from gap3d.prompts import Prompt, of_rows
from gap3d.records import SystemicFault
from gap3d.settings import Settings
from gap3d.store import Store, free_bytes
from gap3d.training.run import Stage
from pipelines import generate, prompts
from pipelines.command import parse, parser, refuse_job, say, sentences, stop
from pipelines.evaluation.seen import trained_on
from pipelines.generate import Checkpoint, trained_in
from pipelines.job import NotReady

log = logging.getLogger(__name__)

STAGE_OF: dict[str, Stage] = {"pretrained": "pretrain", "finetuned": "finetune"}
LARGE = 1e9  # bytes that are worth a word before they are written
RESERVE = 1 << 30  # stays free


class Predictions(NamedTuple):
    """What a model predicts.

    Attributes:
        sets: its token sets, by the queries' keys.
        queries: what it was asked.
        checkpoint: what it is: ``stage``, ``run``, ``step``, ``digest``, ``label``, ``trained_on``.
    """

    sets: TokenSets
    queries: list[Query]
    checkpoint: dict[str, Any]


def predictions(
    settings: Settings, model: str | Path, collection: str, which: Which, vlm: str | None = None
) -> Predictions:
    """Bring the token sets of a collection's queries up to date, in a collection of their own.

    Only what is missing is generated; a killed run goes on where it was.

    Args:
        settings: of the run; ``collection`` is the one that was trained on, ``evaluation.steps`` are the sampler's.
        model: pretrained, finetuned, or the folder of a checkpoint.
        collection: that is measured.
        which: of its captions.
        vlm: the checkpoint's vision-language model, where it is not where training found it.

    Raises:
        NotReady: there is no such training yet.
        ValueError: the collection has no queries, or its targets are not of the checkpoint's shape.
        SystemicFault: the disk can't take the token sets.
    """
    checkpoint = checkpoint_of(settings, model, vlm)
    measured = Store.open(settings.store, collection, settings.blobs)
    queries = queries_of(measured, which)
    fitting(checkpoint.layout, measured)
    own = settings.model_copy(
        update={"sampling": settings.sampling.model_copy(update={"steps": settings.evaluation.steps})}
    )
    name = name_of(collection, which, checkpoint) + ("-pooled" if own.sampling.pooled else "")
    store, own = prompts.collection_of(own, name, len(queries))
    prompts.run(own, store, prompts_of(queries))
    write_atomically(store.folder / "settings.json", own.model_dump_json(indent=1).encode())
    require_room(store, own, checkpoint)
    generate.run(own, store, checkpoint)
    return Predictions(of_generated(store), queries, about(checkpoint, measured))


def checkpoint_of(settings: Settings, model: str | Path, vlm: str | None = None) -> Checkpoint:
    """The aligner of that name, or in that folder.

    Raises:
        NotReady: it is not trained yet.
        ValueError: it is neither a name nor a folder.
    """
    stage = STAGE_OF.get(str(model))
    if stage:
        try:
            return Checkpoint(trained_in(settings.store, settings.collection, (stage,)).absolute(), vlm)
        except NotReady as error:
            raise NotReady(f"{error}, or leave it out (evaluation.models)") from error
    folder = Path(model).expanduser().absolute()
    if not folder.is_dir():
        raise ValueError(f"{model} is no aligner: say {' or '.join(STAGE_OF)}, or name the folder of a checkpoint")
    return Checkpoint(folder, vlm)


def name_of(collection: str, which: Which, checkpoint: Checkpoint) -> str:
    """The collection of the token sets."""
    return f"{collection}-{which}-{checkpoint.digest[:12]}"


def prompts_of(queries: list[Query]) -> list[Prompt]:
    """Queries as prompts."""
    rows = ((f"query {query.index}", row_of(query)) for query in queries)
    return of_rows(rows, Path())


def row_of(query: Query) -> dict[str, Any]:
    """A query as a row of a file of prompts."""
    return {"id": query.key, "prompt": query.caption, "index": query.index, "caption_index": query.caption_index}


def fitting(layout: TokenLayout, measured: Store) -> None:
    """Prove before hours of sampling that what will be made can be compared.

    Raises:
        ValueError: it can't.
    """
    with of_dataset(measured) as targets:
        made = {"cls": 1, "registers": layout.registers, "patches": layout.patches}
        shapes = {kind: (count, layout.width) for kind, count in made.items() if count}
        if shapes != targets.shapes:
            raise ValueError(
                f"the aligner makes tokens {shapes}, the targets of collection {measured.collection} are "
                f"{targets.shapes}: encode it as the aligner's training data were (--targets.encoder, "
                "--targets.image_size), in a collection of its own"
            )


def require_room(store: Store, settings: Settings, checkpoint: Checkpoint) -> None:
    """Tell how much will be written, and refuse what the disk can't take.

    Raises:
        SystemicFault: it can't.
    """
    job = generate.make_job(settings, store, checkpoint)
    due = 0
    for shard in store.shards:
        held = store.manifest(generate.STAGE, shard)
        known = {row.key: held.rows.get(row.key) for row in job.rows(shard) if row.decided is None}
        wanted = {row.key: row.inputs for row in job.rows(shard)}
        due += sum(row is None or bool(row.needs(wanted[key], settings.limits)) for key, row in known.items())
    needed = due * bytes_of(generate.stored_layout(settings, checkpoint), settings.targets.store_dtype)
    free = free_bytes(store.folder) - RESERVE
    if needed > free:
        raise SystemicFault(
            f"{due} token sets of {store.collection} will take {needed / 1e9:.1f} GB in {store.root}, where "
            f"{max(free, 0) / 1e9:.1f} GB are free: make room, name another disk (--store DIR), or store them as int8 "
            "(--targets.store_dtype int8, half the size)"
        )
    if needed > LARGE:
        log.warning("%d token sets will take %.1f GB in %s", due, needed / 1e9, store.folder)


def bytes_of(layout: TokenLayout, dtype: str) -> int:
    """Bytes of one token set in the store."""
    scales = 4 if dtype == "int8" else 0
    return 4 * layout.width + (layout.count - 1) * (layout.width * TORCH_DTYPES[dtype].itemsize + scales)


def about(checkpoint: Checkpoint, measured: Store | None = None) -> dict[str, Any]:
    """What a checkpoint is, for a result; on a collection, whether it was trained on that."""
    said = checkpoint.said.get("about", {})
    known = {name: said[name] for name in ("stage", "run", "step", "data") if name in said}
    encoder = said.get("encoder", {}).get("weights", "")
    seen = trained_on(known, measured, checkpoint.folder) if measured else {}
    return {**known, "digest": checkpoint.digest, "label": checkpoint.label, "encoder": encoder, **seen}


def table_of(queries: list[Query]) -> bytes:
    """Queries as a CSV that ``pipelines.generate --prompts`` and other models read."""
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, ("id", "prompt", "index", "caption_index"))
    table.writeheader()
    table.writerows(row_of(query) for query in queries)
    return text.getvalue().encode()


def main() -> None:
    """The program."""
    made = parser(__doc__ or "")
    made.add_argument("--model", choices=list(STAGE_OF), default="finetuned", help="which training of --collection")
    made.add_argument("--checkpoint", type=Path, help="folder of an aligner, in the place of --model")
    made.add_argument("--measured", help="the collection whose captions are taken (default: --collection)")
    made.add_argument("--which", choices=get_args(Which), help="captions (default: those of Table 1)")
    made.add_argument("--vlm", help="the checkpoint's vision-language model (default: where training found it)")
    made.add_argument("--write", type=Path, help="only write the queries here (CSV), to ask other models the same")
    known, settings = parse(made)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)
    with sentences(made):
        refuse_job(settings)
        collection = known.measured or settings.collection
        measured = Store.open(settings.store, collection, settings.blobs)
        which = known.which or usual(measured, "alignment")
        if known.write:
            queries = queries_of(measured, which)
            write_atomically(known.write.absolute(), table_of(queries))
            say(f"{len(queries)} queries: {known.write}")
            return
        found = predictions(settings, known.checkpoint or known.model, collection, which, known.vlm)
        failed = len(found.queries) - len(found.sets)
        say(
            f"{len(found.queries)} queries ({which}) of {collection}: {len(found.sets)} token sets, {failed} failed",
            f"aligner: {found.checkpoint['label']}",
            f"tokens:  {settings.store / found.sets.description['name']}",
        )


if __name__ == "__main__":
    main()
