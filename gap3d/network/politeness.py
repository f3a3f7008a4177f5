"""How hosts are asked: few requests at once and in a second, again after trouble, and not while they want quiet.

Turns are handed out at one desk for all workers. A turn is held by keeping it: whoever died keeps nothing, and its
turn is another's soon.
"""

import itertools
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from gap3d.records import Failure, Status
from gap3d.settings import NetworkSettings

T = TypeVar("T")
POLL_S = 0.25  # how often those in line ask whether it is their turn
LINE_S = 5.0  # who has not asked for so long has left the line


class Trouble(Exception):
    """No answer, or none that counts: another try may do better.

    Args:
        reason: one line.
        retry_after: seconds for which the host wants to be left alone.
    """

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after


class Quiet(Failure):
    """An object that was not asked for, because its host wants to be left alone."""


@dataclass
class Host:
    """What is known of one host; times are the clock's.

    Attributes:
        held: when each turn lapses, by holder.
        line: when each of those in line last asked, the first one first.
        next_at: when the next turn may begin.
        quiet_until: when it may be asked again.
    """

    held: dict[str, float] = field(default_factory=dict)
    line: dict[str, float] = field(default_factory=dict)
    next_at: float = 0.0
    quiet_until: float = 0.0


class Desk(Protocol):
    """Where turns are handed out: in this process, or by an actor for a whole cluster."""

    def ask(self, host: str, who: str, most: int, interval_s: float, lease_s: float) -> tuple[float, bool]:
        """Whether it is one's turn.

        Args:
            host: name and port.
            who: names the turn.
            most: turns of this host at the same time.
            interval_s: from the beginning of one turn to that of the next.
            lease_s: how long a turn is held if it isn't kept.

        Returns:
            0 where it is, else the seconds after which to ask again; whether that is because the host wants quiet.
        """

    def keep(self, host: str, who: str, lease_s: float) -> None:
        """Hold a turn for so long from now on."""

    def leave(self, host: str, who: str) -> None:
        """Give a turn back."""

    def pause(self, host: str, seconds: float) -> None:
        """Leave a host alone for so long from now on."""


class Turns:
    """The desk itself."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.hosts: dict[str, Host] = {}

    def ask(self, host: str, who: str, most: int, interval_s: float, lease_s: float) -> tuple[float, bool]:
        """See Desk."""
        now, state = self.clock(), self.hosts.setdefault(host, Host())
        if state.quiet_until > now:
            return state.quiet_until - now, True
        state.held = {holder: until for holder, until in state.held.items() if until > now}
        state.line[who] = now
        state.line = {waiter: seen for waiter, seen in state.line.items() if seen > now - LINE_S}
        if list(state.line).index(who) >= most - len(state.held):
            return POLL_S, False
        if state.next_at > now:
            return state.next_at - now, False
        del state.line[who]
        state.held[who] = now + lease_s
        state.next_at = now + interval_s
        return 0.0, False

    def keep(self, host: str, who: str, lease_s: float) -> None:
        """See Desk."""
        self.hosts.setdefault(host, Host()).held[who] = self.clock() + lease_s

    def leave(self, host: str, who: str) -> None:
        """See Desk."""
        self.hosts.setdefault(host, Host()).held.pop(who, None)

    def pause(self, host: str, seconds: float) -> None:
        """See Desk."""
        state = self.hosts.setdefault(host, Host())
        state.quiet_until = max(state.quiet_until, self.clock() + seconds)


class Turn:
    """Leave to ask a host, until ``ends`` on the monotonic clock."""

    def __init__(self, hold: Callable[[], None], every_s: float, ends: float) -> None:
        self.hold, self.every_s, self.ends = hold, every_s, ends
        self.held_at = time.monotonic()

    def keep(self) -> None:
        """Say that it is still in use; to be called often.

        Raises:
            Trouble: the time for the transfer is over.
        """
        now = time.monotonic()
        if now > self.ends:
            raise Trouble("not done within the time for it (network.object_s, network.repository_s)")
        if now - self.held_at > self.every_s:
            self.hold()
            self.held_at = now


class Politeness:
    """A worker's side of the desk.

    Args:
        desk: hands out the turns.
        network: what is polite.
    """

    def __init__(self, desk: Desk, network: NetworkSettings) -> None:
        self.desk = desk
        self.network = network
        self.lease_s = max(60.0, 3 * network.stall_s)  # nothing is heard from a worker while it waits for a byte

    @contextmanager
    def turn(self, host: str, seconds: float) -> Iterator[Turn]:
        """Wait in line for leave to ask a host, for so many seconds.

        Raises:
            Quiet: the host wants to be left alone for longer than network.pause_s.
        """
        who, network = uuid.uuid4().hex, self.network
        while True:
            wait, quiet = self.desk.ask(host, who, network.per_host, 1 / network.requests_per_s, self.lease_s)
            if not wait:
                break
            if quiet and wait > network.pause_s:
                raise Quiet(Status.UNREACHABLE, f"not asked for: {left_alone(host, wait)}")
            time.sleep(wait)
        try:
            yield Turn(
                lambda: self.desk.keep(host, who, self.lease_s), self.lease_s / 4, time.monotonic() + max(seconds, 0)
            )
        finally:
            self.desk.leave(host, who)

    def persist(self, host: str, seconds: float, attempt: Callable[[Turn], T]) -> T:
        """What an attempt gives, tried again after trouble; each try has a turn of its own.

        Args:
            host: who is asked.
            seconds: for all tries and the pauses between them; waiting in line doesn't count.
            attempt: raises Trouble where another try may do better.

        Raises:
            Failure: ``unreachable``, once tries or time are used up; and what the attempt raises.
        """
        spent = 0.0
        for number in itertools.count(1):
            with self.turn(host, seconds - spent) as turn:
                begun = time.monotonic()
                try:
                    return attempt(turn)
                except Trouble as error:
                    trouble = error
                    spent += time.monotonic() - begun
            if trouble.retry_after:
                self.desk.pause(host, trouble.retry_after)
            if trouble.retry_after > self.network.pause_s:
                raise Failure(Status.UNREACHABLE, f"{trouble.reason}: {left_alone(host, trouble.retry_after)}")
            pause = self.pause_after(number)
            if number > self.network.retries or spent + pause >= seconds:
                raise Failure(
                    Status.UNREACHABLE, f"{trouble.reason} (tried {number} times): run again, or see network.* settings"
                )
            time.sleep(pause)
            spent += pause
        raise AssertionError  # count() has no end

    def pause_after(self, number: int) -> float:
        """Seconds to wait after so many failed tries: doubling up to network.pause_s, with jitter."""
        return self.network.pause_s * 2.0 ** min(number - self.network.retries, 0) * random.uniform(0.5, 1.0)


def left_alone(host: str, seconds: float) -> str:
    """What to do about a host that wants quiet."""
    return f"{host} asks to be left alone for {seconds:.0f} s; run again then"


def discreet(text: str) -> str:
    """Words of a program or a host, without control characters but line ends, and without what may be secret in
    addresses: user names, passwords, signed queries."""
    text = re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", " ", text)
    return re.sub(r"(\w+://|url: /)(?:[^/@\s]+@)?([^\s'\"?)]*)(?:\?[^\s'\")]*)?", r"\1\2", text)
