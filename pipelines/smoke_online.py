"""smoke_online: real objects of every source from the real internet, through every stage, with the real encoder.

What can't be tried without a network, for somebody who has one: Objaverse-XL's annotations from the hub, objects of
GitHub, Sketchfab, Thingiverse and the Smithsonian, and the weights of DINOv2 against its authors' own code.
"""

import sys
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from gap3d.features.encoders import load_encoder
from gap3d.features.images import to_pixels
from gap3d.features.tokens import targets_from_prenorm
from gap3d.records import Status
from gap3d.schemas import STAGES
from gap3d.settings import Origin, Settings
from gap3d.store import ALL, Store
from pipelines import line
from pipelines.command import open_store, parse, parser, refuse_job, say, sentences

AUTHORS = ("facebookresearch/dinov2", "dinov2_vitl14_reg")  # torch.hub
HUB_ENCODER = "facebook/dinov2-with-registers-large"
PICTURES = 2
WANTED_COSINE = 0.99999


def statuses(store: Store) -> dict[str, dict[str, int]]:
    """Rows by status, by stage; what was not sampled does not count."""
    found: dict[str, dict[str, int]] = {}
    for stage in STAGES:
        for shard in [ALL] if stage == "dataset" else store.shards:
            for row in store.manifest(stage, shard).rows.values():
                counts = found.setdefault(stage, {})
                counts[row.status.value] = counts.get(row.status.value, 0) + 1
    return found


def table(found: Mapping[str, Mapping[str, Mapping[str, int]]]) -> list[str]:
    """What came out: a line for each source, good rows and the others by status for each stage."""
    lines = [f"{'source':<12} " + " ".join(f"{stage:>10}" for stage in STAGES) + "  others"]
    for origin, stages in found.items():
        good = " ".join(f"{stages.get(stage, {}).get(Status.OK, 0):>10}" for stage in STAGES)
        last = stages.get("targets", {})
        others = ", ".join(f"{count} {status}" for status, count in sorted(last.items()) if status != Status.OK)
        lines.append(f"{origin:<12} {good}  {others or '-'}")
    return lines


def some_pictures(store: Store) -> list[bytes]:
    """A few renders."""
    for shard in store.shards:
        rows = store.read(store.manifest("renders", shard), ["png"])
        if len(rows) >= PICTURES:
            return [row["png"] for row in rows.values()][:PICTURES]
    return []


def against_the_authors(settings: Settings, pictures: list[bytes]) -> dict[str, float]:
    """Our targets against those of the authors' own code on the same pixels: cosine and greatest difference."""
    import torch

    exact = settings.targets.model_copy(update={"dtype": "float32"})
    pixels = np.stack([to_pixels(png, exact, settings.limits.pixels) for png in pictures])
    ours = load_encoder(exact, device="cpu").encode(pixels)
    model: Any = torch.hub.load(*AUTHORS, trust_repo=True).eval()
    with torch.inference_mode():
        theirs = targets_from_prenorm(model.forward_features(torch.as_tensor(pixels))["x_prenorm"])
    cosine = torch.nn.functional.cosine_similarity(ours.flatten(1), theirs.flatten(1))
    return {"cosine": float(cosine.min()), "greatest difference": float((ours - theirs).abs().max())}


def main() -> None:
    """The program."""
    made = parser(__doc__ or "")
    made.add_argument("--objects", type=int, default=20, help="number of objects of each source")
    made.add_argument("--origins", default=",".join(get_args(Origin)), help="sources, comma-separated")
    known, settings = parse(made)
    with sentences(made):
        refuse_job(settings)
        found = {}
        pictures: list[bytes] = []
        for origin in known.origins.split(","):
            source = settings.source.model_copy(update={"kind": "objaverse", "origins": (origin,)})
            catalog = settings.catalog.model_copy(update={"count": known.objects})
            collection = f"smoke-{origin}"
            mine = settings.model_copy(update={"source": source, "catalog": catalog, "collection": collection})
            say(f"== {origin}", *line.run(mine).lines())
            store = open_store(mine)
            found[origin] = statuses(store)
            pictures = pictures or some_pictures(store)
        say("", *table(found))
        if settings.targets.encoder != HUB_ENCODER:
            say(f"encoder: {settings.targets.encoder}: not compared with the authors' code, which has no such weights")
            return
        if not pictures:
            made.exit(1, "no source gave enough renders: the encoder was not compared\n")
        result = against_the_authors(settings, pictures)
        say(f"encoder against torch.hub {AUTHORS}: {result} over {len(pictures)} pictures")
        if result["cosine"] < WANTED_COSINE:
            sys.exit(1)


if __name__ == "__main__":
    main()
