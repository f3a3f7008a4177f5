"""The condition against transformers' own pass over the whole prompt, and what may not change it."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel

from gap3d.aligner.random_vlm import byte_tokenizer, random_vlm
from gap3d.aligner.vlm import Conditioner, load_conditioner
from gap3d.aligner_settings import AlignerSettings
from gap3d.records import SystemicFault

SMALL = AlignerSettings(vlm="random-small", dtype="float32", soft_tokens=8, seed=7)
TEXTS = ["a red chair", "a detailed sculpture of a dragon with spread wings, on a base of rock", ""]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made():
    return random_vlm(7)


@pytest.fixture
def conditioner():
    return load_conditioner(SMALL, device="cpu")


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    path = tmp_path_factory.mktemp("vlm")
    made.save(path)
    return path


def at(folder, **changes):
    return SMALL.model_copy(update={"vlm": str(folder), **changes})


def embedded_by_hand(made, ids, soft):
    """[1, L, H] of a prompt's ids: 278 is [IMG], the mean vocabulary vector, and 280 stands for a soft token."""
    table = made.model.model.language_model.embed_tokens.weight.detach()
    rows = [table[min(number, 277)] for number in ids]
    rows[ids.index(278)] = table[:278].bfloat16().mean(0).float()
    first = ids.index(280)
    rows[first:] = [*soft[0]]
    return torch.stack(rows)[None]


@torch.no_grad()
def test_a_condition_is_the_outer_models_last_hidden_state_at_the_soft_tokens(conditioner, made):
    conditions = conditioner(TEXTS)
    assert conditions.shape == (3, 8, conditioner.width)
    for text, condition in zip(TEXTS, conditions, strict=True):
        embedded = embedded_by_hand(made, conditioner.prompt.ids(text), conditioner.soft_tokens)
        outer = made.model.model(inputs_embeds=embedded, output_hidden_states=True)  # positions are its own
        torch.testing.assert_close(condition, outer.last_hidden_state[0, -8:], atol=2e-5, rtol=0)
        torch.testing.assert_close(condition, outer.hidden_states[-1][0, -8:], atol=2e-5, rtol=0)  # after the norm


