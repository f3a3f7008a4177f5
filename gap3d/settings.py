"""Settings: frozen models read from a TOML preset, the environment (``GAP3D_*``) and flags.

*Result settings* (``views``, ``renders``, ``targets`` ...) can change a result and are part of every
fingerprint. *Limits* (timeouts, sizes, memory, attempts) only matter to rows that a limit ended.
``compute`` says where and with how many workers, and changes no result.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from gap3d.aligner_settings import AlignerSettings, FinetuningSettings, SamplingSettings, TrainingSettings
from gap3d.evaluation.quirks import Table
from gap3d.evaluation_settings import EvaluationSettings
from gap3d.image_settings import CocoSettings, ImageSettings, ImageTextSettings
from gap3d.section import Collection, Folder, HomePlace, Place, Section, Weights

GIB = 1024**3
RANDOM_ENCODERS = ("random-small", "random-small-dinov3")
Origin = Literal["github", "sketchfab", "thingiverse", "smithsonian"]


class SourceSettings(Section):
    """Where objects come from."""

    kind: Literal["samples", "folder", "objaverse", "tables"] = "samples"
    """Kind of source. samples: the two dozen bundled objects. folder: the user's own 3D files. objaverse: Objaverse-XL.
    tables: any list of objects with Objaverse-XL's columns."""
    path: Place | None = None
    """folder: folder that holds the 3D files, searched at any depth, or a zip or tar archive of them (Toys4K)."""
    captions: Place | None = None
    """folder: CSV or Parquet file with columns path and captions (a JSON list or one text). Default: captions.csv in
    the folder, if there."""
    overrides: Place | None = None
    """folder: CSV file with corrections of single objects: columns path, exclude, yaw, up_axis, captions; empty cells
    change nothing."""
    tables: tuple[Place, ...] = ()
    """tables: CSV or Parquet files with columns fileIdentifier, source, license, fileType, sha256, metadata."""
    origins: Annotated[tuple[Origin, ...], Field(min_length=1)] = ("github", "sketchfab", "thingiverse", "smithsonian")
    """objaverse: which of Objaverse-XL's sources objects are taken from."""
    annotations: HomePlace = Path("~/.objaverse")
    """objaverse: folder of the annotations, in the layout of the objaverse package; downloaded where absent."""
    revision: str = "main"
    """objaverse: hub revision (commit, branch or tag) of the annotations."""
    sketchfab_revision: str = "main"
    """objaverse, tables: hub revision (commit, branch or tag) of the repository with Sketchfab's files."""
    described_by: tuple[Place, ...] = ()
    """TRELLIS-500K tables (columns sha256, file_identifier, aesthetic_score, captions) whose scores and captions are
    joined to the objects by their hash."""

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
    """Number of shards that the collection is split into, a power of two; fixed for the life of the collection."""
    seed: int = 42
    """Seed of the sampling order (rank) of the objects and of the split into training and validation."""
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Share of duplicate clusters held out for validation, 0 to below 1."""
    count: PositiveInt | None = None
    """Number of objects taken, the first by rank; default: all. Take more than dataset.count, in reserve for those that
    fail."""
    licences: tuple[str, ...] | None = None
    """Licences allowed, by the name in the annotations in any case, with * and ?; default: every licence."""
    file_types: tuple[str, ...] | None = None
    """File types allowed, e.g. ["glb", "obj"]; default: all twelve."""
    sources: tuple[str, ...] | None = None
    """Sources allowed, by the name in the annotations; default: all."""
    least_score: float | None = None
    """Least aesthetic score of an object; one without a score is left out. Default: no bound."""
    captioned: bool = False
    """Leave out objects (or images) that have no caption."""
    most_bytes: PositiveInt | None = None
    """Largest size of an object's main file, in bytes, where the annotations tell it. Default: no bound."""
    held_out: tuple[Place, ...] = ()
    """Tables with a column sha256 (Toys4K's): objects with those bytes never take part."""
    denied: Place | None = None
    """CSV file of takedowns, with columns object, licence, reason; an object or image is named by id, identifier or
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
    """Cameras of an object. least_occluded: of yaws x pitches the one that sees most of the surface (training). fixed:
    all of yaws x pitches (evaluation). sphere: TRELLIS's multiview, views.count Hammersley directions. condition:
    TRELLIS's condition views, the same with a drawn field of view and the radius that belongs to it."""
    points: PositiveInt = 5000
    """least_occluded: number of points sampled on the surface, evenly by area, whose visibility is compared."""
    yaws: Annotated[tuple[float, ...], Field(min_length=1)] = (0.0, 90.0, 180.0, 270.0)
    """least_occluded, fixed: yaw angles of the cameras about the vertical axis, degrees; of equally good views the
    first is taken."""
    pitches: Annotated[tuple[Annotated[float, Field(ge=-90, le=90)], ...], Field(min_length=1)] = (30.0,)
    """least_occluded, fixed: pitch angles of the cameras above the horizon, degrees, -90 to 90; all yaws at the first
    pitch, then all at the next."""
    radius: PositiveFloat = 2.0
    """Distance of the cameras from the origin; the object is scaled to fit [-0.5, 0.5]^3."""
    fov: Annotated[float, Field(gt=0, lt=180)] = 40.0
    """Full field of view of the cameras, degrees, above 0 and below 180."""
    count: PositiveInt = 150
    """sphere, condition: number of views of an object."""
    fovs: tuple[Annotated[float, Field(gt=0, lt=180)], Annotated[float, Field(gt=0, lt=180)]] = (10.0, 70.0)
    """condition: least and greatest field of view that is drawn, degrees."""
    tolerance: PositiveFloat = 1e-3
    """least_occluded: slack of the visibility test, in units of the scaled object: a point is seen if nothing is hit
    nearer than its distance less this."""
    seed: int = 0
    """Seed, together with the object's id, of the surface samples and of drawn cameras."""

    @property
    def images(self) -> int:
        """Images that the protocol makes of one object."""
        if self.protocol == "least_occluded":
            return 1
        return len(self.yaws) * len(self.pitches) if self.protocol == "fixed" else self.count


