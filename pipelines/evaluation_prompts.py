"""evaluation_prompts: the prompts of Table 3 (docs/method.md 8.3) as a file: captions of the true objects.

python -m pipelines.evaluation_prompts --collection toys4k --out toys4k.jsonl
"""

import json
import signal
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a file, here or copied by `ray submit`: its folder is not where packages are looked for
    sys.path.pop(0)

from gap3d.evaluation.objects import objects_of
from gap3d.evaluation.result import FOLDER
from gap3d.parts import write_atomically
from gap3d.settings import Settings
from gap3d.store import Store
from pipelines.around import parent_of
from pipelines.command import open_store, parse, parser, say, sentences, stop
from pipelines.evaluation.objects import asked_of

NAME = "prompts.jsonl"


def rows_of(store: Store, count: int | None, shuffle: int) -> list[dict[str, Any]]:
    """A row for every object that generation is measured on, in the protocol's order, as a file of prompts has them.

    Args:
        store: the objects' collection.
        count: how many at most; None takes all that have captions.
        shuffle: seed of the order.

    Raises:
        ValueError: no object has a caption.
    """
    captions: dict[str, list[str]] = {}
    for shard in store.shards:
        found = store.read(store.manifest("catalog", shard), ["captions"])
        captions |= {key: row["captions"] or [] for key, row in found.items()}
    asked = asked_of(objects_of(store, count, shuffle), captions)
    if not asked:
        raise ValueError(
            f"no object in the catalog of {store.collection} has a caption: nothing can be prompted; name a collection "
            "of captioned objects (--collection, --evaluation.true), or a file of prompts"
        )
    return [
        {"id": key, "prompt": each.caption, "index": each.index, "caption_index": each.caption_index}
        for key, each in asked.items()
    ]


def evaluation_prompts(settings: Settings, path: Path | None = None) -> Path:
    """Write the file; its path, by default with the collection's other results of the evaluation.

    Raises:
        ValueError: see ``rows_of``.
    """
    true = settings.evaluation.true
    store = parent_of(settings, Store.open(settings.store, true, settings.blobs) if true else open_store(settings))
    path = path or store.folder / FOLDER / NAME
    lines = rows_of(store, settings.evaluation.count, settings.evaluation.shuffle)
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode("utf-8", "replace")
    if not path.exists() or path.read_bytes() != content:
        write_atomically(path, content)
    return path


def main() -> None:
    """The program."""
    made = parser(__doc__ or "")
    made.add_argument("--out", type=Path, help="the file, .jsonl (default: in the collection's folder)")
    known, settings = parse(made)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)
    with sentences(made):
        if known.out and known.out.suffix != ".jsonl":
            raise ValueError(f"{known.out} has to end in .jsonl: it gets an object a line")
        path = evaluation_prompts(settings, known.out)
        count = path.read_bytes().count(b"\n")
        say(f"{count} prompts: {path}", f"next:  python -m pipelines.comparison --runs table3 --prompts {path}")


if __name__ == "__main__":
    main()