def test_its_gradient_is_that_of_a_pass_over_the_whole_prompt(conditioner, made):
    direction = torch.linspace(-1, 1, 8 * conditioner.width).view(8, -1)
    conditioner(TEXTS).backward(direction.expand(3, -1, -1))
    soft = conditioner.soft_tokens.detach().clone().requires_grad_()
    for text in TEXTS:
        embedded = embedded_by_hand(made, conditioner.prompt.ids(text), soft)
        made.model.model(inputs_embeds=embedded).last_hidden_state[0, -8:].backward(direction)
    torch.testing.assert_close(conditioner.soft_tokens.grad, soft.grad, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_an_image_is_read_where_its_slots_are_and_at_plain_positions(conditioner, made):
    pixels = np.random.default_rng(0).integers(0, 256, (560, 500, 3), dtype=np.uint8)
    condition = conditioner(["it is red"], [Image.fromarray(pixels)])[0]
    cut = Image.fromarray(pixels).resize((448, 501), Image.Resampling.BICUBIC).crop((0, 26, 448, 474))
    seen = made.processor(images=[cut], return_tensors="pt")
    ids = conditioner.prompt.ids("it is red", 64)
    embedded = embedded_by_hand(made, ids, conditioner.soft_tokens)
    outer = made.model.model(
        inputs_embeds=embedded,
        pixel_values=seen["pixel_values"],
        image_grid_thw=seen["image_grid_thw"],
        position_ids=torch.arange(len(ids)).expand(3, 1, -1),
    )
    torch.testing.assert_close(condition, outer.last_hidden_state[0, -8:], atol=2e-5, rtol=0)
    assert (condition - conditioner(["it is red"])[0]).abs().max() > 0.1


@torch.no_grad()
def test_a_condition_does_not_depend_on_company_or_padding(conditioner):
    alone = conditioner(["a red chair"])[0]
    image = Image.new("RGB", (64, 64), (200, 30, 30))
    for texts, images in ([TEXTS, None], [["a red chair", "y" * 900], None], [["a red chair", "b"], [None, image]]):
        torch.testing.assert_close(conditioner(texts, images)[0], alone, atol=2e-5, rtol=0)


@torch.no_grad()
def test_what_is_cut_from_a_long_text_has_no_part_in_its_condition(conditioner):
    room = conditioner.prompt.limit
    long = conditioner(["z" * room, "z" * room + " and a hat"])
    torch.testing.assert_close(long[0], long[1], atol=2e-5, rtol=0)


@torch.no_grad()
def test_other_texts_have_other_conditions(conditioner):
    red, blue = conditioner(["a red chair", "a blue chair"])
    assert (red - blue).norm() > 0.1 * red.norm()


def test_the_gradient_reaches_the_soft_tokens_and_nothing_else(conditioner):
    weights = torch.from_numpy(np.random.default_rng(1).standard_normal((3, 8, conditioner.width))).float()

    def value():
        return (conditioner(TEXTS) * weights).sum()

    value().backward()
    assert [name for name, parameter in conditioner.named_parameters() if parameter.grad is not None] == ["soft_tokens"]
    assert [name for name, parameter in conditioner.named_parameters() if parameter.requires_grad] == ["soft_tokens"]
    for place in ((0, 0, 0), (0, 3, 17), (0, 7, 63)):
        with torch.no_grad():
            steps = []
            for step in (0.01, -0.02):
                conditioner.soft_tokens[place] += step
                steps.append(value().double())
            conditioner.soft_tokens[place] += 0.01
        difference = (steps[0] - steps[1]) / 0.02
        assert conditioner.soft_tokens.grad[place] == pytest.approx(difference.item(), rel=0.02, abs=0.05)


def test_checkpointing_changes_no_gradient(conditioner):
    gradients = []
    for checkpointing in (False, True):
        conditioner.checkpointing = checkpointing
        conditioner.soft_tokens.grad = None
        conditions = conditioner.train()(TEXTS)
        conditions.backward(torch.linspace(-1, 1, conditions.numel()).view_as(conditions))
        gradients.append(conditioner.soft_tokens.grad)
    assert torch.equal(*gradients)
    assert not any(module.training for module in conditioner.language_model.modules())


def test_the_papers_language_model_has_the_weights_that_the_paper_counts():
    """4.75 B of the paper: this, the trainable 1,363,318,176 and DINOv2 L with registers, 304,372,736."""
    from gap3d.aligner.qwen import LanguageModel

    config = Qwen2_5_VLTextConfig(
        vocab_size=151668,
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
    )
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in LanguageModel(config).parameters())
    assert count == 3_085_389_824
    assert count + 1_363_318_176 + 304_372_736 == 4_753_080_736


def test_soft_tokens_start_normal_by_the_seed(conditioner):
    many = load_conditioner(SMALL.model_copy(update={"soft_tokens": 400, "soft_tokens_std": 3.0}), device="cpu")
    assert many.soft_tokens.std().item() == pytest.approx(3, rel=0.02)
    assert abs(many.soft_tokens.mean().item()) < 0.1
    assert torch.equal(conditioner.soft_tokens, load_conditioner(SMALL, device="cpu").soft_tokens)
    other = load_conditioner(SMALL.model_copy(update={"seed": 8}), device="cpu")
    assert not torch.equal(conditioner.soft_tokens, other.soft_tokens)


