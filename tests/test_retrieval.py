"""Retrieval: ranks with ties against sorting, the released list, and what is refused."""

import numpy as np
import pytest
import torch

from gap3d.metrics import retrieval
from gap3d.metrics.retrieval import AT, retrieve, similarities, top, vectors


def tied(seed, queries=37, images=53, width=4):
    """Vectors of few whole numbers: their similarities are exact in any order, and most have equals."""
    rng = np.random.default_rng(seed)
    q, d = (torch.from_numpy(rng.integers(-2, 3, (count, width))).float() for count in (queries, images))
    return q, d, torch.from_numpy(rng.integers(0, images, queries))


def sorted_images(q, d):
    """For each query all images, most similar first, ties by index: by Python's sort."""
    similar = (q.double() @ d.double().T).tolist()
    return [sorted(range(len(row)), key=lambda image, row=row: (-row[image], image)) for row in similar]


@pytest.mark.parametrize("block", [1, 200, 1 << 22])
@pytest.mark.parametrize("seed", range(3))
def test_a_rank_is_the_place_in_the_sorted_database_ties_by_index(monkeypatch, seed, block):
    monkeypatch.setattr(retrieval, "BLOCK", block)
    q, d, truth = tied(seed)
    wanted = [1 + row.index(image) for row, image in zip(sorted_images(q, d), truth.tolist(), strict=True)]
    found = retrieve(q, d, truth)
    assert found.ranks.tolist() == wanted
    for at in AT:
        assert found.recall(at) == np.mean([rank <= at for rank in wanted])


def test_ranks_in_float16_are_those_of_rounded_similarities():
    # Products of quarters are exact in float32; their sums of up to 600 are not in float16.
    rng = np.random.default_rng(0)
    q, d = (torch.from_numpy(rng.integers(-64, 65, (count, 8)) / 4.0).half() for count in (40, 300))
    truth = torch.from_numpy(rng.integers(0, 300, 40))
    rounded = (q.double() @ d.double().T).numpy().astype(np.float16)
    true = rounded[np.arange(40), truth][:, None]
    before = (rounded == true) & (np.arange(300) < truth.numpy()[:, None])
    found = retrieve(q, d, truth).ranks
    assert np.array_equal(found, 1 + (rounded > true).sum(1) + before.sum(1))
    assert not np.array_equal(found, retrieve(q.float(), d.float(), truth).ranks)


def test_many_texts_may_mean_one_image():
    d = 2 * torch.eye(6) + 1
    found = retrieve(d[[2, 2, 5, 0]], d, torch.tensor([2, 2, 5, 3]))
    assert found.ranks.tolist() == [1, 1, 1, 4]
    assert found.recalls() == {1: 0.75, 5: 1.0, 10: 1.0}


@pytest.mark.parametrize("count", [1, 4, 53, 99])
def test_top_lists_are_the_beginning_of_the_sorted_database(count):
    q, d, _ = tied(5)
    indices, values = top(q, d, count)
    assert indices.tolist() == [row[:count] for row in sorted_images(q, d)]
    assert torch.equal(values, (q @ d.T).gather(1, indices))


def test_the_released_list_has_the_best_nine_by_index_and_then_the_tenth():
    q, d, truth = tied(9)
    lists = [[*sorted(row[:9]), row[9]] for row in sorted_images(q, d)]
    wanted = [1 + row.index(image) if image in row else 11 for row, image in zip(lists, truth.tolist(), strict=True)]
    found = retrieve(q, d, truth, paper=True)
    assert found.ranks.tolist() == wanted
    assert found.recall(10) == retrieve(q, d, truth).recall(10)


def test_the_released_list_explains_the_published_ratios():
    # True recalls of about 62, 85 and 91 % came out as about 11, 49 and 91 in the emulation of docs/method.md 8.2.
    generator = torch.Generator().manual_seed(0)
    d = vectors(torch.randn(1000, 64, generator=generator))
    truth = torch.randint(1000, (4000,), generator=generator)
    q = vectors(d[truth] + 0.28 * torch.randn(4000, 64, generator=generator))
    right, released = retrieve(q, d, truth).recalls(), retrieve(q, d, truth, paper=True).recalls()
    assert right[1] == pytest.approx(0.62, abs=0.1)
    assert released[10] == right[10]
    assert released[5] / released[10] == pytest.approx(0.53, abs=0.03)
    assert released[1] / released[10] == pytest.approx(0.11, abs=0.02)


def test_no_block_of_similarities_is_larger_than_its_bound():
    q, d = torch.randn(500, 8), torch.randn(100, 8)
    limit, retrieval.BLOCK = retrieval.BLOCK, 3210
    try:
        sizes = [block.shape for _, block in similarities(q, d)]
    finally:
        retrieval.BLOCK = limit
    assert max(rows * columns for rows, columns in sizes) <= 3210
    assert sum(rows for rows, _ in sizes) == 500


def test_vectors_are_pooled_and_of_length_one():
    patches = torch.randn(5, 7, 3)
    found = vectors(patches)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(found, torch.nn.functional.normalize(patches.mean(1), dim=1))
    assert vectors(patches, "float16").dtype == torch.float16


def test_what_has_no_direction_is_named():
    tokens = torch.ones(4, 3)
    tokens[2] = torch.nan
    with pytest.raises(ValueError, match=r"1 of 4 vectors .* row 2"):
        vectors(tokens)
    tokens[2] = 0
    with pytest.raises(ValueError, match="row 2"):
        vectors(tokens)
    with pytest.raises(ValueError, match="at least one"):
        vectors(torch.empty(0, 3))


def test_what_cannot_be_sought_is_refused():
    d = torch.ones(4, 3)
    with pytest.raises(ValueError, match="0 queries"):
        retrieve(torch.empty(0, 3), d, torch.empty(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="truths 0 to 4"):
        retrieve(d[:2], d, torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="can't be sought among"):
        retrieve(d[:1], torch.ones(4, 5), torch.tensor([0]))
    with pytest.raises(ValueError, match="not alike"):
        retrieve(d[:1].half(), d, torch.tensor([0]))
