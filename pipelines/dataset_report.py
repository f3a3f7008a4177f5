"""dataset_report: one HTML page of what the dataset's tokens look like, to be opened from disk.

Token statistics, principal components of patch tokens beside the images, nearest neighbours, outliers and near
duplicates by CLS, rows by status, storage. Writes dataset.html, dataset.json (its numbers) and dataset.jpg (a preview).
"""

import base64
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gap3d import fingerprints
from gap3d.atlas import inventory, page, pictures
from gap3d.dataset_index import Row
from gap3d.manifest import now
from gap3d.pages import document
from gap3d.parts import write_atomically
from gap3d.settings import Settings
from gap3d.store import Store
from pipelines import pages, survey
from pipelines.command import open_store, parse, parser, require_catalog, say, sentences
from pipelines.survey import Bounds, Survey

NUMBERS, PREVIEW = "dataset.json", "dataset.jpg"  # beside the page
SHOWN, THUMBNAIL = 224, 128  # pixels of a side, of images with their tokens and of others
PREVIEWED = 12  # images of the preview
SHORT = 300  # characters of a caption


@dataclass(frozen=True)
class Written:
    """The files of a report."""

    page: Path
    numbers: Path
    preview: Path

    @classmethod
    def into(cls, folder: Path) -> "Written":
        """Their places."""
        return cls(folder / pages.DATASET, folder / NUMBERS, folder / PREVIEW)


def write(store: Store, settings: Settings, folder: Path | None = None, bounds: Bounds | None = None) -> Written:
    """The dataset's report, made again only where something that it shows has changed.

    Args:
        store: the collection.
        settings: how images were prepared for the encoder.
        folder: where to; by default ``reports`` in the collection's folder.
        bounds: how much is looked at.

    Raises:
        NotReady: there is no dataset.
        OSError, ValueError: a part is gone or damaged.
    """
    bounds = bounds or Bounds()
    made = Written.into(folder or store.folder / pages.FOLDER)
    stages = list(inventory.stages_of(store))
    state = fingerprints.digest_of(
        [
            page.version(),
            asdict(bounds),
            settings.targets.model_dump(mode="json"),
            *([one.stage, one.shard, one.sequence, one.digest] for _, held in stages for one in held),
        ]
    )
    if all(path.exists() for path in (made.page, made.numbers, made.preview)):
        with made.page.open("rb") as file:
            if document.state_of(file.read(4096)) == state:
                return made
    found = survey.survey(store, settings, bounds)
    data = {
        **numbers(store, found, bounds),
        "stages": [inventory.statuses(stage, held) for stage, held in stages],
        "storage": [inventory.storage(store, stage, held) for stage, held in stages],
    }
    write_atomically(made.preview, preview(found))
    write_atomically(made.numbers, json.dumps(data, indent=1).encode())
    data |= {
        "settings": settings_of(store, stages),
        "pictures": {key: pictures.small(looked.seen, side_of(looked)) for key, looked in found.looked.items()},
        "shown": [shown(row, found) for row in found.shown if row.key in found.looked],
        **around(found, bounds),
    }
    data["head"]["up"] = pages.INDEX if (made.page.parent / pages.INDEX).exists() else ""
    write_atomically(made.page, page.page(data, state))
    return made


def numbers(store: Store, found: Survey, bounds: Bounds) -> dict[str, Any]:
    """All that was measured, less pictures and what strangers wrote."""
    components = found.components
    duplicates = found.duplicates
    closeness = found.neighbours.closeness if found.neighbours is not None else np.zeros(0, dtype=np.float32)
    return {
        "head": {"title": f"{store.collection}: the dataset", "made": now(), "untrained": found.untrained},
        "bounds": asdict(bounds),
        "looked_at": {name: len(getattr(found, name)) for name in ("rows", "compared", "measured", "fitted", "shown")},
        "counts": inventory.counts(found.rows),
        "layout": found.layout if found.made_by else None,
        "encoders": [
            {**said["encoder"], "rows": count, "store_dtype": said["tokens"]["patches"]["dtype"]}
            for said, count in found.made_by
        ],
        "findings": [asdict(finding) for finding in found.findings],
        "kinds": [kind.as_dict() for kind in found.kinds],
        "pca": {
            "touched": len(components.axes) if components else 0,
            "shares": components.shares if components else [],
            "object_shares": found.object_components.shares if found.object_components else [],
            "effective": found.patch_dimensions,
            "cls_effective": found.cls_dimensions,
        },
        "cosines": found.cosines.as_dict(),
        "closeness": histogram(closeness),
        "duplicates": {
            "bound": bounds.duplicate,
            "count": duplicates.count if duplicates else 0,
            "across": duplicates.across if duplicates else 0,
        },
    }


def histogram(values: np.ndarray) -> dict[str, Any]:
    """Of finite numbers."""
    made = survey.Histogram()
    made.add(values[np.isfinite(values)])
    return made.as_dict()


def side_of(looked: survey.Looked) -> int:
    """Pixels of an image's picture."""
    return THUMBNAIL if looked.painting is None else SHOWN


def about(row: Row) -> dict[str, Any]:
    """An image, as the page names it."""
    return {
        "key": row.key,
        "name": row.identifier or row.object_id,
        "caption": row.captions[0][:SHORT] if row.captions else "",
        "split": row.split,
    }


