"""verify: read every part against its checksums and its manifest, and the dataset against what it was made from.

Says what to remove where a part is damaged; tells rows by stage, and mean, variance and norm of the tokens.
"""

import shlex
from collections.abc import Sequence

from gap3d import manifest
from gap3d.audit import audit
from gap3d.schemas import program_of
from gap3d.settings import Settings
from gap3d.store import ALL, Store
from pipelines import coco, image_text, images
from pipelines.command import open_store, parse, parser, require_catalog, say, sentences
from pipelines.progress import progress


def audited(store: Store, settings: Settings) -> list[str]:
    """What is wrong with the dataset; its tables are printed. Nothing where there is none yet."""
    if not store.committed("dataset", ALL).rows:
        return []
    total = sum(
        row.part is not None for shard in store.shards for row in store.manifest("targets", shard).rows.values()
    )
    with progress(total=total, desc="tokens", unit="row") as bar:
        found = audit(store, settings.dataset.count, bar.update)
    say(*found.lines())
    return found.faults


def advice(program: str, folders: Sequence[str]) -> str:
    """What to do about damaged shards of the stages that one program makes."""
    if not program:
        return f"{', '.join(folders)}: this version knows no such stage, so only what wrote it can mend it"
    return f"to mend: {shlex.join(['rm', '-r', *folders])}, then run `{program}` again"


def main() -> None:
    """The program; exit code 1 where something is damaged."""
    made = parser(__doc__ or "")
    _, settings = parse(made)
    with sentences(made):
        store = open_store(settings)
        require_catalog(store, or_without=True)
        parts, unread = 0, 0
        damaged: dict[str, list[str]] = {}  # folders by the program that makes them again
        for stage, shard in store.committed_shards():  # also of stages that this version does not know
            try:
                held = store.committed(stage, shard)
                found, parts = store.verify(held), parts + len(held.parts)
            except manifest.Newer as error:
                say(str(error))
                unread += 1
                continue
            except ValueError as error:
                found = [str(error)]
            if found:
                say(*found)
                damaged.setdefault(program_of(stage), []).append(str(store.shard(stage, shard)))
        faults = [] if damaged or unread else audited(store, settings)
        tars = [fault for stage in (image_text, coco, images) for fault in stage.damaged(settings, store)]
        say(*tars, f"{parts} parts read, {sum(len(each) for each in damaged.values())} shards damaged")
        if damaged or unread:
            made.exit(1, "".join(f"{advice(program, folders)}\n" for program, folders in damaged.items()))
        if tars:
            made.exit(1, "then run `python -m pipelines.image_text`, `pipelines.coco` or `pipelines.images` again\n")
        if faults:
            made.exit(1, f"{len(faults)} faults of the dataset: run `python -m pipelines.line`, then verify again\n")


if __name__ == "__main__":
    main()
