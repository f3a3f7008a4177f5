"""Which data the settings name: their digest before anything is loaded, then batches, and held-out pairs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gap3d import dataset_index, fingerprints, manifest
from gap3d.aligner_settings import TrainingSettings
from gap3d.features.encoders import identity, layout_of, load_encoder
from gap3d.features.tokens import TokenLayout
from gap3d.readers.image_text import ImageTextDataset
from gap3d.readers.targets import TargetDataset
from gap3d.records import SystemicFault
from gap3d.settings import Settings
from gap3d.store import ALL
from gap3d.target_parts import DamagedPart, TargetPart
from gap3d.training.batches import Batches
from gap3d.training.sources import Source, TargetSource, TarSource


@dataclass(frozen=True)
class Described:
    """What is known of the data before they are read.

    Attributes:
        digest: of all that a step sees of them: tokens, captions, split; of tars their index, and the encoder.
        rows: samples of an epoch; those of a mixture not counted.
        layout: of the tokens.
        encoder: its description (``Encoder.description``).
    """

    digest: str
    rows: int
    layout: TokenLayout
    encoder: Mapping[str, Any]


def collection_of(settings: Settings, training: TrainingSettings) -> Path:
    """Folder of the collection whose targets are trained on."""
    return settings.store / (training.collection or settings.collection)


def described(settings: Settings, training: TrainingSettings) -> Described:
    """The data of a training.

    Raises:
        ValueError: they are not there; the message says what to run.
        SystemicFault: the mixture is of two encoders.
    """
    if training.data == "tars":
        encoder = identity(settings.targets)
        tars = tars_of(training, rank=0, ranks=1)
        digests = [tars.digest, encoder["fingerprint"], fingerprints.settings_digest(settings.targets)]
        found = Described(fingerprints.digest_of(digests), int(tars.sizes.sum()), layout_of(settings.targets), encoder)
    else:
        found = of_collection(collection_of(settings, training))
    if not training.mix_share or training.mix_collection is None:
        return found
    mixed = of_collection(settings.store / training.mix_collection)
    of = [each.encoder.get("fingerprint") for each in (found, mixed)]
    if of[0] != of[1] or found.layout != mixed.layout:
        raise SystemicFault(
            f"the targets of {training.mix_collection} were made by another encoder, or for images of another size, "
            "than the data that they are to be mixed with: make them with the same section targets"
        )
    return replace(found, digest=fingerprints.digest_of([found.digest, mixed.digest]))


def of_collection(place: Path, split: str = "train") -> Described:
    """The targets of a collection.

    Raises:
        ValueError: it has none of this split; the message says what to run.
    """
    index = dataset_index.places(place, split)
    held = manifest.read(place / "dataset" / ALL, "dataset", ALL)
    said = metadata(index)
    tokens, about = said["tokens"], said.get("encoder", {})
    rows, columns = tokens["grid"]
    layout = TokenLayout(tokens["registers"]["shape"][0], (rows, columns), tokens["cls"]["shape"][0])
    return Described(held.digest, len(index), layout, about)


def metadata(index: dataset_index.Places) -> dict[str, Any]:
    """What the first part that is whole says of itself.

    Raises:
        DamagedPart: none is.
    """
    for number in range(len(index.parts)):
        try:
            with TargetPart(index.path(number)) as part:
                return part.metadata
        except DamagedPart:
            if number == len(index.parts) - 1:
                raise
    raise ValueError(f"the index of {index.place} names no part")


def tars_of(training: TrainingSettings, rank: int, ranks: int) -> ImageTextDataset:
    """The pictures of the tars."""
    assert training.tars is not None  # the settings see to it
    return ImageTextDataset(training.tars, seed=training.seed, rank=rank, ranks=ranks, pad=True, on_damage="skip")


def open_batches(
    settings: Settings, training: TrainingSettings, layout: TokenLayout, *, rank: int, ranks: int, device: str
) -> Batches:
    """The batches of one process.

    Args:
        settings: everything.
        training: of these.
        layout: of the tokens (``described``).
        rank: of this process.
        ranks: number of processes.
        device: where the step, and the encoder of tars, run: cpu or cuda.
    """

    def targets(collection: Path, name: str) -> TargetSource:
        dataset = TargetDataset(
            collection, "train", seed=training.seed, rank=rank, ranks=ranks, pad=True, on_damage="skip"
        )
        return TargetSource(dataset, layout, name)

    source: Source
    if training.data == "tars":
        source = TarSource(
            tars_of(training, rank, ranks),
            load_encoder(settings.targets, device=device),
            "data",
            threads=settings.compute.encoder_threads,
            pixel_limit=settings.limits.pixels,
        )
    else:
        source = targets(collection_of(settings, training), "data")
    mixed = None
    if training.mix_share and training.mix_collection is not None:
        mixed = targets(settings.store / training.mix_collection, "mixed")
    return Batches(source, training.batch_size, mixed=mixed, share=training.mix_share, pin=device == "cuda")


def validation_collection(settings: Settings, training: TrainingSettings) -> Path:
    """Folder of the collection whose validation split is held out."""
    if training.validation_collection:
        return settings.store / training.validation_collection
    return settings.store / settings.collection if training.data == "tars" else collection_of(settings, training)
