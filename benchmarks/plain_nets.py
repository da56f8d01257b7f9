"""GoogLeNet, SqueezeNet and UCN as plain torch modules, written by hand, to compare nets of specs with.

Their parameters stand in the order of the specs' (:mod:`benchmarks.net_specs`, ``ucn_hn``).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INCEPTIONS = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}
"""Channels: in, 1x1, reduced and 3x3, reduced and 5x5, after the pooling."""

FIRES = {
    2: (64, 16, 64),
    3: (128, 16, 64),
    4: (128, 32, 128),
    5: (256, 32, 128),
    6: (256, 48, 192),
    7: (384, 48, 192),
    8: (384, 64, 256),
    9: (512, 64, 256),
}
"""Channels: in, squeezed, each expansion."""


class Inception(nn.Module):
    """Szegedy et al. 2015, figure 2b."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        into, one, reduce3, three, reduce5, five, pooled = channels
        self.one = nn.Conv2d(into, one, 1)
        self.reduce3 = nn.Conv2d(into, reduce3, 1)
        self.three = nn.Conv2d(reduce3, three, 3, padding=1)
        self.reduce5 = nn.Conv2d(into, reduce5, 1)
        self.five = nn.Conv2d(reduce5, five, 5, padding=2)
        self.pool = nn.Conv2d(into, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = F.relu(self.one(x))
        three = F.relu(self.three(F.relu(self.reduce3(x))))
        five = F.relu(self.five(F.relu(self.reduce5(x))))
        pool = F.relu(self.pool(F.max_pool2d(x, 3, 1, 1)))
        return torch.cat((one, three, five, pool), 1)


class GoogLeNet(nn.Module):
    """Images [N, 3, 224, 224] to probabilities [N, 1000]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3)
        self.reduce2 = nn.Conv2d(64, 64, 1)
        self.conv2 = nn.Conv2d(64, 192, 3, padding=1)
        self.inceptions = nn.ModuleList(Inception(channels) for channels in INCEPTIONS.values())
        self.fc = nn.Linear(1024, 1000)
        self.norm1 = nn.LocalResponseNorm(5, 1e-4, 0.75)
        self.norm2 = nn.LocalResponseNorm(5, 1e-4, 0.75)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(F.max_pool2d(F.relu(self.conv1(x)), 3, 2, ceil_mode=True))
        x = self.norm2(F.relu(self.conv2(F.relu(self.reduce2(x)))))
        x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        for name, inception in zip(INCEPTIONS, self.inceptions, strict=True):
            x = inception(x)
            if name in ("3b", "4e"):
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        x = F.dropout(F.avg_pool2d(x, 7), 0.4, self.training)
        return F.softmax(self.fc(x.flatten(1)), 1)


class Fire(nn.Module):
    """Iandola et al. 2016, figure 1."""

    def __init__(self, channels: tuple[int, int, int]) -> None:
        super().__init__()
        into, squeezed, expanded = channels
        self.squeeze = nn.Conv2d(into, squeezed, 1)
        self.one = nn.Conv2d(squeezed, expanded, 1)
        self.three = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat((F.relu(self.one(x)), F.relu(self.three(x))), 1)


class SqueezeNet(nn.Module):
    """Version 1.1: images [N, 3, 227, 227] to probabilities [N, 1000, 1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 2)
        self.fires = nn.ModuleList(Fire(channels) for channels in FIRES.values())
        self.conv10 = nn.Conv2d(512, 1000, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 3, 2, ceil_mode=True)
        for number, fire in zip(FIRES, self.fires, strict=True):
            x = fire(x)
            if number in (3, 5):
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        x = F.relu(self.conv10(F.dropout(x, 0.5, self.training)))
        return F.softmax(F.adaptive_avg_pool2d(x, 1), 1)


class TransformedInception(nn.Module):
    """Inception 4a of Choy et al. 2016, supplement 2: a cell's patches transformed by its own theta."""

    def __init__(self) -> None:
        super().__init__()
        into, one, reduce3, three, reduce5, five, pooled = INCEPTIONS["4a"]
        self.one = nn.Conv2d(into, one, 1)
        self.reduce3 = nn.Conv2d(into, reduce3, 1)
        self.reduce5 = nn.Conv2d(into, reduce5, 1)
        self.theta3 = _theta(reduce3)
        self.theta5 = _theta(reduce5)
        self.three = nn.Conv2d(reduce3, three, 3, 3)
        self.five = nn.Conv2d(reduce5, five, 5, 5)
        self.pool = nn.Conv2d(into, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, reduced3, reduced5 = F.relu(self.one(x)), F.relu(self.reduce3(x)), F.relu(self.reduce5(x))
        three = F.relu(self.three(_patches(reduced3, self.theta3(reduced3), 3)))
        five = F.relu(self.five(_patches(reduced5, self.theta5(reduced5), 5)))
        pool = F.relu(self.pool(F.max_pool2d(x, 3, 1, 1)))
        return torch.cat((one, three, five, pool), 1)


def _theta(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 32, 1), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.ReLU(), nn.Conv2d(32, 4, 1)
    )


def _patches(x: Tensor, theta: Tensor, k: int) -> Tensor:
    """The k x k patch around each cell of [N, C, H, W], side by side, by theta and the identity."""
    n, _, height, width = x.shape
    t1, t2, t4, t5 = theta.view(n, 4, height, 1, width, 1).unbind(1)
    dx = torch.arange(k, dtype=x.dtype) - (k - 1) / 2
    dy = dx[:, None, None]
    column = torch.arange(width, dtype=x.dtype)[:, None] + (1 + t1) * dx + t2 * dy
    row = torch.arange(height, dtype=x.dtype)[:, None, None, None] + t4 * dx + (1 + t5) * dy
    grid = torch.stack(((2 * column + 1) / width - 1, (2 * row + 1) / height - 1), -1)
    return F.grid_sample(x, grid.view(n, k * height, k * width, 2), align_corners=False)


class UCN(nn.Module):
    """Choy et al. 2016: images [N, 3, H, W] to 128 channels of unit length at every 4th pixel."""

    def __init__(self, transformed: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3)
        self.reduce2 = nn.Conv2d(64, 64, 1)
        self.conv2 = nn.Conv2d(64, 192, 3, padding=1)
        self.inception3a, self.inception3b = Inception(INCEPTIONS["3a"]), Inception(INCEPTIONS["3b"])
        self.inception4a = TransformedInception() if transformed else Inception(INCEPTIONS["4a"])
        self.feature = nn.Conv2d(512, 128, 1)
        self.norm = nn.LocalResponseNorm(5, 1e-4, 0.75)

    def embedding(self, x: Tensor, pad: int) -> Tensor:
        """Of any length; pad: of the last pooling."""
        x = self.norm(F.max_pool2d(F.relu(self.conv1(x)), 3, 2, 1, ceil_mode=True))
        x = self.norm(F.relu(self.conv2(F.relu(self.reduce2(x)))))
        x = self.inception3b(self.inception3a(F.max_pool2d(x, 3, 1, 1)))
        return self.feature(self.inception4a(F.max_pool2d(x, 3, 1, pad)))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.embedding(x, 0))


class UCNFast(UCN):
    """The same of images at two thirds of their size: features at every 6th pixel."""

    def forward(self, x: Tensor) -> Tensor:
        size = (2 * x.shape[2] - 1, 2 * x.shape[3] - 1)
        x = F.interpolate(x, size, mode="bilinear", align_corners=True)
        return F.normalize(self.embedding(F.avg_pool2d(x, 3, ceil_mode=True), 1))


PLAIN: dict[str, type[nn.Module]] = {"GoogLeNet": GoogLeNet, "SqueezeNet": SqueezeNet}
