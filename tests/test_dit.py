"""The diffusion transformer against the reference implementation, the paper's counts, and its own symmetries."""

import dit_golden
import pytest
import torch
from torch.nn.functional import silu

from gap3d.aligner.dit import DiT, Geometry
from gap3d.aligner.naming import from_released, is_trainable, to_released
from gap3d.aligner.positions import rotation

GRID = (3, 5)


pytestmark = pytest.mark.usefixtures("one_thread")


def small(**changes):
    """UNTRAINED."""
    torch.manual_seed(0)
    return DiT(
        Geometry(
            **{"channels": 6, "registers": 2, "condition_width": 10, "width": 32, "blocks": 2, "heads": 2} | changes
        )
    )


def opened(dit):
    """With gates that let cross-attention in."""
    with torch.no_grad():
        for block in dit.blocks:
            block.attention.gate.copy_(torch.linspace(-1, 1.5, len(block.attention.gate)))
    return dit


def inputs(dit, grid=GRID, batch=2, seed=0):
    rng = torch.Generator().manual_seed(seed)
    geometry = dit.geometry
    tokens = torch.randn(batch, 1 + geometry.registers + grid[0] * grid[1], geometry.channels, generator=rng)
    condition = torch.randn(batch, 7, geometry.condition_width, generator=rng)
    return tokens, torch.randint(1, 1001, (batch,), generator=rng), condition


def test_the_velocity_equals_the_references():
    dit, layout, tensors = dit_golden.reference()
    found = dit(
        dit_golden.tokens(tensors, "input", layout), tensors["input.timestep"], tensors["input.cond"], layout.grid
    )
    torch.testing.assert_close(found, dit_golden.tokens(tensors, "output", layout), atol=1e-5, rtol=0)


def paper():
    with torch.device("meta"):
        return DiT(Geometry(channels=1024, registers=4, condition_width=2048))


def test_the_papers_size_has_the_papers_parameters():
    dit = paper()
    weights = dict(dit.named_parameters())
    assert dit.state_dict().keys() == weights.keys(), "nothing but parameters is saved"
    assert sum(weight.numel() for weight in weights.values()) == 1_363_187_104
    assert len(weights) == 648
    assert dit.geometry.inner == 4864
    assert dit.geometry.modulation == 1024


def released_shapes(blocks=24, width=1792, embedded=1024, inner=4864, channels=1024, condition=2048, registers=4):
    """The table of docs/method.md 5.7, spelled out again."""
    names = {"cls_role": (1, width), "reg_roles": (1, registers, width)}

    def linear(name, out, into, bias=True):
        names[f"{name}.weight"] = (out, into)
        if bias:
            names[f"{name}.bias"] = (out,)

    for kind in ("cls_embed", "reg_embed", "patch_embedder.proj"):
        linear(kind, width, channels)
    linear("caption_projection.linear_1", width, condition)
    linear("caption_projection.linear_2", width, width)
    linear("time_caption_embed.timestep_embedder.linear_1", embedded, 256)
    linear("time_caption_embed.timestep_embedder.linear_2", embedded, embedded)
    names |= {f"time_caption_embed.caption_embedder.0.{part}": (width,) for part in ("weight", "bias")}
    linear("time_caption_embed.caption_embedder.1", embedded, width)
    linear("norm_out.linear_1", width, embedded)
    linear("norm_out.linear_2", channels, width)
    for block in (f"layers.{index}" for index in range(blocks)):
        names[f"{block}.gate"] = (28,)
        for attention in ("attn1", "attn2"):
            for product in "qkv":
                linear(f"{block}.{attention}.to_{product}", width, width, bias=False)
            for norm in "qk":
                names |= {f"{block}.{attention}.norm_{norm}.{part}": (width,) for part in ("weight", "bias")}
        linear(f"{block}.attn2.to_out.0", width, width, bias=False)
        linear(f"{block}.feed_forward.linear_1", inner, width, bias=False)
        linear(f"{block}.feed_forward.linear_2", width, inner, bias=False)
        linear(f"{block}.feed_forward.linear_3", inner, width, bias=False)
        linear(f"{block}.norm1.linear", 4 * width, embedded)
        for norm in ("norm1.norm", "norm2", "ffn_norm1", "ffn_norm2", "norm1_context"):
            names[f"{block}.{norm}.weight"] = (width,)
    return {f"model.dit.model.{name}": shape for name, shape in names.items()}


