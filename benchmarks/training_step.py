"""A training step on this CPU, beside its parts and a plain one: ``python -m benchmarks.training_step``.

The diffusion transformer of a mid-size configuration, UNTRAINED: speed does not depend on weights. A step is path,
forward, loss, backward, clipping and AdamW, in bfloat16 with float32 masters, activations kept. Its linear layers
(each with its own weights and shapes), its attention and its optimiser are measured alone, forward and backward; their
sum is what the step would take if all else were free. The plain step is the same network in float32: torch's
attention, RMSNorm and AdamW as they come. Interleaved rounds, medians of the ratios.

On a machine that others use at the same time, ``--busy`` takes one thread and its CPU time instead of the clock.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from gap3d.aligner import flow, norm
from gap3d.aligner.attention import attend
from gap3d.aligner.dit import DiT, Geometry
from gap3d.features.tokens import TokenLayout
from gap3d.training.optimiser import Optimiser

LAYOUT = TokenLayout(4, (37, 37), 1024)
CONDITION = (64, 2048)
RATE = 1e-4


class Data:
    """A batch that is the same in every step."""

    def __init__(self, batch: int) -> None:
        rng = torch.Generator().manual_seed(0)
        self.targets, self.noise = torch.randn(2, batch, LAYOUT.count, LAYOUT.width, generator=rng)
        self.condition = torch.randn(batch, *CONDITION, generator=rng).requires_grad_()
        self.timestep = flow.draw_timesteps(batch, rng)

    def backward(self, dit: Callable[..., Tensor]) -> None:
        """Path, forward, loss and backward."""
        noisy = flow.noisy(self.targets, self.noise, self.timestep)
        predicted = dit(noisy, self.timestep, self.condition, LAYOUT.grid)
        flow.losses(predicted, flow.velocity(self.targets, self.noise), LAYOUT).total.backward()


def ours(dit: DiT, optimiser: Optimiser, data: Data) -> None:
    data.backward(dit)
    update(optimiser)


def update(optimiser: Optimiser) -> None:
    optimiser.gather()
    optimiser.clip(1.0)
    optimiser.step(RATE)


def plain(dit: DiT, optimiser: torch.optim.Optimizer, data: Data) -> None:
    """As anybody would write it."""
    with mock.patch.object(
        norm.ScaledRMSNorm, "forward", lambda self, x, s=None: norm.plain(x, self.weight, s, self.eps)
    ):
        data.backward(dit)
    nn.utils.clip_grad_norm_(dit.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()


def linears(dit: DiT, data: Data) -> list[tuple[nn.Linear, Tensor, Tensor]]:
    """Every linear layer, with an input as it gets them and a gradient of its output."""
    found: list[tuple[nn.Linear, Tensor, Tensor]] = []
    tensors: dict[Any, Tensor] = {}

    def note(module: nn.Linear, inputs: tuple[Tensor], output: Tensor) -> None:
        learns = inputs[0].requires_grad
        given = tensors.setdefault((inputs[0].shape, learns), torch.randn_like(inputs[0]).requires_grad_(learns))
        found.append((module, given, tensors.setdefault((output.shape, "out"), torch.randn_like(output))))

    hooks = [m.register_forward_hook(note) for m in dit.modules() if isinstance(m, nn.Linear)]  # type: ignore[arg-type]
    with torch.enable_grad():
        dit(data.targets, data.timestep, data.condition, LAYOUT.grid)
    for hook in hooks:
        hook.remove()
    return found


def run_linears(layers: list[tuple[nn.Linear, Tensor, Tensor]]) -> None:
    for layer, given, gradient in layers:
        wanted = [*layer.parameters(), *([given] if given.requires_grad else [])]
        torch.autograd.grad(layer(given), wanted, gradient)


def run_attention(times: int, sets: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    for _ in range(times):
        for query, key, value in sets:
            torch.autograd.grad(attend(query, key, value), (query, key, value), query)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--compile", action="store_true", help="torch.compile of the blocks; needs a C++ compiler")
    parser.add_argument("--busy", action="store_true", help="CPU time of one thread")
    known = parser.parse_args()
    clock = time.thread_time if known.busy else time.perf_counter
    if known.busy:
        torch.set_num_threads(1)
    torch.manual_seed(0)
    heads = known.width // 64
    geometry = Geometry(LAYOUT.width, LAYOUT.registers, CONDITION[1], known.width, known.blocks, heads)
    single = DiT(geometry)
    adamw = torch.optim.AdamW(single.parameters(), RATE, weight_decay=0.0)
    dit = DiT(geometry)
    optimiser = Optimiser({f"dit.{name}": weight for name, weight in dit.named_parameters()}, dtype=torch.bfloat16)
    parts = DiT(geometry).bfloat16()
    optimiser_alone = Optimiser({f"dit.{n}": w for n, w in DiT(geometry).named_parameters()}, dtype=torch.bfloat16)
    data = Data(known.batch)
    layers = linears(parts, data)
    sets = []
    for keys in (LAYOUT.count, CONDITION[0]):
        shapes = [(known.batch, count, heads, 64) for count in (LAYOUT.count, keys, keys)]
        sets.append(tuple(torch.randn(shape).bfloat16().requires_grad_() for shape in shapes))
    if known.compile:
        for block in dit.blocks:
            block.compile()

    def optimise() -> None:
        update(optimiser_alone)

    def prepare() -> None:
        for weight in optimiser_alone.weights.values():
            weight.grad = torch.ones_like(weight)

    calls: dict[str, Callable[[], Any]] = {
        "step": lambda: ours(dit, optimiser, data),
        "linear layers alone": lambda: run_linears(layers),
        "attention alone": lambda: run_attention(known.blocks, sets),  # type: ignore[arg-type]
        "optimiser alone": optimise,
        "plain float32 step": lambda: plain(single, adamw, data),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(known.rounds + 1):
        for name, call in calls.items():
            prepare()
            started = clock()
            call()
            if number:  # the first warms up
                seconds[name].append(clock() - started)
    alone = [seconds[name] for name in calls if name.endswith("alone")]
    seconds["sum of the parts"] = [sum(each) for each in zip(*alone, strict=True)]

    weights = sum(weight.numel() for weight in dit.parameters())
    print(f"DiT {known.width} wide, {known.blocks} blocks, {weights / 1e6:.0f} M weights, UNTRAINED random ones")
    print(f"batch {known.batch} of {LAYOUT.count} tokens, condition {CONDITION}, blocks compiled: {known.compile}")
    kind = "seconds of CPU time" if known.busy else "seconds"
    print(f"{torch.get_num_threads()} threads, {known.rounds} rounds, {kind}")
    for name in ("sum of the parts", *calls):
        print(f"{name:>28} {statistics.median(seconds[name]):8.3f}")
    print(f"\n{'speed of the step over':>28} {'reached':>8} {'wanted':>7}")
    for name, wanted in (("sum of the parts", 0.9), ("plain float32 step", 1.8)):
        ratio = statistics.median(b / a for a, b in zip(seconds["step"], seconds[name], strict=True))
        print(f"{name:>28} {ratio:8.3f} {wanted:7.2f}")


if __name__ == "__main__":
    main()
