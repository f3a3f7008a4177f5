"""compare_features: the cosine between the targets of two collections: what another render profile does to features.

python -m pipelines.compare_features --preset paper --collection objaverse --other objaverse-fast

Make the other collection from the same source first, for instance with --preset paper,fast --collection objaverse-fast.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from gap3d import gc
from gap3d.features.tokens import KINDS, PACKED
from gap3d.manifest import LedgerRow
from gap3d.store import Store
from gap3d.target_parts import TargetBatch, read_part, read_targets
from pipelines.command import open_store, parse, parser, require_catalog, say, sentences
from pipelines.job import NotReady
from pipelines.progress import progress
from pipelines.targets import label


def by_key(batch: TargetBatch) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(key, tokens [N, C] by kind) of each row."""
    for index, key in enumerate(batch.keys):
        yield key, {"cls": batch.cls[index : index + 1], **{k: getattr(batch, k)[index] for k in PACKED}}


def rows_of(store: Store, stage: str) -> dict[str, tuple[str, LedgerRow]]:
    """(shard, row) by key, of the good rows of a stage."""
    held = [manifest for manifest in gc.shards(store) if manifest.stage == stage]
    return {key: (each.shard, row) for each in held for key, row in each.rows.items() if row.part is not None}


def pairs(one: Store, other: Store) -> dict[str, tuple[str, LedgerRow]]:
    """Where the other collection has the targets of images that both have, from the same camera, by key."""
    mine, yours = rows_of(one, "renders"), rows_of(other, "renders")
    cameras = [{key: row.inputs.get("camera") for key, (_, row) in rows.items()} for rows in (mine, yours)]
    same = {key for key in mine.keys() & yours.keys() if cameras[0][key] == cameras[1][key]}
    return {key: place for key, place in rows_of(other, "targets").items() if key in same}


def part_cosines(one: TargetBatch, theirs: Mapping[str, Mapping[str, Tensor]], found: dict[str, list[Tensor]]) -> None:
    """Add, by kind of token, the mean cosine of every image that is among theirs too."""
    for key, tokens in by_key(one):
        for kind in KINDS if key in theirs else ():
            pair = tokens[kind].float(), theirs[key][kind].float()
            if pair[0].shape != pair[1].shape:
                raise NotReady(
                    f"{kind} of {key} have shapes {tuple(pair[0].shape)} and {tuple(pair[1].shape)}: "
                    "make both collections with the same encoder and image size"
                )
            found[kind].append(cosine_similarity(*pair, dim=-1).mean())


def read_keys(store: Store, places: Mapping[str, tuple[str, LedgerRow]]) -> dict[str, dict[str, Tensor]]:
    """Tokens by key and kind, wherever they lie."""
    by_part: dict[tuple[str, str], set[int | None]] = {}
    for shard, row in places.values():
        by_part.setdefault((shard, row.part or ""), set()).add(row.part_row)
    return {
        key: tokens
        for (shard, part), live in by_part.items()
        for batch in read_part(store.shard("targets", shard) / part, live)
        for key, tokens in by_key(batch)
    }


def compare(one: Store, other: Store) -> dict[str, Tensor]:
    """By kind of token, one cosine an image: float32 [images]; the two may have different numbers of shards.

    Raises:
        NotReady: they have no image in common, or the tokens have different shapes.
    """
    found: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    places = pairs(one, other)
    for shard in progress(one.shards, desc="compare", unit="shard"):
        here = one.manifest("targets", shard).rows
        theirs = read_keys(other, {key: places[key] for key in here.keys() & places.keys()})
        for batch in read_targets(one, shard):
            part_cosines(batch, theirs, found)
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
        require_catalog(one)
        other = one.other(known.other)
        say(*lines(compare(one, other)), f"encoder of these settings: {label(settings)}")


if __name__ == "__main__":
    main()
