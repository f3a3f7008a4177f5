"""Settings: frozen models read from a TOML preset, the environment (``GAP3D_*``) and flags.

*Result settings* (``views``, ``renders``, ``targets`` ...) can change a result and are part of every
fingerprint. *Limits* (timeouts, sizes, memory, attempts) only matter to rows that a limit ended.
``compute`` says where and with how many workers, and changes no result.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from gap3d.aligner_settings import AlignerSettings, FinetuningSettings, SamplingSettings, TrainingSettings
from gap3d.evaluation.quirks import Table
from gap3d.evaluation_settings import EvaluationSettings
from gap3d.image_settings import CocoSettings, ImageSettings, ImageTextSettings
from gap3d.section import Section

GIB = 1024**3
NOT_COLLECTIONS = ("blobs", "samples")  # folders of a store
RANDOM_ENCODERS = ("random-small", "random-small-dinov3")
Origin = Literal["github", "sketchfab", "thingiverse", "smithsonian"]


class SourceSettings(Section):
    """Where objects come from."""

    kind: Literal["samples", "folder", "objaverse", "tables"] = "samples"
    """samples: the two dozen bundled objects. folder: the user's own 3D files. objaverse: Objaverse-XL.

    tables: any list of objects with Objaverse-XL's columns."""
    path: Path | None = None
    """folder: the root of the files, searched at any depth, or a zip or tar archive of them (Toys4K)."""
    captions: Path | None = None
    """folder: CSV or Parquet with columns path and captions (a JSON list or one text).

    Default: captions.csv in the folder, if there."""
    overrides: Path | None = None
    """folder: CSV with columns path, exclude, yaw, up_axis, captions; empty cells change nothing."""
    tables: tuple[Path, ...] = ()
    """tables: CSV or Parquet with columns fileIdentifier, source, license, fileType, sha256, metadata."""
    origins: Annotated[tuple[Origin, ...], Field(min_length=1)] = ("github", "sketchfab", "thingiverse", "smithsonian")
    """objaverse: which of its annotations."""
    annotations: Path = Path("~/.objaverse")
    """objaverse: where the annotations are kept, in the layout of the objaverse package; downloaded where absent."""
    revision: str = "main"
    """objaverse: hub revision (commit) of the annotations."""
    sketchfab_revision: str = "main"
    """objaverse, tables: hub revision (commit) of the repository with Sketchfab's files."""
    described_by: tuple[Path, ...] = ()
    """TRELLIS-500K tables (sha256, file_identifier, aesthetic_score, captions), joined to the objects."""

    @model_validator(mode="after")
    def kind_has_its_files(self) -> "SourceSettings":
        """A source names its files."""
        if self.kind == "folder" and self.path is None:
            raise ValueError(
                "source.kind = 'folder' needs source.path: name the folder of 3D files (--source.path DIR)"
            )
        if self.kind == "tables" and not self.tables:
            raise ValueError(
                "source.kind = 'tables' needs source.tables: name CSV or Parquet files (--source.tables '[\"a.csv\"]')"
            )
        return self


class CatalogSettings(Section):
    """Which objects take part, in which order and split."""

    shards: PositiveInt = 64
    """Number of shards, a power of two; fixed for the life of a collection."""
    seed: int = 42
    """Seed of the sampling order (rank) and of the split."""
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Share of duplicate clusters held out for validation."""
    count: PositiveInt | None = None
    """The first so many objects by rank; none takes all. With a reserve over dataset.count, for those that fail."""
    licences: tuple[str, ...] | None = None
    """Allow-list, by the name in the annotations in any case, with * and ?; none takes every licence."""
    file_types: tuple[str, ...] | None = None
    """Allow-list, e.g. ["glb", "obj"]; none takes all twelve."""
    sources: tuple[str, ...] | None = None
    """Allow-list of the annotations' sources; none takes all."""
    least_score: float | None = None
    """Least aesthetic score; objects without one are left out."""
    captioned: bool = False
    """Leave out objects without captions."""
    most_bytes: PositiveInt | None = None
    """Largest main file, where the annotations tell its size."""
    held_out: tuple[Path, ...] = ()
    """Tables with a column sha256 (Toys4K's): those bytes never take part."""
    denied: Path | None = None
    """CSV with columns object, licence, reason: takedowns; an object or image is named by id, identifier or
    sha256."""

    @model_validator(mode="after")
    def shards_are_a_power_of_two(self) -> "CatalogSettings":
        """Shards are leading bits."""
        if self.shards & (self.shards - 1):
            raise ValueError(
                f"catalog.shards = {self.shards} must be a power of two: a shard is leading bits of a hash"
            )
        return self


