"""PointNet++ against the original's features, and its checkpoints."""

import numpy as np
import pytest
import torch
from shared_data import golden, weights_of

from gap3d.metrics.extractors.extractor import warn_untrained
from gap3d.metrics.extractors.pointnet import PUBLISHED, PointFeatures
from gap3d.metrics.pointnet2 import PointNet2
from gap3d.records import Failure, SystemicFault


@pytest.fixture(scope="module")
def original():
    """Inputs and outputs of the original, and its weights in float32."""
    config, values = golden("pointnet2_ssg.safetensors")
    weights = {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights_of(values).items()
    }
    return config, weights, values


@pytest.fixture(scope="module")
def checkpoint(original, tmp_path_factory):
    """A file as Point-E publishes it: of a training, with more than the weights."""
    path = tmp_path_factory.mktemp("weights") / "pointnet.pt"
    torch.save({"epoch": 3, "instance_acc": 0.9, "model_state_dict": original[1], "optimizer_state_dict": {}}, path)
    return path


@torch.inference_mode()
def test_features_and_classes_are_the_originals(original):
    config, weights, values = original
    network = PointNet2(config["width"], config["classes"]).eval()
    network.load_state_dict(weights)
    points, start = values["input.points"], torch.arange(2)
    torch.testing.assert_close(network.features(points, start), values["output.features"], atol=1e-4, rtol=0)
    torch.testing.assert_close(network(points, start), values["output.log_probabilities"], atol=1e-4, rtol=0)


def test_point_es_checkpoint_gives_the_originals_features(original, checkpoint):
    extractor = PointFeatures(str(checkpoint), paper=True, device="cpu")
    assert extractor.trained and extractor.width == 256 and extractor.label == str(checkpoint)
    found = extractor.features(list(original[2]["input.points"].numpy()))
    # The clouds are normalised once more: those given are so up to rounding.
    torch.testing.assert_close(found, original[2]["output.features"], atol=1e-3, rtol=0)


def test_a_clouds_feature_is_its_own_but_for_the_released_start(original, checkpoint):
    clouds = list(original[2]["input.points"].numpy())
    for paper in (False, True):
        extractor = PointFeatures(str(checkpoint), paper=paper, device="cpu")
        there, back = extractor.features(clouds), extractor.features(clouds[::-1]).flip(0)
        assert torch.allclose(there, back, atol=1e-5) is not paper


def test_the_released_start_is_the_place_in_a_batch_of_64(checkpoint, monkeypatch):
    monkeypatch.setattr("gap3d.metrics.extractors.pointnet.PASS", 3)
    extractor = PointFeatures(str(checkpoint), paper=True, device="cpu")
    seen = []
    monkeypatch.setattr(
        extractor._network, "features", lambda points, start: seen.extend(start.tolist()) or points.new_zeros(3, 256)
    )
    extractor.features([np.random.default_rng(0).normal(size=(3, 3))] * 66)
    assert seen == [*range(64), 0, 1]


def test_points_may_be_anywhere_and_of_any_size(original, checkpoint):
    extractor = PointFeatures(str(checkpoint), device="cpu")
    cloud = original[2]["input.points"][0].numpy()
    torch.testing.assert_close(extractor.features([cloud]), extractor.features([4 * cloud + 2]), atol=1e-3, rtol=0)


def test_published_channels_are_doubled_in_point_es():
    assert PointNet2().width == 512


def test_random_weights_say_that_they_are(caplog):
    warn_untrained.cache_clear()
    extractor = PointFeatures("random-small", device="cpu")
    assert not extractor.trained and "UNTRAINED" in extractor.label and "UNTRAINED" in caplog.text
    assert extractor.features([]).shape == (0, extractor.width)
    with pytest.raises(Failure, match="no scale"):
        extractor.features([np.zeros((600, 3))])


def test_missing_and_foreign_weights_say_what_to_do(tmp_path):
    with pytest.raises(SystemicFault, match=r"no file .*pointnet\.pt.*checkpoints.*evaluation\.pointnet FILE"):
        PointFeatures(str(tmp_path / "pointnet.pt"))
    path = tmp_path / "other.pt"
    weights = PointNet2().state_dict()
    del weights["sa1.mlp_convs.0.weight"]
    torch.save(weights, path)
    with pytest.raises(SystemicFault, match=r"another network: .*sa1\.mlp_convs\.0\.weight"):
        PointFeatures(str(path))
    path.write_bytes(b"no weights")
    with pytest.raises(SystemicFault, match=r"other\.pt"):
        PointFeatures(str(path))
    torch.save([1, 2], path)
    with pytest.raises(SystemicFault, match="not a plain table of tensors"):
        PointFeatures(str(path))
    assert PUBLISHED.kept.name == "pointnet.pt"
