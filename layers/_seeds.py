"""The seeds of HardNegativeMining, and the random cycle that one decides."""

from __future__ import annotations

import torch
from torch import Tensor

from ._engine import parallel
from ._engine.checks import INTEGERS, kind_of, valueless

SEEDS = 2**63  # a tensor's int64
MULTIPLIER, INCREMENT = 6364136223846793005, 1442695040888963407  # Knuth's, of period 2^64


def drawn(generator: torch.Generator | None = None) -> Tensor:
    """A seed from a generator, torch's own if it is None."""
    device = "cpu" if generator is None else generator.device
    return torch.randint(SEEDS - 1, (1,), generator=generator, device=device).cpu()


def as_tensor(seed: int | Tensor) -> Tensor:
    """A seed that is given; raises TypeError and ValueError for what is none."""
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1 or not (seed.is_cpu or valueless(seed)):
            found = f"{seed.dtype} {list(seed.shape)} on {seed.device}"
            raise TypeError(f"seed: expected a tensor int64 [1] on the CPU, got {found}")
        return seed
    if not isinstance(seed, INTEGERS) or isinstance(seed, bool):
        raise TypeError(f"seed: expected an integer or a tensor, got {kind_of(seed)}")
    if not 0 <= seed < SEEDS:
        raise ValueError(f"seed: expected at least 0 and less than 2^63, got {seed}")
    return torch.tensor([int(seed)], device="cpu")


def advance(state: Tensor) -> None:
    """From the seed of one call to that of the next."""
    state.mul_(MULTIPLIER).add_(INCREMENT)


def generator(seed: int | None, state: Tensor | None) -> torch.Generator:
    """One that is seeded with ``state``, else with ``seed``, else by torch's own."""
    seed = seed if state is None else int(state)
    return torch.Generator().manual_seed(int(drawn()) if seed is None else seed)


def along_a_cycle(target: Tensor, true: Tensor, generator: torch.Generator) -> Tensor:
    """Each true row gets the target of the next in a random order, the last that of the first."""
    pinned = true.is_cuda  # or the copy would wait for the device
    keys = parallel.own_rows(
        tuple(true.shape),
        lambda shape: torch.rand(shape, generator=generator, device="cpu", pin_memory=pinned),
    )
    keys = keys.to(true.device, non_blocking=True)
    order = keys.masked_fill(~true, 2).argsort(dim=1)
    following = torch.arange(1, true.shape[1] + 1, device=true.device).expand_as(order)
    following = following.masked_fill(following >= true.sum(1, keepdim=True), 0)
    source = torch.empty_like(order).scatter_(1, order, order.gather(1, following))
    return target.gather(1, source[..., None].expand_as(target))
