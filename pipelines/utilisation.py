"""How busy the encoders of a run are, and what they wait for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

FORWARD, DECODE, FEED = "forward", "wait_decode", "wait_feed"  # names among a row's costs
# An encoder's time, from when it is ready to its last image, is the sum of these three.


@dataclass
class Utilisation:
    """Shares of the encoders' time, from the costs of rows.

    Attributes:
        images: rows that were encoded.
        seconds: by kind, summed over encoders: in the encoder, waiting for pixels, waiting for an item.
    """

    images: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys((FORWARD, DECODE, FEED), 0.0))

    def add(self, costs: Iterable[Mapping[str, float]]) -> "Utilisation":
        """Take more rows; those without an encoder's time are none of its."""
        for each in costs:
            if FORWARD in each:
                self.images += 1
                for name in self.seconds:
                    self.seconds[name] += each.get(name, 0.0)
        return self

    @classmethod
    def of(cls, costs: Mapping[str, float], images: int) -> "Utilisation":
        """That of sums over so many rows; nothing where none of them was encoded."""
        if FORWARD not in costs:
            return cls()
        return cls(images, {name: costs.get(name, 0.0) for name in (FORWARD, DECODE, FEED)})

    def __add__(self, other: "Utilisation") -> "Utilisation":
        seconds = {name: self.seconds[name] + other.seconds[name] for name in self.seconds}
        return Utilisation(self.images + other.images, seconds)

    def share(self, name: str) -> float:
        """Share of the time, in [0, 1]."""
        return self.seconds[name] / (sum(self.seconds.values()) or 1.0)

    def __str__(self) -> str:
        busy, decode, feed = (f"{self.share(name):.1%}" for name in (FORWARD, DECODE, FEED))
        return f"encoder busy {busy}, waits: decode {decode}, work {feed}"
