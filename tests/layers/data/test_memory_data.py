"""MemoryData: arrays read round and round, images transformed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cortado.layers._data.transform import TransformParams
from cortado.layers.data.memory_data import MemoryData, Params, infer


def layer(**fields: Any) -> MemoryData:
    return MemoryData(Params(**({"batch_size": 2, "channels": 1, "height": 2, "width": 3} | fields)))


def test_arrays_are_read_round_and_round() -> None:
    made, data = layer(), np.arange(24, dtype=np.float32).reshape(4, 1, 2, 3)
    made.set_arrays(data, np.arange(4.0))
    read = [made() for _ in range(3)]
    assert infer(made.params) == tuple(tuple(top.shape) for top in read[0])
    assert torch.equal(torch.cat([images for images, _ in read[:2]]), torch.from_numpy(data))
    assert [labels.tolist() for _, labels in read] == [[0, 1], [2, 3], [0, 1]]
    data[2] = 100
    assert made()[0][0].unique().tolist() == [100], "float32 arrays are not copied"


def test_a_resumed_run_goes_on() -> None:
    made, resumed = layer(), layer()
    for each in (made, resumed):
        each.set_arrays(np.zeros((6, 1, 2, 3)), np.arange(6).reshape(6, 1, 1, 1))
    made()
    resumed.set_extra_state(made.get_extra_state())
    assert resumed()[1].tolist() == [2, 3]


def test_added_images_are_transformed() -> None:
    made = layer(transform_param=TransformParams(scale=2.0, mean_value=(1.0,))).eval()
    images = [np.full((1, 2, 3), i, np.uint8) for i in range(4)]
    made.add(images, [5, 6, 7, 8])
    assert made()[0][:, 0, 0, 0].tolist() == [-2, 0]
    with pytest.raises(ValueError, match=r"^images that were added before have not been read yet$"):
        made.add(images, [5, 6, 7, 8])
    assert made()[1].tolist() == [7, 8]
    made.add(images[2:], [1, 2])
    assert made()[0][:, 0, 0, 0].tolist() == [2, 4]


def test_refusals() -> None:
    made = layer()
    with pytest.raises(ValueError, match=r"^MemoryData has no data yet: set_arrays or add gives them$"):
        made()
    with pytest.raises(ValueError, match=r"^expected data \[n, 1, 2, 3\], got \[4, 1, 3, 2\]$"):
        made.set_arrays(np.zeros((4, 1, 3, 2)), np.zeros(4))
    with pytest.raises(ValueError, match=r"^4 items of data have 3 labels$"):
        made.set_arrays(np.zeros((4, 1, 2, 3)), np.zeros(3))
    with pytest.raises(ValueError, match=r"^expected a multiple of batch_size 2 items, got 3$"):
        made.set_arrays(np.zeros((3, 1, 2, 3)), np.zeros(3))
    with pytest.raises(ValueError, match=r"^expected a multiple of batch_size 2 items, got 0$"):
        made.add([], [])
    with pytest.raises(ValueError, match=r"^image 1 becomes \[1, 2, 4\], expected \[1, 2, 3\]$"):
        made.add([np.zeros((1, 2, 3)), np.zeros((1, 2, 4))], [0, 0])
