"""A batch that processes share, in compiled graphs: the numbers of eager calls."""

from __future__ import annotations

import cortado.functional as CF
import pytest
import torch
import torch.distributed as dist
from cortado.layers._engine import parallel
from cortado.layers.standard.softmax_with_loss import SoftmaxWithLoss
from torch.testing._internal.distributed.fake_pg import FakeStore

# Dynamo makes an instance of a Function, for its context
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
GENERATOR = torch.Generator().manual_seed(0)
SCORES = torch.randn(3, 4, generator=GENERATOR)
MAPS = torch.randn(2, 2, 3, 4, 5, generator=GENERATOR)
PAIRS = 16 * torch.rand(2, 6, 5, generator=GENERATOR)
PAIRS[..., 4] = torch.tensor([1, 0, -1, 0, 1, 1.0])
INDEX = torch.randint(0, 20, (2, 1, 6), generator=GENERATOR)
CALLS = {
    "region_hinge_loss": (CF.region_hinge_loss, (SCORES, SCORES.round().clamp(-1, 1))),
    "correspondence_contrastive_loss": (CF.correspondence_contrastive_loss, (*MAPS, PAIRS)),
    "SoftmaxWithLoss": (SoftmaxWithLoss(), (SCORES, torch.tensor([0, 3, 1]))),
    "hard_negative_mining": (
        lambda *bottoms: CF.hard_negative_mining(*bottoms, seed=3).pairs,
        (PAIRS, INDEX, MAPS[1]),
    ),
}


@pytest.fixture
def second_of_two():
    """A process that takes itself for the second of two, whose sums are its own."""
    dist.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.usefixtures("second_of_two")
def test_compiled(name):
    run, bottoms = CALLS[name]
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    alone = run(*bottoms)
    with parallel.together():
        found = []
        for call in (run, compiled):
            first = bottoms[0].clone().requires_grad_(name != "hard_negative_mining")
            top = call(first, *bottoms[1:])
            found.append([top, *(torch.autograd.grad(top, first) if top.requires_grad else ())])
    for eager, traced in zip(*found, strict=True):
        assert torch.equal(eager, traced)
    assert not torch.equal(found[0][0], alone)
    assert torch.equal(compiled(*bottoms), alone)
