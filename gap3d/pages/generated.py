"""The page of generated token sets: every prompt beside the colours of its patch tokens, one palette for all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gap3d.pages import document

BODY = "pages/generated.html"
STYLES, SCRIPTS = ("pages/elements.css", "pages/generated.css"), ("pages/elements.js", "pages/generated.js")


@dataclass(frozen=True)
class Shown:
    """One token set.

    Attributes:
        key: of its row.
        prompt: what was asked for.
        tokens: its patch tokens as colours, a data URI.
        image: the picture that was edited, a data URI; empty where there is none.
    """

    key: str
    prompt: str
    tokens: str
    image: str = ""


@dataclass(frozen=True)
class Failed:
    """A prompt without a token set."""

    key: str
    status: str
    reason: str


def page(head: Mapping[str, Any], shown: Sequence[Shown], failed: Sequence[Failed]) -> bytes:
    """The page.

    Args:
        head: ``title``, ``untrained`` (a warning, or empty), ``facts`` (a table of names and values), ``left`` (how
            many sets are not shown).
        shown: the sets, in their order.
        failed: the prompts that have none.
    """
    data = {"head": head, "sets": [vars(each) for each in shown], "failed": [vars(each) for each in failed]}
    return document.document(BODY, STYLES, SCRIPTS, str(head["title"]), data, "")
