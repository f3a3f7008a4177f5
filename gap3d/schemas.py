"""The columns of every stage's parts, and of the manifests that list them."""

from dataclasses import dataclass, replace
from typing import Literal

import pyarrow as pa

Compression = Literal["none", "zstd"]
SCHEMA_VERSION = 3
REWRITTEN = {"catalog": 3, "dataset": 3, "views": 2, "renders": 2}  # since when a stage's older rows are made again
STAGES = ("catalog", "downloads", "views", "renders", "targets", "dataset")  # in the order of the line
IMAGE_STAGES = ("images", "targets", "dataset")  # the line of a collection of images

TARGET_ROWS = 8  # of a row group of targets: 22 MB at ViT-L and 518 pixels


@dataclass(frozen=True)
class StageSchema:
    """Columns of one stage.

    Attributes:
        columns: Arrow schema of the parts, which hold the rows with status ``ok``; the first column is the key.
        exempt: columns outside the row digest, because they say where content lies or when it was seen.
        row_group_rows: rows of one Parquet row group.
        compression: of the parts' pages; what is not compressed, a reader maps.
    """

    columns: pa.Schema
    exempt: tuple[str, ...] = ()
    row_group_rows: int = 1024
    compression: Compression = "none"


FILE = pa.struct([("path", pa.string()), ("sha256", pa.string()), ("bytes", pa.int64())])
CAMERA = pa.struct([(name, pa.float64()) for name in ("yaw", "pitch", "radius", "fov")])  # degrees
KEY = pa.field("key", pa.string(), nullable=False)

CATALOG = StageSchema(
    pa.schema(
        [
            KEY,
            ("source", pa.string()),
            ("identifier", pa.string()),  # for a folder, the path relative to it
            ("sha256", pa.string()),  # of the main file
            ("version", pa.string()),  # digest of the main file and its companions, as the source has them
            ("file_type", pa.string()),
            ("fetch_group", pa.string()),
            ("licence", pa.string()),
            ("aesthetic_score", pa.float64()),
            ("captions", pa.list_(pa.string())),  # longest first
            ("cluster", pa.string()),  # near duplicates: never on both sides of the split
            ("split", pa.string()),
            ("rank", pa.int64()),  # order of sampling; smaller is taken first
            ("pinned_yaw", pa.float64()),
            ("up_axis", pa.string()),
            ("stamp", pa.string()),  # sizes and times of the files: unchanged means not read again
        ]
    ),
    exempt=("stamp",),
)
# Rows of the catalog that a step of the selection left out: no later stage has a row of them.
LEFT_OUT = pa.schema(
    [
        KEY,
        ("status", pa.string()),
        ("reason", pa.string()),
        ("source", pa.string()),
        ("identifier", pa.string()),
        ("sha256", pa.string()),
        ("licence", pa.string()),
        ("file_type", pa.string()),
        ("duplicate_of", pa.string()),
    ]
)
DOWNLOADS = StageSchema(
    pa.schema(
        [
            KEY,
            ("bundle", pa.string()),  # digest of file type, main file, companions: what later stages depend on
            ("file_type", pa.string()),
            ("main", pa.string()),
            ("files", pa.list_(FILE)),  # the main file first
            ("missing", pa.list_(pa.string())),
            ("bytes", pa.int64()),
        ]
    )
)
VIEWS = StageSchema(
    pa.schema(
        [
            KEY,
            ("protocol", pa.string()),
            ("cameras", pa.list_(CAMERA)),  # what is rendered, in the order of the views
            ("candidates", pa.list_(CAMERA)),  # what was scored; empty unless one was to be chosen
            ("counts", pa.list_(pa.int32())),  # visible points at each candidate
            ("points", pa.int32()),
            ("chosen", pa.int32()),  # index into candidates; -1 where the yaw is pinned to none of them
            ("pinned", pa.bool_()),
            ("scale", pa.float64()),  # normalisation: p -> scale * p + offset
            ("offset", pa.list_(pa.float64())),
            ("vertices", pa.int64()),
            ("triangles", pa.int64()),
            ("objects", pa.int32()),
            ("animated", pa.bool_()),
            ("missing_textures", pa.list_(pa.string())),
        ]
    )
)
RENDERS = StageSchema(
    pa.schema(
        [
            KEY,
            ("object_id", pa.string()),
            ("view", pa.int32()),
            ("png", pa.binary()),  # RGBA, straight alpha
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("yaw", pa.float64()),
            ("pitch", pa.float64()),
            ("radius", pa.float64()),
            ("camera_angle_x", pa.float64()),  # radians
            ("transform_matrix", pa.list_(pa.float64())),  # camera to world, 4x4 row-major
            ("scale", pa.float64()),
            ("offset", pa.list_(pa.float64())),
            ("coverage", pa.float32()),  # share of the pixels that are not fully transparent
            ("picture", pa.string()),  # digest of the pixels
            ("flags", pa.list_(pa.string())),  # names of the quality gates that it does not pass
            ("missing_textures", pa.list_(pa.string())),
            ("depth", pa.binary()),  # 16-bit grey PNG of planar z; null unless asked for
            ("depth_min", pa.float64()),  # depth = min + value / 65535 * (max - min)
            ("depth_max", pa.float64()),
        ]
    ),
    row_group_rows=16,
)
# Images that were there already, in the place of RENDERS.
IMAGES = StageSchema(
    pa.schema(
        [
            KEY,
            ("object_id", pa.string()),
            ("view", pa.int32()),  # always 0: keys are as those of renders
            ("source", pa.string()),  # tars or folder
            ("identifier", pa.string()),  # path of the tar#stem of the sample, or path of the file
            ("place", pa.string()),  # the tar or file, below the source's folder
            ("offset", pa.int64()),  # of the image in it
            ("bytes", pa.int64()),
            ("format", pa.string()),  # jpg, png or webp, by its name
            ("sha256", pa.string()),  # of the image's bytes: all that a target depends on
            ("captions", pa.list_(pa.string())),  # longest first; empty where there is none
            ("licence", pa.string()),
            ("group", pa.string()),  # what came together: the tar
            ("split", pa.string()),  # by sha256: the same picture twice is on one side
            ("rank", pa.int64()),
        ]
    ),
    exempt=("place", "offset"),
)
DATASET = StageSchema(
    pa.schema(
        [
            KEY,
            ("object_id", pa.string()),
            ("view", pa.int32()),
            ("captions", pa.list_(pa.string())),
            ("split", pa.string()),
            ("rank", pa.int64()),
            ("licence", pa.string()),
            ("source", pa.string()),
            ("identifier", pa.string()),
            ("target", pa.string()),  # digest of the target row
            ("target_shard", pa.string()),
            ("target_part", pa.string()),
            ("target_row", pa.int32()),
        ]
    ),
    exempt=("target_shard", "target_part", "target_row"),
)

