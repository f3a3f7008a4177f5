"""The bundled objects: same bytes every time, readable, captioned, and some best seen from another side."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import trimesh

from gap3d.samples import CAPTIONS_FILE, SAMPLES, Sample, write_samples
from pipelines import catalog
from pipelines.command import load_settings, open_store

READABLE = [sample for sample in SAMPLES if Path(sample.path).suffix != ".usda"]
Y_UP = {".glb", ".gltf", ".obj"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("samples")
    write_samples(target)
    return target


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def load(folder: Path, sample: Sample) -> trimesh.Trimesh:
    """The object as one mesh, z up."""
    mesh = trimesh.load_scene(folder / sample.path).to_mesh()
    if Path(sample.path).suffix in Y_UP:
        x, y, z = np.asarray(mesh.vertices).T
        mesh = trimesh.Trimesh(np.stack([x, -z, y], 1), mesh.faces, process=False)
    return mesh


def test_their_licence_is_this_projects(tmp_path: Path) -> None:
    settings = load_settings("demo", store=tmp_path)
    catalog.run(settings)
    store = open_store(settings)
    rows = [row for shard in store.shards for row in store.read(store.manifest("catalog", shard), ["licence"]).values()]
    assert [row["licence"] for row in rows] == ["Apache-2.0"] * len(SAMPLES)


def test_there_are_two_dozen_with_captions(folder: Path) -> None:
    assert len(SAMPLES) == 24
    assert len({s.name for s in SAMPLES}) == len({s.path for s in SAMPLES}) == 24
    assert len({Path(s.path).suffix for s in SAMPLES}) >= 5
    with (folder / CAPTIONS_FILE).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["path"] for row in rows] == [s.path for s in SAMPLES]
    for row, sample in zip(rows, SAMPLES, strict=True):
        captions = json.loads(row["captions"])
        assert captions == list(sample.captions)
        assert len(captions) >= 2
        lengths = [len(c) for c in captions]
        assert lengths == sorted(set(lengths), reverse=True)
        assert (folder / sample.path).is_file()


def test_writing_again_changes_and_touches_nothing(folder: Path) -> None:
    before = contents(folder)
    write_samples(folder)
    assert contents(folder) == before


def test_writing_elsewhere_gives_the_same_bytes_and_repairs_damage(folder: Path, tmp_path: Path) -> None:
    victim = tmp_path / SAMPLES[0].path
    victim.parent.mkdir(parents=True)
    victim.write_bytes(b"half a file")
    write_samples(tmp_path)
    here, there = contents(tmp_path), contents(folder)
    assert {name: data for name, (data, _) in here.items()} == {name: data for name, (data, _) in there.items()}


@pytest.mark.parametrize("sample", READABLE, ids=lambda s: s.name)
def test_it_loads(folder: Path, sample: Sample) -> None:
    mesh = load(folder, sample)
    assert 1_000 < len(mesh.faces) < 60_000
    assert np.isfinite(mesh.vertices).all()
    assert (mesh.extents > 0).all()


@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.path.endswith(".usda")], ids=lambda s: s.name)
def test_usd_text_is_whole(folder: Path, sample: Sample) -> None:
    text = (folder / sample.path).read_text()
    assert text.startswith("#usda 1.0")
    assert 'upAxis = "Z"' in text
    assert text.count("{") == text.count("}")
    assert text.count("def Mesh") == text.count("rel material:binding") == text.count('def Material "') >= 3


def visible_counts(mesh: trimesh.Trimesh) -> list[int]:
    """How many of 5000 surface points each of the four cameras sees."""
    low, high = mesh.bounds
    vertices = (np.asarray(mesh.vertices) - (low + high) / 2) / (high - low).max()
    mesh = trimesh.Trimesh(vertices, mesh.faces, process=False)
    points, _ = trimesh.sample.sample_surface(mesh, 5000, seed=3)
    counts = []
    for yaw in np.radians([0, 90, 180, 270]):
        pitch = np.radians(30)
        eye = 2 * np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)])
        ray = points - eye
        distance = np.linalg.norm(ray, axis=1)
        starts = np.tile(eye, (len(points), 1))
        hits, index, _ = mesh.ray.intersects_location(starts, ray / distance[:, None], multiple_hits=False)
        reach = np.full(len(points), np.inf)
        reach[index] = np.linalg.norm(hits - eye, axis=1)
        counts.append(int(np.sum(reach >= distance - 1e-3)))
    return counts


def test_some_are_best_seen_from_elsewhere_than_yaw_0(folder: Path) -> None:
    hidden = [sample for sample in SAMPLES if sample.hidden_at_yaw_0]
    best = {}
    for sample in hidden:
        counts = visible_counts(load(folder, sample))
        best[sample.name] = 90 * int(np.argmax(counts))
        assert max(counts) > 1.1 * counts[0], (sample.name, counts)
    assert len(best) >= 4
    assert {90, 180, 270} <= set(best.values())
