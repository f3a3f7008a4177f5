"""The parent's two pipe ends: requests out, framed replies in, never blocking on either."""

import os
import select
from collections.abc import Mapping
from typing import Any

from render.job import HEADER, Garbled, encode, frame_length

READ_BYTES = 64 * 1024


class Closed(Exception):
    """The other side is gone."""


class Channel:
    """Framed messages over two pipes.

    Args:
        requests: write end of the pipe the child reads; owned, closed by ``close``.
        answers: read end of the pipe the child writes; owned, closed by ``close``.
    """

    def __init__(self, requests: int, answers: int) -> None:
        self._requests = requests
        self._answers = answers
        self._received = bytearray()
        os.set_blocking(requests, False)
        os.set_blocking(answers, False)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one message. Raises Closed, or Garbled if the child leaves earlier messages unread."""
        frame = encode(message)
        try:
            written = os.write(self._requests, frame)
        except BrokenPipeError as error:
            raise Closed from error
        except BlockingIOError as error:
            raise Garbled("requests are left unread") from error
        if written != len(frame):
            raise Garbled("requests are left unread")

    def receive(self, timeout: float) -> bytes | None:
        """The body of the next message, or None when nothing whole came within ``timeout`` seconds.

        Raises Closed at the end of the stream, Garbled for a frame above the cap or bytes nobody asked for.
        """
        readable, _, _ = select.select([self._answers], [], [], max(0.0, timeout))
        if readable:
            data = os.read(self._answers, READ_BYTES)
            if not data:
                raise Closed
            self._received += data
        if len(self._received) < HEADER.size:
            return None
        end = HEADER.size + frame_length(bytes(self._received[: HEADER.size]))
        if len(self._received) < end:
            return None
        if len(self._received) > end:
            raise Garbled("more was answered than asked")
        body = bytes(self._received[HEADER.size : end])
        self._received.clear()
        return body

    def close(self) -> None:
        """Close both ends."""
        os.close(self._requests)
        os.close(self._answers)