class ViewSettings(Section):
    """Which cameras an object is rendered from (docs/method.md 2.2, paper A.1.2)."""

    protocol: Literal["least_occluded", "fixed", "sphere", "condition"] = "least_occluded"
    """least_occluded: of yaws x pitches the one that sees most of the surface (training).

    fixed: all of yaws x pitches (evaluation). sphere: TRELLIS's multiview, ``count`` Hammersley directions.
    condition: TRELLIS's condition views, the same with a drawn fov and the radius that belongs to it."""
    points: PositiveInt = 5000
    """least_occluded: area-weighted surface samples."""
    yaws: Annotated[tuple[float, ...], Field(min_length=1)] = (0.0, 90.0, 180.0, 270.0)
    """Degrees; ties go to the first."""
    pitches: Annotated[tuple[Annotated[float, Field(ge=-90, le=90)], ...], Field(min_length=1)] = (30.0,)
    """Degrees above the horizon; all yaws at the first pitch, then all at the next."""
    radius: PositiveFloat = 2.0
    """Camera distance from the origin; the object fits [-0.5, 0.5]^3."""
    fov: Annotated[float, Field(gt=0, lt=180)] = 40.0
    """Full field of view, degrees."""
    count: PositiveInt = 150
    """sphere, condition: number of views."""
    fovs: tuple[Annotated[float, Field(gt=0, lt=180)], Annotated[float, Field(gt=0, lt=180)]] = (10.0, 70.0)
    """condition: least and greatest field of view, degrees."""
    tolerance: PositiveFloat = 1e-3
    """least_occluded: a point is seen if the first hit is not nearer than its distance less this."""
    seed: int = 0
    """With the object_id, the seed of the surface samples and of the drawn cameras."""

    @property
    def images(self) -> int:
        """Images that the protocol makes of one object."""
        if self.protocol == "least_occluded":
            return 1
        return len(self.yaws) * len(self.pitches) if self.protocol == "fixed" else self.count


class RenderSettings(Section):
    """One Cycles image (docs/method.md 2.1); the defaults are the paper's."""

    resolution: Annotated[int, Field(ge=4, le=65536)] = 512
    """Pixels per side."""
    samples: Annotated[int, Field(ge=1, le=2**24)] = 128
    """Cycles samples per pixel, at most."""
    threshold: Annotated[float, Field(ge=0)] = 0.01
    """Noise at which adaptive sampling leaves a pixel; 0 takes all samples everywhere."""
    denoise: bool = True
    """OpenImageDenoise on the result."""
    prefilter: Literal["none", "fast", "accurate"] = "accurate"
    """What the denoiser does to its albedo and normal guides first; most of the denoiser's time."""
    denoise_quality: Literal["high", "balanced", "fast"] = "high"
    """How much work the denoiser does."""
    idle_light: bool = True
    """Keep the lamp of the paper's scene that points away from the object: it lights nothing, and draws half the
    light samples of every pixel; without it the same picture has half the noise."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of Cycles' sampling."""
    depth: bool = False
    """Store planar z-depth with every image."""
    threads: PositiveInt = 1
    """CPU threads of one Blender. A result setting: the denoiser's last bit can depend on it."""


Action = Literal["flag", "drop", "retry"]


class QualitySettings(Section):
    """What is done about a picture that is suspicious.

    flag: the row is ok and carries the flag. drop: the row is ``rejected``. retry: it is rendered once more in a fresh
    Blender, and rejected if that does not help.
    """

    all_black: Action = "flag"
    """Nothing that is covered is brighter than ``black``."""
    one_colour: Action = "flag"
    """All that is covered has the same colour, up to ``even``."""
    cut_off: Action = "flag"
    """The object reaches the frame's edge."""
    coverage: Action = "flag"
    """The covered share of the frame is outside ``covered``."""
    missing_textures: Action = "flag"
    """Images that the object refers to are not there."""
    duplicate_view: Action = "flag"
    """An earlier view of the object has the same pixels."""
    black: Annotated[int, Field(ge=0, le=255)] = 8
    """Greatest channel value, of 255, that counts as black."""
    even: Annotated[int, Field(ge=0, le=255)] = 3
    """Greatest difference of a channel, of 255, that counts as one colour."""
    covered: tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]] = (0.005, 0.95)
    """Least and greatest share of the pixels that are not fully transparent."""

    @model_validator(mode="after")
    def covered_rises(self) -> "QualitySettings":
        """A range from most to least would let nothing pass."""
        if self.covered[0] > self.covered[1]:
            raise ValueError(f"quality.covered = {self.covered}: the least share comes first")
        return self


