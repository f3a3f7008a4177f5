"""The sampler against the reference's trajectory and a flow whose solution is known."""

from itertools import pairwise

import dit_golden
import pytest
import torch
from shared_data import golden

from gap3d.aligner.sampler import noise_of, sample, schedule
from gap3d.aligner_settings import SamplingSettings
from gap3d.features.tokens import TokenLayout

LAYOUT = TokenLayout(1, (2, 3), 4)
MEAN, SPREAD = 2.0, 0.3  # of the analytic flow's data


pytestmark = pytest.mark.usefixtures("one_thread")


def settings(**changes):
    return SamplingSettings(**({"steps": 20, "guidance": 1.0} | changes))


def test_a_guided_trajectory_equals_the_references():
    dit, layout, _ = dit_golden.reference()
    config, tensors = golden("sampler_small.safetensors")
    assert config["null"] == "zeros"
    found = sample(
        lambda x, timestep, condition: dit(x, timestep, condition, layout.grid),
        dit_golden.tokens(tensors, "noise", layout),
        tensors["cond"],
        SamplingSettings(steps=config["steps"], guidance=config["guidance"]),
    )
    torch.testing.assert_close(found, dit_golden.tokens(tensors, "final", layout), atol=1e-4, rtol=0)


def test_the_references_times():
    config, tensors = golden("sampler_small.safetensors")
    sigmas, timesteps = schedule(config["steps"])
    torch.testing.assert_close(sigmas, tensors["sigmas"], atol=1e-7, rtol=0)
    assert torch.equal(timesteps, tensors["timesteps"].long())


def test_thirty_and_fifty_steps():
    assert schedule(30)[1].tolist() == [1000 - (100 * i + 2) // 3 for i in range(30)]
    assert schedule(30)[1].tolist()[:4] == [1000, 966, 933, 900]
    assert schedule(30)[1].tolist()[-1] == 33
    assert schedule(50)[1].tolist() == list(range(1000, 0, -20))
    for steps in (1, 30, 50):
        sigmas, timesteps = schedule(steps)
        assert (len(sigmas), len(timesteps)) == (steps + 1, steps)
        assert (float(sigmas[0]), float(sigmas[-1])) == (1, 0)
        torch.testing.assert_close(sigmas.diff(), torch.full((steps,), -1 / steps))


def test_noise_is_the_keys_and_not_its_companys():
    together = noise_of(["a", "b", "c"], LAYOUT, seed=0)
    assert together.shape == (3, LAYOUT.count, LAYOUT.width)
    assert together.dtype == torch.float32
    assert torch.equal(noise_of(["c", "a"], LAYOUT, seed=0), together[[2, 0]])
    assert not torch.equal(noise_of(["a"], LAYOUT, seed=1)[0], together[0])
    assert (
        len(noise_of([str(number) for number in range(100)], LAYOUT, seed=0).unique())
        == 100 * LAYOUT.count * LAYOUT.width
    )


def test_noise_is_standard_normal():
    drawn = noise_of(["a"], TokenLayout(4, (37, 37), 64), seed=0).double().flatten()
    assert abs(drawn.mean()) < 4 / len(drawn) ** 0.5
    assert abs(drawn.var() - 1) < 4 * (2 / len(drawn)) ** 0.5
    assert abs(drawn.pow(4).mean() - 3) < 4 * (96 / len(drawn)) ** 0.5


def deviation(sigma):
    return ((1 - sigma) ** 2 * SPREAD**2 + sigma**2) ** 0.5


def gaussian(x, timestep, condition):
    """The exact velocity of data N(MEAN, SPREAD^2): E[noise - data | x]."""
    share = timestep.double()[:, None, None] / 1000
    off = (x.double() - (1 - share) * MEAN) / deviation(share) ** 2
    return share * off - (MEAN + (1 - share) * SPREAD**2 * off)


def error(method, steps):
    noise = noise_of(["a", "b"], LAYOUT, seed=0)
    condition = torch.zeros(2, 1, 1)
    found = sample(gaussian, noise, condition, settings(method=method, steps=steps))
    return float((found - (MEAN + SPREAD * noise)).abs().max())


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_a_gaussian_flow_ends_in_its_data_with_the_methods_order(method, order):
    errors = [error(method, steps) for steps in (25, 50, 100)]  # their sigmas are whole timesteps
    assert errors[-1] < {"euler": 0.03, "heun": 1e-3}[method]
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.25)


