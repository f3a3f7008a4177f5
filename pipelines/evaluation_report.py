"""evaluation_report: one HTML page that sets the evaluation's results beside the paper's tables, cell by cell.

It shows the results of the collection, and those of evaluation.collections and evaluation.true. Numbers of the paper
that are not transcribed here come from a file of yours (--evaluation.published, or --published for short), whose form
is that of gap3d/evaluation/published.toml.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gap3d.evaluation import page
from gap3d.evaluation.page import Comparison, Picture
from gap3d.evaluation.published import Published, bundled, with_file
from gap3d.evaluation.result import FOLDER, TABLES, Result, find
from gap3d.evaluation.standing import newest
from gap3d.manifest import now
from gap3d.parts import write_atomically
from gap3d.settings import Settings
from pipelines import pages
from pipelines.command import parse, parser, say, sentences
from pipelines.evaluation.measured import homes
from pipelines.job import NotReady

PAGE = "evaluation.html"
FIGURES, ABOUT = "figures", "comparison.json"  # below the evaluation's folder: see pipelines.comparison
PICTURE_BYTES = 22_000_000  # of the page's pictures together
PNG = b"\x89PNG\r\n\x1a\n"


def of_settings(settings: Settings, out: Path | None = None) -> Path:
    """Write the page that settings ask for; its path.

    Args:
        settings: the collections, and the file of published numbers.
        out: folder of the page; None takes the collection's.

    Raises:
        NotReady: there is no such collection.
        ValueError: see ``published_of``.
        SystemicFault: a result is damaged.
    """
    first, *others = folders_of(settings)
    return write(first, others, published_of(settings), out)


def page_of(settings: Settings) -> Path:
    """Where ``of_settings`` writes the page."""
    return folders_of(settings)[0] / pages.FOLDER / PAGE


def published_of(settings: Settings) -> Published:
    """The paper's numbers, with those of ``evaluation.published``.

    Raises:
        ValueError: that is no file, or there is a slip in it.
    """
    given = settings.evaluation.published
    if given is None:
        return bundled()
    path = given.expanduser().absolute()
    if not path.is_file():
        raise ValueError(f"evaluation.published = {path} is no file: name the TOML file of published numbers")
    return with_file(path)


def write(
    folder: Path, others: Iterable[Path] = (), published: Published | None = None, out: Path | None = None
) -> Path:
    """Write the page; its path.

    Args:
        folder: of the collection, in the store.
        others: folders of further collections whose results are shown.
        published: the paper's numbers; None takes those that come with the program.
        out: folder of the page; None takes the collection's.

    Raises:
        SystemicFault: a result is damaged.
    """
    folders = list(dict.fromkeys([folder, *others]))
    # By name too: the same token sets may be measured as a step of a training, and as what the training came to.
    results = {
        (result.collection, result.model, result.fingerprint): result
        for each in folders
        for table in TABLES
        for result in find(each, table)
    }
    shown = list(results.values())
    head = {"title": f"{folder.name}: the evaluation", "made": now(), "notes": notes_of(folder, shown, published)}
    album = Album(folder.parent)
    pictures = {each.fingerprint: album.of(each.folder) for each in newest(shown) if each.folder}
    compared = [
        comparison(path, album) for each in folders for path in sorted((each / FOLDER / FIGURES).glob("[!.]*/"))
    ]
    path = (out or folder / pages.FOLDER) / PAGE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page.page(head, published or bundled(), shown, pictures, compared))
    return path


def notes_of(folder: Path, results: Sequence[Result], published: Published | None) -> list[str]:
    """What else to know of the page."""
    found = []
    if not results:
        found.append(
            f"Nothing of {folder.name} is measured yet: run python -m pipelines.alignment_metrics, retrieval_metrics "
            "or generation_metrics."
        )
    if published and published.added:
        found.append(f"Numbers of {published.added} stand among the published ones.")
    return found


@dataclass
class Album:
    """The pictures of a page, as many as it can hold.

    Attributes:
        store: what places are told below.
        left: bytes that there is room for.
    """

    store: Path
    left: int = PICTURE_BYTES

    def of(self, folder: Path) -> list[Picture]:
        """The pictures in a folder; without their bytes those that there is no room for, or that are none."""
        found = []
        for path in sorted(folder.glob("*.png")):
            content = path.read_bytes()
            fits = content.startswith(PNG) and len(content) <= self.left
            self.left -= len(content) if fits else 0
            place = path.relative_to(self.store) if path.is_relative_to(self.store) else path
            found.append(Picture(path.name, content if fits else b"", str(place)))
        return found


def comparison(folder: Path, album: Album) -> Comparison:
    """A comparison of runs over prompts, by what it says of itself."""
    try:
        said = json.loads((folder / ABOUT).read_text())
        words = {name: str(said.get(name) or "") for name in ("title", "note", "shows", "warning")}
    except (OSError, ValueError, AttributeError) as error:
        words = {"title": folder.name, "note": f"{ABOUT} can't be read: {error}", "shows": "", "warning": ""}
    note = ". ".join(words[name].rstrip(".") for name in ("note", "shows") if words[name])
    return Comparison(words["title"] or folder.name, note, words["warning"], album.of(folder))


def folders_of(settings: Settings) -> list[Path]:
    """The collection's folder, then those of the evaluation's other collections that there are.

    Raises:
        NotReady: there is no such collection; nothing is made in its place.
    """
    root = settings.store.expanduser().absolute()
    if not (root / settings.collection).is_dir():
        there = ", ".join(sorted(path.parent.name for path in root.glob(f"*/{FOLDER}"))) or "none"
        raise NotReady(f"there is no collection {settings.collection} in {root}: collections with results are {there}")
    own, *others = homes(settings.model_copy(update={"store": root}))
    return [own, *(home for home in others if home.is_dir())]


def main() -> None:
    """The program."""
    made = parser(__doc__ or "")
    made.add_argument("--published", type=Path, metavar="FILE", help="short for --evaluation.published")
    made.add_argument("--out", type=Path, help="folder (default: reports in the collection's folder)")
    known, settings = parse(made)
    with sentences(made):
        if known.published:
            section = settings.evaluation.model_copy(update={"published": known.published})
            settings = settings.model_copy(update={"evaluation": section})
        say(f"wrote {of_settings(settings, known.out.absolute() if known.out else None)}")


if __name__ == "__main__":
    main()
