"""What a training step has around a net: several processes, mixed precision."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .net import Blobs, Net


class LossOf:
    """A net's loss; with ``together``, its gradients are the mean over all processes'.

    ``blobs`` are those of the last pass. Parameters that the loss does not depend on are allowed.
    """

    def __init__(self, net: Net, together: bool) -> None:
        self.module: nn.Module = _Loss(net)
        self.inner = self.module
        if together and any(p.requires_grad for p in net.parameters()):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # newer torch renames the first option
                self.module = DistributedDataParallel(
                    self.module, broadcast_buffers=False, find_unused_parameters=True
                )

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        loss: Tensor = self.module(inputs)
        return loss

    @property
    def blobs(self) -> Blobs:
        blobs: Blobs = self.inner.blobs
        return blobs

    def gradients_exchanged(self, now: bool) -> AbstractContextManager[None]:
        """Around a pass: whether its backward ends with the exchange of all gradients so far."""
        if now or not isinstance(self.module, DistributedDataParallel):
            return nullcontext()
        return self.module.no_sync()


class _Loss(nn.Module):
    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net
        self.blobs = Blobs({})

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        self.blobs = self.net(inputs)
        return self.blobs.loss


class Autocast:
    """torch.autocast, with a loss scale in float16: halved when gradients overflow, doubled after
    ``GROWTH`` updates without. Without a precision all of it does nothing."""

    GROWTH = 2000

    def __init__(self, precision: torch.dtype | None, device: torch.device) -> None:
        if precision not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"precision: expected torch.bfloat16 or torch.float16, got {precision}")
        self.precision, self.device = precision, device
        self.scale = 2.0**16 if precision is torch.float16 else 1.0
        self.good = 0

    def __enter__(self) -> None:
        self._context = (
            torch.autocast(self.device.type, self.precision) if self.precision else nullcontext()
        )
        self._context.__enter__()

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(*error)

    def state(self) -> tuple[float, int]:
        """The scale, and the updates without an overflow since it changed."""
        return self.scale, self.good

    def restore(self, state: tuple[float, int]) -> None:
        if self.precision is torch.float16:
            self.scale, self.good = state

    def scaled(self, loss: Tensor) -> Tensor:
        return loss * self.scale if self.precision is torch.float16 else loss

    def unscale(self, gradients: Iterable[Tensor | None]) -> bool:
        """Take the scale out of the gradients; false where one of them is not finite."""
        if self.precision is not torch.float16:
            return True
        given = [gradient for gradient in gradients if gradient is not None]
        torch._foreach_mul_(given, 1 / self.scale)
        sums = torch.stack([gradient.sum() for gradient in given]).sum() if given else torch.zeros(())
        finite = bool(torch.isfinite(sums))
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.scale /= 2
        elif self.good % self.GROWTH == 0:
            self.scale *= 2
        return finite
