"""The encoder in bfloat16 on this CPU, beside its parts and plain transformers: ``python -m benchmarks.encoder``.

ViT-L/14 with registers at 518, one image at a time, UNTRAINED random weights: speed does not depend on them. Linear
layers and attention are measured alone, with the encoder's own weights and shapes, all layers one after the other;
their sum is what the encoder would take if all else were free. Interleaved rounds, medians of the ratios.

Errors are those of the targets against float32, by kind of token: as initialised, where random weights make
attention nearly uniform, and with larger query and key weights, where it is peaked. Float32 and the baselines run
torch's sdpa (``eager``: transformers' attention of that name).

On a machine that others use at the same time, ``--busy`` takes one thread and its CPU time instead of the clock.
"""

import copy
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from benchmarks._arguments import Arguments
from benchmarks._linears import forward, linears
from benchmarks._timing import clock_of, interleaved, ratio
from gap3d.features import attention
from gap3d.features.encoder import Encoder
from gap3d.features.precision import deviations
from gap3d.features.tokens import targets_from_prenorm
from gap3d.settings import TargetSettings

SIDE = 518
PEAKED = 8.0  # scores of queries and keys, times this


def random_model(layers: int, scores: float) -> Dinov2WithRegistersModel:
    """UNTRAINED: transformers' own initialisation, with scores of attention times a factor."""
    torch.manual_seed(0)
    config = Dinov2WithRegistersConfig(
        hidden_size=1024,
        num_hidden_layers=layers,
        num_attention_heads=16,
        patch_size=14,
        num_register_tokens=4,
        image_size=SIDE,
    )
    model = Dinov2WithRegistersModel(config).eval().requires_grad_(False)
    model.set_attn_implementation("sdpa")
    for name, weight in model.named_parameters():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight.mul_(scores**0.5)
    return model


def copy_of(model: Dinov2WithRegistersModel, implementation: str) -> Dinov2WithRegistersModel:
    """In bfloat16, as transformers has it."""
    with torch.device("meta"):
        made = Dinov2WithRegistersModel(copy.deepcopy(model.config))  # it says which attention
    state = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    made.load_state_dict(state, assign=True)
    made.set_attn_implementation(implementation)
    return made.eval().requires_grad_(False)


def plain(model: Dinov2WithRegistersModel, pixels: Tensor) -> Tensor:
    """Targets by transformers alone."""
    hidden = model.embeddings(pixels.to(model.dtype))
    return targets_from_prenorm(model.encoder(hidden).last_hidden_state)


def times(count: int, call: Callable[[], Any]) -> None:
    """A call for every layer."""
    for _ in range(count):
        call()


def errors(layers: int, scores: float, pixels: Tensor) -> dict[str, list[str]]:
    """How far every kind of token is from float32, by way."""
    model = random_model(layers, scores)
    wanted = plain(model, pixels)
    found = {kind: plain(copy_of(model, kind), pixels) for kind in ("eager", "sdpa")}
    encoder = Encoder(model, settings(), trained=False, device="cpu")
    found = {"ours": encoder.encode(pixels), **found}
    table = {}
    for name, tokens in found.items():
        table[name] = [
            f"{1 - kind.mean_cosine:9.1e} {1 - kind.least_cosine:9.1e} {kind.error:6.3f}"
            for kind in deviations(tokens, wanted, encoder.layout).values()
        ]
    return table


def settings() -> TargetSettings:
    return TargetSettings(encoder="UNTRAINED", image_size=SIDE, dtype="bfloat16")


@torch.inference_mode()
def main() -> None:
    parser = Arguments(__doc__)
    parser.add_size("--rounds", 4, 1)
    parser.add_size("--layers", 24, 1)
    parser.add_argument("--busy", action="store_true", help="CPU time of one thread")
    known = parser.read()
    clock = clock_of(known.busy)
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=rng)

    single = random_model(known.layers, 1.0)
    sdpa, eager = copy_of(single, "sdpa"), copy_of(single, "eager")
    encoder = Encoder(copy_of(single, "sdpa"), settings(), trained=False, device="cpu")
    tokens, width, heads = encoder.layout.count, encoder.layout.width, single.config.num_attention_heads
    narrow = torch.randn(1, tokens, width, generator=rng).bfloat16()
    query, key, value = (narrow.view(1, tokens, heads, -1).transpose(1, 2) * factor for factor in (1, -1, 0.5))
    scale = query.shape[-1] ** -0.5

    packed = linears(encoder._model, partial(encoder.encode, pixels))
    torchs = linears(sdpa, partial(plain, sdpa, pixels))
    of_linears = 2 * tokens * sum(layer.module.get_parameter("weight").numel() for layer in torchs)
    of_attention = 4 * tokens**2 * width * known.layers
    ours = attention.blocked if attention.is_faster() else scaled_dot_product_attention
    calls: dict[str, tuple[int, Callable[[], Any]]] = {
        "linear layers alone": (of_linears, partial(forward, packed)),
        "linear layers alone, torch's": (of_linears, partial(forward, torchs)),
        "attention alone": (of_attention, partial(times, known.layers, partial(ours, query, key, value, scale=scale))),
        "attention alone, torch's": (
            of_attention,
            partial(times, known.layers, partial(scaled_dot_product_attention, query, key, value, scale=scale)),
        ),
        "encoder": (of_linears + of_attention, partial(encoder.encode, pixels)),
        "encoder, transformers sdpa": (of_linears + of_attention, partial(plain, sdpa, pixels)),
        "encoder, transformers eager": (of_linears + of_attention, partial(plain, eager, pixels)),
        "encoder, transformers float32": (of_linears + of_attention, partial(plain, single, pixels)),
    }
    seconds = interleaved({name: call for name, (_, call) in calls.items()}, known.rounds, clock)
    pairs = zip(seconds["linear layers alone"], seconds["attention alone"], strict=True)
    seconds["sum of the parts"] = [sum(pair) for pair in pairs]

    print(f"DINOv2 ViT-L/14 with registers at {SIDE}: {tokens} tokens, {known.layers} layers, UNTRAINED random weights")
    kind = "seconds of CPU time" if known.busy else "seconds"
    print(f"{torch.get_num_threads()} threads, {known.rounds} rounds, {kind}; bfloat16, but for the last")
    print(f"ours is {encoder.device}, packed linear layers")
    print(f"{'':>30} {'s':>7} {'images/s':>9} {'GFLOP/s':>8}")
    for name in ("sum of the parts", *calls):
        work = calls[name][0] if name in calls else of_linears + of_attention
        middle = statistics.median(seconds[name])
        print(f"{name:>30} {middle:7.3f} {1 / middle:9.3f} {work / middle / 1e9:8.0f}")
    print(f"\n{'images per second, encoder over':>32} {'reached':>8} {'wanted':>7}")
    for name, wanted in (
        ("sum of the parts", 0.95),
        ("encoder, transformers eager", 1.15),
        ("encoder, transformers sdpa", 1.15),
        ("encoder, transformers float32", 2.3),
    ):
        print(f"{name:>32} {ratio(seconds[name], seconds['encoder']):8.3f} {wanted:7.2f}")
    del single, sdpa, eager, encoder, calls, packed, torchs
    for label, scores in (("as initialised", 1.0), ("peaked attention", PEAKED)):
        print(f"\n{label}, against float32: 1 - mean cosine, 1 - least cosine, greatest error")
        print(f"{'':>8} {'cls':^26} {'registers':^26} {'patches':^26}")
        for name, row in errors(known.layers, scores, pixels).items():
            print(f"{name:>8} {'  '.join(row)}")


if __name__ == "__main__":
    main()
