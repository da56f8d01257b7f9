"""Blobs as Caffe's Python code knows them."""

from __future__ import annotations

import numpy as np
import pytest
from cortado.layers.standard._blob import BlobVec, HostBlob


def test_arrays_write_through() -> None:
    blob = HostBlob((2, 3))
    blob.data[...] = 1
    blob.diff[1, 2] = 5
    assert blob.data.sum() == 6
    assert blob.diff[1].tolist() == [0, 0, 5]
    assert blob.data.dtype == np.float32


def test_legacy_axes() -> None:
    blob = HostBlob((2, 3))
    assert (blob.num, blob.channels, blob.height, blob.width, blob.count) == (2, 3, 1, 1, 6)
    assert blob.shape == (2, 3)
    blob.reshape(1, 1, 1, 1, 1)
    with pytest.raises(ValueError, match=r"a blob \[1, 1, 1, 1, 1\] has no num, channels"):
        _ = blob.num


def test_reshape_keeps_what_fits() -> None:
    blob = HostBlob((2, 2))
    blob.data[...] = [[1, 2], [3, 4]]
    blob.reshape(3)
    assert blob.data.tolist() == [1, 2, 3]
    blob.reshape(2, 2)
    assert blob.data.tolist() == [[1, 2], [3, 4]]
    blob.reshape(5)
    assert blob.data.tolist() == [0] * 5
    blob.reshape()
    assert blob.data.shape == ()
    with pytest.raises(ValueError, match=r"^a blob cannot be \[2, -1\]$"):
        blob.reshape(2, -1)


def test_add_blob() -> None:
    blobs = BlobVec()
    blobs.add_blob(2, 3)
    assert [blob.shape for blob in blobs] == [(2, 3)]
