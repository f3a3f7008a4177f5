"""The aligner whole: what is trained, how it is drawn from, and its files, there and back."""

import json
import logging

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gap3d.aligner.model import build_aligner, describe, load_aligner
from gap3d.aligner.random_vlm import random_vlm
from gap3d.aligner_settings import AlignerSettings, SamplingSettings
from gap3d.features.tokens import TokenLayout
from gap3d.records import SystemicFault

SMALL = AlignerSettings(vlm="random-small", dtype="float32", soft_tokens=6, width=32, blocks=2, heads=2, seed=7)
LAYOUT = TokenLayout(2, (3, 4), 24)
ABOUT = {"step": 3, "encoder": {"trained": True, "label": "some encoder"}}
SAMPLING = SamplingSettings(steps=4, batch_size=2)
TEXTS, KEYS = ["a red chair", "a lamp", "two apples on a plate"], ["a", "b", "c"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def aligner():
    """With gates open, so that conditions act, and soft tokens that no seed gives."""
    made = build_aligner(SMALL, LAYOUT, "cpu")
    with torch.no_grad():
        made.conditioner.soft_tokens.add_(0.125)
        for block in made.dit.blocks:
            block.attention.gate.fill_(1.0)
    return made


@pytest.fixture(scope="module")
def saved(aligner, tmp_path_factory):
    path = tmp_path_factory.mktemp("aligner")
    aligner.save(path, ABOUT)
    return path


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_an_aligner_starts_by_its_seed_and_leaves_torchs_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, again = (build_aligner(SMALL, LAYOUT, "cpu").trainable() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert same(one, again)
    other = build_aligner(SMALL.model_copy(update={"seed": 8}), LAYOUT, "cpu").trainable()
    assert not torch.equal(one["dit.out.weight"], other["dit.out.weight"])


def test_transformer_and_soft_tokens_are_trained_and_nothing_else(aligner):
    tokens, time = torch.randn(3, LAYOUT.count, 24), torch.tensor([1, 500, 1000])
    aligner(tokens, time, aligner.condition(TEXTS)).square().mean().backward()
    moved = {name for name, parameter in aligner.named_parameters() if parameter.grad is not None}
    assert moved == aligner.trainable().keys()
    assert moved == {"conditioner.soft_tokens", *(f"dit.{name}" for name, _ in aligner.dit.named_parameters())}
    assert aligner.conditioner.soft_tokens.grad.abs().max() > 0
    aligner.zero_grad()


def test_saved_and_loaded_it_is_the_same_to_the_bit(aligner, saved):
    loaded = load_aligner(saved, "cpu")
    assert same(loaded.trainable(), aligner.trainable())
    assert (loaded.layout, loaded.settings, loaded.about) == (LAYOUT, SMALL, ABOUT)
    assert torch.equal(loaded.generate(TEXTS, KEYS, SAMPLING), aligner.generate(TEXTS, KEYS, SAMPLING))


def test_a_file_has_the_released_names_and_no_frozen_weights(aligner, saved):
    names = load_file(saved / "model.safetensors").keys()
    assert len(names) == len(aligner.trainable()) == 26 * 2 + 24 + 1  # of the table in docs/method.md 5.7
    assert {"model.latent_queries", "model.dit.model.layers.1.attn2.to_out.0.weight"} <= names
    assert all(name.startswith("model.dit.model.") for name in names - {"model.latent_queries"})


def test_masters_are_saved_in_place_of_the_weights(aligner, tmp_path):
    masters = {name: weight.detach().double() + 1e-12 for name, weight in aligner.trainable().items()}
    aligner.save(tmp_path, ABOUT, masters)
    assert torch.equal(
        load_file(tmp_path / "model.safetensors")["model.latent_queries"], masters["conditioner.soft_tokens"]
    )


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_weights_load_in_the_precision_of_products_or_the_one_that_is_asked_for(saved, tmp_path, dtype):
    described = json.loads((saved / "aligner.json").read_text())
    described["settings"]["dtype"] = "bfloat16"
    (tmp_path / "aligner.json").write_text(json.dumps(described))
    (tmp_path / "model.safetensors").symlink_to(saved / "model.safetensors")
    loaded = load_aligner(tmp_path, "cpu", dtype=dtype)
    assert loaded.dit.out.weight.dtype == (torch.float32 if dtype else torch.bfloat16)
    assert loaded.condition(["a"]).dtype == torch.bfloat16
    assert loaded.conditioner.soft_tokens.dtype == torch.float32
    assert loaded.generate(["a"], ["k"], SAMPLING).dtype == torch.float32


@pytest.fixture
def released(aligner, saved, tmp_path):
    """As the released training writes one: bfloat16, sharded, with the frozen models of another library's version."""
    made = random_vlm(7).model.state_dict()
    frozen = {
        name.removeprefix("model.") if "visual" in name else name.replace("model.language_model", "model"): tensor
        for name, tensor in made.items()
    }
    frozen["model.gen_vision_tower.vision_tower.cls_token"] = torch.zeros(1, 1, 8)
    trained = {name: tensor.bfloat16() for name, tensor in load_file(saved / "model.safetensors").items()}
    names = sorted(trained)
    shards = [frozen, {name: trained[name] for name in names[::2]}, {name: trained[name] for name in names[1::2]}]
    places = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-00003.safetensors"
        save_file({name: tensor.clone() for name, tensor in shard.items()}, tmp_path / file, {"format": "pt"})
        places |= dict.fromkeys(shard, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return tmp_path


def test_a_released_sharded_checkpoint_loads_and_its_frozen_weights_are_not_read(aligner, released):
    (released / "model-00001-of-00003.safetensors").unlink()
    loaded = load_aligner(released, "cpu", "random-small")
    wanted = {name: weight.detach().bfloat16() for name, weight in aligner.trainable().items()}
    assert same({name: weight.detach().bfloat16() for name, weight in loaded.trainable().items()}, wanted)
    assert loaded.dit.out.weight.dtype == torch.bfloat16
    assert loaded.dit.geometry == aligner.dit.geometry
    assert loaded.layout == TokenLayout(2, (37, 37), 24)


def test_a_checkpoint_goes_out_and_comes_back_by_the_released_names(aligner, saved, tmp_path):
    (tmp_path / "model.safetensors").symlink_to(saved / "model.safetensors")  # no aligner.json
    loaded = load_aligner(tmp_path, "cpu", "random-small", dtype="float32")
    assert same(loaded.trainable(), aligner.trainable())


def test_a_released_checkpoint_of_another_language_model_is_refused(released):
    of_the_condition = {"model.latent_queries", "model.dit.model.caption_projection.linear_1.weight"}
    for path in released.glob("*.safetensors"):
        state = load_file(path)
        for name in of_the_condition & state.keys():
            state[name] = state[name][..., :48].contiguous()
        save_file(state, path, {"format": "pt"})
    with pytest.raises(SystemicFault, match="takes conditions of 48 channels, and those of 'random-small' have 64"):
        load_aligner(released, "cpu", "random-small")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 64}, "of another geometry, e.g. .* and with channels 24, registers 2, condition_width 64, width 64"),
        ({"blocks": 3}, r"26 of its weights are .* dit.blocks.2.attention.cross_k.weight is not there, and with .*"),
        ({"blocks": 1}, r"26 of its weights are .* it is not there"),
        ({"blocks": 10**9}, r"26 of its weights are .* is not there"),
        ({"width": 4 * 10**9}, r"no transformer can be of"),
        ({"registers": 1}, r"1 of its weights are .* dit.registers_role is \[1, 2, 32\], and .* it is \[1, 1, 32\]"),
    ],
)
def test_weights_of_another_geometry_are_refused(saved, tmp_path, change, words):
    described = json.loads((saved / "aligner.json").read_text())
    described["geometry"] |= change
    (tmp_path / "aligner.json").write_text(json.dumps(described))
    (tmp_path / "model.safetensors").symlink_to(saved / "model.safetensors")
    with pytest.raises(SystemicFault, match=words):
        load_aligner(tmp_path, "cpu")