class RenderSettings(Section):
    """One Cycles image (docs/method.md 2.1); the defaults are the paper's."""

    resolution: Annotated[int, Field(ge=4, le=65536)] = 512
    """Width and height of a picture, pixels."""
    samples: Annotated[int, Field(ge=1, le=2**24)] = 128
    """Cycles samples per pixel, at most; adaptive sampling may take fewer."""
    threshold: Annotated[float, Field(ge=0)] = 0.01
    """Noise level at which adaptive sampling is done with a pixel; 0 takes all samples everywhere."""
    denoise: bool = True
    """Denoise pictures with OpenImageDenoise."""
    prefilter: Literal["none", "fast", "accurate"] = "accurate"
    """Filter on the albedo and normal guides before the denoiser uses them; accurate costs most of the denoiser's
    time."""
    denoise_quality: Literal["high", "balanced", "fast"] = "high"
    """Quality of the denoiser, and so its time."""
    idle_light: bool = True
    """Keep the lamp of the paper's scene that points away from the object: it lights nothing, and draws half the light
    samples of every pixel; without it the same picture has half the noise."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of Cycles' sampling noise."""
    depth: bool = False
    """Store a depth map (planar z-depth) with every picture."""
    threads: PositiveInt = 1
    """CPU threads of one Blender. A result setting: the denoiser's last bit can depend on it."""


Action = Literal["flag", "drop", "retry"]


