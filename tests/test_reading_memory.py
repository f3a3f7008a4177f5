"""A reader's memory is bounded as it says: measured in a process of its own, over stores larger than the bound."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from target_stores import write_index, write_part

from gap3d.features.tokens import TokenLayout
from gap3d.store import Store

LAYOUT = TokenLayout(registers=1, grid=(16, 32), width=1024)  # 1 MB an image
ROWS = 144
HERE = Path(__file__).parent


def test_a_pass_stays_within_the_stated_bound_of_bytes(tmp_path):
    folders = {}
    for compression in ("none", "zstd"):
        store = Store(tmp_path, compression, 1)
        tokens = dict.fromkeys((f"{n:04d}/000" for n in range(ROWS)), torch.zeros(LAYOUT.count, LAYOUT.width))
        write_part(store, "0", tokens, layout=LAYOUT, compression=compression)
        write_index(store)
        folders[compression] = str(store.folder)
    passes = [
        (folders["none"], 4, 0, {}),
        (folders["none"], 4, 2, {}),
        (folders["none"], 4, 0, {"verify": True}),
        (folders["zstd"], 4, 0, {"interleave": 3}),
        (folders["zstd"], 4, 2, {"interleave": 2}),
        (f"file://{folders['zstd']}", 4, 0, {"interleave": 3, "verify": True}),
    ]
    program = [sys.executable, str(HERE / "reading_memory.py"), json.dumps(passes)]
    ran = subprocess.run(program, capture_output=True, text=True, cwd=HERE.parent, check=True)
    found = [tuple(map(int, line.split())) for line in ran.stdout.splitlines()]
    assert len(found) == len(passes)
    for most, bound, read in found:
        assert read == ROWS * LAYOUT.count * LAYOUT.width * 2
        assert most <= bound < 0.65 * read