def broken_abouts(described):
    """Texts that ``aligner.json`` could be, and the word that their sentence has."""
    layout = described["layout"]
    yield "", "Expecting value"
    yield "[]", "dict"
    yield "{}", "version"
    yield "[" * 100_000, "recursion"
    yield json.dumps(described | {"version": 2}), "version"
    yield json.dumps(described | {"vlm": {}}), "vlm"
    yield json.dumps(described | {"about": [1]}), "about"
    yield json.dumps(described | {"about": {"encoder": 3}}), "encoder"
    yield json.dumps(described | {"layout": layout | {"grid": ["a", "b"]}}), "grid"
    yield json.dumps(described | {"geometry": described["geometry"] | {"heads": 0}}), "heads"


def test_a_damaged_description_is_a_sentence_whoever_reads_it(saved, tmp_path):
    (tmp_path / "model.safetensors").symlink_to(saved / "model.safetensors")
    for text, word in broken_abouts(json.loads((saved / "aligner.json").read_text())):
        (tmp_path / "aligner.json").write_text(text)
        for reader in (describe, load_aligner):
            with pytest.raises(SystemicFault, match=rf"aligner.json is damaged.*{word}"):
                reader(tmp_path)


def test_the_language_model_may_lie_elsewhere_and_must_be_the_same(saved, tmp_path):
    for seed in (7, 8):
        random_vlm(seed).save(tmp_path / str(seed))
    assert load_aligner(saved, "cpu", str(tmp_path / "7")).settings.vlm == str(tmp_path / "7")
    with pytest.raises(SystemicFault, match=r"the weights of .* are others: name a folder or hub id that has them"):
        load_aligner(saved, "cpu", str(tmp_path / "8"))