class TargetSettings(Section):
    """What the feature is (docs/method.md 3)."""

    encoder: str = "facebook/dinov2-with-registers-large"
    """A hub id, a local folder (config.json and model.safetensors), or a file of the authors' own weights (.pth or
    .safetensors): DINOv2 with registers or without, or DINOv3 ViT.

    random-small, random-small-dinov3: small configurations with UNTRAINED random weights."""
    revision: str | None = None
    """Hub revision (commit) of the encoder."""
    image_size: PositiveInt = 518
    """Pixels per side given to the encoder: a multiple of its patch, 14 for DINOv2 and 16 for DINOv3."""
    crop: Literal["none", "trellis"] = "none"
    """none: the whole picture, as the paper. trellis: a square about the object, as TRELLIS's own training."""
    alpha: Literal["black", "drop"] = "black"
    """black: composite on black. drop: ignore alpha, as the released training code did."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the encoder; the last normalisation is always float32."""
    store_dtype: Literal["float16", "bfloat16", "int8"] = "float16"
    """Number format of registers and patches in the parts; int8 has a scale for each token, and half the size."""
    compression: Literal["none", "zstd"] = "none"
    """Of the parts' pages. Parts that are not compressed are mapped, not decoded, by readers on the same machine."""
    seed: int = 0
    """Seed of random weights."""

    @field_validator("encoder")
    @classmethod
    def encoder_holds_anywhere(cls, encoder: str) -> str:
        """A job runs in no folder of the caller's."""
        path = Path(encoder).expanduser()
        return str(path.absolute()) if path.exists() else encoder


class DatasetSettings(Section):
    """Which good rows the dataset takes."""

    count: PositiveInt | None = None
    """The first so many ok rows by rank; none takes all."""


class Limits(Section):
    """Bounds that end a row, never the run."""

    timeout_s: PositiveFloat = 300.0
    """Seconds for one object's import and mesh in Blender, and again for each of its images."""
    memory_bytes: PositiveInt = 8 * GIB
    """Resident memory of one Blender."""
    object_bytes: PositiveInt = 2 * GIB
    """Main file and companions together."""
    repository_bytes: PositiveInt = 20 * GIB
    """What a git repository may take on the disk while its objects are fetched; also the largest tar of image-text
    pairs."""
    archive_bytes: PositiveInt = 200 * GIB
    """What an archive (source.path) may unpack to; a larger one is refused as a whole."""
    archive_members: PositiveInt = 1_000_000
    """Files in an archive; one with more is refused as a whole."""
    triangles: PositiveInt = 20_000_000
    """Triangles after modifiers and instances."""
    pixels: PositiveInt = 16384 * 16384
    """Pixels of one image."""
    attempts: PositiveInt = 2
    """Tries of a transient failure of an engine."""
    network_attempts: PositiveInt = 5
    """Runs that try an object whose host could not be reached."""
    recycle_after: PositiveInt = 100
    """Objects that one Blender serves before a fresh one takes over."""


class NetworkSettings(Section):
    """How the internet is asked; changes no result."""

    per_host: PositiveInt = 4
    """Requests to one host at the same time, over all workers of a Ray cluster."""
    requests_per_s: PositiveFloat = 4.0
    """New requests to one host in a second, over all workers."""
    retries: Annotated[int, Field(ge=0)] = 4
    """Tries of a request after the first, with growing pauses and jitter."""
    pause_s: PositiveFloat = 60.0
    """Longest pause between tries; a host that asks for a longer one (Retry-After) is left for the next run."""
    stall_s: PositiveFloat = 30.0
    """A connection that brings nothing for so long is given up."""
    object_s: PositiveFloat = 600.0
    """One object's transfer, tries included."""
    repository_s: PositiveFloat = 3600.0
    """One repository's transfer, or one tar's, tries included."""
    instead_of: dict[str, str] = Field(default={})
    """Beginnings of addresses and what to ask instead: mirrors. Git has its own (url.<base>.insteadOf), the hub
    HF_ENDPOINT."""