@torch.no_grad()
def test_a_folder_loads_to_the_model_that_was_saved(conditioner, folder):
    names = load_file(folder / "model.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {"model", "visual"}  # as the hub's, of transformers 4
    loaded = load_conditioner(at(folder), device="cpu")
    assert loaded.description["weights"] == conditioner.description["weights"]
    image = [None, Image.new("RGB", (64, 64), (200, 30, 30)), None]
    assert torch.equal(loaded(TEXTS, image), conditioner(TEXTS, image))


@torch.no_grad()
def test_weights_under_the_names_of_transformers_5_load_too(conditioner, made, folder, tmp_path):
    made.save(tmp_path)
    renamed = {
        name.replace("visual.", "model.visual.")
        if "visual." in name
        else name.replace("model.", "model.language_model."): t
        for name, t in load_file(folder / "model.safetensors").items()
    }
    save_file({**renamed, "lm_head.weight": torch.zeros(320, 64)}, tmp_path / "model.safetensors", {"format": "pt"})
    image = [Image.new("RGB", (64, 64), (200, 30, 30))]
    assert torch.equal(load_conditioner(at(tmp_path), device="cpu")(["a"], image), conditioner(["a"], image))


def test_random_weights_are_told_also_when_they_come_from_a_folder(folder, caplog):
    with caplog.at_level(logging.WARNING):
        loaded = load_conditioner(at(folder), device="cpu")
    assert "UNTRAINED" in caplog.text
    assert not loaded.trained
    assert loaded.label == loaded.description["label"] == "UNTRAINED random weights"


def test_a_hub_id_is_pinned_to_the_commit_it_is_now(made, tmp_path, monkeypatch):
    place = tmp_path / "models--some--vlm"
    made.save(place / "snapshots" / ("a" * 40))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert load_conditioner(at("some/vlm"), device="cpu").description["revision"] == "a" * 40


def test_bfloat16_is_the_models_precision_and_no_angles(folder, conditioner):
    half = load_conditioner(at(folder, dtype="bfloat16"), device="cpu")
    assert half(TEXTS).dtype == torch.bfloat16
    assert half.soft_tokens.dtype == half.language_model.rotary_emb.inv_freq.dtype == torch.float32
    assert half.description["weights"] == conditioner.description["weights"]
    drift = (half(TEXTS).float() - conditioner(TEXTS)).norm() / conditioner(TEXTS).norm()
    assert drift < 0.05


def test_transparent_pixels_of_an_image_are_black(conditioner):
    clear = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    black = Image.new("RGB", (64, 64))
    assert torch.equal(conditioner(["a"], [clear]), conditioner(["a"], [black]))


def test_missing_weights_are_told(made, tmp_path):
    made.save(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(SystemicFault, match=r"lacks 1 weights, e.g. layers.1.mlp.up_proj.weight"):
        load_conditioner(at(tmp_path), device="cpu")


def test_what_cannot_be_had_or_is_no_qwen_is_told_with_what_to_do(made, tmp_path):
    with pytest.raises(SystemicFault, match=r"cannot be had: .* set aligner.vlm to that folder"):
        load_conditioner(at(tmp_path / "nothing"), device="cpu")
    made.save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(SystemicFault, match=r"is its tokenizer\.json missing"):
        load_conditioner(at(tmp_path), device="cpu")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(SystemicFault, match="is a bert, and no qwen2_5_vl"):
        load_conditioner(at(tmp_path), device="cpu")


def test_a_tokenizer_that_is_not_the_models_is_refused():
    def model(rows):
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
        angles = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
        config = Qwen2_5_VLTextConfig(vocab_size=rows, num_key_value_heads=1, rope_parameters=angles, **sizes)
        return Qwen2_5_VLTextModel._from_config(config, attn_implementation="sdpa")

    with pytest.raises(ValueError, match="the tokenizer has 278 tokens, the model embeddings of 100"):
        Conditioner(model(100), byte_tokenizer(), SMALL)
    with pytest.raises(ValueError, match=r"not that of Qwen2.5-VL: <\|endoftext\|> is 256 instead of 151643"):
        Conditioner(model(151936), byte_tokenizer(), SMALL)
    assert Conditioner(model(151936), byte_tokenizer(151643 - 256), SMALL)(["a"]).shape == (1, 8, 16)
