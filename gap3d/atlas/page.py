"""The dataset's report as one self-contained page."""

from collections.abc import Mapping
from typing import Any

from gap3d.pages import document

BODY = "atlas/atlas.html"
STYLES = ("pages/elements.css", "atlas/atlas.css")
SCRIPTS = ("pages/elements.js", "atlas/charts.js", "atlas/atlas.js")
SOURCES = (
    "dataset_index.py",
    "moments.py",
    *(
        f"atlas/{name}.py"
        for name in (
            "health",
            "histogram",
            "inventory",
            "neighbours",
            "page",
            "palette",
            "pca",
            "pictures",
            "statistics",
        )
    ),
)


def page(data: Mapping[str, Any], state: str) -> bytes:
    """The page.

    Args:
        data: see ``pipelines.survey``; ``data["head"]["title"]`` is its title.
        state: what it was made from, for ``document.state_of``.
    """
    return document.document(BODY, STYLES, SCRIPTS, str(data["head"]["title"]), data, state)


def version() -> str:
    """Digest of all that shapes the page: one of an older make is made again."""
    return document.version(*SOURCES, BODY, *STYLES, *SCRIPTS)
