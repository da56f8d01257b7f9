"""Caffe's layers that have a definition and no suite of their own, compiled, exported, as operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from compiled import CompiledSuite, Run
from cortado.layers._engine.definition import Definition
from cortado.layers._engine.layer import Layer
from cortado.layers._engine.samples import Sample
from cortado.layers.standard import eltwise, exp_log_power, mvn, neurons, prelu
from suite import LayerSuite
from torch import Tensor


class StandardSuite(CompiledSuite):
    """Inherit and set ``layer``; ``wrong`` as in :class:`suite.LayerSuite`."""

    device: ClassVar[str] = "cpu"
    wrong: ClassVar[Sequence[tuple[Any, ...]]] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not cls.wrong:
            cls.test_compiled_bottoms_that_do_not_fit = None  # type: ignore[assignment,method-assign]

    samples = LayerSuite.samples  # type: ignore[assignment]
    bottoms = LayerSuite.bottoms  # type: ignore[assignment]
    pytest_generate_tests = LayerSuite.pytest_generate_tests
    dtypes = LayerSuite.dtypes

    def made(self, params: Any, bottoms: Sequence[Tensor]) -> Layer:
        """The layer with the same blobs each time."""
        shapes = tuple(tuple(x.shape) for x in bottoms)
        return self.layer(params, shapes, torch.Generator().manual_seed(1)).to(self.device)

    def arguments(self, sample: Sample, bottoms: Sequence[Tensor]) -> tuple[Any, ...]:
        """The operator's; the layer's own blobs come after its bottoms."""
        blobs = self.layer_of(sample).blobs
        missing = [None] * (len(self.definition.bottoms) - len(bottoms) - len(blobs))
        return (*bottoms, *missing, *blobs, *self.definition.schema.scalars(sample.params))


class TestClip(StandardSuite):
    layer = neurons.Clip


class TestELU(StandardSuite):
    layer = neurons.ELU


class TestSwish(StandardSuite):
    layer = neurons.Swish


class TestLeakyReLU(StandardSuite):
    """Of a slope for which torch does not promise the gradient at 0."""

    layer = neurons.ReLU

    @property
    def definition(self) -> Definition:
        return neurons.leaky_relu

    def samples(self, size: str = "small") -> list[Sample]:
        return [replace(x, params=neurons.ReLUParams(-0.5)) for x in super().samples(size)]


class TestExp(StandardSuite):
    layer = exp_log_power.ExpLayer


class TestLog(StandardSuite):
    layer = exp_log_power.LogLayer


class TestPower(StandardSuite):
    layer = exp_log_power.PowerLayer
    compiled_samples = 7


class TestPReLU(StandardSuite):
    layer = prelu.PReLU

    def operator(self, sample: Sample) -> Run:
        blobs = self.layer_of(sample).blobs  # filled here: a transform refuses random numbers
        scalars = self.definition.schema.scalars(sample.params)
        return lambda *bottoms: self.definition.operator(*bottoms, *blobs, *scalars)

    def test_compiled_slopes_that_do_not_fit(self) -> None:
        layer = prelu.PReLU(prelu.Params(), ((2, 3),))
        with pytest.raises(Exception, match=r"bottom \[2, 4\] has 4 channels, the slopes are for 3"):
            self.compiled(layer)(torch.zeros(2, 4))


class TestMVN(StandardSuite):
    layer = mvn.MVN
    wrong = (((torch.zeros(1, 1, 1, 1, 2),), "expected bottom [1, 1, 1, 1, 2] to have at most 4 axes"),)

    def samples(self, size: str = "small") -> list[Sample]:
        """Without the variance it is torch's operations alone."""
        return [x for x in super().samples(size) if x.params.normalize_variance]


class EltwiseSuite(StandardSuite):
    """Of the operations whose gradient is not torch's."""

    layer = eltwise.Eltwise
    chosen_definition: ClassVar[Definition]
    wrong = (
        (
            (torch.zeros(2, 3), torch.zeros(2, 4)),
            "bottoms differ in shape: bottom0 [2, 3], bottom1 [2, 4]",
        ),
    )

    @property
    def definition(self) -> Definition:
        return self.chosen_definition

    def arguments(self, sample: Sample, bottoms: Sequence[Tensor]) -> tuple[Any, ...]:
        return (list(bottoms), *self.definition.schema.scalars(sample.params))


class TestMaximum(EltwiseSuite):
    chosen_definition = eltwise.maximum

    def samples(self, size: str = "small") -> list[Sample]:
        found = super().samples(size)
        return [x for x in found if x.params.operation is eltwise.EltwiseOp.MAX]


class TestUnstableProduct(EltwiseSuite):
    chosen_definition = eltwise.unstable_product

    def samples(self, size: str = "small") -> list[Sample]:
        return [x for x in super().samples(size) if not x.params.stable_prod_grad]
