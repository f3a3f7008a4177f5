"""Small source folders and settings for tests of the line."""

from pathlib import Path

from pipelines import catalog, dataset, downloads, rendering, targets
from pipelines.command import load_settings, open_store
from pipelines.report import merge

CUBE = """{material}o cube
v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nv 0 0 {height}\nv 1 0 {height}\nv 1 1 {height}\nv 0 1 {height}
vt 0 0\nvt 1 0\nvt 1 1
{use}f 1/1 4/2 3/3 2/1\nf 5/1 6/2 7/3 8/1\nf 1/1 2/2 6/3 5/1\nf 2/1 3/2 7/3 6/1\nf 3/1 4/2 8/3 7/1\nf 4/1 1/2 5/3 8/1
"""


def write_box(path: Path, height: float = 1.0, material: str = "") -> None:
    """A box as OBJ, with its material library beside it where one is named."""
    path.parent.mkdir(parents=True, exist_ok=True)
    library = f"mtllib {material}.mtl\n" if material else ""
    path.write_text(CUBE.format(height=height, material=library, use=f"usemtl {material}\n" if material else ""))
    if material:
        path.with_name(f"{material}.mtl").write_text(f"newmtl {material}\nKd 0.8 0.2 0.1\n")


def write_objects(folder: Path) -> None:
    """Four boxes, one of them with a material, and a file that is no model."""
    for index, name in enumerate(["a.obj", "b.obj", "deep/er/c.obj"]):
        write_box(folder / name, 1.0 + index)
    write_box(folder / "painted.obj", 0.5, material="paint")
    (folder / "broken.glb").write_bytes(b"not a model")
    (folder / "captions.csv").write_text(
        'path,captions\na.obj,"[""a cube"", ""a plain grey cube""]"\nb.obj,a tall box\n'
    )


def small(store: Path, folder: Path, **values):
    """Settings that make everything small and run without Ray."""
    base = {
        "store": store,
        "collection": "test",
        "source": {"kind": "folder", "path": folder},
        "catalog": {"shards": 2, "validation_share": 0.2},
        "views": {"points": 500},
        "renders": {"resolution": 64, "samples": 1},
        "targets": {"encoder": "random-small", "image_size": 56},
        "limits": {"timeout_s": 60.0},
        "compute": {"workers": 0},
    }
    for name, value in values.items():
        base[name] = {**base.get(name, {}), **value} if isinstance(value, dict) else value
    return load_settings("demo", **base)


def run_line(settings):
    """All stages, in order; the merged report."""
    shards = open_store(settings).shards
    reports = [
        catalog.run(settings),
        *(stage.run(settings, shards) for stage in (downloads, rendering, targets)),
        dataset.run(settings),
    ]
    return merge(reports)


def counters(report, name="computed"):
    """A counter by stage."""
    return {stage: report.count(name, stage) for stage in report.stages()}


def digests(settings):
    """Content digest of every shard of every stage."""
    store = open_store(settings)
    found = {}
    for manifest in sorted(store.folder.glob("*/*/manifest.parquet")):
        stage, shard = manifest.parent.parent.name, manifest.parent.name
        found[stage, shard] = store.manifest(stage, shard).digest
    return found
