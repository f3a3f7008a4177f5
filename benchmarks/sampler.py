"""A guided sample beside the forward passes that it cannot do without: ``python -m benchmarks.sampler``.

The diffusion transformer of a mid-size configuration in bfloat16, UNTRAINED: speed does not depend on weights. A sample
of N steps needs N passes over 2 B token sets, half of them without condition; all else should cost next to nothing.
Interleaved rounds, medians of the ratios.

On a machine that others use at the same time, ``--busy`` takes one thread and its CPU time instead of the clock.
"""

import statistics

import torch
from torch import Tensor

from benchmarks._arguments import Arguments
from benchmarks._timing import clock_of, interleaved, ratio
from benchmarks.parts import LAYOUT
from gap3d.aligner.dit import DiT, Geometry
from gap3d.aligner.sampler import noise_of, sample, schedule
from gap3d.aligner_settings import SamplingSettings

CONDITION = (64, 2048)


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_size("--rounds", 3, 1)
    parser.add_size("--steps", 5, 2)
    parser.add_size("--batch", 1, 1)
    parser.add_size("--width", 768, 64)
    parser.add_size("--blocks", 12, 1)
    parser.add_argument("--busy", action="store_true", help="CPU time of one thread")
    known = parser.read()
    clock = clock_of(known.busy)
    torch.manual_seed(0)
    geometry = Geometry(LAYOUT.width, LAYOUT.registers, CONDITION[1], known.width, known.blocks, known.width // 64)
    dit = DiT(geometry).bfloat16()
    asked: list[int] = []

    def velocity(x: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        asked.append(len(x))
        return dit(x, timestep, condition, LAYOUT.grid)

    noise = noise_of([str(number) for number in range(known.batch)], LAYOUT, seed=0)
    condition = torch.randn(known.batch, *CONDITION)
    settings = SamplingSettings(steps=known.steps)
    _, timesteps = schedule(known.steps)
    twice, both = noise.repeat(2, 1, 1), condition.repeat(2, 1, 1)

    @torch.no_grad()
    def forwards() -> None:
        for timestep in timesteps:
            dit(twice, timestep.expand(len(twice)), both, LAYOUT.grid)

    ways = {"sample": lambda: sample(velocity, noise, condition, settings), "forwards": forwards}
    seconds = interleaved(ways, known.rounds, clock)
    assert asked == [2 * known.batch] * known.steps * (known.rounds + 1), "one batched pass a step"
    print(f"DiT {known.width} wide, {known.blocks} blocks, {LAYOUT.count} tokens, bfloat16, UNTRAINED random weights")
    kind = "seconds of CPU time" if known.busy else "seconds"
    print(f"batch {known.batch}, {known.steps} steps, {torch.get_num_threads()} threads, {known.rounds} rounds, {kind}")
    print(f"{'a sample':>32} {statistics.median(seconds['sample']):8.3f}")
    print(f"{'steps x a forward of 2 B':>32} {statistics.median(seconds['forwards']):8.3f}")
    print(f"{'':>32} {'reached':>8} {'wanted':>7}")
    print(f"{'sample over forwards, at most':>32} {ratio(seconds['sample'], seconds['forwards']):8.3f} {1.1:7.2f}")


if __name__ == "__main__":
    main()
