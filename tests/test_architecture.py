"""The house's walls: imports go one way, and each engine has one door."""

import ast
from pathlib import Path

import pytest

from pipelines.versions import changed

ROOT = Path(__file__).parents[1]
LAYERS = ["gap3d", "render", "pipelines", "assets_defs"]
DOORS = {
    "bpy": {"render/blender"},
    "ray": {"pipelines/cluster.py", "pipelines/ray_job.py", "pipelines/training.py"},
    "dagster": {"assets_defs"},
}
FILES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def imports(path):
    """Top-level names that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    layer = LAYERS.index(path.relative_to(ROOT).parts[0])
    assert not set(imports(path)) & set(LAYERS[layer + 1 :])


@pytest.mark.parametrize("engine", DOORS)
def test_an_engine_is_imported_behind_its_door_only(engine):
    users = {str(path.relative_to(ROOT)) for path in FILES if engine in imports(path)}
    assert users, f"nobody imports {engine}: is the door still right?"
    behind = {user for user in users for door in DOORS[engine] if user == door or user.startswith(f"{door}/")}
    assert users == behind


def test_no_file_has_more_than_400_lines():
    assert not {str(path) for path in FILES if len(path.read_text().splitlines()) > 400}


def test_a_changed_stage_has_a_new_version_or_a_note():
    assert not changed(), (
        "the sources of these stages changed: bump their version in gap3d/versions.toml if results can change, "
        "then run `make versions`"
    )
