"""The encoder against the reference implementation, and what must not change a stored token."""

import json
import logging

import authors_vit
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from shared_data import golden, weights_of
from transformers import (
    BertConfig,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTModel,
)

from gap3d.features import images
from gap3d.features.encoders import (
    UNTRAINED,
    Encoder,
    identity,
    layout_of,
    load_encoder,
    warn_untrained,
)
from gap3d.features.families import DINOV2_WITH_REGISTERS, DINOV3
from gap3d.features.precision import deviations
from gap3d.features.tokens import targets_from_prenorm
from gap3d.features.weights import weights_hash
from gap3d.records import SystemicFault
from gap3d.settings import TargetSettings

SMALL = TargetSettings(encoder="random-small", image_size=70)
ROTARY = TargetSettings(encoder="random-small-dinov3", image_size=80)
BOTH = pytest.mark.parametrize("settings", [SMALL, ROTARY], ids=["dinov2", "dinov3"])

pytestmark = pytest.mark.usefixtures("one_thread")


def pixels(count, side=70, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 3, side, side)).astype(np.float32)


@pytest.fixture(scope="module")
def small():
    return load_encoder(SMALL, device="cpu")


@pytest.fixture
def reference():
    return golden("dinov2_reg_small.safetensors")


def reference_encoder(config, tensors, **settings):
    model = Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(
            hidden_size=config["hidden"],
            num_hidden_layers=config["layers"],
            num_attention_heads=config["heads"],
            image_size=config["image_size"],
            patch_size=config["patch"],
            num_register_tokens=config["registers"],
        )
    )
    model.load_state_dict(DINOV2_WITH_REGISTERS.renamed(weights_of(tensors)))
    settings = {"image_size": config["input_size"], **settings}
    return Encoder(model, TargetSettings(encoder="golden", **settings), device="cpu")


def test_targets_equal_the_reference(reference):
    config, tensors = reference
    targets = reference_encoder(config, tensors).encode(tensors["input.pixels"])
    torch.testing.assert_close(targets, tensors["output.target"], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        targets_from_prenorm(tensors["output.x_prenorm"]), tensors["output.target"], atol=1e-5, rtol=0
    )


def test_the_target_is_not_the_encoders_own_final_norm(reference):
    config, tensors = reference
    encoder = reference_encoder(config, tensors)
    with torch.inference_mode():
        normed = encoder._model(tensors["input.pixels"]).last_hidden_state
        kept = encoder._model(tensors["input.pixels"], output_hidden_states=True).hidden_states[-1]
    assert (normed - tensors["output.target"]).abs().max() > 0.01
    assert torch.equal(encoder._prenorm(tensors["input.pixels"]), kept)


@pytest.mark.parametrize("size", [28, 56, 84, 140])
def test_other_image_sizes_equal_the_reference_with_interpolated_positions(reference, size):
    """The golden file is of one size; the model written plainly equals it there, and tells what to expect elsewhere."""
    config, tensors = reference
    weights = weights_of(tensors)
    plain = authors_vit.prenorm(weights, tensors["input.pixels"], config["heads"])
    torch.testing.assert_close(plain, tensors["output.x_prenorm"], atol=1e-5, rtol=0)
    expected = targets_from_prenorm(authors_vit.prenorm(weights, torch.as_tensor(pixels(2, size)), config["heads"]))
    encoder = reference_encoder(config, tensors, image_size=size)
    torch.testing.assert_close(encoder.encode(pixels(2, size)), expected, atol=1e-5, rtol=0)
    with torch.inference_mode():
        theirs = encoder._model(torch.as_tensor(pixels(2, size)), output_hidden_states=True).hidden_states[-1]
    assert torch.equal(encoder._prenorm(torch.as_tensor(pixels(2, size))), theirs)


def test_bfloat16_of_the_reference_stays_near_for_every_kind_of_token(reference):
    config, tensors = reference
    encoder = reference_encoder(config, tensors, dtype="bfloat16")
    targets = encoder.encode(tensors["input.pixels"])
    assert targets.dtype == torch.float32
    found = deviations(targets, tensors["output.target"], encoder.layout)
    assert list(found) == ["cls", "registers", "patches"]
    for deviation in found.values():
        assert deviation.least_cosine > 0.9995
        assert deviation.error < 0.15


@BOTH
def test_bfloat16_stays_near_float32_for_every_kind_of_token(settings):
    """Bounds of what bfloat16 may cost: 0.9995 in cosine for every token, 0.15 deviations for every number."""
    exact = load_encoder(settings, device="cpu")
    rounded = load_encoder(settings.model_copy(update={"dtype": "bfloat16"}), device="cpu")
    batch = pixels(4, settings.image_size)
    found = deviations(rounded.encode(batch), exact.encode(batch), exact.layout)
    assert list(found) == ["cls", "registers", "patches"]
    for deviation in found.values():
        assert 0.9995 < deviation.least_cosine < 1
        assert 0 < deviation.error < 0.15


