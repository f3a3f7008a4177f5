"""Files by HTTP: with every limit, resumed where the server can, tried again where that may help."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from gap3d.network.politeness import Politeness, Trouble, Turn, discreet
from gap3d.records import Failure, Status
from gap3d.settings import NetworkSettings

CHUNK = 1 << 20
REDIRECTS = 10
PASSING = (408, 425, 429, *range(500, 600))  # statuses that another try may not have
GONE = (404, 410)
LOGIN = (401, 403)
DIGITS = 18  # of a length in bytes
NO_ADDRESS = (
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidURL,
    urllib3.exceptions.LocationParseError,
)


class Denied(Failure):
    """The host asks who is asking."""


@dataclass
class Transfer:
    """How far one file is.

    Attributes:
        copy: where its bytes go.
        most: bytes at which it is given up.
        validator: what makes sure that the rest belongs to the same file; empty where it can't be resumed.
        proven: whether the server said how long the file is, so that a cut can't look like an end.
    """

    copy: Path
    most: int
    validator: str = ""
    proven: bool = False


class Session(requests.Session):
    """Does not look where a redirect leads: that is for ``Web.answer``, which closes what leads nowhere."""

    def resolve_redirects(self, *_: Any, **__: Any) -> Iterator[Any]:  # type: ignore[override]
        """None."""
        return iter(())


class Web:
    """Asks web servers."""

    def __init__(self, politeness: Politeness) -> None:
        self.politeness = politeness
        self.network: NetworkSettings = politeness.network
        self.session = Session()
        self.asked: dict[str, str] = {}  # an address by host

    def close(self) -> None:
        """Let go of the connections."""
        self.session.close()

    def mirrored(self, address: str) -> str:
        """Where an address is really asked for; the longest beginning counts."""
        found = max((start for start in self.network.instead_of if address.startswith(start)), key=len, default="")
        return self.network.instead_of[found] + address[len(found) :] if found else address

    def fetch(self, address: str, copy: Path, most: int, headers: Mapping[str, str], login: str) -> bool:
        """Write the file at an address.

        Args:
            address: http or https.
            copy: an empty file.
            most: bytes that are taken at most.
            headers: sent to the address' own host only.
            login: what to do where the host asks who is asking.

        Returns:
            Whether the server said how long the file is; else nothing shows a cut but the wrong bytes.

        Raises:
            Failure: ``missing``, ``too_large`` or ``unreachable``.
        """
        host = host_of(address)
        self.asked[host] = address
        transfer = Transfer(copy, most)
        attempt = partial(self.transfer, address, transfer, headers, login)
        self.politeness.persist(host, self.network.object_s, attempt)
        return transfer.proven

    def transfer(self, address: str, transfer: Transfer, headers: Mapping[str, str], login: str, turn: Turn) -> None:
        """One try; goes on where the one before was cut, if the server can."""
        have = transfer.copy.stat().st_size if transfer.validator else 0
        wanted = {"Accept-Encoding": "identity", **headers}  # a range is one of the bytes as they are sent
        if have:
            wanted |= {"Range": f"bytes={have}-", "If-Range": transfer.validator}
        transfer.validator = ""
        try:
            with self.answer(address, wanted, turn) as response:
                judge(response, login)
                self.receive(response, transfer, have, turn)
        except NO_ADDRESS as error:
            raise Failure(Status.MISSING, f"no address: {words_of(error)}") from error
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise Trouble(words_of(error)) from error

    def answer(self, address: str, headers: Mapping[str, str], turn: Turn) -> requests.Response:
        """The answer after redirects, its body not yet read. What leads to it may be endless too, and isn't read."""
        sent, stall_s = dict(headers), self.network.stall_s
        for _ in range(REDIRECTS + 1):
            turn.keep()
            get = partial(self.session.get, stream=True, allow_redirects=False, timeout=(stall_s, stall_s))
            response = within(turn.ends - time.monotonic(), partial(get, address, headers=sent))
            try:
                target = self.session.get_redirect_target(response)
                if target is None:
                    return response
                address, before = urljoin(address, target), address
                if self.session.should_strip_auth(before, address):
                    sent.pop("Authorization", None)
            except ValueError as error:
                response.close()
                raise requests.exceptions.InvalidURL(f"it leads to what is none: {error}") from error
            response.close()
        raise Trouble(f"more than {REDIRECTS} redirects")

    def receive(self, response: requests.Response, transfer: Transfer, have: int, turn: Turn) -> None:
        """Write a body behind the bytes that are there, or in their place where the server sends all of them."""
        sent = response.headers
        resumed = response.status_code == 206 and sent.get("Content-Range", "").startswith(f"bytes {have}-")
        if response.status_code == 206 and not resumed:
            raise Trouble("the server sent another range than it was asked for")
        size = have if resumed else 0
        plain = sent.get("Content-Encoding", "identity") == "identity"
        told = re.fullmatch(rf"[0-9]{{1,{DIGITS}}}", sent.get("Content-Length", ""))
        length = size + int(told[0]) if plain and told else None
        if length is not None and length > transfer.most:
            raise Failure(Status.TOO_LARGE, f"{length} bytes, at most {transfer.most} are taken (limits.object_bytes)")
        strong = sent.get("ETag", "") if not sent.get("ETag", "").startswith("W/") else ""
        transfer.proven = length is not None or sent.get("Transfer-Encoding", "") == "chunked"
        transfer.validator = (strong or sent.get("Last-Modified", "")) if plain else ""
        with transfer.copy.open("r+b") as file:
            file.truncate(size)
            file.seek(size)
            # read1 gives what is there: a server that sends a byte a second does not get past the clock.
            while chunk := response.raw.read1(CHUNK, decode_content=True):
                turn.keep()
                size += len(chunk)
                if size > transfer.most:
                    raise Failure(Status.TOO_LARGE, f"more than {transfer.most} bytes (limits.object_bytes)")
                file.write(chunk)
        if length is not None and size != length:
            raise Trouble(f"the connection was cut after {size} of {length} bytes")

    def read_body(self, response: requests.Response, most: int, turn: Turn) -> bytes:
        """A body that is to be kept in memory.

        Raises:
            Trouble: it was cut, or has more bytes than ``most``.
        """
        found = bytearray()
        while chunk := response.raw.read1(CHUNK, decode_content=True):
            turn.keep()
            found += chunk
            if len(found) > most:
                raise Trouble(f"more than {most} bytes where a short answer was asked for")
        return bytes(found)

    def answers(self, address: str) -> bool:
        """Whether a host says anything at all."""
        try:
            stall_s = self.network.stall_s
            self.session.get(address, stream=True, allow_redirects=False, timeout=(stall_s, stall_s)).close()
        except (requests.RequestException, urllib3.exceptions.HTTPError):
            return False
        return True


