"""A training step on this CPU, beside its parts and a plain one: ``python -m benchmarks.training_step``.

The diffusion transformer of a mid-size configuration, UNTRAINED: speed does not depend on weights. A step is path,
forward, loss, backward, clipping and AdamW, in bfloat16 with float32 masters, activations kept. Its linear layers
(each with its own weights and shapes), its attention and its optimiser are measured alone, forward and backward; their
sum is what the step would take if all else were free. The plain step is the same network in float32: torch's
attention, RMSNorm and AdamW as they come. Interleaved rounds, medians of the ratios. Without a size, the table of
every case in docs/numbers.md.

On a machine that others use at the same time, ``--busy`` takes one thread and its CPU time instead of the clock.
"""

import shutil
import statistics
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks._arguments import Arguments
from benchmarks._linears import backward, linears
from benchmarks._timing import clock_of, interleaved, ratio
from benchmarks.parts import LAYOUT
from gap3d.aligner import flow, norm
from gap3d.aligner.attention import attend
from gap3d.aligner.dit import DiT, Geometry
from gap3d.training.optimiser import Optimiser

CONDITION = (64, 2048)
RATE = 1e-4
CASES = ((1024, 8, False), (768, 12, False), (768, 12, True))  # width, blocks, compiled


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


def run_attention(times: int, sets: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    for _ in range(times):
        for query, key, value in sets:
            torch.autograd.grad(attend(query, key, value), (query, key, value), query)


def measure(width: int, blocks: int, compiled: bool, batch: int, rounds: int, busy: bool) -> None:
    """One table."""
    clock = clock_of(busy)
    torch.manual_seed(0)
    heads = width // 64
    geometry = Geometry(LAYOUT.width, LAYOUT.registers, CONDITION[1], width, blocks, heads)
    single = DiT(geometry)
    adamw = torch.optim.AdamW(single.parameters(), RATE, weight_decay=0.0)
    dit = DiT(geometry)
    optimiser = Optimiser({f"dit.{name}": weight for name, weight in dit.named_parameters()}, dtype=torch.bfloat16)
    parts = DiT(geometry).bfloat16()
    optimiser_alone = Optimiser({f"dit.{n}": w for n, w in DiT(geometry).named_parameters()}, dtype=torch.bfloat16)
    data = Data(batch)
    layers = linears(parts, lambda: parts(data.targets, data.timestep, data.condition, LAYOUT.grid))
    sets = []
    for keys in (LAYOUT.count, CONDITION[0]):
        query, key, value = (
            torch.randn(batch, count, heads, 64).bfloat16().requires_grad_() for count in (LAYOUT.count, keys, keys)
        )
        sets.append((query, key, value))
    if compiled:
        for block in dit.blocks:
            block.compile()

    def prepare() -> None:
        for weight in optimiser_alone.weights.values():
            weight.grad = torch.ones_like(weight)

    calls: dict[str, Callable[[], Any]] = {
        "step": lambda: ours(dit, optimiser, data),
        "linear layers alone": lambda: backward(layers),
        "attention alone": lambda: run_attention(blocks, sets),
        "optimiser alone": lambda: update(optimiser_alone),
        "plain float32 step": lambda: plain(single, adamw, data),
    }
    seconds = interleaved(calls, rounds, clock, prepare)
    alone = [seconds[name] for name in calls if name.endswith("alone")]
    seconds["sum of the parts"] = [sum(each) for each in zip(*alone, strict=True)]

    weights = sum(weight.numel() for weight in dit.parameters())
    print(f"DiT {width} wide, {blocks} blocks, {weights / 1e6:.0f} M weights, UNTRAINED random ones")
    print(f"batch {batch} of {LAYOUT.count} tokens, condition {CONDITION}, blocks compiled: {compiled}")
    kind = "seconds of CPU time" if busy else "seconds"
    print(f"{torch.get_num_threads()} threads, {rounds} rounds, {kind}")
    for name in ("sum of the parts", *calls):
        print(f"{name:>28} {statistics.median(seconds[name]):8.3f}")
    print(f"\n{'speed of the step over':>28} {'reached':>8} {'wanted':>7}")
    for name, wanted in (("sum of the parts", 0.9), ("plain float32 step", 1.8)):
        print(f"{name:>28} {ratio(seconds[name], seconds['step']):8.3f} {wanted:7.2f}")
    print(flush=True)


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_size("--rounds", 3, 1)
    parser.add_size("--batch", 1, 1)
    parser.add_argument("--width", type=int, help="of one case only")
    parser.add_argument("--blocks", type=int, help="of one case only")
    parser.add_argument("--compile", action="store_true", help="torch.compile of the blocks; needs a C++ compiler")
    parser.add_argument("--busy", action="store_true", help="CPU time of one thread")
    known = parser.read()
    cases: tuple[tuple[int, int, bool], ...] = CASES
    if known.quick:
        cases = ((64, 1, known.compile),)
    elif known.width or known.blocks or known.compile:
        cases = ((known.width or 768, known.blocks or 12, known.compile),)
    for width, blocks, compiled in cases:
        if compiled and not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
            print("the compiled step is left out: torch.compile needs a C++ compiler, g++ for one")
            continue
        measure(width, blocks, compiled, known.batch, known.rounds, known.busy)


if __name__ == "__main__":
    main()
