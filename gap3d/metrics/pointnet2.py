"""Point-E's PointNet++, whose features the point cloud distance compares (docs/method.md 8.4).

Single-scale grouping on ModelNet40, positions only. Modules have the names of Point-E's checkpoint. Where the
original sorts all distances of a ball, the nearest come first in the order of the cloud: so do they here.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

CLASSES = 40  # of ModelNet40
WIDTH = 2  # Point-E's multiple of the published channels


@dataclass(frozen=True)
class Grouping:
    """How a layer gathers neighbours.

    Attributes:
        centres: points that are kept, by farthest point sampling.
        radius: of the ball about each.
        neighbours: points taken of the ball, the first in the order of the cloud.
    """

    centres: int
    radius: float
    neighbours: int


class SetAbstraction(nn.Module):
    """Points with channels to fewer points with more channels; to one, where there is no grouping.

    Args:
        channels_in: with the three of the position.
        channels: of the layers of the shared network.
        grouping: None takes all points as one group.
    """

    def __init__(self, channels_in: int, channels: tuple[int, ...], grouping: Grouping | None) -> None:
        super().__init__()
        self.grouping = grouping
        sizes = (channels_in, *channels)
        self.mlp_convs = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(sizes, channels, strict=False))
        self.mlp_bns = nn.ModuleList(nn.BatchNorm2d(size) for size in channels)

    def forward(self, points: Tensor, features: Tensor | None, start: Tensor) -> tuple[Tensor, Tensor]:
        """Points [B, N, 3], features [B, N, C] or None, start [B] to centres [B, S, 3] and features [B, S, D]."""
        if self.grouping is None:
            centres = torch.zeros_like(points[:, :1])  # [B, 1, 3]
            grouped = points[:, None]  # [B, 1, N, 3]
            gathered = None if features is None else features[:, None]  # [B, 1, N, C]
        else:
            centres = take(points, farthest(points, self.grouping.centres, start))  # [B, S, 3]
            members = ball(points, centres, self.grouping)  # [B, S, K]
            grouped = take(points, members) - centres[:, :, None]  # [B, S, K, 3]
            gathered = None if features is None else take(features, members)  # [B, S, K, C]
        if gathered is not None:
            grouped = torch.cat([grouped, gathered], dim=-1)  # [B, S, K, 3 + C]
        grouped = grouped.permute(0, 3, 2, 1)  # [B, 3 + C, K, S]
        for conv, norm in zip(self.mlp_convs, self.mlp_bns, strict=True):
            grouped = torch.relu(norm(conv(grouped)))
        return centres, grouped.amax(2).transpose(1, 2)  # [B, S, D]


class PointNet2(nn.Module):
    """The classifier.

    Args:
        width: multiple of the published channels.
        classes: of its last layer.

    Attributes:
        width: of its features.
    """

    def __init__(self, width: int = WIDTH, classes: int = CLASSES) -> None:
        super().__init__()
        w = width
        self.width = 256 * w
        self.sa1 = SetAbstraction(3, (64 * w, 64 * w, 128 * w), Grouping(512, 0.2, 32))
        self.sa2 = SetAbstraction(128 * w + 3, (128 * w, 128 * w, 256 * w), Grouping(128, 0.4, 64))
        self.sa3 = SetAbstraction(256 * w + 3, (256 * w, 512 * w, 1024 * w), None)
        self.fc1 = nn.Linear(1024 * w, 512 * w)
        self.bn1 = nn.BatchNorm1d(512 * w)
        self.fc2 = nn.Linear(512 * w, 256 * w)
        self.bn2 = nn.BatchNorm1d(256 * w)
        self.fc3 = nn.Linear(256 * w, classes)

    def features(self, points: Tensor, start: Tensor) -> Tensor:
        """What stands before the last rectifier.

        Args:
            points: [B, N, 3], centred and scaled to the unit ball, N at least 512.
            start: int64 [B], the point from which the farthest are sought.

        Returns:
            [B, F], F being ``width``.
        """
        centres, found = self.sa1(points, None, start)
        centres, found = self.sa2(centres, found, start)
        _, found = self.sa3(centres, found, start)
        found = torch.relu(self.bn1(self.fc1(found[:, 0])))
        return self.bn2(self.fc2(found))

    def forward(self, points: Tensor, start: Tensor) -> Tensor:
        """Logarithms of the probabilities of the classes, [B, classes]; see ``features``."""
        return torch.log_softmax(self.fc3(torch.relu(self.features(points, start))), dim=-1)


def take(values: Tensor, indices: Tensor) -> Tensor:
    """Values [B, N, C] at indices [B, ...]: [B, ..., C]."""
    flat = indices.flatten(1)[..., None].expand(-1, -1, values.shape[-1])
    return values.gather(1, flat).view(*indices.shape, values.shape[-1])


def farthest(points: Tensor, count: int, start: Tensor) -> Tensor:
    """Farthest point sampling of a batch of small clouds: points [B, N, 3], start [B] to int64 [B, count]."""
    nearest = points.new_full(points.shape[:2], torch.inf)
    chosen = torch.empty(len(points), count, dtype=torch.int64, device=points.device)
    current = start
    for step in range(count):
        chosen[:, step] = current
        nearest = torch.minimum(nearest, (points - take(points, current[:, None])).square().sum(-1))
        current = nearest.argmax(-1)
    return chosen


def ball(points: Tensor, centres: Tensor, grouping: Grouping) -> Tensor:
    """The first neighbours within the radius: points [B, N, 3], centres [B, S, 3] to int64 [B, S, K].

    Where there are fewer, the first one fills up.
    """
    # Distances as the original rounds them: at the rim of a ball a last bit decides.
    distances = -2 * (centres @ points.transpose(1, 2))
    distances = distances + centres.square().sum(-1)[:, :, None]
    distances = distances + points.square().sum(-1)[:, None]
    count = points.shape[1]
    order = torch.arange(count, device=points.device).expand(distances.shape)
    inside = torch.where(distances > grouping.radius**2, count, order)
    members = inside.topk(min(grouping.neighbours, count), largest=False, sorted=True).values
    return torch.where(members == count, members[..., :1], members)
