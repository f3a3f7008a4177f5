"""AdamW on float32 weights, whatever the precision of the products; the learning rate; the clipped gradient.

Where the module's weights are bfloat16, float32 *masters* stand beside them: gradients are added up in them over the
batches of a step, AdamW moves them, and the module gets them rounded. A master that was rounded itself would lose every
change below a 500th of a weight, and at these learning rates most are.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from gap3d.aligner_settings import TrainingSettings

BETAS, EPS = (0.9, 0.999), 1e-8  # the paper's
MOMENTS = ("exp_avg", "exp_avg_sq")


def warmup_steps(settings: TrainingSettings, steps: int) -> int:
    """Steps in which the learning rate rises."""
    return max(math.ceil(settings.warmup * steps), settings.warmup_steps)


def learning_rate(step: int, steps: int, settings: TrainingSettings) -> float:
    """The rate of a step: up in a line, then down a half cosine to the floor.

    Step ``warmup_steps`` has the full rate and the last one the floor. (transformers' schedule, which the released code
    takes, is one step behind: its first step has rate 0.)

    Args:
        step: 1 to steps.
        steps: of the whole training.
        settings: the rate's.
    """
    rising = warmup_steps(settings, steps)
    if step <= rising:
        return settings.learning_rate * step / rising
    way = (step - rising) / (steps - rising)
    floor = min(settings.floor, settings.learning_rate)
    return floor + (settings.learning_rate - floor) * (1 + math.cos(math.pi * way)) / 2


class Optimiser:
    """AdamW with masters.

    Args:
        weights: what is trained, by name, float32; shards (``fully_shard``) keep that.
        weight_decay: of AdamW.
        dtype: that the module computes in: weights that are no shards, and belong to ``rounded``, are rounded to it.
        rounded: how the names of those begin.

    Attributes:
        masters: float32, by name; the weights themselves where those are not rounded.
    """

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        weight_decay: float = 0.0,
        *,
        dtype: torch.dtype = torch.float32,
        rounded: str = "dit.",
    ) -> None:
        self.weights = dict(weights)
        self.masters = dict(weights)
        self._apart = [
            name
            for name, weight in weights.items()
            if dtype != torch.float32 and name.startswith(rounded) and not isinstance(weight, DTensor)
        ]
        for name in self._apart:
            weight = self.weights[name]
            self.masters[name] = nn.Parameter(weight.detach().clone())
            weight.data = weight.data.to(dtype)
        # Shards apart from whole tensors (the soft tokens): one call takes one kind.
        groups = [
            [master for master in self.masters.values() if isinstance(master, DTensor) is sharded]
            for sharded in (False, True)
        ]
        self._adam = torch.optim.AdamW(
            [{"params": group} for group in groups if group],
            lr=0.0,
            betas=BETAS,
            eps=EPS,
            weight_decay=weight_decay,
            fused=True,
        )

    def gather(self) -> None:
        """Take over the gradients of one batch; they add up until ``step``."""
        for name in self._apart:
            master, weight = self.masters[name], self.weights[name]
            if weight.grad is None:
                continue
            if master.grad is None:
                master.grad = weight.grad.float()
            else:
                master.grad += weight.grad
            weight.grad = None

    def clip(self, most: float) -> float:
        """Scale the gradient so that its norm is at most this.

        Returns:
            The norm before; not finite where a number of the gradient is not.
        """
        gradients = [master.grad for master in self.masters.values() if master.grad is not None]
        whole_ones = [grad for grad in gradients if not isinstance(grad, DTensor)]
        shards = [grad for grad in gradients if isinstance(grad, DTensor)]
        norms = [gather(nn.utils.get_total_norm(group)) for group in (whole_ones, shards) if group]
        norm = float(torch.stack(norms).norm())
        if norm > most:
            for grad in gradients:
                grad.mul_(most / norm)
        return norm

    def step(self, rate: float) -> None:
        """Move the masters, give the module its weights, and forget the gradients."""
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.step()
        self._adam.zero_grad()
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Give the module the masters, rounded to its precision."""
        if not self._apart:
            return
        torch._foreach_copy_([self.weights[name] for name in self._apart], [self.masters[name] for name in self._apart])

    def forget(self) -> None:
        """Drop gradients, those of a step that is not going to be made."""
        self._adam.zero_grad()
        for weight in self.weights.values():
            weight.grad = None

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
        """(masters, moments, steps made): whole float32 tensors on the CPU, moments as ``<moment>.<name>``.

        Every process of a sharded model has to ask.
        """
        masters = {name: gather(master.detach()) for name, master in self.masters.items()}
        known = {name: self._adam.state[master] for name, master in self.masters.items() if self._adam.state[master]}
        moments = {f"{moment}.{name}": gather(state[moment]) for name, state in known.items() for moment in MOMENTS}
        steps = {int(state["step"]) for state in known.values()} or {0}
        return masters, moments, max(steps)

    @torch.no_grad()
    def restore(self, masters: Mapping[str, Tensor], moments: Mapping[str, Tensor], steps: int) -> None:
        """The inverse of ``state``.

        Raises:
            ValueError: these are of other weights.
        """
        wanted = {name: tuple(master.shape) for name, master in self.masters.items()}
        if {name: tuple(tensor.shape) for name, tensor in masters.items()} != wanted:
            raise ValueError("the weights of this checkpoint have other names or shapes than those of the model")
        wanted = {f"{moment}.{name}": shape for name, shape in wanted.items() for moment in MOMENTS}
        if {name: tuple(tensor.shape) for name, tensor in moments.items()} != wanted:
            raise ValueError("the moments of this checkpoint have other names or shapes than those of its weights")
        for name, master in self.masters.items():
            master.copy_(like(masters[name], master))
            self._adam.state[master] = {
                "step": torch.tensor(float(steps), device=master.device),  # where fused AdamW wants it
                **{moment: like(moments[f"{moment}.{name}"], master) for moment in MOMENTS},
            }
        self.publish()


def gather(tensor: Tensor) -> Tensor:
    """A tensor, or all shards of one, on the CPU; a copy."""
    gathered = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return gathered.to("cpu", copy=True)


def like(tensor: Tensor, master: Tensor) -> Tensor:
    """A whole tensor where a master lies, and sharded as it is."""
    tensor = tensor.to(master.device, torch.float32)
    if not isinstance(master, DTensor):
        return tensor
    # Every process has read the whole tensor: none sends anything.
    return distribute_tensor(tensor, master.device_mesh, master.placements, src_data_rank=None)
