"""Alignment metrics and neighbourhood overlap against sums written out and brute force."""

import math

import numpy as np
import pytest
import torch

from gap3d.features.tokens import TokenLayout, targets_from_prenorm
from gap3d.metrics.alignment import GAP, MEASURES, NORMALISED, TABLE_KINDS, Alignment, expected_mse, kinds_of
from gap3d.metrics.neighbourhood import nearest, neighbourhood_overlap

LAYOUTS = [TokenLayout(4, (3, 5), 12), TokenLayout(0, (2, 2), 7), TokenLayout(1, (1, 3), 64)]


def pairs(layout, samples, seed=0):
    """Predictions of some quality, and layer-normed targets."""
    generator = torch.Generator().manual_seed(seed)
    shape = (samples, layout.count, layout.width)
    true = targets_from_prenorm(torch.randn(shape, generator=generator))
    return 0.8 * true + 0.5 * torch.randn(shape, generator=generator), true


def measured(predicted, true, layout, sizes):
    """The means if the samples come in batches of these sizes."""
    alignment = Alignment()
    for one, other in zip(predicted.split(sizes), true.split(sizes), strict=True):
        alignment.add(kinds_of(one, layout), kinds_of(other, layout))
    return alignment.means()


def by_hand(predicted, true, tokens):
    """Cosine, MSE and norm ratio as a mean over samples of means over tokens, in plain loops of Python floats."""
    samples = []
    for one, other in zip(predicted.double().tolist(), true.double().tolist(), strict=True):
        each = []
        for token in tokens:
            p, t = one[token], other[token]
            dot = sum(a * b for a, b in zip(p, t, strict=True))
            norms = math.sqrt(sum(a * a for a in p)), math.sqrt(sum(b * b for b in t))
            error = sum((a - b) ** 2 for a, b in zip(p, t, strict=True)) / len(p)
            each.append((dot / (max(norms[0], 1e-8) * max(norms[1], 1e-8)), error, norms[0] / (norms[1] + 1e-8)))
        samples.append(np.mean(each, axis=0))
    return dict(zip(MEASURES, np.mean(samples, axis=0), strict=True))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_means_are_those_of_plain_loops(layout):
    predicted, true = pairs(layout, 5)
    found = measured(predicted, true, layout, [5])
    first = 1 + layout.registers
    tokens = {"cls": [0], "registers": range(1, first), "patches": range(first, layout.count)}
    for kind in TABLE_KINDS:
        if not len(tokens[kind]):
            assert not [name for name in found if name.endswith(kind)]
            continue
        for name, value in by_hand(predicted, true, tokens[kind]).items():
            assert found[f"{name}_{kind}"] == pytest.approx(value, rel=1e-12), (name, kind)


def test_how_samples_are_cut_into_batches_changes_nothing():
    predicted, true = pairs(LAYOUTS[0], 7)
    whole = measured(predicted, true, LAYOUTS[0], [7])
    assert measured(predicted, true, LAYOUTS[0], [4, 3]) == whole
    assert measured(predicted, true, LAYOUTS[0], [1] * 7) == whole
    of_batches = torch.stack([predicted[:4].sub(true[:4]).square().mean(), predicted[4:].sub(true[4:]).square().mean()])
    layout = TokenLayout(0, (1, LAYOUTS[0].count - 1), 12)  # a mean of batches' means is another number
    assert measured(predicted, true, layout, [4, 3])["mse_patches"] != pytest.approx(float(of_batches.mean()), rel=1e-6)


def test_bfloat16_predictions_and_float16_targets_are_compared_as_the_numbers_that_they_are():
    layout = LAYOUTS[0]
    predicted, true = pairs(layout, 3)
    predicted, true = predicted.bfloat16(), true.half()
    assert measured(predicted, true, layout, [3]) == measured(predicted.double(), true.double(), layout, [3])


