"""Where two processes of a test meet, to speak by torch.distributed."""

import faulthandler
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch


@contextmanager
def met(rank: int, folder: Path) -> Iterator[None]:
    """One of two processes, on one core; it ends with the block, and an error in it as ever."""
    faulthandler.enable()
    torch.set_num_threads(1)
    address, most = f"file://{folder}/meeting", timedelta(seconds=120)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2, timeout=most)
    yield
    torch.distributed.destroy_process_group()
    # Threads of gloo outlive the group (their tensors are Python's too), and one that wakes while the interpreter ends
    # aborts it, now and then.
    os._exit(0)
