"""compare_features against a plain computation, and against itself."""

import shutil

import numpy as np
import pytest
from folders import run_line, small, write_box

from gap3d.target_parts import read_targets
from pipelines.command import open_store
from pipelines.compare_features import compare
from pipelines.job import NotReady


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """The same three boxes with few samples and with more, at another image size, and over more shards."""
    root = tmp_path_factory.mktemp("profiles")
    for index in range(3):
        write_box(root / "objects" / f"{index}.obj", 1.0 + index)
    made = {}
    coarse = {"renders": {"samples": 1, "denoise": False}}
    fine = {"renders": {"samples": 64, "denoise": False}}
    for name, values in {
        "coarse": coarse,
        "fine": fine,
        "larger": {**coarse, "targets": {"image_size": 70}},
        "spread": {**fine, "catalog": {"shards": 4}},
    }.items():
        settings = small(root / "store", root / "objects", collection=name, **values)
        if name == "larger":  # of the same renders
            shutil.copytree(root / "store" / "coarse", root / "store" / name)
        run_line(settings)
        made[name] = open_store(settings)
    return made


def tokens(store):
    return {
        key: {
            "cls": batch.cls[index : index + 1].numpy(),
            "registers": batch.registers[index].float().numpy(),
            "patches": batch.patches[index].float().numpy(),
        }
        for shard in store.shards
        for batch in read_targets(store, shard)
        for index, key in enumerate(batch.keys)
    }


def test_a_collection_is_the_same_as_itself(stores):
    for values in compare(stores["fine"], stores["fine"]).values():
        assert len(values) == 3
        np.testing.assert_allclose(values, 1.0, atol=1e-6)


def test_cosines_are_means_over_the_tokens_of_each_image(stores):
    one, other = tokens(stores["coarse"]), tokens(stores["fine"])
    for kind, values in compare(stores["coarse"], stores["fine"]).items():
        expected = sorted(
            np.mean(
                (one[key][kind] * other[key][kind]).sum(-1)
                / np.linalg.norm(one[key][kind], axis=-1)
                / np.linalg.norm(other[key][kind], axis=-1)
            )
            for key in one
        )
        np.testing.assert_allclose(sorted(values.tolist()), expected, atol=1e-5)
        assert min(expected) < 0.9999  # noise does change the features


def test_the_number_of_shards_makes_no_difference(stores):
    assert len(stores["spread"].shards) == 2 * len(stores["coarse"].shards)
    expected = compare(stores["coarse"], stores["fine"])
    for one, other in ((stores["coarse"], stores["spread"]), (stores["spread"], stores["coarse"])):
        for kind, values in compare(one, other).items():
            np.testing.assert_allclose(sorted(values.tolist()), sorted(expected[kind].tolist()), atol=1e-6)


def test_the_program_compares_collections_of_other_numbers_of_shards(stores, program):
    store = stores["coarse"]
    words = ["--preset", "demo", "--store", store.root, "--collection", "coarse", "--catalog.shards", "2"]
    told = program("pipelines.compare_features", *words, "--other", "spread")
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("3 images\n")


def test_other_token_counts_are_refused_with_a_sentence(stores):
    with pytest.raises(NotReady, match="same encoder and image size"):
        compare(stores["fine"], stores["larger"])
