"""How the pictures that an evaluation compares were made, as their store knows it: for a result's protocol."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gap3d.fingerprints import digest_of
from gap3d.store import Store


def renders_of(store: Store) -> dict[str, Any]:
    """The settings that a collection's pictures were rendered with, by their digest."""
    held = (store.manifest("renders", shard) for shard in store.shards)
    digests = {row.inputs.get("settings", "") for each in held for row in each.rows.values() if row.part}
    return {digest: store.settings("renders", digest) for digest in sorted(digests)}


def shapes_of(made: Store, stage: str, keys: Collection[str]) -> dict[str, Any]:
    """What TRELLIS made objects with: its weights, pixels and samples of its frames, black; by the digest of that.

    What a run made before its settings were kept is not known: running ``pipelines.trellis`` again as then keeps them,
    and makes nothing anew.

    Args:
        made: the collection of the prompts.
        stage: that has the objects' rows.
        keys: of the objects that are measured.
    """
    held = [row for shard in made.shards for key, row in made.manifest(stage, shard).rows.items() if key in keys]
    pairs = {(row.inputs.get("model", ""), row.inputs.get("wanted", "")) for row in held if row.part}
    return {digest_of(pair): made_with(pair[0], made.settings(stage, pair[1])) for pair in sorted(pairs)}


def made_with(model: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The weights, and of saved settings of TRELLIS's stage what a number depends on."""
    said = {name: wanted[name] for name in ("resolution", "black") if name in wanted}
    if "turntables" in wanted:  # by their frames
        said["ssaa"] = {str(each["count"]): each["ssaa"] for each in wanted["turntables"]}
    return {"model": model or None, **said}


def suffix_of(captions: Mapping[str, Sequence[str]], asked: Mapping[str, Mapping[str, Any]]) -> str:
    """The text that was appended to every prompt, with the space before it; empty where there is none.

    What follows an object's caption in its own prompt alone is no suffix: somebody asked for more than the caption.

    Args:
        captions: of true objects, by object_id.
        asked: rows of prompts, likewise.
    """
    prompts = {key: str(row["prompt"]) for key, row in asked.items()}
    appended = set()
    for key, row in asked.items():
        caption = "".join(captions.get(key, ())[row["caption_index"] :][:1])
        if caption and prompts[key].startswith(f"{caption} "):
            appended.add(prompts[key][len(caption) :])
    return min(
        (each for each in appended if all(text.endswith(each) for text in prompts.values())), default="", key=len
    )