class ComputeSettings(Section):
    """Where the work runs; changes no result."""

    mode: Literal["inline", "job"] = "inline"
    """inline: Ray inside this process. job: a Ray job on the cluster at address."""
    address: str | None = None
    """job: the Ray dashboard, e.g. http://127.0.0.1:8265."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Ray actors per stage; 0 computes in this process without Ray."""
    render_device: Literal["auto", "cpu", "optix", "cuda", "hip", "oneapi", "metal"] = "auto"
    """Where Cycles runs. auto: the first GPU interface that this machine has, else the CPU; any other is proven, or
    the run aborts."""
    render_gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs that Ray grants to one Blender: 1 on a cluster that renders on GPUs."""
    render_resources: dict[str, float] = Field(default={})
    """Ray custom resources of one Blender, e.g. {"rt_cores": 1}: places rendering on the nodes that have them."""
    allow_unsandboxed: bool = False
    """Go on where the kernel can't confine Blender; every row then says so."""
    encoder_threads: PositiveInt = 2
    """CPU threads of one encoder; as many more decode images for it."""
    encoder_gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs per encoder actor, fractions allowed."""
    encoder_resources: dict[str, float] = Field(default={})
    """Ray custom resources of one encoder actor."""
    batch_size: PositiveInt | None = None
    """Images that a worker takes at once, and that a kill of it can cost several times over. Default: 4 on a CPU, 64
    on a GPU. Stored numbers do not depend on it."""
    flush_s: PositiveFloat = 60.0
    """Finished rows are committed at least this often: what a kill can cost."""
    flush_rows: PositiveInt = 512
    """... or after so many rows."""
    part_bytes: PositiveInt = 512 * 1024**2
    """Largest part file."""
    lease_wait_s: Annotated[float, Field(ge=0)] = 30.0
    """How long to wait for another run on the same shard before refusing."""


class Settings(BaseSettings):
    """Everything a run needs; resolved once, and saved beside every output."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="GAP3D_", env_nested_delimiter="__", use_attribute_docstrings=True
    )

    store: Path = Path("data/store")
    """Root of the store."""
    blobs: str = ""
    """Where the objects' own files lie: a folder or any fsspec URL (s3://bucket/blobs), of this store alone.

    Default: blobs in the store."""
    collection: str = Field(default="demo", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """A catalog with its view protocol."""
    source: SourceSettings = SourceSettings()
    catalog: CatalogSettings = CatalogSettings()
    views: ViewSettings = ViewSettings()
    renders: RenderSettings = RenderSettings()
    quality: QualitySettings = QualitySettings()
    targets: TargetSettings = TargetSettings()
    dataset: DatasetSettings = DatasetSettings()
    image_text: ImageTextSettings = ImageTextSettings()
    coco: CocoSettings = CocoSettings()
    images: ImageSettings = ImageSettings()
    aligner: AlignerSettings = AlignerSettings()
    pretraining: TrainingSettings = TrainingSettings()
    finetuning: FinetuningSettings = FinetuningSettings()
    sampling: SamplingSettings = SamplingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    limits: Limits = Limits()
    network: NetworkSettings = NetworkSettings()
    compute: ComputeSettings = ComputeSettings()

    @field_validator("collection")
    @classmethod
    def collection_is_no_other_folder(cls, collection: str) -> str:
        """Collections lie beside the store's own folders."""
        if collection in NOT_COLLECTIONS:
            raise ValueError(f"{collection!r} is a folder of the store itself: choose another name for the collection")
        return collection

    @property
    def pictures(self) -> Literal["images", "renders"]:
        """The stage whose pictures are encoded."""
        return "renders" if self.images.kind == "none" else "images"

    @property
    def tables(self) -> tuple[Table, ...]:
        """The tables of the evaluation: generation has true objects, which a collection of images has not."""
        with_objects = self.pictures == "renders" or bool(self.evaluation.true)
        return ("alignment", "retrieval", "generation") if with_objects else ("alignment", "retrieval")
