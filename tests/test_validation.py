"""Validation: what it measures against an aligner whose error is known, and what it leaves as it was."""

import math
from types import MethodType

import pytest
import torch
from meetings import met
from target_stores import LAYOUT, collection, tokens_of, write_index, write_part

from gap3d.aligner import flow
from gap3d.aligner.model import build_aligner
from gap3d.aligner_settings import AlignerSettings, SamplingSettings, TrainingSettings
from gap3d.features.tokens import TokenLayout
from gap3d.metrics.alignment import GAP, TABLE_KINDS
from gap3d.store import Store
from gap3d.training.held_out import HeldOut
from gap3d.training.validation import BEST, NEIGHBOURS, TIMES, better, draw, of_all_ranks, validate

SMALL = AlignerSettings(vlm="random-small", soft_tokens=3, width=16, blocks=1, heads=2, dtype="float32")
STEPS = 5
TRAINING = TrainingSettings(validation_steps=STEPS, loss_weights=(0.5, 0.3, 0.2))
GUIDED = SamplingSettings(guidance=3.0)
PLAIN = SamplingSettings(guidance=1.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return collection(tmp_path_factory.mktemp("validation") / "store", 30)


@pytest.fixture(scope="module")
def aligner():
    return build_aligner(SMALL, LAYOUT, device="cpu")


def held_out(store, count=6, batch_size=4, layout=LAYOUT, **ranks):
    return HeldOut(store, layout, count=count, batch_size=batch_size, **ranks)


def oracle(store, shift):
    """An aligner that knows the target of each caption, and errs by ``shift`` in the velocity of every number."""
    known = build_aligner(SMALL, LAYOUT, device="cpu")
    targets = {}
    for batch in held_out(store, 100):
        targets |= dict(zip(batch.captions, batch.tokens, strict=True))
    captions = list(targets)

    def condition(self, texts, images=None):
        numbers = torch.tensor([float(captions.index(text)) for text in texts])
        return numbers[:, None, None].expand(-1, SMALL.soft_tokens, self.conditioner.width)

    def forward(self, tokens, timestep, condition):
        wanted = torch.stack([targets[captions[int(number)]] for number in condition[:, 0, 0]])
        return (tokens - wanted) / flow.sigma(timestep)[:, None, None] + shift

    known.condition, known.forward = MethodType(condition, known), MethodType(forward, known)
    return known


def captioned(tmp_path):
    """A collection in which every image has a caption of its own."""

    store, _ = collection(tmp_path / "store", 30)
    write_index(store, captions=lambda number: [f"image {number}"])
    return store


def test_an_aligner_that_knows_the_answer_has_no_loss_and_generates_it(tmp_path):
    store = captioned(tmp_path)
    found = validate(oracle(store, 0.0), held_out(store), TRAINING, PLAIN)
    assert found["pairs"] == 6
    for kind in TABLE_KINDS:
        assert found[f"loss_{kind}"] == pytest.approx(0.0, abs=1e-6)
        assert found[f"cosine_{kind}"] == pytest.approx(1.0, abs=1e-6)
        assert found[f"norm_ratio_{kind}"] == pytest.approx(1.0, abs=1e-6)
        assert found[f"mse_{kind}"] == pytest.approx(0.0, abs=1e-6)
        assert found[f"{GAP}_{kind}"] < 0.05
    assert found["overlap"] == 1.0


def test_an_error_of_known_size_in_the_velocity_is_that_loss_and_that_error_of_the_samples(tmp_path):
    """Of c in every number: loss c^2; Euler's last step forgets all errors but its own, c / steps."""
    store = captioned(tmp_path)
    found = validate(oracle(store, 0.25), held_out(store), TRAINING, PLAIN)
    for name in ("loss", *(f"loss_{kind}" for kind in TABLE_KINDS)):
        assert found[name] == pytest.approx(0.25**2, rel=1e-4)
    for kind in TABLE_KINDS:
        assert found[f"mse_{kind}"] == pytest.approx((0.25 / STEPS) ** 2, rel=1e-3)


def test_two_calls_and_any_batch_size_measure_the_same(made, aligner):
    store, _ = made
    state = torch.get_rng_state()
    first = validate(aligner, held_out(store), TRAINING, GUIDED)
    assert validate(aligner, held_out(store), TRAINING, GUIDED) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert validate(aligner, held_out(store, batch_size=1), TRAINING, GUIDED) == pytest.approx(first, rel=1e-4)
    assert validate(aligner, held_out(store), TRAINING, PLAIN)["mse_patches"] != first["mse_patches"]


def test_the_losses_are_those_of_training_at_times_in_all_quarters(made, aligner):
    store, _ = made
    found = validate(aligner, held_out(store), TRAINING, GUIDED)
    total = 0.5 * found["loss_patches"] + 0.3 * found["loss_cls"] + 0.2 * found["loss_registers"]
    assert found["loss"] == pytest.approx(total, rel=1e-5)
    drawn = [[draw(str(key), torch.empty(3, 2), quarter, 0) for quarter in range(TIMES)] for key in range(300)]
    times = torch.tensor([[time for time, _ in each] for each in drawn])
    assert (times.min(), times.max()) >= (1, 0) and times.max() <= flow.STEPS
    assert ((flow.STEPS - times) // 250).unique(dim=0).tolist() == [[0, 1, 2, 3]]
    assert times.float().mean() == pytest.approx(500.5, abs=10)
    noises = torch.stack([noise for each in drawn for _, noise in each])
    assert len(noises.flatten(1).unique(dim=0)) == 300 * TIMES
    assert (float(noises.mean()), float(noises.std())) == pytest.approx((0, 1), abs=0.05)


def test_the_aligner_is_left_as_it_was(made, aligner):
    store, _ = made
    aligner.train()
    aligner.dit.eval()
    before = {name: value.clone() for name, value in aligner.state_dict().items()}
    modes = [module.training for module in aligner.modules()]
    validate(aligner, held_out(store, 2), TRAINING, GUIDED)
    assert [module.training for module in aligner.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in aligner.state_dict().items())
    assert all(parameter.grad is None for parameter in aligner.parameters())
    assert all(parameter.requires_grad for parameter in aligner.trainable().values())


def test_progress_is_told_and_ends_at_all_pairs(made, aligner):
    told = []
    validate(aligner, held_out(made[0]), TRAINING, GUIDED, lambda *done: told.append(done))
    assert told == [(4, 6), (6, 6)]


def test_pairs_that_do_not_count_change_no_number(made, aligner):
    """Of two ranks the second has one pair fewer and goes through the model as often; their values joined are all."""
    store, _ = made
    parts = [held_out(store, 5, rank=rank, ranks=2) for rank in range(2)]
    assert [sum(map(sum, (batch.counted for batch in part))) for part in parts] == [3, 2]
    found = [validate(aligner, part, TRAINING, GUIDED) for part in parts]
    whole = validate(aligner, held_out(store, 5), TRAINING, GUIDED)
    for name in ("loss", BEST, "overlap", "norm_ratio_cls"):
        assert (3 * found[0][name] + 2 * found[1][name]) / 5 == pytest.approx(whole[name], rel=1e-4)


def test_targets_that_are_not_layer_normed_are_told(tmp_path, aligner, caplog):
    store = Store(tmp_path / "store", "test", 1)
    write_part(store, "0", {f"{number:04d}/000": 1.5 * tokens_of(number) for number in range(10)})
    write_index(store)
    found = validate(aligner, held_out(store), TRAINING, GUIDED)
    assert found[f"{GAP}_cls"] == pytest.approx(1.5**2 - 1, rel=1e-3)
    assert "held-out targets are not layer-normed" in caplog.text
    caplog.clear()
    collection(tmp_path / "other", 10)
    validate(aligner, held_out(tmp_path / "other" / "test"), TRAINING, GUIDED)
    assert "layer-normed" not in caplog.text


@pytest.mark.parametrize("layout", [TokenLayout(1, (2, 5), 8)], ids=str)
def test_without_more_patches_than_neighbours_there_is_no_overlap(tmp_path, layout):
    assert layout.patches == NEIGHBOURS
    store, _ = collection(tmp_path / "store", 10, layout=layout)
    found = validate(build_aligner(SMALL, layout, device="cpu"), held_out(store, layout=layout), TRAINING, GUIDED)
    assert "overlap" not in found
    assert math.isfinite(found[BEST])


def test_the_best_is_the_one_with_the_greatest_cosine_of_patches_and_never_one_without_a_number():
    assert better({BEST: 0.1}, None)
    assert better({BEST: 0.2}, {BEST: 0.1})
    assert not better({BEST: 0.1}, {BEST: 0.1})
    assert not better({BEST: math.nan}, None)
    assert not better({BEST: None}, None)
    assert better({BEST: 0.1}, {BEST: math.nan})
    assert not better({}, {BEST: 0.1})


def test_alone_the_values_of_all_ranks_are_ones_own():
    assert of_all_ranks({"loss": [1.0, 2.0]}) == {"loss": [1.0, 2.0]}


def one_of_two(rank, folder, store, found):
    """What one of two processes does."""
    with met(rank, folder):
        aligner = build_aligner(SMALL, LAYOUT, device="cpu")
        found.put((rank, validate(aligner, held_out(store, 5, rank=rank, ranks=2), TRAINING, GUIDED)))


@pytest.mark.slow
def test_two_processes_return_the_numbers_of_one(made, aligner, tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    context = torch.multiprocessing.get_context("spawn")
    found = context.SimpleQueue()
    words = (tmp_path, made[0], found)
    torch.multiprocessing.start_processes(one_of_two, words, nprocs=2, start_method="spawn")
    both = dict(found.get() for _ in range(2))
    assert both[0] == both[1]
    assert both[0] == pytest.approx(validate(aligner, held_out(made[0], 5), TRAINING, GUIDED), rel=1e-4)