def test_rotary_positions_stay_float32_in_bfloat16(tmp_path):
    """As transformers loads it in bfloat16: the frequencies of the positions are no weights, and are not rounded."""
    load_encoder(ROTARY, device="cpu").save(tmp_path)
    theirs = DINOv3ViTModel.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    assert theirs.rope_embeddings.inv_freq.dtype == torch.float32
    ours = load_encoder(ROTARY.model_copy(update={"dtype": "bfloat16"}), device="cpu")
    batch = torch.as_tensor(pixels(1, ROTARY.image_size))
    with torch.inference_mode():
        kept = theirs(batch, output_hidden_states=True).hidden_states[-1]
        assert torch.equal(ours._prenorm(batch), kept)


@BOTH
@pytest.mark.parametrize("channels", [3, 4])
def test_raw_pixels_are_normalised_bit_for_bit_as_on_the_way_of_floats(settings, channels):
    encoder = load_encoder(settings, device="cpu")
    side = settings.image_size
    raw = np.random.default_rng(0).integers(0, 256, (3, side, side, channels), dtype=np.uint8)
    floats = np.stack([images.normalise(one) for one in raw])
    assert torch.equal(encoder._normalised(torch.as_tensor(raw)), torch.as_tensor(floats))
    assert torch.equal(encoder.encode(raw), encoder.encode(floats))


def test_unknown_names_of_weights_are_refused():
    for family in (DINOV2_WITH_REGISTERS, DINOV3):
        with pytest.raises(KeyError, match=r"head\.weight"):
            family.renamed({"head.weight": torch.zeros(1)})
        with pytest.raises(KeyError, match=r"attn\.other"):
            family.renamed({"blocks.0.attn.other": torch.zeros(1)})


@pytest.mark.parametrize(
    ("settings", "dtype", "threads"),
    [
        (SMALL, "float32", 1),
        (SMALL, "float32", 2),
        (SMALL, "bfloat16", 1),
        (ROTARY, "float32", 1),
        (ROTARY, "bfloat16", 2),
    ],
)
def test_a_target_does_not_depend_on_its_batch(settings, dtype, threads):
    before = torch.get_num_threads()
    try:
        encoder = load_encoder(settings.model_copy(update={"dtype": dtype}), threads=threads, device="cpu")
        batch = pixels(7, settings.image_size)
        together = encoder.encode(batch)
        for index in range(7):
            assert torch.equal(encoder.encode(batch[index : index + 1])[0], together[index])
        assert torch.equal(encoder.encode(batch[::-1].copy()).flip(0), together)
        assert torch.equal(
            encoder.encode(np.concatenate([pixels(3, settings.image_size, seed=9), batch[2:3]]))[3], together[2]
        )
    finally:
        torch.set_num_threads(before)


def test_a_filled_up_pass_changes_nothing(small, monkeypatch):
    """The path of a GPU, with its full passes, on the CPU."""
    batch = pixels(5)
    alone = small.encode(batch)
    monkeypatch.setattr(small._passes, "size", 4)
    torch.testing.assert_close(small.encode(batch), alone, atol=1e-5, rtol=0)
    assert torch.equal(small.encode(batch)[4], small.encode(batch[4:])[0])


@BOTH
def test_random_weights_say_so_loudly_and_once(settings, caplog):
    warn_untrained.cache_clear()
    with caplog.at_level(logging.WARNING):
        encoder = load_encoder(settings, device="cpu")
        load_encoder(settings, device="cpu")
    assert [UNTRAINED in record.getMessage() for record in caplog.records] == [True]
    assert encoder.trained is False
    assert encoder.label == encoder.description["label"] == "UNTRAINED random weights"


