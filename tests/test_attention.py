"""Attention and linear layers for bfloat16 on a CPU, against float32 and against torch's own."""

import copy

import pytest
import torch
from torch.nn.functional import linear as torch_linear
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel, DINOv3ViTConfig, DINOv3ViTModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from gap3d.features import attention, linear
from gap3d.features.attention import attention_forward, blocked
from gap3d.features.encoders import load_encoder
from gap3d.settings import TargetSettings

SCALE = 0.125
needs_bfloat16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor has no oneDNN products in bfloat16"
)


def inputs(batch=1, heads=3, tokens=301, width=64, spread=1.0, offset=0.0):
    """Query, key and value as the encoder has them: [B, H, T, D], not contiguous; scores of deviation ``spread``."""
    rng = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(batch, tokens, heads, width, generator=rng) for _ in range(3))
    key = key + offset * torch.randn(1, 1, heads, width, generator=rng)
    return [x.bfloat16().transpose(1, 2) for x in (query * spread, key, value)]


def exact(query, key, value, scale=SCALE):
    return sdpa(query.double(), key.double(), value.double(), scale=scale).transpose(1, 2)


def error(found, wanted):
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(("spread", "offset"), [(0.1, 0), (1, 0), (3, 0), (10, 0), (1, 3), (3, 10)])
@pytest.mark.parametrize("tokens", [1, 7, 16, 17, 301])
def test_it_is_softmax_attention_to_the_digits_of_bfloat16(tokens, spread, offset):
    given = inputs(batch=2, tokens=tokens, spread=spread, offset=offset)
    assert error(blocked(*given, SCALE), exact(*given)) < 2**-7


@pytest.mark.parametrize(("spread", "offset"), [(3, 0), (5, 0), (1, 3)])
def test_large_scores_keep_their_digits(spread, offset):
    query, key, value = given = inputs(tokens=1374, spread=spread, offset=offset)
    rounded = torch.softmax(query @ key.transpose(2, 3) * SCALE, -1) @ value  # scores rounded to 8 bits
    assert error(blocked(*given, SCALE), exact(*given)) < 0.6 * error(rounded.transpose(1, 2), exact(*given))


def test_a_key_that_the_estimate_missed_still_wins():
    query, key, value = inputs(tokens=200)
    missed = attention.LEAD + 1
    assert missed < attention.LEAD + attention.STEP
    key[..., missed, :] = query[..., 0, :] * 100  # a score some 800 above all others for query 0
    found = blocked(query, key, value, SCALE)
    assert found.isfinite().all()
    assert torch.equal(found[:, 0], value[:, :, missed])


def test_a_row_depends_on_neither_batch_nor_threads_nor_blocks(monkeypatch):
    given = inputs(batch=3, heads=5, tokens=1374)
    before = torch.get_num_threads()
    whole = blocked(*given, SCALE)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for block in (1 << 16, 1 << 21):
                monkeypatch.setattr(attention, "BLOCK", block)
                assert torch.equal(blocked(*given, SCALE), whole)
                assert torch.equal(blocked(*(x[1:2] for x in given), SCALE), whole[1:2])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["mask", "float32", "scale", "grouped", "gradient", "causal", "bias"])
def test_what_it_is_not_made_for_goes_to_torch(kind):
    query, key, value = inputs(tokens=40, heads=4)
    mask, scaling, wishes = None, SCALE, {}
    module = torch.nn.Module().eval()
    module.is_causal = kind == "causal"
    if kind == "mask":
        mask = torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(1)) > 0.3
    elif kind == "float32":
        query, key, value = (x.float() for x in (query, key, value))
    elif kind == "scale":
        scaling = 0.1
    elif kind == "gradient":
        query.requires_grad_(True)
    elif kind == "bias":
        wishes["position_bias"] = torch.randn(1, 4, 40, 40, generator=torch.Generator().manual_seed(1)).bfloat16()
    elif kind == "grouped":
        key, value = key[:, :2], value[:, :2]
        module.num_key_value_groups = 2
    wanted, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **wishes)
    found, weights = attention_forward(module, query, key, value, mask, scaling=scaling, **wishes)
    assert torch.equal(found, wanted)
    assert weights is None
    assert found.requires_grad == (kind == "gradient")


MODELS = {
    "dinov2": lambda: Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=2,
            patch_size=14,
            num_register_tokens=4,
            image_size=196,
        )
    ),
    "dinov3": lambda: DINOv3ViTModel(
        DINOv3ViTConfig(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=2,
            patch_size=16,
            num_register_tokens=4,
            image_size=224,
        )
    ),
}


def random_model(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[name]().eval().requires_grad_(False)
        for key, tensor in model.state_dict().items():
            if tensor.ndim == 2:  # scores of some size: as initialised, attention is uniform
                tensor.mul_(6 if "q_proj" in key or "k_proj" in key else 2)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_models_lose_no_accuracy_by_it(name):
    model = random_model(name)
    side = model.config.image_size
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = model(pixels).last_hidden_state.double()
        theirs = copy.deepcopy(model).bfloat16()
        theirs.set_attn_implementation("sdpa")
        ours = copy.deepcopy(theirs)
        attention.register()
        ours.set_attn_implementation(attention.NAME)
        pixels = pixels.bfloat16()
        found = ours(pixels).last_hidden_state
        assert not torch.equal(found, theirs(pixels).last_hidden_state)  # it was used
        assert error(found, wanted) < 1.1 * error(theirs(pixels).last_hidden_state, wanted)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_installed_for_bfloat16_alone(name):
    model = random_model(name)
    assert not attention.install(model)
    assert attention.install(model.bfloat16()) == attention.is_faster()
    assert (model.config._attn_implementation == attention.NAME) == attention.is_faster()


@needs_bfloat16
def test_packed_layers_give_the_same_bits():
    rng = torch.Generator().manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(96, 200), torch.nn.GELU(), torch.nn.Linear(200, 64, bias=False))
    layers = layers.bfloat16().requires_grad_(False)
    plain = copy.deepcopy(layers)
    linear.pack(layers)
    assert [type(layer) for layer in layers] == [linear.PackedLinear, torch.nn.GELU, linear.PackedLinear]
    for rows in (1, 30, 257):
        x = torch.randn(2, rows, 96, generator=rng).bfloat16()
        assert torch.equal(layers(x), plain(x))
        assert torch.equal(layers[0](x), torch_linear(x, plain[0].weight, plain[0].bias))


@needs_bfloat16
def test_packed_layers_are_saved_as_the_plain_ones():
    layers = torch.nn.Sequential(torch.nn.Linear(96, 200), torch.nn.Linear(200, 64, bias=False)).bfloat16()
    layers.requires_grad_(False)
    wanted = {name: tensor.clone() for name, tensor in layers.state_dict().items()}
    linear.pack(layers)
    found = layers.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_an_encoder_in_bfloat16_is_saved_whole_and_names_its_attention(tmp_path):
    settings = TargetSettings(encoder="random-small", image_size=70, dtype="bfloat16")
    encoder = load_encoder(settings, device="cpu")
    assert (attention.NAME in encoder.device) == attention.is_faster()
    encoder.save(tmp_path)
    read = load_encoder(settings.model_copy(update={"encoder": str(tmp_path), "dtype": "float32"}), device="cpu")
    single = load_encoder(settings.model_copy(update={"dtype": "float32"}), device="cpu")
    assert read.device == single.device == "cpu"
    wanted = single._model.state_dict()
    for name, tensor in read._model.state_dict().items():
        assert torch.equal(tensor, wanted[name].bfloat16().float())