class QualitySettings(Section):
    """What is done about a picture that is suspicious.

    flag: the row is ok and carries the flag. drop: the row is ``rejected``. retry: it is rendered once more in a fresh
    Blender, and rejected if that does not help.
    """

    all_black: Action = "flag"
    """Action on a picture in which nothing that is covered is brighter than quality.black."""
    one_colour: Action = "flag"
    """Action on a picture in which all that is covered has the same colour, up to quality.even."""
    cut_off: Action = "flag"
    """Action on a picture in which the object reaches the frame's edge."""
    coverage: Action = "flag"
    """Action on a picture whose covered share of the frame is outside quality.covered."""
    missing_textures: Action = "flag"
    """Action on a picture of an object that refers to texture images that are not there."""
    duplicate_view: Action = "flag"
    """Action on a picture that has the same pixels as an earlier view of the object."""
    black: Annotated[int, Field(ge=0, le=255)] = 8
    """Greatest channel value, 0 to 255, that counts as black."""
    even: Annotated[int, Field(ge=0, le=255)] = 3
    """Greatest difference of a channel, 0 to 255, that counts as one colour."""
    covered: tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]] = (0.005, 0.95)
    """Least and greatest share of the pixels that an object should cover (not fully transparent), 0 to 1."""

    @model_validator(mode="after")
    def covered_rises(self) -> "QualitySettings":
        """A range from most to least would let nothing pass."""
        if self.covered[0] > self.covered[1]:
            raise ValueError(f"quality.covered = {self.covered}: the least share comes first")
        return self


class TargetSettings(Section):
    """What the feature is (docs/method.md 3)."""

    encoder: Weights = "facebook/dinov2-with-registers-large"
    """Encoder whose tokens are stored: a hub id, a local folder (config.json and model.safetensors), or a file of the
    authors' own weights (.pth or .safetensors): DINOv2 with registers or without, or DINOv3 ViT. random-small,
    random-small-dinov3: small ones with UNTRAINED random weights."""
    revision: str | None = None
    """Hub revision (commit, branch or tag) of the encoder."""
    image_size: PositiveInt = 518
    """Width and height of the encoder's input, pixels: a multiple of its patch, 14 for DINOv2 and 16 for DINOv3."""
    crop: Literal["none", "trellis"] = "none"
    """Cut-out of the picture. none: the whole, as the paper. trellis: a square about the object, as TRELLIS's own
    training."""
    alpha: Literal["black", "drop"] = "black"
    """Treatment of transparency. black: composite on black. drop: ignore alpha, as the released training code did."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the encoder's arithmetic; the last normalisation is always float32."""
    store_dtype: Literal["float16", "bfloat16", "int8"] = "float16"
    """Number format of stored registers and patches; int8 has a scale for each token, and half the size."""
    compression: Literal["none", "zstd"] = "none"
    """Compression of stored tokens. none: readers on the same machine map the files and decode nothing."""
    seed: int = 0
    """Seed of random weights (encoders random-small...)."""


class DatasetSettings(Section):
    """Which good rows the dataset takes."""

    count: PositiveInt | None = None
    """Number of rows of the dataset: the first ok ones by rank; default: all."""


class Limits(Section):
    """Bounds that end a row, never the run."""

    timeout_s: PositiveFloat = 300.0
    """Time limit of one object's import in Blender, and again of each of its pictures, seconds."""
    memory_bytes: PositiveInt = 8 * GIB
    """Limit of the resident memory of one Blender, bytes."""
    object_bytes: PositiveInt = 2 * GIB
    """Largest size of one object, main file and companions together, bytes."""
    repository_bytes: PositiveInt = 20 * GIB
    """Largest disk space of a git repository while its objects are fetched, bytes; also of a tar of image-text
    pairs."""
    archive_bytes: PositiveInt = 200 * GIB
    """Largest unpacked size of an archive (source.path), bytes; a larger one is refused as a whole."""
    archive_members: PositiveInt = 1_000_000
    """Greatest number of files in an archive; one with more is refused as a whole."""
    triangles: PositiveInt = 20_000_000
    """Greatest number of triangles of an object, after modifiers and instances."""
    pixels: PositiveInt = 16384 * 16384
    """Greatest number of pixels of one image that is read."""
    attempts: PositiveInt = 2
    """Greatest number of tries at a row whose engine crashed or failed."""
    network_attempts: PositiveInt = 5
    """Greatest number of runs that try an object whose host could not be reached."""
    recycle_after: PositiveInt = 100
    """Number of objects that one Blender serves before a fresh one takes over."""