def within(seconds: float, call: Callable[[], requests.Response]) -> requests.Response:
    """What a call gives. Headers may come a byte at a time for ever, and nothing can be said to who waits for them.

    Raises:
        Trouble: it takes longer; it is left behind, and what it gives in the end is closed.
    """
    found: Future[requests.Response] = Future()

    def work() -> None:
        try:
            found.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised where the result is waited for
            found.set_exception(error)

    Thread(target=work, daemon=True).start()
    try:
        return found.result(max(seconds, 0))
    except TimeoutError as error:
        if found.done() and found.exception() is error:
            raise  # its own
        found.add_done_callback(unwanted)
        raise Trouble("no whole answer within the time for it (network.object_s)") from error


def unwanted(found: Future[requests.Response]) -> None:
    """Close an answer that nobody waits for any longer."""
    if found.exception() is None:
        found.result().close()


def host_of(address: str) -> str:
    """Name and port of an address, without a user's name; empty for a file's."""
    return urlsplit(address).netloc.rpartition("@")[2]


def judge(response: requests.Response, login: str) -> None:
    """Raises Failure or Trouble unless the answer is the file."""
    status = response.status_code
    said = discreet(f"HTTP {status} {response.reason or ''}".strip())[:300]
    if status in (200, 206):
        return
    if status in PASSING:
        raise Trouble(said, wished(response))
    if status == 416:
        raise Trouble(said)  # asked for the rest of a file that has become shorter
    if status in LOGIN:
        raise Denied(Status.MISSING, f"{said}: {login}")
    raise Failure(Status.MISSING, f"{said}: it is gone" if status in GONE else said)


def wished(response: requests.Response) -> float:
    """Seconds for which a host wants to be left alone; none where what it says of them can't be read."""
    try:
        return urllib3.Retry().get_retry_after(response.raw) or 0.0
    except (ValueError, OverflowError, urllib3.exceptions.InvalidHeader):
        return 0.0


def words_of(error: Exception) -> str:
    """What went wrong with a request, in one line without addresses' secrets."""
    cause = error.args[0] if error.args and isinstance(error.args[0], Exception) else error
    reason = getattr(cause, "reason", None) or cause
    return discreet(f"{type(reason).__name__}: {reason}")[:300]