class Recorder:
    """A velocity that depends on everything, and remembers how it was asked."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, timestep, condition):
        self.calls.append((timestep.tolist(), condition.clone()))
        return torch.tanh(x) * (1 + condition.mean((1, 2))[:, None, None]) + timestep[:, None, None] / 1000


def start():
    rng = torch.Generator().manual_seed(0)
    return noise_of(["a", "b"], LAYOUT, seed=0), torch.randn(2, 3, 5, generator=rng)


def test_guidance_asks_once_a_step_with_the_null_first():
    noise, condition = start()
    velocity = Recorder()
    sample(velocity, noise, condition, settings(steps=4, guidance=3.0))
    assert [timesteps for timesteps, _ in velocity.calls] == [[t] * 4 for t in (1000, 750, 500, 250)]
    for _, given in velocity.calls:
        assert torch.equal(given, torch.cat((condition * 0, condition)))


def test_guidance_is_that_line_through_both_velocities():
    noise, condition = start()
    found = sample(Recorder(), noise, condition, settings(steps=1, guidance=3.0))
    times = torch.tensor([1000, 1000])
    null, wanted = (Recorder()(noise, times, c) for c in (condition * 0, condition))
    torch.testing.assert_close(found, noise - (null + 3 * (wanted - null)))


def test_guidance_of_one_is_the_condition_alone_and_needs_no_null():
    noise, condition = start()
    velocity = Recorder()
    alone = sample(velocity, noise, condition, settings(guidance=1.0))
    assert all(torch.equal(given, condition) for _, given in velocity.calls)
    torch.testing.assert_close(sample(Recorder(), noise, condition, settings(guidance=1 + 1e-9)), alone)


def test_guidance_of_zero_is_the_null_alone():
    noise, condition = start()
    null = sample(Recorder(), noise, condition * 0, settings(guidance=1.0))
    torch.testing.assert_close(sample(Recorder(), noise, condition, settings(guidance=0.0)), null)


def test_guidance_holds_inside_its_interval_alone():
    noise, condition = start()
    velocity = Recorder()
    found = sample(velocity, noise, condition, settings(steps=10, guidance=3.0, interval=(0.3, 0.7)))
    assert [len(t) for t, _ in velocity.calls] == [2, 2, 2, 4, 4, 4, 4, 4, 2, 2], "sigmas 0.7 to 0.3, ends included"
    full, none = (sample(Recorder(), noise, condition, settings(steps=10, guidance=g)) for g in (3.0, 1.0))
    assert not torch.allclose(found, full)
    assert not torch.allclose(found, none)
    empty = sample(Recorder(), noise, condition, settings(steps=10, guidance=3.0, interval=(0.31, 0.39)))
    assert torch.equal(empty, none)


def test_heun_asks_twice_a_step_but_in_the_last():
    noise, condition = start()
    velocity = Recorder()
    sample(velocity, noise, condition, settings(steps=4, method="heun"))
    assert [t[0] for t, _ in velocity.calls] == [1000, 750, 750, 500, 500, 250, 250]


def test_the_state_is_float32_and_samples_are_their_own():
    noise, condition = start()

    def rounded(*given):
        return Recorder()(*given).bfloat16()

    together = sample(rounded, noise.bfloat16(), condition, settings(guidance=3.0))
    assert together.dtype == torch.float32
    assert len(together.unique()) > together.numel() * 0.9, "more numbers than bfloat16 has"
    alone = sample(rounded, noise[1:].bfloat16(), condition[1:], settings(guidance=3.0))
    torch.testing.assert_close(alone, together[1:])


def test_every_step_is_told():
    noise, condition = start()
    told = []
    sample(Recorder(), noise, condition, settings(steps=5), told.append)
    assert told == [1, 2, 3, 4, 5]