class NetworkSettings(Section):
    """How the internet is asked; changes no result."""

    per_host: PositiveInt = 4
    """Greatest number of simultaneous requests to one host, over all workers of a Ray cluster."""
    requests_per_s: PositiveFloat = 4.0
    """Greatest rate of new requests to one host, per second, over all workers."""
    retries: Annotated[int, Field(ge=0)] = 4
    """Number of further tries of a request that failed, with growing pauses and jitter."""
    pause_s: PositiveFloat = 60.0
    """Longest pause between tries, seconds; a host that asks for a longer one (Retry-After) is left for the next
    run."""
    stall_s: PositiveFloat = 30.0
    """Time without a byte after which a connection is given up, seconds."""
    object_s: PositiveFloat = 600.0
    """Time limit of one object's transfer, all tries included, seconds."""
    repository_s: PositiveFloat = 3600.0
    """Time limit of one git repository's or one tar's transfer, all tries included, seconds."""
    instead_of: dict[str, str] = Field(default={})
    """Mirrors: beginnings of addresses, and what is asked in their place. Git has its own (url.<base>.insteadOf), the
    hub HF_ENDPOINT."""


class ComputeSettings(Section):
    """Where the work runs; changes no result."""

    mode: Literal["inline", "job"] = "inline"
    """Place of work. inline: this machine, or the Ray cluster at RAY_ADDRESS. job: the program submits itself as a Ray
    job to the cluster at compute.address, shows its output and ends with its exit code; programs that only read run
    here."""
    address: str | None = None
    """job: address of the Ray dashboard, e.g. http://127.0.0.1:8265."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Number of Ray actors per stage, at most; 0 computes in this process without Ray."""
    render_device: Literal["auto", "cpu", "optix", "cuda", "hip", "oneapi", "metal"] = "auto"
    """Device that Cycles renders on. auto: the first GPU interface that this machine has, else the CPU; any other is
    proven, or the run aborts."""
    render_gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs that Ray grants to one Blender, fractions allowed: 1 on a cluster that renders on GPUs."""
    render_resources: dict[str, float] = Field(default={})
    """Ray custom resources of one Blender, e.g. {"rt_cores": 1}: places rendering on the nodes that have them."""
    allow_unsandboxed: bool = False
    """Render without a sandbox where the kernel can't confine Blender; every row then says so."""
    encoder_threads: PositiveInt = 2
    """CPU threads of one encoder; as many more decode images for it."""
    encoder_gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs that Ray grants to one encoder, fractions allowed."""
    encoder_resources: dict[str, float] = Field(default={})
    """Ray custom resources of one encoder, e.g. {"encoders": 1}: places encoding on the nodes that have them."""
    batch_size: PositiveInt | None = None
    """Images that an encoder takes at once; a kill can cost several times as many. Default: 4 on a CPU, 64 on a GPU.
    Stored numbers do not depend on it."""
    flush_s: PositiveFloat = 60.0
    """Longest time between commits of finished rows, seconds: what a kill can cost."""
    flush_rows: PositiveInt = 512
    """Greatest number of finished rows between commits."""
    part_bytes: PositiveInt = 512 * 1024**2
    """Largest size of a part file, bytes."""
    lease_wait_s: Annotated[float, Field(ge=0)] = 30.0
    """Time to wait for another run on the same shard before this one is refused, seconds."""


class Settings(BaseSettings):
    """Everything a run needs; resolved once, and saved beside every output."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="GAP3D_", env_nested_delimiter="__", use_attribute_docstrings=True
    )

    store: Place = Path("data/store")
    """Folder of the store, in which every collection is a folder."""
    blobs: Folder = ""
    """Place of the objects' own files: a folder or any fsspec URL (s3://bucket/blobs), of this store alone. Default:
    the folder blobs in the store."""
    collection: Collection = "demo"
    """Name of the collection: a catalog of objects (or images) and all that is made of them."""
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

    @property
    def pictures(self) -> Literal["images", "renders"]:
        """The stage whose pictures are encoded."""
        return "renders" if self.images.kind == "none" else "images"

    @property
    def tables(self) -> tuple[Table, ...]:
        """The tables of the evaluation: generation has true objects, which a collection of images has not."""
        with_objects = self.pictures == "renders" or bool(self.evaluation.true)
        return ("alignment", "retrieval", "generation") if with_objects else ("alignment", "retrieval")