def test_released_names_are_those_of_the_documented_table_and_lead_back():
    ours = {f"dit.{name}": tuple(weight.shape) for name, weight in paper().named_parameters()}
    ours["conditioner.soft_tokens"] = (1, 64, 2048)
    released = to_released(ours)
    assert released == released_shapes() | {"model.latent_queries": (1, 64, 2048)}
    assert len(released) == 649
    assert from_released(released) == ours


def test_frozen_weights_of_a_released_checkpoint_are_passed_over_and_strangers_are_refused():
    frozen = [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.norm.weight",
        "model.gen_vision_tower.vision_tower.cls_token",
        "model.language_model.layers.1.mlp.up_proj.weight",
        "visual.patch_embed.proj.weight",
        "lm_head.weight",
    ]
    assert not any(map(is_trainable, frozen))
    gate = {"model.dit.model.layers.7.gate": 1}
    assert from_released(gate | dict.fromkeys(frozen)) == {"dit.blocks.7.attention.gate": 1}
    for name in ("module.model.latent_queries", "model.dit.model.layers.0.attn3.to_q.weight", "model.dit.model.gate"):
        with pytest.raises(ValueError, match=name):
            from_released({name: 1})
    for name in ("dit.blocks.0.attention.other.weight", "gate", "dit.blocks.0", "dit.attention.gate"):
        with pytest.raises(ValueError, match=name):
            to_released({name: 1})


@pytest.mark.parametrize("registers", [0, 1, 4])
@pytest.mark.parametrize("grid", [(1, 1), (2, 7), (5, 3)])
@pytest.mark.parametrize("channels", [1, 12])
def test_any_grid_channels_and_registers(channels, grid, registers):
    dit = small(channels=channels, registers=registers)
    given, timestep, condition = inputs(dit, grid)
    found = dit(given, timestep, condition, grid)
    assert found.shape == given.shape
    found.sum().backward()
    assert all(weight.grad is not None for weight in dit.parameters()), "no weight is there in vain"


def test_tokens_of_another_grid_are_refused():
    dit = small()
    with pytest.raises(ValueError, match=r"18 tokens are not CLS, 2 registers and 4 x 4 patches"):
        dit(*inputs(dit), (4, 4))
    with pytest.raises(ValueError, match="width 36"):
        Geometry(channels=6, registers=2, condition_width=10, width=36, heads=2)


def test_a_condition_of_zeros_is_one_and_the_same_however_long_and_whatever_came_before():
    dit = opened(small())
    given, timestep, condition = inputs(dit)
    null = dit(given, timestep, condition * 0, GRID)
    with_one, with_other = (dit(given, timestep, c, GRID) for c in (condition, condition.flip(0)))
    assert not torch.allclose(with_one, with_other, atol=1e-3)
    assert not torch.allclose(with_one, null, atol=1e-3)
    for length in (1, 7, 64):
        zeros = condition.new_zeros(len(given), length, condition.shape[2])
        torch.testing.assert_close(dit(given, timestep, zeros, GRID), null, atol=1e-6, rtol=0)


def test_samples_of_a_batch_do_not_see_each_other():
    dit = opened(small())
    given, timestep, condition = inputs(dit, batch=3)
    together = dit(given, timestep, condition, GRID)
    for one in range(3):
        alone = dit(*(x[one : one + 1] for x in (given, timestep, condition)), GRID)
        torch.testing.assert_close(together[one : one + 1], alone, atol=1e-6, rtol=0)


def test_the_order_of_condition_tokens_does_not_matter():
    dit = opened(small())
    given, timestep, condition = inputs(dit)
    found = dit(given, timestep, condition.flip(1), GRID)
    torch.testing.assert_close(found, dit(given, timestep, condition, GRID), atol=1e-6, rtol=0)


