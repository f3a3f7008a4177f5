"""verify: read every part against its checksums and its manifest; says what to remove where one is damaged."""

import shlex

from gap3d.schemas import STAGES, TAR_STAGES
from gap3d.store import ALL
from pipelines import coco, image_text, images
from pipelines.command import open_store, parse, parser, require_catalog, say, sentences


def main() -> None:
    """The program; exit code 1 where something is damaged."""
    made = parser(__doc__ or "")
    _, settings = parse(made)
    with sentences(made):
        store = open_store(settings)
        if not any(store.shard(stage, ALL).exists() for stage in TAR_STAGES):
            require_catalog(store)
        parts, damaged = 0, []
        for stage in (*STAGES, images.STAGE, *TAR_STAGES):
            for shard in [ALL] if stage in ("dataset", *TAR_STAGES) else store.shards:
                try:
                    held = store.committed(stage, shard)
                    found, parts = store.verify(held), parts + len(held.parts)
                except ValueError as error:
                    found = [str(error)]
                if found:
                    say(*found)
                    damaged.append(str(store.shard(stage, shard)))
        tars = [fault for stage in (image_text, coco, images) for fault in stage.damaged(settings, store)]
        say(*tars, f"{parts} parts read, {len(damaged)} shards damaged")
        if damaged:
            made.exit(1, f"to mend: {shlex.join(['rm', '-r', *damaged])}, then run the line again\n")
        if tars:
            made.exit(1, "then run `python -m pipelines.image_text`, `pipelines.coco` or `pipelines.images` again\n")


if __name__ == "__main__":
    main()
