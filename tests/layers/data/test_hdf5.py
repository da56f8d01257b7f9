"""HDF5Data and HDF5Output: rows of files, in order and shuffled, and back into a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cortado.layers._engine.checks import BlobError
from cortado.layers.data import hdf5_data, hdf5_output
from cortado.layers.data.hdf5_data import HDF5Data
from cortado.layers.data.hdf5_output import HDF5Output
from cortado.nets.net import LayerError, Net
from cortado.prototxt_like import loads
from cortado.prototxt_like.source import SpecError

h5py = pytest.importorskip("h5py", reason="h5py is not installed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files of 3 and 2 rows: row n is n in "x" [2] and in "y"."""
    for file, rows in (("a.h5", range(3)), ("b.h5", range(3, 5))):
        numbers = np.array(rows)
        with h5py.File(tmp_path / file, "w") as made:
            made["x"], made["y"] = np.stack([numbers, numbers], 1).astype(np.float64), numbers
    (tmp_path / "list.txt").write_text(f"{tmp_path}/a.h5\n{tmp_path}/b.h5\n")
    return tmp_path


def made(folder: Path, size: int, shuffle: bool = False, seed: int = 0) -> HDF5Data:
    params = hdf5_data.Params(str(folder / "list.txt"), size, shuffle)
    layer = HDF5Data(params, (), torch.Generator().manual_seed(seed))
    layer.tops = ("x", "y")
    return layer


def rows(layer: HDF5Data, batches: int) -> list[float]:
    found: list[float] = []
    for _ in range(batches):
        x, y = layer()
        assert torch.equal(x, y[:, None].expand(-1, 2))
        assert x.dtype is torch.float32
        found += y.tolist()
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_files_one_after_the_other_round_and_round(folder: Path, size: int) -> None:
    layer = made(folder, size)
    assert layer.infer(layer.params) == ((size, 2), (size,))
    assert rows(layer, 5) == [n % 5 for n in range(5 * size)]


def test_shuffled_rounds(folder: Path) -> None:
    found = rows(made(folder, 5, shuffle=True), 40)
    rounds = [tuple(found[i : i + 5]) for i in range(0, 200, 5)]
    assert all(sorted(each) == [0, 1, 2, 3, 4] for each in rounds)
    assert len(set(rounds)) > 10
    assert {max(each[:2]) > 2 for each in rounds} == {True, False}, "files change places, too"
    for each in rounds:  # a file is read whole before the next
        assert {"".join("ab"[n > 2] for n in each)} <= {"aaabb", "bbaaa"}


@pytest.mark.parametrize("shuffle", [False, True])
def test_resumes_in_the_middle(folder: Path, shuffle: bool) -> None:
    layer = made(folder, 2, shuffle, seed=1)
    rows(layer, 4)
    resumed = made(folder, 2, shuffle, seed=2)
    resumed()  # whose order is then another's
    resumed.set_extra_state(layer.get_extra_state())
    assert rows(resumed, 6) == rows(layer, 6)


def test_one_file_is_read_once(folder: Path) -> None:
    (folder / "list.txt").write_text(f"{folder}/b.h5\n\n")
    layer = made(folder, 3)
    assert rows(layer, 1) == [3, 4, 3]
    (folder / "b.h5").unlink()
    assert rows(layer, 2) == [4, 3, 4, 3, 4, 3]


def net(folder: Path, top: str = "x") -> Net:
    text = f"""
        layer {{ name: "d" type: "HDF5Data" top: "{top}" top: "y"
                hdf5_data_param {{ source: "{folder}/list.txt" batch_size: 4 }} }}
        layer {{ name: "o" type: "HDF5Output" bottom: "{top}" bottom: "y"
                hdf5_output_param {{ file_name: "{folder}/out.h5" }} }}"""
    return Net(loads(text, "net.prototxt", notation="prototxt"), "TRAIN", seed=1)


