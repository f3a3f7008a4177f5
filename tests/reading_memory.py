"""Prints a line for each dataset: what a pass adds to anonymous memory at most, the bound it states, the bytes it read.

Arguments: a JSON list of [folder, batch size, batches that wait (of a thread's; 0: no thread), options of
TargetDataset]. Mapped pages of a file are not counted: they are the page cache's, which the kernel takes back when it
likes.
"""

import gc
import json
import sys
from pathlib import Path

import pyarrow as pa
import torch
from torch.utils.data import DataLoader

from gap3d.readers.batches import Collate, prefetch
from gap3d.readers.targets import TargetDataset


def anonymous():
    """Bytes of this process that are no file's."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def peak(dataset, ahead):
    """(bytes added at most, bytes of a batch, bytes read) of one pass in which every page is looked at."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    base, most, read, largest = anonymous(), 0, 0, 0
    loader = DataLoader(dataset, dataset.batch_size, collate_fn=Collate())
    for batch in prefetch(loader, ahead) if ahead else loader:
        read += batch.tokens.nbytes
        largest = max(largest, batch.tokens.nbytes)
        assert batch.tokens.view(torch.int16).flatten()[::2048].sum() is not None
        most = max(most, anonymous() - base)
    return most, largest, read


if __name__ == "__main__":
    for folder, batch, ahead, options in json.loads(sys.argv[1]):
        dataset = TargetDataset(folder, batch_size=batch, **options)
        next(iter(dataset))  # what is loaded once is not the dataset's
        most, largest, read = peak(dataset, ahead)
        sys.stdout.write(f"{most} {dataset.most_bytes() + ahead * largest} {read}\n")
