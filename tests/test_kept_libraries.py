"""Frechet and kernel distance are those of torchmetrics, to its own precision, on the same features."""

import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from gap3d.metrics.frechet import FeatureMoments, frechet_distance
from gap3d.metrics.kernel import kernel_distance

SIDE, WIDTH = 6, 16


class Projection(torch.nn.Module):
    """Pictures [N, 3, S, S] to features [N, D]: what stands for an extractor in both."""

    num_features = WIDTH

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(3 * SIDE * SIDE, WIDTH, generator=generator, dtype=torch.float64)
        self.register_buffer("weights", weights)

    def forward(self, pictures):
        return torch.tanh(pictures.double().flatten(1) @ self.weights / 2000)


@pytest.fixture(scope="module")
def sets():
    generator = torch.Generator().manual_seed(1)
    true, generated = (torch.randint(0, most, (90, 3, SIDE, SIDE), generator=generator) for most in (256, 180))
    return true.byte(), generated[:70].byte()


def moments_of(features):
    found = FeatureMoments(features.shape[1])
    found.update(features)
    return found


def test_the_frechet_distance_is_that_of_torchmetrics(sets):
    theirs = FrechetInceptionDistance(feature=Projection(), input_img_size=(3, SIDE, SIDE)).set_dtype(torch.float64)
    for pictures, real in zip(sets, (True, False), strict=True):
        theirs.update(pictures, real=real)
    ours = frechet_distance(*(moments_of(Projection()(pictures)) for pictures in sets))
    assert ours > 0.1
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-9)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save")
def test_the_kernel_distance_is_that_of_torchmetrics(sets):
    """It compares subsets of equal size: here one, of all samples."""
    pairs = sets[0][:70], sets[1]
    theirs = KernelInceptionDistance(feature=Projection(), subsets=1, subset_size=70)
    for pictures, real in zip(pairs, (True, False), strict=True):
        theirs.update(pictures, real=real)
    ours = kernel_distance(*(Projection()(pictures) for pictures in pairs))
    assert ours > 0.01
    assert ours == pytest.approx(float(theirs.compute()[0]), rel=1e-6)