def test_what_is_no_checkpoint_is_told(saved, tmp_path):
    with pytest.raises(SystemicFault, match=r"can't be read: .* name a folder with model.safetensors"):
        load_aligner(tmp_path, "cpu")
    (tmp_path / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(SystemicFault, match="can't be read"):
        load_aligner(tmp_path, "cpu")
    places = {"model.latent_queries": "../elsewhere.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(SystemicFault, match="which is no file beside it"):
        load_aligner(tmp_path, "cpu")
    (tmp_path / "model.safetensors.index.json").unlink()
    save_file({"model.latent_queries": torch.zeros(1, 6, 64)}, tmp_path / "model.safetensors")
    with pytest.raises(SystemicFault, match="it lacks weights that every aligner has"):
        load_aligner(tmp_path, "cpu")


def test_what_is_untrained_is_said_in_files_and_log(aligner, saved, tmp_path, caplog):
    aligner.save(tmp_path, {"encoder": {"trained": False}})
    for folder, words in (
        (saved, ["vision-language model"]),
        (tmp_path, ["vision-language model", "encoder of the targets", "aligner"]),
    ):
        assert json.loads((folder / "aligner.json").read_text())["untrained"] == words
        with safe_open(folder / "model.safetensors", "pt") as file:
            assert file.metadata()["gap3d_untrained"] == ", ".join(words)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            loaded = load_aligner(folder, "cpu")
        assert f"UNTRAINED random weights: {', '.join(words)}" in caplog.text
        assert not loaded.trained
        assert loaded.label.endswith(", ".join(words))


def test_tokens_depend_on_text_key_and_seed_and_not_on_company(aligner):
    tokens = aligner.generate(TEXTS, KEYS, SAMPLING)
    assert tokens.shape == (3, LAYOUT.count, 24)
    assert tokens.dtype == torch.float32
    alone = aligner.generate(TEXTS[2:], KEYS[2:], SAMPLING.model_copy(update={"batch_size": 1}))[0]
    torch.testing.assert_close(tokens[2], alone, atol=1e-4, rtol=0)
    for texts, keys, sampling in (
        (TEXTS[:1], KEYS[2:], SAMPLING),
        (TEXTS[2:], KEYS[:1], SAMPLING),
        (TEXTS[2:], KEYS[2:], SAMPLING.model_copy(update={"seed": 1})),
    ):
        assert (aligner.generate(texts, keys, sampling)[0] - alone).abs().max() > 0.01


def test_without_guidance_towards_it_a_caption_has_no_part(aligner):
    null = SAMPLING.model_copy(update={"guidance": 0.0})
    one, other = (aligner.generate([text], ["k"], null) for text in TEXTS[:2])
    assert torch.equal(one, other)


def test_an_image_changes_the_tokens(aligner):
    images = [None, Image.new("RGB", (50, 60), (200, 30, 30)), None]
    plain, edited = (aligner.generate(TEXTS, KEYS, SAMPLING, given) for given in (None, images))
    torch.testing.assert_close(plain[[0, 2]], edited[[0, 2]], atol=1e-4, rtol=0)
    assert (plain[1] - edited[1]).abs().max() > 0.01


def test_each_step_is_told_once(aligner):
    done = []
    aligner.generate(TEXTS, KEYS, SAMPLING, on_step=done.append)
    assert done == list(range(1, 1 + 2 * SAMPLING.steps))
    assert len(aligner.generate([], [], SAMPLING)) == 0
    with pytest.raises(ValueError, match="3 texts and 1 keys"):
        aligner.generate(TEXTS, ["a"], SAMPLING)


def test_tokens_without_registers_come_and_go(tmp_path):
    layout = TokenLayout(0, (5, 2), 16)
    aligner = build_aligner(SMALL, layout, "cpu")
    aligner.save(tmp_path, ABOUT)
    loaded = load_aligner(tmp_path, "cpu")
    assert loaded.layout == layout
    assert torch.equal(loaded.generate(["a"], ["k"], SAMPLING), aligner.generate(["a"], ["k"], SAMPLING))


def test_checkpointing_changes_no_gradient(aligner):
    tokens, time = torch.randn(3, LAYOUT.count, 24), torch.tensor([1, 500, 1000])
    gradients = []
    for on in (False, True):
        aligner.checkpointing(on)
        aligner.zero_grad()
        aligner(tokens, time, aligner.condition(TEXTS)).square().mean().backward()
        gradients.append({name: weight.grad for name, weight in aligner.trainable().items()})
    aligner.checkpointing(False)
    aligner.zero_grad()
    assert same(*gradients)
