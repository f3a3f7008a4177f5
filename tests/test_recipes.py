"""The recipes of docs/reading.md read what the store's writer wrote, each run as it stands there."""

import gc
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from gap3d.features.tokens import TORCH_DTYPES, TokenLayout, pack, targets_from_prenorm
from gap3d.parts import PartWriter
from gap3d.schemas import targets

READING = Path(__file__).parents[1] / "docs" / "reading.md"
RECIPES = dict(re.findall(r"^```python recipe=(\w+)\n(.*?)^```$", READING.read_text(), re.MULTILINE | re.DOTALL))
ENGINES = ("numpy", "torch", "duckdb", "polars", "datasets", "ray")
LAYOUT = TokenLayout(registers=3, grid=(4, 5), width=16)
ROWS = 19  # more than two row groups


@pytest.fixture(scope="module", params=["float16", "bfloat16"])
def part(request, tmp_path_factory):
    """(folder with part.parquet, its number format, tokens [rows, T, C] as they were given to the writer)."""
    folder = tmp_path_factory.mktemp(request.param)
    return folder, request.param, write_part(folder, request.param)


def write_part(folder, kind):
    tokens = targets_from_prenorm(
        torch.randn(ROWS, LAYOUT.count, LAYOUT.width, generator=torch.Generator().manual_seed(3))
    )
    tokens[:, -1, -2:] = 0  # readers that take bytes for text drop zeros at the end
    schema = targets(LAYOUT.registers, LAYOUT.patches, LAYOUT.width)
    writer = PartWriter(folder, schema, {"gap3d": json.dumps({"stage": "targets", "tokens": LAYOUT.describe(kind)})})
    cls, registers, patches = LAYOUT.split(tokens)
    for i in range(ROWS):
        data = {"object_id": f"{i:02d}", "view": 0, "cls": cls[i].numpy()}
        data |= {"registers": pack(registers[i], kind), "patches": pack(patches[i], kind)}
        writer.add(f"{i:02d}/000", "", data)
    (folder / writer.close()).rename(folder / "part.parquet")
    return tokens


def read(engine, folder, monkeypatch):
    """What a recipe reads, run in the folder of the part."""
    monkeypatch.chdir(folder)
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        exec(RECIPES["first"] + RECIPES[engine], names)
        gc.collect()
    return {name: names[name] for name in ("cls", "registers", "patches")}


def compare(found, tokens, kind, engine):
    """Every value, to the bit."""
    for name, exact in zip(found, LAYOUT.split(tokens[: len(found["cls"])]), strict=True):
        stored = exact if name == "cls" else exact.to(TORCH_DTYPES[kind])
        if engine == "torch":
            assert found[name].dtype == stored.dtype and torch.equal(found[name], stored), name
            continue
        wanted = stored.float().numpy() if stored.dtype == torch.bfloat16 else stored.numpy()
        assert found[name].dtype == wanted.dtype, name
        assert found[name].shape == wanted.shape, name
        np.testing.assert_array_equal(found[name], wanted)


def test_there_is_a_recipe_of_three_lines_for_each_library():
    assert set(RECIPES) == {"first", *ENGINES}
    for engine in ENGINES:
        lines = [line for line in RECIPES[engine].splitlines() if line and not line.startswith(("import", "from"))]
        assert len(lines) == 3, engine


@pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine != "ray"])
def test_a_recipe_reads_what_was_written(part, engine, monkeypatch, tmp_path):
    folder, kind, tokens = part
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    found = read(engine, folder, monkeypatch)
    assert len(found["cls"]) == ROWS
    compare(found, tokens, kind, engine)


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")  # Ray's own settings, of itself
def test_the_recipe_for_ray_reads_what_was_written(tmp_path, monkeypatch):
    from pipelines import cluster  # sets what Ray reads when it is imported

    cluster.connect(cluster.Resources(1))
    import ray

    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        for kind in ("float16", "bfloat16"):
            (tmp_path / kind).mkdir()
            tokens = write_part(tmp_path / kind, kind)
            found = read("ray", tmp_path / kind, monkeypatch)
            assert len(found["cls"]) == 8
            compare(found, tokens, kind, "ray")
    finally:
        ray.shutdown()