@BOTH
def test_random_weights_follow_their_seed_alone(settings):
    first = load_encoder(settings, device="cpu")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    again = load_encoder(settings, device="cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert again.weights_hash == first.weights_hash
    batch = pixels(1, settings.image_size)
    assert torch.equal(again.encode(batch), first.encode(batch))
    other = load_encoder(settings.model_copy(update={"seed": 1}), device="cpu")
    assert other.weights_hash != first.weights_hash


def test_the_random_encoders_have_no_count_in_common():
    one, other = layout_of(SMALL), layout_of(ROTARY.model_copy(update={"image_size": 64}))
    assert one.width != other.width
    assert one.registers != other.registers
    assert one.grid != other.grid
    assert identity(SMALL)["patch_size"] != identity(ROTARY)["patch_size"]


@BOTH
def test_random_weights_tell_images_places_and_registers_apart(settings):
    encoder = load_encoder(settings, device="cpu")
    targets = encoder.encode(pixels(2, settings.image_size))
    cls, registers, patches = encoder.layout.split(targets)
    assert (cls[0] - cls[1]).abs().mean() > 0.01
    assert (registers[0, 0] - registers[0, 1]).abs().mean() > 0.1
    assert (patches[0, 0] - patches[0, 1]).abs().mean() > 0.1


def test_saved_random_weights_stay_untrained(small, tmp_path):
    small.save(tmp_path)
    settings = TargetSettings(encoder=str(tmp_path), image_size=70)
    loaded = load_encoder(settings, device="cpu")
    assert loaded.trained is False
    assert loaded.weights_hash == small.weights_hash
    assert torch.equal(loaded.encode(pixels(1)), small.encode(pixels(1)))
    assert identity(settings)["trained"] is False


def test_trained_weights_from_a_folder(reference, tmp_path):
    encoder = reference_encoder(*reference)
    encoder.save(tmp_path)
    loaded = load_encoder(TargetSettings(encoder=str(tmp_path), image_size=70), device="cpu")
    assert loaded.trained is True
    assert loaded.weights_hash == encoder.weights_hash
    assert torch.equal(loaded.encode(pixels(2)), encoder.encode(pixels(2)))


def test_identity_and_layout_without_keeping_the_encoder(small):
    assert identity(SMALL) == small.description
    assert identity(SMALL)["weights"] == small.weights_hash
    assert layout_of(SMALL) == small.layout
    assert (small.layout.grid, small.layout.registers, small.layout.width) == ((5, 5), 4, 64)
    json.dumps(small.description)


def test_identity_notices_new_weights_in_the_folder(small, tmp_path):
    settings = TargetSettings(encoder=str(tmp_path), image_size=70)
    small.save(tmp_path)
    before = identity(settings)["weights"]
    load_encoder(SMALL.model_copy(update={"seed": 5}), device="cpu").save(tmp_path)
    assert identity(settings)["weights"] != before


def test_the_hash_is_of_the_weights_not_of_the_precision(small):
    half = load_encoder(SMALL.model_copy(update={"dtype": "bfloat16"}), device="cpu")
    assert half.weights_hash == small.weights_hash
    a, b = {"a": torch.zeros(2), "b": torch.ones(2)}, {"b": torch.ones(2), "a": torch.zeros(2)}
    assert weights_hash(a) == weights_hash(b)
    assert weights_hash({"a": torch.zeros(4)}) != weights_hash({"a": torch.zeros(2, 2)})


def test_missing_weights_are_not_filled_with_random_numbers(small, tmp_path):
    small.save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.mlp.fc1.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(SystemicFault, match=r"lacks 1 weights.*layer\.1\.mlp\.fc1"):
        load_encoder(TargetSettings(encoder=str(tmp_path), image_size=70), device="cpu")


def test_pickled_weights_are_not_read(small, tmp_path):
    small.save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(SystemicFault, match="cannot be had"):
        load_encoder(TargetSettings(encoder=str(tmp_path), image_size=70), device="cpu")


def test_another_kind_of_model_is_refused(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(SystemicFault, match="is a bert, and none of: DINOv2 with registers, DINOv2, DINOv3 ViT"):
        load_encoder(TargetSettings(encoder=str(tmp_path)))


@pytest.mark.parametrize("encoder", ["/no/such/folder", "./nowhere", "nobody/no-such-model"])
def test_an_encoder_that_cannot_be_had_says_how_to_point_to_one(encoder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for ask in (load_encoder, identity):
        with pytest.raises(SystemicFault, match=r"(?s)cannot be had.*--targets\.encoder DIR"):
            ask(TargetSettings(encoder=encoder))


def test_the_image_size_must_fit_the_patches():
    with pytest.raises(ValueError, match=r"no multiple.*set it to 70 or 84"):
        layout_of(TargetSettings(encoder="random-small", image_size=71))
    with pytest.raises(ValueError, match=r"518 is no multiple.*set it to 512 or 528"):
        layout_of(TargetSettings(encoder="random-small-dinov3"))


@pytest.mark.parametrize("shape", [(1, 3, 70, 71), (3, 70, 70), (1, 4, 70, 70), (1, 70, 70, 3)])
def test_other_shapes_are_refused(small, shape):
    with pytest.raises(ValueError, match=r"\[B, 3, 70, 70\]"):
        small.encode(np.zeros(shape, np.float32))
    if shape != (1, 70, 70, 3):
        with pytest.raises(ValueError, match=r"\[B, 70, 70, 3\] or \[B, 70, 70, 4\]"):
            small.encode(np.zeros(shape, np.uint8))


def test_no_images_give_no_targets(small):
    assert small.encode(np.zeros((0, 3, 70, 70), np.float32)).shape == (0, 30, 64)
    assert small.encode(np.zeros((0, 70, 70, 3), np.uint8)).shape == (0, 30, 64)
