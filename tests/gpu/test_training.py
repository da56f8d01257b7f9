"""UCN-HN trains on the device on a pair of KITTI's size; its layers do not wait for the device."""

from __future__ import annotations

from collections.abc import Iterator

import device
import pytest
import torch
from cortado.layers._engine import checks
from cortado.nets import specs
from cortado.nets.graph import StateFields
from cortado.nets.solver import Solver
from torch import Tensor

pytestmark = [pytest.mark.gpu, device.needed]
HEIGHT, WIDTH = (128, 416) if device.REHEARSAL else (375, 1242)
POINTS = 1000


def inputs(where: str = device.DEVICE) -> dict[str, Tensor]:
    """A pair of images that differ by a shift, and its table."""
    generator = torch.Generator().manual_seed(1)
    image = 50 * torch.randn(1, 3, HEIGHT, WIDTH, generator=generator)
    xy = torch.rand(1, POINTS, 2, generator=generator) * torch.tensor([WIDTH - 10.0, HEIGHT - 10.0])
    pairs = torch.cat([xy, xy + 8, torch.ones(1, POINTS, 1)], 2)
    pairs[:, -100:, 4] = -1
    given = {
        "image1": image,
        "image2": image.roll((8, 8), (2, 3)),
        "pairs": pairs,
        "num_pairs": torch.tensor([[POINTS - 100.0]]),
    }
    return {name: x.to(where) for name, x in given.items()}


@pytest.fixture
def solver() -> Iterator[Solver]:
    given = inputs()
    with device.path("cuda" if not device.REHEARSAL else "torch"):
        yield Solver(
            specs.path("ucn_hn_solver"),
            feed=lambda n: given,
            device=device.DEVICE,
            train_state=StateFields(),
        )


@device.kernels_needed
def test_a_step_does_not_wait_for_the_device(solver: Solver) -> None:
    solver.step()  # compiles
    given = inputs()
    device.synchronize()
    with device.no_synchronisation():
        solver.net.zero_grad()
        blobs = solver.net(given)
        blobs.loss.backward()
        solver._apply()
    checks.settle()
    assert torch.isfinite(blobs.loss)


@device.kernels_needed
def test_it_learns(solver: Solver) -> None:
    losses = [solver.step() for _ in range(3 if device.REHEARSAL else 8)]
    assert min(losses[1:]) < losses[0]
    for blob in solver.net.learnable:
        assert torch.isfinite(blob.parameter).all(), blob.name


@device.on_cuda
@device.kernels_needed
def test_both_paths_give_the_same_step() -> None:
    """Loss and gradients; the mined neighbours of nearly equal distances may differ."""
    found = []
    for path in ("cuda", "torch"):
        given = inputs()
        with device.path(path):
            solver = Solver(
                specs.path("ucn_hn_solver"),
                feed=lambda n, x=given: x,
                device="cuda",
                train_state=StateFields(),
            )
            loss = solver.step()
        norms = torch.stack([blob.parameter.grad.norm() for blob in solver.net.learnable])
        found.append((loss, norms))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-3)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=2e-2, atol=1e-6)
