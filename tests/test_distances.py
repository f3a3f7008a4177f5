"""Frechet and kernel distance, and intervals: against closed forms, scipy, and sums over all pairs."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gap3d.metrics.bootstrap import mean_interval
from gap3d.metrics.frechet import FeatureMoments, frechet_distance, gaussian_distance, square_factor
from gap3d.metrics.kernel import kernel_distance


def random_features(count, width, seed, scale=1.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(0.1 * seed, scale, (count, width)))


def moments_of(features):
    found = FeatureMoments(features.shape[1])
    found.update(features)
    return found


@settings(max_examples=30, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 40), max_size=5),
    merged=st.booleans(),
    offset=st.sampled_from([0.0, 1e6]),
    seed=st.integers(0, 2**32 - 1),
)
def test_streamed_moments_are_those_of_all_features_at_once(cuts, merged, offset, seed):
    features = np.random.default_rng(seed).normal(offset, 1, (40, 3))
    found = FeatureMoments(3)
    for piece in np.split(features, sorted(cuts)):
        if merged:
            other = FeatureMoments(3)
            other.update(piece)
            found.merge(other)
        else:
            found.update(piece)
    assert found.count == 40
    np.testing.assert_allclose(found.mean, features.mean(0), rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(features.T), rtol=1e-9, atol=1e-9)


def test_a_million_features_take_the_memory_of_two_matrices():
    found = FeatureMoments(2)
    for start in range(0, 1_000_000, 100_000):
        found.update(torch.arange(start, start + 100_000, dtype=torch.float64)[:, None] * torch.tensor([1.0, -1.0]))
    exact = (1_000_000**2 + 1_000_000) / 12  # of 0 ... n - 1, over n - 1
    np.testing.assert_allclose(found.covariance, [[exact, -exact], [-exact, exact]], rtol=1e-12)


def test_gaussians_with_equal_axes_have_the_closed_form():
    mean1, mean2 = torch.tensor([1.0, -2, 0.5]).double(), torch.tensor([0.0, 1, 0.5]).double()
    variances1, variances2 = torch.tensor([4.0, 1, 0]).double(), torch.tensor([1.0, 9, 4]).double()
    turn = torch.linalg.qr(torch.from_numpy(np.random.default_rng(0).normal(size=(3, 3)))).Q
    wanted = 1 + 9 + (2 - 1) ** 2 + (1 - 3) ** 2 + (0 - 2) ** 2
    found = gaussian_distance(
        turn @ mean1, turn @ variances1.diag() @ turn.T, turn @ mean2, turn @ variances2.diag() @ turn.T
    )
    assert found == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_gaussians_of_the_plane_have_the_closed_form_whatever_their_axes(seed):
    # tr (S1 S2)^(1/2) = (tr S1 S2 + 2 (det S1 S2)^(1/2))^(1/2), for two dimensions.
    first, second = (a @ a.T for a in np.random.default_rng(seed).normal(size=(2, 2, 2)))
    product = first @ second
    root = math.sqrt(np.trace(product) + 2 * math.sqrt(np.linalg.det(product)))
    wanted = np.trace(first) + np.trace(second) - 2 * root
    zero = torch.zeros(2, dtype=torch.float64)
    assert gaussian_distance(zero, torch.from_numpy(first), zero, torch.from_numpy(second)) == pytest.approx(wanted)


def test_samples_of_gaussians_are_as_far_apart_as_the_gaussians():
    first, second = (moments_of(random_features(200_000, 4, seed, scale)) for seed, scale in ((1, 1.0), (5, 2.0)))
    assert frechet_distance(first, second) == pytest.approx(4 * 0.4**2 + 4 * (2 - 1) ** 2, rel=0.02)


@pytest.mark.parametrize("count", [2, 16, 70, 500])
def test_a_set_is_at_0_from_itself_also_where_its_covariance_is_singular(count):
    found = moments_of(random_features(count, 64, 3, scale=30))
    assert abs(frechet_distance(found, found)) < 1e-9


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e9, 1e18])
def test_the_quick_way_is_taken_only_where_it_agrees_with_the_sure_one(condition):
    scales = torch.logspace(0, -math.log10(condition) / 2, 48, dtype=torch.float64)
    turn = torch.linalg.qr(random_features(48, 48, 9)).Q
    first, second = (moments_of(random_features(200, 48, seed) * scales @ turn) for seed in (0, 3))
    singular = np.linalg.svd(square_factor(first.covariance).T @ square_factor(second.covariance), compute_uv=False)
    spread = first.covariance.trace() + second.covariance.trace()
    wanted = float((first.mean - second.mean).square().sum() + spread - 2 * singular.sum())
    assert frechet_distance(first, second) == pytest.approx(wanted, rel=1e-6)
    assert abs(frechet_distance(first, first)) < 1e-6


def test_sets_that_never_change_differ_by_their_means():
    first, second = moments_of(torch.zeros(4, 3)), moments_of(torch.ones(4, 3))
    assert frechet_distance(first, second) == 3


@pytest.mark.parametrize(("count", "digits"), [(400, 1e-6), (30, 1e-3)])
def test_it_is_the_distance_by_the_root_of_the_product(count, digits):
    scipy_linalg = pytest.importorskip("scipy.linalg")
    first, second = (moments_of(random_features(count, 64, seed, seed)) for seed in (1, 2))
    root = scipy_linalg.sqrtm((first.covariance @ second.covariance).numpy())
    traces = first.covariance.trace() + second.covariance.trace() - 2 * np.trace(root).real
    wanted = float((first.mean - second.mean).square().sum() + traces)
    assert frechet_distance(first, second) == pytest.approx(wanted, rel=digits)


def test_it_is_the_distance_by_the_eigenvalues_of_the_product():
    first, second = (moments_of(random_features(300, 24, seed, seed)) for seed in (1, 2))
    eigenvalues = np.linalg.eigvals((first.covariance @ second.covariance).numpy())
    traces = first.covariance.trace() + second.covariance.trace() - 2 * np.sqrt(eigenvalues.real).sum()
    wanted = float((first.mean - second.mean).square().sum() + traces)
    assert frechet_distance(first, second) == pytest.approx(wanted, rel=1e-10)


def test_features_that_are_none_are_refused_and_nothing_of_them_is_taken_in():
    found = moments_of(torch.ones(3, 2))
    with pytest.raises(ValueError, match="1 of 2 features are not finite, the first of them row 1"):
        found.update(torch.tensor([[1.0, 2], [torch.nan, 0]]))
    with pytest.raises(ValueError, match="of 2 channels"):
        found.update(torch.ones(1, 3))
    assert found.count == 3
    assert torch.equal(found.mean, torch.ones(2).double())
    with pytest.raises(ValueError, match="channels"):
        frechet_distance(found, moments_of(torch.ones(3, 5)))


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_features_have_no_distance(count):
    few, enough = moments_of(torch.ones(count, 2)), moments_of(torch.ones(2, 2))
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(few, enough)
    with pytest.raises(ValueError, match="at least 2"):
        kernel_distance(torch.ones(count, 2), torch.ones(2, 2))


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_the_kernel_distance_is_the_unbiased_mean_over_all_pairs(rows):
    one, two = random_features(11, 5, 1).numpy(), random_features(7, 5, 2).numpy()

    def k(x, y):
        return (sum(a * b for a, b in zip(x, y, strict=True)) / 5 + 1) ** 3

    within = [
        np.mean([k(x, y) for i, x in enumerate(some) for j, y in enumerate(some) if i != j]) for some in (one, two)
    ]
    wanted = sum(within) - 2 * np.mean([k(x, y) for x in one for y in two])
    assert kernel_distance(one, two, rows) == pytest.approx(wanted, rel=1e-12)


def test_the_kernel_distance_of_splits_of_one_set_is_0_in_the_mean():
    features, rng = random_features(80, 8, 2), np.random.default_rng(0)
    found = []
    for _ in range(100):
        order = rng.permutation(80)
        found.append(kernel_distance(features[order[:40]], features[order[40:]]))
    assert abs(np.mean(found)) < 4 * np.std(found) / math.sqrt(100)
    # With the diagonal it would not be 0: about the mean of k(x, x) - k(x, y), over 40, twice.
    diagonal = ((features.square().sum(1) / 8 + 1) ** 3).mean() - ((features @ features.T / 8 + 1) ** 3).mean()
    assert 2 * diagonal / 40 > 10 * abs(np.mean(found))


def test_an_interval_has_the_width_that_theory_gives_a_mean():
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = mean_interval(values, seed=1)
    half = 1.96 * values.std() / 20
    assert found.mean == values.mean()
    assert found.low == pytest.approx(found.mean - half, abs=0.03)
    assert found.high == pytest.approx(found.mean + half, abs=0.03)
    assert found == mean_interval(values, seed=1)
    assert found != mean_interval(values, seed=2)


def test_samples_of_one_group_are_drawn_together():
    rng = np.random.default_rng(0)
    groups, values = np.repeat(np.arange(40), rng.integers(1, 6, 40)), rng.random(40)
    found = mean_interval(values[groups], seed=0, groups=groups)
    assert found.mean == pytest.approx(values[groups].mean()) and found.samples == len(groups)
    sizes = np.bincount(groups)
    drawn = rng.integers(40, size=(20_000, 40))
    wanted = np.quantile((values * sizes)[drawn].sum(1) / sizes[drawn].sum(1), [0.025, 0.975])
    assert [found.low, found.high] == pytest.approx(wanted, abs=0.01)
    alone = mean_interval(values[groups], seed=0)
    assert found.high - found.low > 1.3 * (alone.high - alone.low)
    assert mean_interval([1.0, 2.0], seed=0, groups=[5, 5]).low is None
    with pytest.raises(ValueError, match="1 groups can't be those of 2 values"):
        mean_interval([1.0, 2.0], seed=0, groups=[0])


def test_intervals_of_95_percent_hold_the_truth_about_so_often():
    rng = np.random.default_rng(0)
    held = [
        found.low <= 0.3 <= found.high
        for found in (mean_interval(rng.random(100) < 0.3, seed=trial, resamples=300) for trial in range(300))
    ]
    assert 0.90 <= np.mean(held) <= 0.99


def test_values_without_a_mean_are_refused_and_one_alone_has_no_interval():
    for values in ([], [1.0, math.nan]):
        with pytest.raises(ValueError, match=r"no mean|not finite"):
            mean_interval(values, seed=0)
    found = mean_interval([2.5], seed=0)
    assert (found.mean, found.low, found.high, found.samples) == (2.5, None, None, 1)