def test_output_is_caffes(folder: Path) -> None:
    made = net(folder)
    assert not (folder / "out.h5").exists()
    made()
    with h5py.File(folder / "out.h5") as file:
        assert sorted(file) == ["data", "label"]
        assert file["data"].shape == (4, 2, 1, 1)
        assert file["data"].dtype == np.float32
        assert file["label"][:].ravel().tolist() == [0, 1, 2, 3]
    with pytest.raises(LayerError, match=r"out\.h5 holds a forward already, and cannot take another$"):
        made()
    assert sorted(path.name for path in folder.iterdir()) == ["a.h5", "b.h5", "list.txt", "out.h5"]


def test_output_refuses(folder: Path) -> None:
    params = hdf5_output.Params(str(folder / "a.h5" / "out.h5"))
    layer = HDF5Output(params)
    with pytest.raises(ValueError, match=r"^cannot write .*out\.h5"):
        layer(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(BlobError, match=r"^expected as many items: data \[2, 3\], label \[3\]$"):
        layer(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(BlobError, match=r"^expected data \[1, 1, 1, 1, 2\] to have at most 4 axes$"):
        layer(torch.zeros(1, 1, 1, 1, 2), torch.zeros(1))


def break_it(folder: Path, how: str) -> None:
    path = folder / "a.h5"
    if how == "text":
        path.write_text("no HDF5")
    elif how == "missing":
        path.unlink()
    elif how == "list":
        (folder / "list.txt").write_text("\n")
    else:
        with h5py.File(path, "a") as file:
            del file["y"]
            file["y"] = {"rows": np.zeros(4), "strings": ["a", "b", "c"], "scalar": 1.0}[how]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("text", r"a\.h5: cannot read the HDF5 file"),
        ("missing", r"a\.h5: cannot read the HDF5 file: No such file or directory"),
        ("list", r'the list of HDF5 files ".*list\.txt" is empty'),
        ("rows", r'a\.h5: expected as many rows of each data set, got "x" 3, "y" 4'),
        ("strings", r'a\.h5: data set "y" holds no numbers, but \[3\] of object'),
        ("scalar", r'a\.h5: data set "y" is not rows of numbers, but one'),
    ],
)
def test_refusals_are_located(folder: Path, how: str, message: str) -> None:
    break_it(folder, how)
    with pytest.raises(SpecError, match=message) as caught:
        net(folder)
    assert "net.prototxt:2:" in str(caught.value)


def test_rows_are_not_transformed() -> None:
    text = """
        layer { name: "d" type: "HDF5Data" top: "x" transform_param { scale: 2 }
                hdf5_data_param { source: "list.txt" batch_size: 4 } }"""
    with pytest.raises(SpecError, match="HDF5Data does not transform its rows: leave out transform_p"):
        Net(loads(text, notation="prototxt"), "TRAIN")


def test_a_top_that_is_no_data_set(folder: Path) -> None:
    with pytest.raises(SpecError, match=r'a\.h5: no data set "z", only "x", "y"'):
        net(folder, "z")


def test_rows_of_files_have_one_shape(folder: Path) -> None:
    with h5py.File(folder / "b.h5", "w") as file:
        file["x"], file["y"] = np.zeros((2, 3)), np.zeros(2)
    with pytest.raises(
        ValueError, match=r'^data set "x" has rows of several shapes: \[\(2,\), \(3,\)\]$'
    ):
        made(folder, 4)()


def test_without_h5py(folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(ValueError, match=r"^HDF5 files need h5py: pip install 'cortado\[hdf5\]'$"):
        hdf5_data.read_sets(str(folder / "a.h5"), ("x",))
    with pytest.raises(ValueError, match=r"^HDF5 files need h5py: pip install 'cortado\[hdf5\]'$"):
        HDF5Output(hdf5_output.Params(str(folder / "o.h5")))(torch.zeros(1), torch.zeros(1))
