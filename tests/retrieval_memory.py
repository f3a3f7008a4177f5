"""Prints what measuring retrieval adds to anonymous memory at most, the bound it states, and the bytes of the tokens.

Argument: the folder of a collection with a dataset. Blocks are made small, so that a small collection is more than the
bound. Each image is its own query. Two more lines say the same of many vectors, without and with the released code's
unsorted lists, and the bytes that their similarities would take at once.
"""

import sys
import threading
from pathlib import Path

import torch
from reading_memory import anonymous

from gap3d.evaluation import retrieval, tokens
from gap3d.evaluation.query_table import matched
from gap3d.evaluation_settings import EvaluationSettings
from gap3d.metrics import bootstrap
from gap3d.metrics import retrieval as ranks

SMALL = 1 << 20
SECTION = EvaluationSettings(resamples=100)
MANY, WIDTH = 3000, 16


def measured(sets, keys):
    """The recalls of what is found by itself."""
    kinds = retrieval.kinds_of(sets, sets)
    predicted, true = (retrieval.pool(sets, keys, kinds) for _ in range(2))
    return retrieval.measure(matched(keys, keys), predicted, true, SECTION).cells


def peak(work):
    """Bytes that it adds to anonymous memory at most."""
    base, most, done = anonymous(), 0, threading.Event()

    def watch():
        nonlocal most
        while not done.wait(0.001):
            most = max(most, anonymous() - base)

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return most


if __name__ == "__main__":
    torch.set_num_threads(1)
    for module, name in ((retrieval, "BLOCK"), (ranks, "BLOCK"), (retrieval, "DRAWN"), (bootstrap, "DRAWN")):
        setattr(module, name, SMALL)
    for module in (retrieval, tokens):
        module.BATCH_BYTES = 8 * SMALL
    with tokens.open_tokens(Path(sys.argv[1])) as sets:
        keys = sorted(sets.keys)
        widths = [sets.shapes[kind][1] for kind in ("cls", "patches")]
        read = 2 * len(keys) * sum(4 * count * width for count, width in sets.shapes.values())
        measured(sets, keys[:2])  # what is loaded once is not its own
        most = peak(lambda: measured(sets, keys))
        sys.stdout.write(f"{most} {retrieval.most_bytes(len(keys), len(keys), widths)} {read}\n")
    keys = [f"{number:04d}" for number in range(MANY)]
    pooled = retrieval.Pooled(keys, {"cls": ranks.vectors(torch.randn(MANY, WIDTH))}, {})
    for quirks, each in (((), 8), (("unsorted_list",), 56)):
        section = SECTION.model_copy(update={"quirks": quirks})
        most = peak(lambda section=section: retrieval.measure(matched(keys, keys), pooled, pooled, section))
        bound = retrieval.most_bytes(MANY, MANY, [WIDTH], unsorted=bool(quirks))
        sys.stdout.write(f"{most} {bound} {each * MANY**2}\n")