def test_cls_and_registers_have_no_place_and_patches_have():
    """Registers of one role that change places change nothing else; patches that do are told apart."""
    dit = opened(small())
    with torch.no_grad():
        dit.registers_role.copy_(dit.registers_role[:, :1].expand_as(dit.registers_role))
    given, timestep, condition = inputs(dit)
    wanted = dit(given, timestep, condition, GRID)

    def swapped(tokens, one, other):
        order = torch.arange(tokens.shape[1])
        order[[one, other]] = order[[other, one]]
        return tokens[:, order]

    for one, other, same in ((1, 2, True), (3, 4, False)):
        found = swapped(dit(swapped(given, one, other), timestep, condition, GRID), one, other)
        assert torch.allclose(found, wanted, atol=1e-6) == same


def test_rotation_leaves_unplaced_tokens_and_lengths_and_sees_only_differences_of_places():
    rows, columns = GRID
    turn = rotation(3, GRID, 16)
    rng = torch.Generator().manual_seed(0)
    one, other = (torch.randn(16, generator=rng).expand(1, 3 + rows * columns, 1, 16) for _ in range(2))
    turned = turn(one)
    assert torch.equal(turned[:, :4], one[:, :4]), "CLS, registers, and the patch at (0, 0)"
    torch.testing.assert_close(turned.norm(dim=-1), one.norm(dim=-1))
    scores = torch.einsum("thd,shd->ts", turned[0, 3:], turn(other)[0, 3:]).view(rows, columns, rows, columns)
    torch.testing.assert_close(scores[1:, 2:, 1:, 2:], scores[:-1, :-2, :-1, :-2], atol=1e-5, rtol=0)


def test_rotation_turns_even_pairs_by_the_row_and_odd_ones_by_the_column():
    width, (rows, columns) = 12, GRID
    x = torch.randn(2, rows * columns, 3, width, generator=torch.Generator().manual_seed(0))
    found = rotation(0, GRID, width)(x)
    for token in range(rows * columns):
        for pair in range(width // 2):
            place = (token // columns, token % columns)[pair % 2]
            angle = torch.tensor(place * 10000.0 ** (-(pair // 2) / 3))
            turn = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos())).view(2, 2)
            both = slice(2 * pair, 2 * pair + 2)
            torch.testing.assert_close(found[:, token, :, both], x[:, token, :, both] @ turn.T, atol=1e-6, rtol=0)


def gradients(dit):
    given, timestep, condition = inputs(dit)
    condition.requires_grad_()
    dit(given, timestep, condition, GRID).square().sum().backward()
    return {"condition": condition.grad} | {name: weight.grad for name, weight in dit.named_parameters()}


def test_checkpointing_changes_no_gradient():
    dit = opened(small())
    plain = gradients(dit)
    dit.zero_grad()
    dit.checkpointing = True
    for name, gradient in gradients(dit).items():
        torch.testing.assert_close(gradient, plain[name], atol=0, rtol=0, msg=name)


def test_checkpointing_keeps_less():
    def kept(checkpointing):
        dit = small(blocks=4)
        dit.checkpointing = checkpointing
        numbers = 0

        def count(tensor):
            nonlocal numbers
            numbers += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            dit(*inputs(dit), GRID)
        return numbers

    assert kept(True) < kept(False) / 2


def test_at_the_start_cross_attention_learns_nothing_but_its_gates():
    found = gradients(small())
    for index in range(2):
        attention = f"blocks.{index}.attention"
        for name, gradient in found.items():
            if name.startswith(f"{attention}.cross"):
                assert not gradient.any(), name
        assert found[f"{attention}.gate"].all()
    assert found["condition"].any(), "through the pooled vector"
    later = gradients(opened(small()))
    for index in range(2):
        for name in ("q.weight", "k.weight", "v.weight", "q_norm.weight", "q_norm.bias", "k_norm.weight"):
            assert later[f"blocks.{index}.attention.cross_{name}"].any(), name


def test_bfloat16_stays_near():
    dit = opened(small(width=64, heads=2))
    given = inputs(dit)
    wanted = dit(*given, GRID)
    found = dit.bfloat16()(*given, GRID)
    assert found.dtype == torch.bfloat16
    assert torch.cosine_similarity(found.float(), wanted, dim=-1).min() > 0.999


def test_silu_computes_in_float32_in_any_precision():
    x = torch.linspace(-20, 20, 4001).bfloat16()
    assert torch.equal(silu(x), silu(x.float()).bfloat16())
