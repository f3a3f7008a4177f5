"""One step of training: rate, masters, accumulation, clipping, randomness, counted work, each against a truth."""

import math

import pytest
import torch
from target_stores import LAYOUT, tokens_of
from torch.utils.flop_counter import FlopCounterMode

from gap3d.aligner.dit import DiT, Geometry
from gap3d.aligner.model import build_aligner
from gap3d.aligner_settings import AlignerSettings, TrainingSettings
from gap3d.training.batches import Batch
from gap3d.training.optimiser import Optimiser, learning_rate, warmup_steps
from gap3d.training.peak import forward_products, training_products
from gap3d.training.plan import steps_of
from gap3d.training.step import draw, losses
from pipelines.command import load_settings

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
WEIGHTS = (0.4, 0.3, 0.3)


def batch_of(numbers):
    keys = [f"{number:04d}/000" for number in numbers]
    return Batch(
        keys=keys,
        captions=[f"a thing of kind {number}" for number in numbers],
        visits=[f"data/0/{key}" for key in keys],
        tokens=torch.stack([tokens_of(number) for number in numbers]),
        place={},
        damaged=0,
    )


def drawn(batch, dropout=0.1, seed=7):
    return draw(batch.visits, batch.tokens.shape[1:], seed, dropout, CPU)


@pytest.fixture
def aligner():
    settings = AlignerSettings(vlm="random-small", soft_tokens=3, width=16, blocks=2, heads=2, dtype="float32")
    return build_aligner(settings, LAYOUT, "cpu")


def test_the_learning_rate_is_that_of_transformers_one_step_ahead():
    from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

    settings, steps = TrainingSettings(learning_rate=3e-3, floor=1e-4, warmup=0.1), 40
    adam = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=settings.learning_rate)
    theirs = get_cosine_with_min_lr_schedule_with_warmup(
        adam,
        num_warmup_steps=warmup_steps(settings, steps),
        num_training_steps=steps,
        min_lr=settings.floor,
    )
    for step in range(1, steps + 1):
        adam.step()
        theirs.step()
        assert learning_rate(step, steps, settings) == pytest.approx(theirs.get_last_lr()[0], rel=1e-12)


def test_the_paper_trains_so_many_steps_at_these_rates():
    settings = load_settings(
        "paper", pretraining={"workers": 128, "accumulate": 1}, finetuning={"workers": 128, "accumulate": 1}
    )
    first, second = settings.pretraining, settings.finetuning
    alone = load_settings("paper").finetuning
    assert alone.batch_size * alone.accumulate == 2048
    assert first.batch_size * first.accumulate * first.workers == 2048
    steps = steps_of(first, 31_000_000)
    assert steps == 45_411
    assert warmup_steps(first, steps) == 137
    assert learning_rate(137, steps, first) == 2.8e-4
    assert learning_rate(1, steps, first) == pytest.approx(2.8e-4 / 137)
    assert learning_rate(steps, steps, first) == pytest.approx(1e-5)
    half = 137 + (steps - 137) / 2
    assert learning_rate(int(half), steps, first) == pytest.approx((2.8e-4 + 1e-5) / 2, rel=1e-3)
    steps = steps_of(second, 60_000)
    assert steps == 29_297
    assert learning_rate(steps, steps, second) == 0
    assert max(learning_rate(step, steps, second) for step in range(1, steps, 11)) <= 5.6e-4


def test_a_short_training_warms_up_for_so_many_steps_at_least():
    assert warmup_steps(TrainingSettings(warmup=0.003), 2000) == 6
    assert warmup_steps(TrainingSettings(warmup=0.003, warmup_steps=100), 2000) == 100
    assert warmup_steps(TrainingSettings(warmup=0.003, warmup_steps=100), 45_411) == 137
    settings = TrainingSettings(learning_rate=2e-3, warmup_steps=100)
    rates = [learning_rate(step, 2000, settings) for step in range(1, 2001)]
    assert rates.index(max(rates)) + 1 == 100 and rates[49] == pytest.approx(1e-3)
    assert "warmup_steps" not in TrainingSettings().shaping()  # runs from before it was keep their names


def test_a_mixture_makes_an_epoch_of_the_data_longer():
    settings = TrainingSettings(epochs=2, batch_size=8, mix_share=0.25, mix_collection="general")
    assert steps_of(settings, 60) == 2 * 60 / 6


def test_several_batches_of_a_step_are_one_large_batch(aligner):
    weights = aligner.trainable()
    gradients = []
    for groups in ([range(8)], [range(4), range(4, 8)]):
        optimiser = Optimiser(weights)
        for group in groups:
            batch = batch_of(group)
            (losses(aligner, batch, drawn(batch), WEIGHTS).total / len(groups)).backward()
            optimiser.gather()
        gradients.append({name: master.grad.clone() for name, master in optimiser.masters.items()})
        optimiser.forget()
    whole, in_parts = gradients
    assert whole.keys() == weights.keys()
    for name, gradient in whole.items():
        assert torch.allclose(gradient, in_parts[name], rtol=1e-4, atol=1e-6), name