def shown(row: Row, found: Survey) -> dict[str, Any]:
    """An image with its tokens as colours."""
    painting = found.looked[row.key].painting
    if painting is None:
        return {**about(row), "tokens": "", "object": "", "touch": ""}
    cut = painting.object_tokens
    return {
        **about(row),
        "tokens": pictures.exact(painting.tokens),
        "object": pictures.exact(cut) if cut is not None else "",
        "touch": base64.b64encode(painting.units.tobytes()).decode(),
    }


def around(found: Survey, bounds: Bounds) -> dict[str, Any]:
    """Images with their neighbours, outliers and near duplicates, by key, and what is known of those keys."""
    near, duplicates = found.neighbours, found.duplicates
    if near is None or duplicates is None:
        return {"neighbours": [], "outliers": [], "pairs": [], "rows": {}}
    rows = found.compared

    def of(place: int) -> list[dict[str, Any]]:
        there = zip(near.indices[place].tolist(), near.cosines[place].tolist(), strict=True)
        return [{"key": rows[other].key, "cosine": cosine} for other, cosine in there if other >= 0]

    strange = survey.outliers(found, bounds)
    pairs = [{"keys": [rows[a].key, rows[b].key], "cosine": cosine} for a, b, cosine in duplicates.pairs]
    named = {row.key: about(row) for row in survey.to_picture(found, bounds)}
    return {
        "neighbours": [{"key": rows[place].key, "near": of(place)} for place in survey.queries(found, bounds)],
        "outliers": [
            {"key": rows[place].key, "closeness": float(near.closeness[place]), "nearest": of(place)[0]}
            for place in strange
        ],
        "pairs": pairs,
        "rows": named,
    }


def settings_of(store: Store, stages: Iterable[tuple[str, Iterable[Any]]]) -> list[dict[str, Any]]:
    """The result settings that rows were made with, by stage, with the number of rows."""
    made = []
    for stage, held in stages:
        counts: dict[str, int] = {}
        for one in held:
            for row in one.rows.values():
                if digest := row.inputs.get("settings"):
                    counts[digest] = counts.get(digest, 0) + 1
        for digest, rows in sorted(counts.items(), key=lambda item: -item[1]):
            made.append({"stage": stage, "digest": digest, "rows": rows, "settings": store.settings(stage, digest)})
    return made


def preview(found: Survey) -> bytes:
    """Some images, each beside its tokens, JPEG."""
    images = []
    for looked in (found.looked[row.key] for row in found.shown if row.key in found.looked):
        if (painting := looked.painting) is None:
            continue
        image = [looked.seen, painting.tokens]
        if (cut := painting.object_tokens) is not None:
            image.append(np.where(cut[..., 3:] > 0, cut[..., :3], np.uint8(0)))
        images.append(tuple(image))
    return pictures.mosaic(images[:PREVIEWED], found.untrained)


def key_numbers(data: Mapping[str, Any]) -> dict[str, float | int | str]:
    """The few numbers of a report that are worth a history.

    Args:
        data: what ``dataset.json`` holds.
    """
    made: dict[str, float | int | str] = {
        "images": data["counts"]["images"],
        "objects": data["counts"]["objects"],
        "captions": data["counts"]["captions"],
        "tokens_not_finite": sum(kind["broken"] for kind in data["kinds"]),
        "near_duplicates": data["duplicates"]["count"],
        "near_duplicates_across_the_split": data["duplicates"]["across"],
    }
    for kind in data["kinds"]:
        if "variances" in kind:
            made[f"{kind['name']}_variance_least"] = kind["variances"]["least"]
            made[f"{kind['name']}_variance_most"] = kind["variances"]["most"]
            made[f"{kind['name']}_error_of_the_mean"] = kind["mean_error"]
            made[f"{kind['name']}_outlier_channels"] = len(kind["outliers"])
            if kind["across"] is not None:
                made[f"{kind['name']}_cosine_between_images"] = kind["across"]
    if data["closeness"]["count"]:
        made["least_mean_cosine_to_neighbours"] = data["closeness"]["least"]
    return {name: value for name, value in made.items() if not (isinstance(value, float) and math.isnan(value))}


def main() -> None:
    """The program."""
    made = parser(__doc__ or "")
    made.add_argument("--out", type=Path, help="folder (default: reports in the collection's folder)")
    usual = Bounds()
    for name, words in (
        ("compared", "images whose CLS tokens are compared with each other"),
        ("measured", "images whose tokens are all measured"),
        ("shown", "images that are shown with their tokens"),
        ("duplicate", "cosine of CLS from which on two images are near duplicates"),
    ):
        value = getattr(usual, name)
        made.add_argument(f"--{name}", type=type(value), default=value, help=f"{words} (default: {value})")
    known, settings = parse(made)
    with sentences(made):
        store = open_store(settings)
        require_catalog(store)
        bounds = Bounds(known.compared, known.measured, shown=known.shown, duplicate=known.duplicate)
        written = write(store, settings, known.out.absolute() if known.out else None, bounds)
        say(f"wrote {written.page}, {written.numbers.name} and {written.preview.name}")


if __name__ == "__main__":
    main()
