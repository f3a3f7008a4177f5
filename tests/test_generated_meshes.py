"""Anybody's meshes against true objects: what is rendered, and what a run finds that comes after a change."""

import pytest
from balls import balls, commit, settings_of
from folders import write_box

from gap3d.evaluation.objects import objects_of
from gap3d.store import Store
from pipelines.around import parent_of
from pipelines.generation_metrics import of_objects

NAMES = ("a", "b", "c")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def meshes(tmp_path_factory):
    """(measure(count, spec), folder): three true balls, and a folder with a box for each of them and for a stranger."""
    root = tmp_path_factory.mktemp("meshes")
    commit(root, balls(NAMES))
    for number, name in enumerate((*NAMES, "stranger")):
        write_box(root / "boxes" / f"{name}.obj", 1.0 + number / 2)

    def measure(count=None, spec=f"meshes:{root / 'boxes'}"):
        section = {"views": [4], "resolution": 32, "samples": 1, "count": count}
        settings = settings_of(root, evaluation=section, renders={"denoise": False})
        (result,), report = of_objects(settings, spec, "boxes")
        return result, report, settings

    return measure, root / "boxes"


@pytest.fixture(scope="module")
def grown(meshes):
    """What a run of one object did, and then a run of all."""
    return meshes[0](1), meshes[0]()


def computed(report):
    return report.count("computed", "renders")


def test_only_what_stands_for_measured_objects_is_rendered_and_nothing_twice(meshes, grown):
    (one, first, _), (result, later, settings) = grown
    assert one.counts == {"ok": 1} and computed(first) == 4
    assert result.counts == {"ok": 3} and computed(later) == 8
    assert result.cells["fd_inception"].value > 0
    again, nothing, _ = meshes[0]()
    assert again == result and nothing.count("computed") == 0
    name = result.protocol["generated"]["collection"]
    same, nothing, _ = meshes[0](spec=f"collection:{name}")
    assert same.cells == result.cells and computed(nothing) == 0
    store = Store.open(settings.store, f"{name}-around", settings.blobs)
    assert parent_of(settings, store).collection == name
    assert sum(len(store.manifest("renders", shard).rows) for shard in store.shards) == 3 * 4


def test_a_mesh_that_changed_is_rendered_and_measured_anew(meshes, grown):
    before, *_ = meshes[0]()
    write_box(meshes[1] / "b.obj", 7.0)
    after, report, _ = meshes[0]()
    assert computed(report) == 4 and after.counts == {"ok": 3}
    assert after.cells["fd_inception"].value != before.cells["fd_inception"].value


def test_a_mesh_that_is_gone_is_missing_and_one_that_came_is_measured(meshes, grown):
    before, *_ = meshes[0]()
    content = (meshes[1] / "c.obj").read_text()
    (meshes[1] / "c.obj").unlink()
    gone, report, _ = meshes[0]()
    assert gone.counts == {"missing": 1, "ok": 2} and computed(report) == 0
    (meshes[1] / "c.obj").write_text(content)
    back, report, _ = meshes[0]()
    assert computed(report) == 4 and back.cells == before.cells


def test_captions_that_changed_are_those_that_pictures_are_scored_against(meshes, grown):
    captions = meshes[1] / "captions.csv"
    captions.write_text("path,captions\na.obj,a grey box\n")
    one, *_ = meshes[0]()
    captions.write_text("path,captions\na.obj,something else altogether\n")
    other, report, _ = meshes[0]()
    assert computed(report) == 0
    assert [each.protocol["generated"]["captions_of_its_own"] for each in (grown[1][0], one, other)] == [0, 1, 1]
    assert len({each.protocol["inputs"]["captions"] for each in (grown[1][0], one, other)}) == 3


def test_meshes_of_objects_that_are_not_measured_are_a_sentence(meshes, grown):
    settings = grown[0][2]
    (measured,) = objects_of(Store.open(settings.store, "balls-around", settings.blobs), 1, 42)
    other = next(name for name in NAMES if name != measured)
    write_box(meshes[1].parent / "others" / f"{other}.obj")
    with pytest.raises(ValueError, match=r"for none of the 1 that are measured: raise --evaluation\.count"):
        meshes[0](1, f"meshes:{meshes[1].parent / 'others'}")
