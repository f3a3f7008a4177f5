"""Ctrl-C and SIGTERM wait until what must not be cut in two is done."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PUT_OFF = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def unbroken() -> Iterator[None]:
    """Handle signals of this block at its end. Other threads than the main one get no signals anyway."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    handlers = {number: signal.getsignal(number) for number in PUT_OFF}
    handlers = {number: handler for number, handler in handlers.items() if handler is not None}  # None: not Python's
    for number in handlers:
        signal.signal(number, lambda *call: came.append(call))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for came_number, frame in came:
            handler = handlers[signal.Signals(came_number)]
            if callable(handler):
                handler(came_number, frame)
            elif handler is signal.SIG_DFL:
                os.kill(os.getpid(), came_number)


@contextmanager
def kept() -> Iterator[None]:
    """Keep Python's handlers through a block that puts others in their place, as Ray's start does: its own aborts."""
    handlers = {number: signal.getsignal(number) for number in PUT_OFF}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if handler is not None:
                    signal.signal(number, handler)
