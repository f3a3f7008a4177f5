"""A self-contained HTML document: it opens from disk, asks nothing of a network, and runs its own script only.

What comes from outside (captions, file names, Blender's words) goes in as JSON that cannot end its script element,
and the document's program puts it on the screen as text. A policy in the document forbids everything else.
"""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

SHELL = "pages/document.html"
"""What all documents have: head, policy, and the places of their parts."""


def document(body: str, styles: Sequence[str], scripts: Sequence[str], title: str, data: Any, state: str) -> bytes:
    """A document.

    Args:
        body: file with the elements that the scripts fill; like the others named by its path in ``gap3d``.
        styles: CSS files, in this order.
        scripts: JavaScript files, in this order.
        title: plain text.
        data: what JSON can hold; the scripts find it in the element ``data``.
        state: what it was made from, for ``state_of``.
    """
    style, script = ("\n".join(map(read, names)) for names in (styles, scripts))
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src {source_of(style)}; script-src {source_of(script)}"
    )
    made = read(SHELL)
    for name, value in (
        ("body", read(body)),
        ("policy", policy),
        ("state", html.escape(state)),
        ("title", html.escape(title)),
        ("style", style),
        ("script", script),
        ("data", as_script(data)),  # the last: nothing is looked for in what comes from outside
    ):
        made = made.replace(f"{{{{{name}}}}}", value)
    return made.encode()


def as_script(data: Any) -> str:
    """JSON that can stand in a script element: nothing in it can end or open an element."""
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def source_of(text: str) -> str:
    """The policy's name for an inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def read(name: str) -> str:
    """One of the files that documents are put together from."""
    return resources.files("gap3d").joinpath(name).read_text()


def version(*names: str) -> str:
    """Digest of files of ``gap3d``: a document of an older make is made again."""
    return hashlib.sha256("".join(map(read, ("pages/document.py", SHELL, *names))).encode()).hexdigest()[:16]


def state_of(content: bytes) -> str:
    """What a document was made from; empty where the beginning of a file does not say."""
    _, _, rest = content.partition(b'<meta name="gap3d-state" content="')
    return html.unescape(rest.partition(b'"')[0].decode(errors="replace"))
