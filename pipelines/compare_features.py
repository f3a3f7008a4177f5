"""compare_features: the cosine between the targets of two collections: what another render profile does to features.

python -m pipelines.compare_features --preset paper --collection objaverse --other objaverse-fast

Make the other collection from the same source first, for instance with --preset paper,fast --collection objaverse-fast.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from gap3d.dataset import TargetBatch, read_targets
from gap3d.store import Store
from pipelines.command import open_store, parse, parser, require_catalog, say, sentences
from pipelines.job import NotReady
from pipelines.progress import progress
from pipelines.targets import label

KINDS = ("cls", "registers", "patches")


def by_key(batch: TargetBatch) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(key, tokens [N, C] by kind) of each row."""
    for index, key in enumerate(batch.keys):
        yield key, {"cls": batch.cls[index : index + 1], **{k: getattr(batch, k)[index] for k in KINDS[1:]}}


def shard_cosines(one: Store, other: Store, shard: str) -> dict[str, list[Tensor]]:
    """By kind of token, the mean cosine of every image that both collections have, from the same camera."""
    mine, yours = (store.manifest("renders", shard).rows for store in (one, other))
    same = {
        key for key in mine.keys() & yours.keys() if mine[key].inputs.get("camera") == yours[key].inputs.get("camera")
    }
    theirs = {key: tokens for batch in read_targets(other, shard) for key, tokens in by_key(batch)}
    found: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    for batch in read_targets(one, shard):
        for key, tokens in by_key(batch):
            if key not in theirs or key not in same:
                continue
            for kind in KINDS:
                pair = tokens[kind].float(), theirs[key][kind].float()
                if pair[0].shape != pair[1].shape:
                    raise NotReady(
                        f"{kind} of {key} have shapes {tuple(pair[0].shape)} and {tuple(pair[1].shape)}: "
                        "make both collections with the same encoder and image size"
                    )
                found[kind].append(cosine_similarity(*pair, dim=-1).mean())
    return found


def compare(one: Store, other: Store) -> dict[str, Tensor]:
    """By kind of token, one cosine an image: float32 [images].

    Raises:
        NotReady: they have no image in common, or the tokens have different shapes.
    """
    found: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    for shard in progress(one.shards, desc="compare", unit="shard"):
        for kind, values in shard_cosines(one, other, shard).items():
            found[kind] += values
    if not found["cls"]:
        raise NotReady(
            f"{one.collection} and {other.collection} have no target in common that was seen from the same camera: "
            "run the line on both, with the same views"
        )
    return {kind: torch.stack(values) for kind, values in found.items()}


def lines(cosines: dict[str, Tensor]) -> list[str]:
    """The result as a table."""
    made = [f"{len(cosines['cls'])} images", f"{'tokens':>10} {'mean':>8} {'median':>8} {'5 %':>8} {'least':>8}"]
    for kind, values in cosines.items():
        numbers = (values.mean(), values.quantile(0.5), values.quantile(0.05), values.min())
        made.append(f"{kind:>10} " + " ".join(f"{float(number):8.4f}" for number in numbers))
    return made


def main() -> None:
    """The program."""
    made = parser(__doc__ or "")
    made.add_argument("--other", required=True, help="the collection to compare with, in the same store")
    known, settings = parse(made)
    with sentences(made):
        one = open_store(settings)
        if not (settings.store / known.other / "catalog").is_dir() or Path(known.other).name != known.other:
            raise NotReady(f"there is no collection {known.other!r} in {settings.store}: run the line on it first")
        other = open_store(settings.model_copy(update={"collection": known.other}))
        require_catalog(one)
        require_catalog(other)
        say(*lines(compare(one, other)), f"encoder of these settings: {label(settings)}")


if __name__ == "__main__":
    main()
