"""What the dataset's report measures, against numpy over everything at once and against planted truths."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from gap3d.atlas import neighbours
from gap3d.atlas.health import findings, one_encoder
from gap3d.atlas.histogram import Histogram
from gap3d.atlas.neighbours import nearest
from gap3d.atlas.pca import RANGE, Colours, Covariance
from gap3d.atlas.pictures import as_seen, foreground
from gap3d.atlas.statistics import TokenStatistics
from gap3d.settings import TargetSettings

GRID = (3, 5)
WIDTH = 24


def normed(tokens):
    """Layer norm over channels, as targets have it."""
    return torch.nn.functional.layer_norm(torch.as_tensor(tokens).float(), tokens.shape[-1:])


def tokens_of(images, count, seed=0, width=WIDTH):
    """Normed tokens [images, count, width] with channels of different means and deviations."""
    random = np.random.default_rng(seed)
    raw = random.normal(size=(images, count, width)) * np.linspace(0.3, 2, width) + random.normal(size=width)
    return normed(raw + random.normal(size=(images, 1, width)))


def measured(tokens, grid=None, pieces=(1, 4, 2, 100), name="patches", kind="float16"):
    """Statistics of tokens that come in uneven pieces."""
    made = TokenStatistics(name, grid, kind)
    start = 0
    for size in pieces:
        made.add(tokens[start : start + size])
        start += size
    return made


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


numbers = st.floats(-1e6, 1e6, allow_subnormal=False)


@given(st.lists(st.lists(numbers, max_size=20), min_size=1, max_size=8), st.sampled_from([2, 7, 64]))
def test_a_histogram_in_pieces_is_numpys_of_everything_at_once(pieces, bins):
    made, whole = Histogram(bins), Histogram(bins)
    for piece in pieces:
        made.add(piece)
    everything = np.concatenate([np.asarray(piece, dtype=float) for piece in pieces])
    whole.add(everything[::-1])
    if not len(everything):
        assert made.count == 0
        return
    assert len(made.counts) <= bins
    assert np.array_equal(made.counts, np.histogram(everything, made.edges)[0])
    assert np.array_equal(made.counts, whole.counts)
    assert np.array_equal(made.edges, whole.edges)
    assert (made.least, made.most) == (everything.min(), everything.max())


def test_quantiles_are_right_to_the_width_of_a_bin_and_what_is_not_finite_is_counted():
    values = np.random.default_rng(0).gamma(2.0, size=5000)
    made = Histogram()
    made.add([np.nan, np.inf])
    made.add(values)
    assert (made.missed, made.count) == (2, 5000)
    for share in (0.01, 0.5, 0.99):
        assert abs(made.quantile(share) - np.quantile(values, share)) <= made.width
    shown = made.as_dict(shown=40)
    assert len(shown["counts"]) <= 40
    assert sum(shown["counts"]) == 5000


@pytest.mark.parametrize(("grid", "count"), [(None, 3), (GRID, 15)])
def test_moments_and_cosines_are_numpys_of_all_tokens_at_once(grid, count):
    tokens = tokens_of(11, count).half()
    made = measured(tokens, grid)
    truth = tokens.double().numpy()
    norms = np.linalg.norm(truth, axis=-1)
    assert (made.images, made.tokens, made.broken) == (11, 11 * count, 0)
    for histogram, values in ((made.norms, norms), (made.variances, truth.var(-1)), (made.means, truth.mean(-1))):
        assert histogram.count == values.size
        assert np.allclose([histogram.least, histogram.most], [values.min(), values.max()], atol=2e-6)
        below = np.concatenate([[0], np.cumsum(histogram.counts)])  # at every edge, to single precision
        ordered = np.sort(values, axis=None)
        assert np.all(below >= np.searchsorted(ordered, histogram.edges - 2e-6))
        assert np.all(below <= np.searchsorted(ordered, histogram.edges + 2e-6))
    assert np.allclose(made.channel_means, truth.mean((0, 1)), atol=1e-6)
    assert np.allclose(made.channel_deviations, truth.std((0, 1)), atol=1e-6)
    each = unit(truth)
    cosines = np.einsum("itc,jsc->ijts", each, each)
    others = ~np.eye(11, dtype=bool)
    same = cosines[others] if grid else cosines[others][:, np.arange(count), np.arange(count)]
    assert made.cosines.across == pytest.approx(same.mean(), abs=1e-6)
    within = [cosines[i, i][~np.eye(count, dtype=bool)].mean() for i in range(11)]
    assert (made.cosines.within.least, made.cosines.within.most) == pytest.approx((min(within), max(within)), abs=1e-6)
    if grid:
        places = [(r, c) for r in range(grid[0]) for c in range(grid[1])]
        near = [(a, b) for a in range(count) for b in range(a) if np.abs(np.subtract(places[a], places[b])).sum() == 1]
        adjacent = [np.mean([cosines[i, i, a, b] for a, b in near]) for i in range(11)]
        assert made.cosines.adjacent.most == pytest.approx(max(adjacent), abs=1e-6)
        assert made.cosines.adjacent.least == pytest.approx(min(adjacent), abs=1e-6)


def test_the_error_of_the_mean_is_what_cosines_say_of_tokens_of_variance_one():
    tokens = tokens_of(40, 2, seed=3)
    made = measured(tokens, name="registers")
    truth = ((tokens - tokens.mean(0)) ** 2).mean()
    assert made.mean_error == pytest.approx(float(truth), abs=1e-6)
    assert made.mean_error == pytest.approx((1 - made.cosines.across) * 39 / 40, abs=1e-4)


def test_broken_tokens_are_counted_and_change_no_other_number():
    tokens = tokens_of(9, 15)
    spoilt = torch.cat([tokens[:4], tokens[:1], tokens[4:]])
    spoilt[4, 7, 3] = torch.nan
    spoilt[4, 9, 0] = torch.inf
    made, sound = measured(spoilt, GRID), measured(tokens, GRID)
    assert (made.broken, made.tokens) == (2, 150)
    assert np.allclose(made.channel_means, sound.channel_means, atol=1e-6)
    assert made.cosines.across == pytest.approx(sound.cosines.across, abs=1e-6)


def test_a_loud_channel_is_named_with_its_share_of_the_energy():
    raw = np.random.default_rng(0).normal(size=(50, 15, WIDTH))
    raw[..., 17] += 60
    said = measured(normed(raw), GRID).as_dict()
    assert said["outliers"] == [17]
    assert said["loudest"][0]["channel"] == 17
    assert said["outlier_share"] > 0.9


def test_components_are_those_of_a_singular_value_decomposition_with_the_largest_loading_positive():
    random = np.random.default_rng(1)
    spread = np.array([9.0, 4.0, 1.5, 0.0, 0.0])
    axes = np.linalg.qr(random.normal(size=(WIDTH, 5)))[0].T
    data = (random.normal(size=(700, 5)) * spread) @ axes + 100 * random.normal(size=WIDTH)
    made = Covariance()
    for piece in np.split(data, [3, 50, 51, 400]):
        made.add(torch.from_numpy(piece))
    found = made.components(4)
    centred = data - data.mean(0)
    _, values, right = np.linalg.svd(centred, full_matrices=False)
    assert np.allclose(found.variances, values[:4] ** 2 / 700, atol=1e-4)
    assert np.all(np.diff(found.variances) <= 0)
    for number in range(3):
        truth = right[number] * np.sign(right[number][np.abs(right[number]).argmax()])
        assert np.allclose(found.axes[number].numpy(), truth, atol=1e-3)
    assert sum(found.shares[:3]) == pytest.approx(1, abs=1e-4)
    assert np.allclose(
        found.project(torch.from_numpy(data)).numpy()[:, :3], centred @ found.axes[:3].numpy().T, atol=1e-3
    )


def test_tokens_of_equal_spread_in_k_directions_fill_k_dimensions():
    corners = np.concatenate([np.eye(WIDTH)[:6], -np.eye(WIDTH)[:6]])
    made = Covariance()
    made.add(torch.from_numpy(corners))
    assert made.effective == pytest.approx(6, abs=1e-4)


def test_a_colour_means_the_same_in_every_image_and_what_does_not_vary_is_grey():
    projected = np.random.default_rng(0).normal(size=(5000, 2)).astype(np.float32) * [3, 1]
    projected = np.concatenate([projected, np.full((5000, 1), 7)], 1).astype(np.float32)
    scale = Colours.of(projected)
    low, high = np.quantile(projected[:, 0], RANGE)
    ends = scale.paint(np.array([[low, 0, 7], [high, 0, 7], [low - 9, 0, 7], [high + 9, 0, 7]], dtype=np.float32))
    assert ends[:, 0].tolist() == [0, 255, 0, 255]
    assert set(ends[:, 2].tolist()) == {128}
    assert Colours.of(projected[:, :1]).paint(projected[:9, :1]).shape == (9, 3)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", 7)


def brute(vectors, groups):
    """All cosines; -2 within a group."""
    cosines = unit(vectors) @ unit(vectors).T
    cosines[groups[:, None] == groups[None]] = -2
    return cosines


@pytest.mark.parametrize("views", [1, 3])
def test_neighbours_in_blocks_are_those_of_all_cosines_and_never_of_the_same_object(small_blocks, views):
    random = np.random.default_rng(2)
    vectors = random.normal(size=(60, 8))
    groups = random.permutation(60) // views
    found, _ = nearest(torch.from_numpy(vectors).float(), 4, groups)
    truth = brute(vectors, groups)
    order = np.argsort(-truth, axis=1)[:, :4]
    assert np.array_equal(found.indices, order)
    assert np.allclose(found.cosines, np.take_along_axis(truth, order, 1), atol=1e-6)
    assert not (groups[found.indices] == groups[:, None]).any()


def test_planted_duplicates_are_found_counted_and_named_the_nearest_first(small_blocks):
    random = np.random.default_rng(5)
    vectors = random.normal(size=(50, 16))
    sides = np.zeros(50, dtype=np.int64)
    planted = [(3, 41, 0.01), (12, 13, 0.05), (8, 30, 0.1)]
    for first, second, noise in planted:
        vectors[second] = 2 * (vectors[first] + noise * random.normal(size=16))  # length says nothing
    sides[[41, 30]] = 1
    truth = brute(vectors, np.arange(50))
    for most in (1, 10):
        _, found = nearest(torch.from_numpy(vectors).float(), 3, sides=sides, bound=0.97, most_pairs=most)
        assert (found.count, found.across) == (3, 2)
        assert [pair[:2] for pair in found.pairs] == [(3, 41), (12, 13), (8, 30)][:most]
        assert np.allclose([pair[2] for pair in found.pairs], [truth[a, b] for a, b, _ in planted][:most], atol=1e-6)


def test_of_images_that_are_all_the_same_every_pair_is_counted_and_few_are_named(small_blocks):
    found, pairs = nearest(torch.ones(30, 4), 2, bound=0.98, most_pairs=5)
    assert pairs.count == 30 * 29 // 2
    assert len(pairs.pairs) == 5
    assert np.allclose(found.cosines, 1)


def test_a_planted_outlier_is_least_like_its_neighbours():
    random = np.random.default_rng(6)
    vectors = random.normal(size=16) + 0.3 * random.normal(size=(40, 16))
    vectors[23] *= -1
    found, _ = nearest(torch.from_numpy(vectors).float(), 5)
    assert int(found.closeness.argmin()) == 23


def test_rows_without_enough_others_have_fewer_neighbours():
    one, none = nearest(torch.ones(1, 4), 3)
    assert one.indices.tolist() == [[-1, -1, -1]]
    assert np.isnan(one.closeness).all()
    assert (none.count, none.pairs) == (0, [])
    both, _ = nearest(torch.eye(4)[:2], 3)
    assert both.indices.tolist() == [[1, -1, -1], [0, -1, -1]]


def disc(side, size):
    image = Image.new("RGBA", (side, size))
    ImageDraw.Draw(image).ellipse((side // 4, size // 4, side - side // 4, size - size // 4), fill=(200, 30, 30, 255))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue(), np.asarray(image, dtype=float)


def test_the_foreground_is_what_the_object_covers_of_each_patch_as_the_encoder_sees_it():
    settings = TargetSettings(image_size=60)
    png, rgba = disc(60, 60)
    covered = rgba[..., 3].reshape(3, 20, 5, 12).mean((1, 3)) / 255
    assert np.array_equal(foreground(png, settings, GRID, 10**6), covered >= 0.5)
    wide, rgba = disc(120, 60)  # the encoder sees the middle
    covered = rgba[:, 30:90, 3].reshape(3, 20, 5, 12).mean((1, 3)) / 255
    assert np.array_equal(foreground(wide, settings, GRID, 10**6), covered >= 0.5)
    seen = as_seen(wide, settings, 10**6)
    assert np.abs(seen.astype(float) - rgba[:, 30:90, :3] * rgba[:, 30:90, 3:] / 255).max() <= 1
    assert foreground(png, TargetSettings(image_size=60, alpha="drop"), GRID, 10**6) is None
    assert foreground(png[:99], settings, GRID, 10**6) is None


def named(found):
    return {finding.about for finding in found if not finding.good}


@pytest.mark.parametrize(
    ("spoil", "finding"),
    [
        (lambda tokens: tokens, set()),
        (lambda tokens: tokens.where(torch.arange(WIDTH) != 3, torch.nan), {"patches: every number is finite"}),
        (lambda tokens: 2 * tokens, {"patches: every token has variance 1"}),
        (lambda tokens: tokens + 0.5, {"patches: every token has mean 0"}),
        (lambda tokens: tokens[:1].expand_as(tokens), {"patches: images differ"}),
        (lambda tokens: normed(tokens[:1, :1] + 0.01 * tokens), {"patches: images are told apart"}),
    ],
    ids=["sound", "not finite", "scaled", "shifted", "all the same", "nearly the same"],
)
def test_each_planted_fault_is_found_and_no_other(spoil, finding):
    assert named(findings([measured(spoil(tokens_of(12, 15)).half(), GRID)])) == finding


def test_tokens_are_sound_within_the_bounds_of_their_own_number_format():
    tokens = tokens_of(12, 15)
    tokens[..., 0] = 9  # a loud channel makes the steps of all others coarse
    tokens = normed(tokens)
    scale = tokens.abs().amax(-1, keepdim=True) / 127
    coarse = (tokens / scale).round() * scale
    assert named(findings([measured(coarse, GRID, kind="int8")])) == set()
    assert named(findings([measured(coarse, GRID, kind="float16")])) == {
        "patches: every token has mean 0",
        "patches: every token has variance 1",
    }


def test_parts_of_two_encoders_are_told_apart():
    said = {"encoder": {"label": "one", "weights": "a" * 64}, "tokens": {"grid": [3, 5]}}
    other = {**said, "encoder": {"label": "one", "weights": "b" * 64}}
    assert one_encoder([said, dict(said)]).good
    assert not one_encoder([said, other]).good
    assert "bbbb" in one_encoder([said, other]).words
