"""Times, path, velocity and loss of flow matching against closed forms."""

import pytest
import torch

from gap3d.aligner.flow import draw_timesteps, losses, noisy, sigma, velocity
from gap3d.features.tokens import TokenLayout

LAYOUT = TokenLayout(2, (3, 4), 5)


def pair(layout=LAYOUT, batch=3):
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(batch, layout.count, layout.width, generator=rng) for _ in range(2)]


def test_timesteps_are_uniform_in_1_to_1000():
    drawn = draw_timesteps(200_000, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.int64
    counts = torch.bincount(drawn, minlength=1001)
    assert counts[0] == 0
    assert len(counts) == 1001
    assert counts[1:].min() > 0
    chi_squared = float((counts[1:] - 200).square().sum() / 200)
    assert abs(chi_squared - 999) < 5 * (2 * 999) ** 0.5


def test_timesteps_are_the_generators():
    one, same, other = (draw_timesteps(50, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_sigma_is_the_timestep_in_thousandths_without_loss():
    timesteps = torch.arange(1001)
    assert torch.equal(sigma(timesteps), timesteps.double().div(1000).float())
    assert len(sigma(timesteps).unique()) == 1001


def test_the_path_leads_in_a_straight_line_from_targets_to_noise():
    targets, noise = pair()
    at = [noisy(targets, noise, torch.full((3,), t)) for t in (0, 250, 500, 1000)]
    assert torch.equal(at[0], targets)
    assert torch.equal(at[3], noise)
    torch.testing.assert_close(at[2] - at[1], velocity(targets, noise) * 0.25)


def test_every_sample_is_at_its_own_time():
    targets, noise = pair()
    mixed = noisy(targets, noise, torch.tensor([0, 300, 1000]))
    assert torch.equal(mixed[0], targets[0])
    torch.testing.assert_close(mixed[1], 0.7 * targets[1] + 0.3 * noise[1])
    assert torch.equal(mixed[2], noise[2])


def test_the_papers_direction_is_the_other_one():
    """Paper: x_t = t x1 + (1 - t) noise, velocity x1 - noise; t = 1 - sigma."""
    targets, noise = pair()
    t = 0.75
    torch.testing.assert_close(noisy(targets, noise, torch.full((3,), 250)), t * targets + (1 - t) * noise)
    torch.testing.assert_close(-velocity(targets, noise), targets - noise)


def test_everything_is_float32_whatever_comes():
    targets, noise = (x.bfloat16() for x in pair())
    found = noisy(targets, noise, torch.tensor([1, 2, 999]))
    share = torch.tensor([0.001, 0.002, 0.999])[:, None, None]
    torch.testing.assert_close(found, (1 - share) * targets.float() + share * noise.float())
    assert velocity(targets, noise).dtype == torch.float32
    assert losses(targets, noise, LAYOUT).total.dtype == torch.float32


def test_losses_are_means_of_each_kind_of_token_and_their_weighted_sum():
    wanted, _ = pair()
    error = torch.zeros(LAYOUT.count, LAYOUT.width)
    error[0] = 2  # CLS: 4
    error[1:3, 0] = 5  # registers: 25 in one of 5 channels
    error[3:6] = 3  # patches: 9 in 3 of 12
    found = losses(wanted + error, wanted, LAYOUT)
    for value, closed in ((found.cls, 4), (found.registers, 5), (found.patches, 9 / 4)):
        torch.testing.assert_close(value, torch.tensor(float(closed)), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.total, torch.tensor(0.4 * 9 / 4 + 0.3 * 4 + 0.3 * 5), atol=1e-5, rtol=0)
    other = losses(wanted + error, wanted, LAYOUT, weights=(1, 0, 0))
    assert torch.equal(other.total, other.patches)


def test_a_cls_token_weighs_as_the_weights_say():
    """By its gradient: 1369 x 0.3 / 0.4 patches (docs/method.md 6)."""
    layout = TokenLayout(4, (37, 37), 2)
    wanted = torch.zeros(1, layout.count, layout.width)
    predicted = torch.ones_like(wanted).requires_grad_()
    losses(predicted, wanted, layout).total.backward()
    weight = predicted.grad[0, :, 0]
    assert weight[0] / weight[-1] == pytest.approx(1369 * 0.3 / 0.4, rel=1e-5)
    assert weight[1] / weight[-1] == pytest.approx(1369 / 4 * 0.3 / 0.4, rel=1e-5)


def test_without_registers_their_loss_is_zero_and_hurts_nothing():
    layout = TokenLayout(0, (2, 2), 3)
    predicted, wanted = pair(layout)
    found = losses(predicted.requires_grad_(), wanted, layout)
    assert found.registers == 0
    found.total.backward()
    assert predicted.grad.isfinite().all()
    torch.testing.assert_close(found.total, 0.4 * found.patches + 0.3 * found.cls)