def test_rounded_weights_follow_float32_masters():
    """AdamW of torch on float32 weights, given the same rounded gradients, is the truth."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(64, 32, generator=generator)
    module = torch.nn.Parameter(start.clone())
    truth = torch.nn.Parameter(start.clone())
    ours = Optimiser({"dit.weight": module}, 0.01, dtype=torch.bfloat16)
    theirs = torch.optim.AdamW([truth], lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    for _ in range(20):
        truth.grad = torch.zeros_like(truth)
        for _ in range(2):
            module.grad = torch.randn(64, 32, generator=generator).bfloat16()
            truth.grad += module.grad
            ours.gather()
        ours.step(1e-3)
        theirs.step()
    assert torch.allclose(ours.masters["dit.weight"], truth, rtol=1e-6, atol=1e-7)
    assert module.dtype == torch.bfloat16
    assert torch.equal(module, truth.bfloat16())


def test_small_changes_are_not_lost_in_rounding():
    module = torch.nn.Parameter(torch.ones(4))
    optimiser = Optimiser({"dit.weight": module}, dtype=torch.bfloat16)
    for _ in range(100):
        module.grad = torch.ones(4, dtype=torch.bfloat16)
        optimiser.gather()
        optimiser.step(1e-4)  # bfloat16 has nothing between 1 and 1 - 1/256
    assert module[0].item() == pytest.approx(1 - 100 * 1e-4, abs=1 / 256)
    assert module[0] < 1


def test_soft_tokens_stay_float32_and_the_transformer_is_rounded(aligner):
    Optimiser(aligner.trainable(), dtype=torch.bfloat16)
    assert aligner.conditioner.soft_tokens.dtype == torch.float32
    assert {parameter.dtype for parameter in aligner.dit.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("most", [0.5, 1e6])
def test_the_norm_is_that_of_before_clipping(most):
    weights = {name: torch.nn.Parameter(torch.zeros(3)) for name in ("a", "b")}
    optimiser = Optimiser(weights)
    for value, weight in zip((3.0, 4.0), weights.values(), strict=True):
        weight.grad = torch.full((3,), value)
    assert optimiser.clip(most) == pytest.approx(math.sqrt(3) * 5)
    left = torch.cat([weight.grad for weight in weights.values()]).norm()
    assert left == pytest.approx(min(most, math.sqrt(3) * 5))


def test_a_number_that_is_none_shows_in_the_norm():
    weight = torch.nn.Parameter(torch.zeros(3))
    weight.grad = torch.tensor([0.0, math.nan, 0.0])
    assert math.isnan(Optimiser({"a": weight}).clip(1.0))


def test_what_is_random_about_a_sample_does_not_depend_on_its_batch():
    together = drawn(batch_of(range(6)), dropout=0.5)
    for row in range(6):
        alone = drawn(batch_of([row]), dropout=0.5)
        assert torch.equal(alone.timestep[0], together.timestep[row])
        assert torch.equal(alone.noise[0], together.noise[row])
        assert torch.equal(alone.dropped[0], together.dropped[row])


def test_another_epoch_or_seed_draws_anew():
    batch = batch_of(range(4))
    first = drawn(batch)
    for visits, seed in (([f"data/1/{key}" for key in batch.keys], 7), (batch.visits, 8)):
        other = draw(visits, batch.tokens.shape[1:], seed, 0.1, CPU)
        assert not torch.equal(first.timestep, other.timestep)
        assert not torch.isclose(first.noise, other.noise).all(dim=(1, 2)).any()


def test_times_noises_and_dropout_are_distributed_as_the_paper_has_them():
    draws = draw([f"data/0/{number}" for number in range(4000)], (3, 4), 0, 0.1, CPU)
    assert draws.timestep.min() >= 1
    assert draws.timestep.max() <= 1000
    assert draws.timestep.float().mean() == pytest.approx(500.5, abs=5 * 288.7 / math.sqrt(4000))
    assert draws.dropped.float().mean() == pytest.approx(0.1, abs=5 * 0.3 / math.sqrt(4000))
    assert draws.noise.mean() == pytest.approx(0, abs=5 / math.sqrt(48_000))
    assert draws.noise.std() == pytest.approx(1, abs=5 / math.sqrt(96_000))


def test_a_dropped_condition_is_zeros_and_its_caption_has_no_say(aligner):
    batch = batch_of(range(3))
    other = Batch(**{**vars(batch), "captions": ["something else"] * 3})
    all_dropped = drawn(batch, dropout=0.999999)
    assert all_dropped.dropped.all()
    loss = losses(aligner, batch, all_dropped, WEIGHTS).total
    assert loss == losses(aligner, other, all_dropped, WEIGHTS).total
    none_dropped = drawn(batch, dropout=0.0)
    assert losses(aligner, batch, none_dropped, WEIGHTS).total != losses(aligner, other, none_dropped, WEIGHTS).total
    loss.backward()
    assert not aligner.conditioner.soft_tokens.grad.any()


@pytest.mark.parametrize("registers", [0, 4])
def test_counted_products_are_those_that_torch_counts(registers):
    geometry = Geometry(channels=48, registers=registers, condition_width=40, width=64, blocks=3, heads=4)
    with torch.device("meta"):
        dit = DiT(geometry)
        tokens, condition = torch.empty(1, 1 + registers + 6 * 5, 48), torch.empty(1, 7, 40)
        time = torch.empty(1, dtype=torch.int64)
    with FlopCounterMode(display=False) as counted:
        dit(tokens, time, condition, (6, 5)).sum().backward()
    wanted = training_products(geometry, tokens.shape[1], 7)
    # Torch counts no gradient of what comes in, and what sdpa computes anew in its backward pass.
    assert counted.get_total_flops() == pytest.approx(wanted, rel=0.05)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        dit(tokens, time, condition, (6, 5))
    assert counted.get_total_flops() == forward_products(geometry, tokens.shape[1], 7)


def test_the_papers_transformer_takes_three_teraflop_a_sample():
    geometry = Geometry(channels=1024, registers=4, condition_width=2048)
    assert forward_products(geometry, 1374, 64) == pytest.approx(3.1e12, rel=0.05)