def test_cosine_is_torchs_also_where_a_token_is_nearly_zero():
    true = torch.randn(1, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for scale in (0.0, 1e-12, 1e-9, 1.0):
        alignment = Alignment()
        alignment.add({"patches": scale * true}, {"patches": true})
        wanted = torch.nn.functional.cosine_similarity(scale * true, true, dim=-1, eps=1e-8)
        assert alignment.means()["cosine_patches"] == pytest.approx(float(wanted), abs=1e-15)


def test_the_error_of_normed_targets_follows_from_cosine_and_norm_ratio_and_of_others_does_not():
    layout = LAYOUTS[2]
    predicted, true = pairs(layout, 4)
    found = measured(predicted, true, layout, [4])
    assert max(found[f"{GAP}_{kind}"] for kind in TABLE_KINDS) < 1e-4
    cosine, ratio = (torch.tensor(found[f"{name}_cls"]) for name in ("cosine", "norm_ratio"))
    assert float(expected_mse(cosine, ratio)) == pytest.approx(found["mse_cls"], abs=0.02)
    for scale in (0.9, 1.1):
        other = measured(predicted, scale * true, layout, [4])
        assert min(other[f"{GAP}_{kind}"] for kind in TABLE_KINDS) > NORMALISED


def test_one_number_that_is_none_shows_in_its_kind_and_in_no_other():
    layout = LAYOUTS[0]
    predicted, true = pairs(layout, 3)
    predicted[1, 0, 0] = torch.nan
    found = measured(predicted, true, layout, [2, 1])
    assert {name for name, value in found.items() if math.isnan(value)} == {f"{m}_cls" for m in (*MEASURES, GAP)}


def test_what_can_not_be_compared_is_refused():
    alignment = Alignment()
    with pytest.raises(ValueError, match="no sample was measured"):
        alignment.means()
    with pytest.raises(ValueError, match="can't be compared"):
        alignment.add({"patches": torch.zeros(2, 3, 4)}, {"patches": torch.zeros(2, 4, 4)})
    with pytest.raises(ValueError, match="at least one token"):
        alignment.add({"patches": torch.zeros(2, 0, 4)}, {"patches": torch.zeros(2, 0, 4)})
    alignment.add({"patches": torch.ones(2, 3, 4)}, {"patches": torch.ones(2, 3, 4)})
    with pytest.raises(ValueError, match="follow others"):
        alignment.add({"cls": torch.ones(2, 1, 4)}, {"cls": torch.ones(2, 1, 4)})


def brute_force(predicted, true, k):
    """Shares of agreeing neighbours, patch by patch, by sorting (-cosine, index)."""
    found = []
    for sides in zip(predicted.double().numpy(), true.double().numpy(), strict=True):
        units = [side / np.linalg.norm(side, axis=-1, keepdims=True) for side in sides]
        shares = []
        for patch in range(len(units[0])):
            near = []
            for unit in units:
                others = np.delete(np.arange(len(unit)), patch)
                by_cosine = np.lexsort((others, -(unit[others] @ unit[patch])))  # of equal ones the first
                near.append(set(others[by_cosine[:k]]))
            shares.append(len(near[0] & near[1]) / k)
        found.append(np.mean(shares))
    return found


@pytest.mark.parametrize(("count", "k"), [(13, 1), (40, 10), (600, 10)])
def test_overlap_is_that_of_brute_force(count, k):
    generator = torch.Generator().manual_seed(count)
    true = torch.randn(2, count, 16, generator=generator)
    predicted = torch.cat([true + 0.3 * torch.randn(true.shape, generator=generator), true], dim=-1)
    found = neighbourhood_overlap(predicted, true, k)
    assert found.tolist() == pytest.approx(brute_force(predicted, true, k), abs=1e-12)
    assert 0.2 < found.min() < 1.0


def test_overlap_of_a_set_with_itself_is_one_and_of_two_that_have_nothing_in_common_that_of_chance():
    generator = torch.Generator().manual_seed(5)
    one, other = (torch.randn(4, 300, 32, generator=generator) for _ in range(2))
    assert neighbourhood_overlap(one, 3 * one).tolist() == [1.0] * 4
    assert float(neighbourhood_overlap(one, other).mean()) == pytest.approx(10 / 299, abs=0.01)


def test_of_equally_near_patches_the_first_are_neighbours():
    units = torch.eye(3).repeat_interleave(4, dim=0)  # three groups of four equal patches
    found = nearest(units, 0, 12, 4)
    assert found.sum(-1).tolist() == [4] * 12
    assert found[0].nonzero().flatten().tolist() == [1, 2, 3, 4]  # its own three, then the first of all others
    assert found[9].nonzero().flatten().tolist() == [0, 8, 10, 11]


def test_overlap_is_the_same_under_autocast():
    generator = torch.Generator().manual_seed(7)
    true = torch.randn(1, 50, 16, generator=generator)
    predicted = true + 0.5 * torch.randn(true.shape, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        found = neighbourhood_overlap(predicted, true)
    assert torch.equal(found, neighbourhood_overlap(predicted, true))


def test_overlap_of_what_is_no_number_is_none_and_too_few_patches_are_refused():
    tokens = torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(3))
    broken = tokens.clone()
    broken[0, 3, 1] = torch.inf
    assert [math.isnan(value) for value in neighbourhood_overlap(broken, tokens)] == [True, False]
    with pytest.raises(ValueError, match="12 patches have no 12 nearest others"):
        neighbourhood_overlap(tokens, tokens, 12)
    with pytest.raises(ValueError, match="not the same patches"):
        neighbourhood_overlap(tokens, tokens[:, :5])