IMAGE_TEXT = StageSchema(
    pa.schema(
        [
            KEY,
            ("repository", pa.string()),
            ("revision", pa.string()),  # the commit that it was listed at
            ("path", pa.string()),  # in the repository
            ("name", pa.string()),  # in the folder of the tars
            ("bytes", pa.int64()),
            ("sha256", pa.string()),
            ("samples", pa.int64()),  # with an image and a text
            ("lacking", pa.int64()),  # samples without one of them
            ("stamp", pa.string()),  # size and time of the file: unchanged means not read again
        ]
    ),
    exempt=("revision", "stamp"),
)
COCO = StageSchema(
    pa.schema(
        [
            KEY,
            ("image_id", pa.int64()),
            ("file_name", pa.string()),
            ("sha256", pa.string()),  # of the image's bytes
            ("caption", pa.string()),  # the drawn one
            ("captions", pa.list_(pa.string())),  # all of them, by annotation id
            ("licence", pa.string()),
            ("url", pa.string()),
            ("tar", pa.string()),  # file name
            ("tar_sha256", pa.string()),
            ("stamp", pa.string()),  # of the tar
        ]
    ),
    exempt=("stamp",),
)


def targets(
    registers: int, patches: int, width: int, store_dtype: str = "float16", compression: Compression = "none"
) -> StageSchema:
    """Columns of the target parts of one encoder.

    Args:
        registers: number of register tokens.
        patches: number of patch tokens.
        width: channels per token.
        store_dtype: number format of registers and patches; int8 has a float32 scale a token in columns of its own.
        compression: of the pages.

    Raises:
        ValueError: there are no registers, which no Parquet column of fixed width can hold.
    """
    if not registers:
        raise ValueError(
            "this encoder has no register tokens, and targets are CLS, registers and patches: set targets.encoder to "
            "one with registers"
        )
    size, scaled = (1, True) if store_dtype == "int8" else (2, False)
    columns = [KEY, ("object_id", pa.string()), ("view", pa.int32()), ("cls", pa.list_(pa.float32()))]
    for name, count in (("registers", registers), ("patches", patches)):
        # Fixed-size binary: half-float lists read at a fortieth of its rate.
        columns.append(pa.field(name, pa.binary(count * width * size), nullable=False))
        if scaled:
            columns.append(pa.field(f"{name}_scale", pa.binary(count * 4), nullable=False))
    return StageSchema(pa.schema(columns), row_group_rows=TARGET_ROWS, compression=compression)


# What token sets are to be generated of; images that are edited come along, so that any node has them.
PROMPTS = StageSchema(
    pa.schema(
        [
            KEY,
            ("prompt", pa.string()),  # with its suffix
            ("image", pa.binary()),  # the file, as it is; null where there is none
            ("image_name", pa.string()),
            ("image_sha256", pa.string()),
            ("index", pa.int64()),  # position in the set, for the evaluation's seeds
            ("caption_index", pa.int64()),
        ]
    ),
    row_group_rows=64,
)
MADE_FROM = (("prompt", pa.string()), ("image_sha256", pa.string()), ("seed", pa.int64()), ("checkpoint", pa.string()))


