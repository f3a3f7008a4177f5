"""Every way in for weights: the authors' files, folders and the hub, against the models written plainly."""

import json
import pickle
from pathlib import Path

import authors_vit
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gap3d.features import weights
from gap3d.features.encoder import Encoder
from gap3d.features.encoders import identity, layout_of, load_encoder
from gap3d.features.families import FAMILIES, family_of_names
from gap3d.features.images import Normalisation
from gap3d.features.tokens import targets_from_prenorm
from gap3d.records import SystemicFault
from gap3d.settings import TargetSettings

KINDS = {
    "dinov2 with registers": {"family": "dinov2"},
    "dinov2": {"family": "dinov2", "registers": 0},
    "dinov2 giant": {"family": "dinov2", "gated": "w12", "hidden": 344},  # two thirds of 4 * 128, up to a multiple of 8
    "dinov3": {"family": "dinov3"},
    "dinov3 plus": {"family": "dinov3", "gated": "w1", "hidden": 768},
}
OWN_SIZE = 42  # six patches of seven

pytestmark = pytest.mark.usefixtures("one_thread")


def pixels(side, count=2):
    return torch.from_numpy(np.random.default_rng(1).standard_normal((count, 3, side, side)).astype(np.float32))


@pytest.fixture(scope="module", params=KINDS)
def published(request, tmp_path_factory):
    """Weights as the authors publish them, and their file."""
    state = authors_vit.weights(**KINDS[request.param])
    path = tmp_path_factory.mktemp("authors") / "vit_pretrain.pth"
    torch.save(state, path)
    return request.param, state, path


def load(path, size=OWN_SIZE):
    return load_encoder(TargetSettings(encoder=str(path), image_size=size), device="cpu")


