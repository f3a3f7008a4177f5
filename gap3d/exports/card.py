"""The card of an exported dataset: README.md with the front matter that the Hugging Face hub reads."""

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import DatasetCardData

from gap3d.dataset_index import Row

SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
LICENCES = 20  # so many have a line of their own


def card(
    *,
    name: str,
    rows: Sequence[Row],
    files: Mapping[str, str],
    features: Sequence[Mapping[str, Any]],
    about: Mapping[str, str],
    steps: Mapping[str, Any],
    targets: Mapping[str, Any] | None,
    use: str,
) -> str:
    """README.md.

    Args:
        name: of the dataset.
        rows: of the index, those that were exported.
        files: glob of the files of each split.
        features: the hub's description of the columns (YAML); none where the format says it.
        about: what each column is.
        steps: how the renders were made: a line each, by name; none of images that were there already.
        targets: metadata of the target parts where tokens are part of it.
        use: Python that opens it.
    """
    licences = Counter(row.licence or "not stated" for row in rows)
    splits = Counter(row.split for row in rows)
    untrained = bool(targets) and not targets["encoder"]["trained"]  # type: ignore[index]
    described: dict[str, Any] = {"dataset_info": {"features": list(features)}} if features else {}
    head = DatasetCardData(
        license="other",
        license_name="as-listed",
        license_link="attribution.csv",
        pretty_name=name,
        size_categories=[next((text for size, text in SIZES if len(rows) < size), "n>10M")],
        task_categories=["image-feature-extraction"] if targets else ["text-to-image"],
        tags=[
            *(["3d"] if steps else []),
            "gap3d",
            *(["dinov2"] if targets else []),
            *(["untrained-encoder"] if untrained else []),
        ],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": files[split]} for split in sorted(splits)],
            }
        ],
        **described,
    )
    count = len({row.object_id for row in rows})
    made = table(("step", "settings"), [(name, plain(text)) for name, text in steps.items()])
    lines = [
        "---",
        head.to_yaml(line_break="\n"),
        "---",
        "",
        f"# {plain(name)}",
        "",
        *([f"**{plain(targets['encoder']['label'])}: the tokens mean nothing.**", ""] if targets and untrained else []),
        (f"Renders of {count} 3D objects" if steps else f"{count} images")
        + f"{' with the tokens of a frozen encoder' if targets else ''}, made by GAP3D's pipeline.",
        "",
        *table(("split", "rows", "objects"), [(s, n, objects(rows, s)) for s, n in sorted(splits.items())]),
        *table(("column", "what"), list(about.items())),
        "```python",
        use,
        "```",
        "",
        *(["## How it was made", "", *made] if steps else []),
        *(encoder_lines(targets) if targets else []),
        "## Licences",
        "",
        "Each object keeps its own licence; `attribution.csv` names source, licence and link of every one.",
        "",
        *table(("licence", "rows"), [(plain(each), count) for each, count in licences.most_common(LICENCES)]),
        *([f"and {len(licences) - LICENCES} more", ""] if len(licences) > LICENCES else []),
    ]
    return "\n".join(lines).rstrip() + "\n"


def encoder_lines(targets: Mapping[str, Any]) -> list[str]:
    """What the tokens are."""
    tokens, encoder = targets["tokens"], targets["encoder"]
    flat = {key: value for key, value in encoder.items() if not isinstance(value, Mapping)}
    flat |= encoder.get("preprocessing", {})
    lines = [("order", ", ".join(tokens["order"])), ("normalisation", tokens["normalisation"]), *flat.items()]
    return ["## The encoder", "", *table(("what", "is"), [(name, plain(value)) for name, value in lines])]


def objects(rows: Sequence[Row], split: str) -> int:
    """Number of objects of a split."""
    return len({row.object_id for row in rows if row.split == split})


def table(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> list[str]:
    """A Markdown table and an empty line."""
    return [f"| {' | '.join(map(str, line))} |" for line in (head, ["---"] * len(head), *lines)] + [""]


def plain(text: Any) -> str:
    """Text from outside as Markdown shows it, and no markup of it."""
    words = html.escape(" ".join(str(text).split()), quote=False)
    return words.translate({ord(mark): f"&#{ord(mark)};" for mark in "\\`*_[]|#~"})