def generated(
    registers: int, patches: int, width: int, store_dtype: str = "float16", compression: Compression = "none"
) -> StageSchema:
    """Columns of generated token sets: those of ``targets``, and what they were made from."""
    made = targets(registers, patches, width, store_dtype, compression)
    columns = pa.schema([*made.columns, *(pa.field(*field) for field in MADE_FROM)])
    return replace(made, columns=columns)


SHAPES = StageSchema(
    pa.schema(
        [
            KEY,
            ("prompt", pa.string()),
            ("method", pa.string()),  # gap3d, trellis-image or trellis-text
            ("model", pa.string()),
            ("seed", pa.int64()),  # that TRELLIS got
            ("folder", pa.string()),  # relative to the collection's
            ("files", pa.list_(FILE)),  # relative to the folder
            ("gaussians", pa.int64()),
            ("lacking", pa.list_(pa.string())),  # what could not be made of an object that is there
        ]
    )
)

# What distances and scores compare (gap3d.evaluation). Lists, which every reader knows: 0.6 GB/s at 2048 numbers.
PICTURE_FEATURES = StageSchema(
    pa.schema(
        [
            KEY,
            ("object_id", pa.string()),
            ("view", pa.int32()),
            ("yaw", pa.float64()),  # degrees: which side it shows
            ("feature", pa.list_(pa.float32())),
        ]
    )
)
CLOUD_FEATURES = StageSchema(pa.schema([KEY, ("object_id", pa.string()), ("feature", pa.list_(pa.float32()))]))


def clouds(points: int) -> StageSchema:
    """Columns of the clouds of objects: float32 [points, 3] each."""
    cloud = pa.field("points", pa.binary(12 * points), nullable=False)
    return StageSchema(pa.schema([KEY, ("object_id", pa.string()), cloud]), row_group_rows=64)


# What every stage writes. How wide a row of targets, generated or clouds is, its own parts alone say.
SCHEMAS = {
    "catalog": CATALOG,
    "downloads": DOWNLOADS,
    "views": VIEWS,
    "renders": RENDERS,
    "images": IMAGES,
    "targets": targets(1, 1, 1),
    "dataset": DATASET,
    # Beside the line: image-text pairs, unsharded.
    "image_text": IMAGE_TEXT,
    "coco": COCO,
    # Of a collection of token sets that an aligner made, and what TRELLIS made of them.
    "prompts": PROMPTS,
    "generated": generated(1, 1, 1),
    **{f"shapes-{method}": SHAPES for method in ("gap3d", "trellis-image", "trellis-text")},
    # Of what the evaluation compares: beside renders, or in a collection of their own.
    **{f"features-{name}": PICTURE_FEATURES for name in ("inception", "dinov2", "clip", "clip_large")},
    "clouds": clouds(1),
    "features-pointnet": CLOUD_FEATURES,
}


def program_of(stage: str) -> str:
    """The command that makes the rows of a stage; empty where this version knows no such stage."""
    if stage not in SCHEMAS:
        return ""
    if stage in ("clouds", "features-pointnet"):
        name = "cloud_features"
    elif stage.startswith("features-"):
        name = "picture_features"
    elif stage.startswith("shapes-"):
        name = "trellis"
    elif stage in ("images", "image_text", "coco", "prompts"):
        name = stage
    else:
        name = "generate" if stage == "generated" else "line"
    return f"python -m pipelines.{name}"


def schema_of(stage: str, columns: pa.Schema, compression: Compression) -> StageSchema:
    """The schema that a part was written with.

    Args:
        stage: whose part it is.
        columns: as the part has them.
        compression: likewise.

    Raises:
        ValueError: no stage of that name writes anything.
    """
    if stage not in SCHEMAS:
        raise ValueError(
            f"{stage} is no stage that this version knows (gap3d.schemas.SCHEMAS): take the version that wrote it, or "
            "remove its folder"
        )
    return replace(SCHEMAS[stage], columns=columns, compression=compression)


def require_known(stage: str, schema: StageSchema) -> None:
    """Raises ValueError for rows that a stage is not known to write: nobody could write them anew as they were."""
    if schema_of(stage, schema.columns, schema.compression) != schema:
        raise ValueError(f"{stage} is known to write other row groups, or other exempt columns (gap3d.schemas.SCHEMAS)")


LEDGER = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        ("reason", pa.string()),
        ("origin", pa.string()),  # the earlier stage whose failure this row passes on
        ("digest", pa.string()),
        ("fingerprint", pa.string()),
        ("inputs", pa.string()),  # JSON: the parts of the fingerprint
        ("limits", pa.string()),  # JSON: the limits that ended this row; empty unless one did
        ("part", pa.string()),  # null unless ok
        ("part_row", pa.int32()),
        # Run facts: outside every digest.
        ("attempts", pa.int32()),
        ("seconds", pa.float64()),
        ("host", pa.string()),
        ("device", pa.string()),
        ("sandboxed", pa.bool_()),
        ("finished_at", pa.string()),
        ("log_tail", pa.string()),
        ("costs", pa.string()),  # JSON: seconds by kind of work
    ]
)