def test_targets_of_the_authors_weights_equal_the_model_written_plainly(published):
    kind, state, path = published
    # Without registers, transformers' positions are the authors' at its own size only.
    for size in [OWN_SIZE] if kind == "dinov2" else [OWN_SIZE, 28, 63]:
        encoder = load(path, size)
        expected = targets_from_prenorm(authors_vit.prenorm(state, pixels(size), heads=2))
        torch.testing.assert_close(encoder.encode(pixels(size)), expected, atol=1e-5, rtol=0)
        assert encoder.layout.grid == (size // 7, size // 7)
        assert encoder.layout.registers == KINDS[kind].get("registers", 3)
        assert encoder.trained is True


def test_the_target_is_what_the_models_own_final_norm_is_given(published):
    _, _, path = published
    encoder = load(path)
    with torch.inference_mode():
        out = encoder._model(pixels(OWN_SIZE), output_hidden_states=True)
        before = encoder._prenorm(pixels(OWN_SIZE))
        norm = encoder._model.norm if hasattr(encoder._model, "norm") else encoder._model.layernorm
        assert torch.equal(norm(before), out.last_hidden_state)
        assert torch.equal(before, out.hidden_states[-1])
    assert (out.last_hidden_state - encoder.encode(pixels(OWN_SIZE))).abs().max() > 0.01


def test_the_hash_and_the_tokens_are_the_same_from_every_way_in(published, tmp_path, monkeypatch):
    _, state, path = published
    encoder = load(path)
    tokens = encoder.encode(pixels(OWN_SIZE))
    save_file(state, tmp_path / "authors.safetensors")
    encoder.save(tmp_path / "folder")
    snapshot = tmp_path / "hub" / "models--some--vit" / "snapshots" / ("a" * 40)
    encoder.save(snapshot)
    (tmp_path / "hub" / "models--some--vit" / "refs").mkdir()
    (tmp_path / "hub" / "models--some--vit" / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for way in (tmp_path / "authors.safetensors", tmp_path / "folder", "some/vit"):
        again = load(way)
        assert again.weights_hash == encoder.weights_hash
        assert again.family is encoder.family
        assert torch.equal(again.encode(pixels(OWN_SIZE)), tokens)
    assert again.revision == "a" * 40
    assert "a" * 40 in again.label


def test_half_precision_files_are_widened(published, tmp_path):
    _, state, _ = published
    halves = {name: tensor.half() for name, tensor in state.items()}
    torch.save(halves, tmp_path / "half.pth")
    torch.save({name: tensor.float() for name, tensor in halves.items()}, tmp_path / "float.pth")
    half = load(tmp_path / "half.pth")
    assert half._model.embeddings.cls_token.dtype == torch.float32
    assert half.weights_hash == load(tmp_path / "float.pth").weights_hash


def test_identity_of_a_file_is_read_once_and_noticed_when_it_changes(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    state, path = authors_vit.weights(family="dinov2"), tmp_path / "one.pth"
    torch.save(state, path)
    settings = TargetSettings(encoder=str(path), image_size=OWN_SIZE)
    found = identity(settings)
    assert found == load(path).description
    assert layout_of(settings) == load(path).layout
    json.dumps(found)
    other = tmp_path / "other.pth"
    torch.save(state, other)
    elsewhere = TargetSettings(encoder=str(other), image_size=OWN_SIZE)
    assert identity(elsewhere)["weights"] == found["weights"]
    torch.save({**state, "norm.bias": state["norm.bias"] + 1}, other)
    assert identity(elsewhere)["weights"] != found["weights"]


@pytest.mark.parametrize(("name", "pieces"), [("blocks.1.mlp.fc1.weight", "mlp"), ("cls_token", "cls_token")])
def test_missing_weights_are_not_filled_with_random_numbers(tmp_path, name, pieces):
    state = authors_vit.weights(family="dinov2")
    del state[name]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(SystemicFault, match=pieces):
        load(tmp_path / "less.pth")


def test_weights_of_something_else_are_refused_by_name(tmp_path):
    torch.save({**authors_vit.weights(family="dinov2"), "head.weight": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(SystemicFault, match=r"head\.weight is not a weight of a DINOv2 with registers"):
        load(tmp_path / "more.pth")
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(SystemicFault, match=r"fc\.weight: those of none of: DINOv2 with registers"):
        load(tmp_path / "resnet.pth")


def test_shapes_that_fit_no_model_are_refused(tmp_path):
    for change in (
        {"pos_embed": torch.zeros(1, 1 + 35, 128)},
        {"patch_embed.proj.weight": torch.zeros(128, 3, 7, 8)},
        {"blocks.0.norm1.weight": torch.zeros(127)},
    ):
        torch.save({**authors_vit.weights(family="dinov2"), **change}, tmp_path / "odd.pth")
        with pytest.raises(SystemicFault, match=r"odd\.pth"):
            load(tmp_path / "odd.pth")
    rotary = authors_vit.weights(family="dinov3")
    torch.save({**rotary, "rope_embed.periods": rotary["rope_embed.periods"] * 2}, tmp_path / "odd.pth")
    with pytest.raises(SystemicFault, match="base 100"):
        load(tmp_path / "odd.pth")


def test_a_file_of_transformers_names_is_sent_back_to_its_folder(tmp_path):
    load_encoder(TargetSettings(encoder="random-small", image_size=56), device="cpu").save(tmp_path)
    with pytest.raises(SystemicFault, match=r"name the folder that it lies in, with its config\.json"):
        load(tmp_path / "model.safetensors")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_of_code_is_never_run(tmp_path):
    bomb = Bomb(tmp_path / "exploded")
    torch.save({**authors_vit.weights(family="dinov2"), "norm.bias": bomb}, tmp_path / "zip.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(bomb, protocol=2))
    for name in ("zip.pth", "bare.pth"):
        with pytest.raises(SystemicFault, match="could run code, or damaged: not opened"):
            load(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["whole.pth", "whole.safetensors"])
def test_damaged_files_are_sentences(tmp_path, name):
    state = authors_vit.weights(family="dinov2")
    path = tmp_path / name
    torch.save(state, path) if name.endswith("pth") else save_file(state, path)
    content = path.read_bytes()
    for damaged in (b"", content[:8], content[:1000], content[:-1000], b"junk" * 10):
        path.write_bytes(damaged)
        with pytest.raises(SystemicFault, match=name):
            load(path)
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(SystemicFault, match="not a plain table of tensors"):
        load(tmp_path / "list.pth")


def test_older_names_of_transformers_still_load(tmp_path):
    """Folders that were saved before transformers renamed the layers, as most of those on the hub."""
    older = {
        "dinov2": [
            ("attention.q_proj", "attention.attention.query"),
            ("attention.k_proj", "attention.attention.key"),
            ("attention.v_proj", "attention.attention.value"),
            ("attention.o_proj", "attention.output.dense"),
        ],
        "dinov3": [("model.layer.", "layer.")],
    }
    for kind, names in older.items():
        torch.save(authors_vit.weights(family=kind), tmp_path / "authors.pth")
        encoder = load(tmp_path / "authors.pth")
        encoder.save(tmp_path / kind)
        path = tmp_path / kind / "model.safetensors"
        renamed = {}
        for name, tensor in load_file(path).items():
            for new, old in names:
                name = name.replace(new, old)
            renamed[name] = tensor
        save_file(renamed, path, {"format": "pt"})
        again = load(tmp_path / kind)
        assert again.weights_hash == encoder.weights_hash
        assert torch.equal(again.encode(pixels(OWN_SIZE)), encoder.encode(pixels(OWN_SIZE)))


def test_mean_and_deviation_come_with_the_weights(tmp_path):
    """The satellite DINOv3 is no ImageNet's."""
    torch.save(authors_vit.weights(family="dinov3"), tmp_path / "authors.pth")
    usual = load(tmp_path / "authors.pth")
    satellite = Normalisation((0.43, 0.411, 0.296), (0.213, 0.156, 0.143))
    settings = TargetSettings(encoder=str(tmp_path / "folder"), image_size=OWN_SIZE)
    Encoder(usual._model, settings, device="cpu", normalisation=satellite).save(tmp_path / "folder")
    loaded = load_encoder(settings, device="cpu")
    assert loaded.normalisation == satellite
    assert loaded.description["preprocessing"]["mean"] == [0.43, 0.411, 0.296]
    assert loaded.weights_hash == usual.weights_hash
    assert loaded.description["fingerprint"] != usual.description["fingerprint"] == usual.weights_hash
    white = np.full((1, OWN_SIZE, OWN_SIZE, 3), 255, np.uint8)
    colours = torch.tensor([(1 - m) / s for m, s in zip(satellite.mean, satellite.std, strict=True)])
    seen = colours[:, None, None].expand(1, 3, OWN_SIZE, OWN_SIZE)
    torch.testing.assert_close(loaded.encode(white), loaded.encode(seen), atol=1e-5, rtol=0)
    assert (loaded.encode(white) - usual.encode(white)).abs().max() > 0.01
    (tmp_path / "folder" / weights.PREPROCESSING).unlink()
    assert load_encoder(settings, device="cpu").normalisation == usual.normalisation
    (tmp_path / "folder" / weights.PREPROCESSING).write_text('{"image_mean": [0.5], "image_std": [0.5]}')
    with pytest.raises(SystemicFault, match=r"preprocessor_config\.json: image_mean \[0\.5\]"):
        load_encoder(settings, device="cpu")


def test_every_family_knows_its_own_weights_and_no_others():
    owners = [family_of_names(authors_vit.weights(**kind)) for kind in KINDS.values()]
    assert [owner.title for owner in owners] == [
        "DINOv2 with registers",
        "DINOv2",
        "DINOv2 with registers",
        "DINOv3 ViT",
        "DINOv3 ViT",
    ]
    assert set(owners) == set(FAMILIES)
