"""Files of weights and of solver states that are damaged, hostile or something else: refused by an
error that names the file, with the net as it was; or read."""

from __future__ import annotations

import io
import os
import random
import re
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from cortado.nets import npz
from cortado.nets.net import Net
from cortado.nets.solver import Solver
from cortado.nets.solver_state import SolverState, read_state, write_state
from cortado.nets.weights import load, save
from cortado.prototxt_like import SpecError, loads
from shared import SHARED, needs_shared

FORMATS = (".caffemodel", ".h5", ".safetensors", ".pth")
REFUSED = (ValueError, SpecError, OSError)
HOSTILE = [
    *("null.h5", "dbytes.h5", "dhuge.h5", "dnul.h5", "hdf5data_bytes_name_TypeError.h5"),
    *("o_intkey.pth", "o_meta.pth", "o_quant.pth", "o_sparse.pth"),
    *("pth_is_zipfile_BadZipFile.pth", "pth_unpickler_KeyError.pth"),
    *("mat_SIGSEGV.mat", "mat_SIGSEGV_2.mat", "mat_UnboundLocalError.mat"),
]
MUTATIONS = int(os.environ.get("CORTADO_MUTATIONS", "60"))

NET = """
layer:
- {name: data, type: Input, top: data, input_param: {shape: {dim: [1, 2, 5, 5]}}}
- {name: conv1, type: Convolution, bottom: data, top: conv1, convolution_param: {
    num_output: 3, kernel_size: 3, weight_filler: {type: xavier}}}
- {name: bn, type: BatchNorm, bottom: conv1, top: bn}
- {name: ip, type: InnerProduct, bottom: bn, top: ip, inner_product_param: {
    num_output: 2, weight_filler: {type: xavier}}}
"""


def net(seed: int = 0) -> Net:
    return Net(loads(NET, "net.yaml"), seed=seed)


def values(of: Net) -> list[torch.Tensor]:
    return [blob.parameter.detach().clone() for blob in of.learnable]


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """A copy with a fault of one of the kinds that files have: cut off, a byte, a span, a size."""
    data, at = bytearray(raw), rng.randrange(len(raw))
    kind = rng.randrange(5)
    if kind == 0:
        return bytes(data[:at])
    if kind == 1:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 2:
        data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
    elif kind == 3:
        length = rng.choice([2, 4, 8, 32])
        data[at : at + length] = bytes([rng.choice([0, 0xFF])]) * len(data[at : at + length])
    else:
        length = rng.choice([4, 8])
        data[at : at + length] = rng.randbytes(len(data[at : at + length]))
    return bytes(data)


def store(path: Path) -> None:
    """The net's weights, in the format of the suffix."""
    if path.suffix != ".npz":
        save(net(), path)
        return
    blobs = net().params.items()
    arrays = {f"{name}|{i}": blob.detach().numpy() for name, of in blobs for i, blob in enumerate(of)}
    np.savez_compressed(path, **arrays)


@pytest.mark.parametrize("suffix", [*FORMATS, ".npz"])
def test_damaged_weights(tmp_path: Path, suffix: str) -> None:
    store(tmp_path / f"whole{suffix}")
    raw = (tmp_path / f"whole{suffix}").read_bytes()
    rng = random.Random(suffix)
    target, path = net(1), tmp_path / f"damaged{suffix}"
    before, refused = values(target), []
    for _ in range(MUTATIONS):
        path.write_bytes(damaged(raw, rng))
        try:
            load(target, path)
        except REFUSED as error:
            refused.append(str(error))
            assert all(map(torch.equal, values(target), before)), "half a file was taken"
        else:
            for blob, old in zip(target.learnable, before, strict=True):
                blob.parameter.data.copy_(old)
    assert len(refused) > MUTATIONS / 10
    assert all(path.name in message for message in refused)


SOLVER = """
net_param: {name: n, layer: [
  {name: d, type: DummyData, top: d, dummy_data_param: {
    shape: {dim: [2, 3]}, data_filler: {type: gaussian}}},
  {name: ip, type: InnerProduct, bottom: d, top: ip, inner_product_param: {num_output: 2}},
  {name: s, type: Reduction, bottom: ip, top: s, loss_weight: 1}]}
type: Adam
base_lr: 0.1
lr_policy: fixed
max_iter: 4
"""


@pytest.fixture
def solver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Solver:
    """One whose snapshots are ``run_iter_*``, of the format that the test is marked with."""
    monkeypatch.chdir(tmp_path)
    text = f"snapshot_prefix: run\nsnapshot_format: {request.param}\n"
    return Solver(loads(SOLVER + text, "solver.yaml"))


@pytest.mark.parametrize("solver", ["HDF5", "BINARYPROTO"], indirect=True)
def test_damaged_states(solver: Solver) -> None:
    solver.step(2)
    state = solver.snapshot()
    raw, rng = state.read_bytes(), random.Random(state.name)
    path = state.with_name(f"damaged{''.join(state.suffixes)}")
    refused = []
    for _ in range(MUTATIONS):
        path.write_bytes(damaged(raw, rng))
        try:
            solver.restore(path)
        except REFUSED as error:
            refused.append(str(error))
    assert len(refused) > MUTATIONS / 10
    assert all("damaged.solverstate" in m or "run_iter_2.caffemodel" in m for m in refused)
    solver.restore(state)
    assert np.isfinite(solver.step(2))


def state_dict(**changed: object) -> dict[object, object]:
    return {**net().state_dict(), **changed}


SPARSE = torch.eye(3).to_sparse()
WRONG_STATES = {
    "its key 3 is no name": {3: torch.zeros(2)},
    '"x.weight" is a sparse tensor': state_dict(**{"x.weight": SPARSE}),
    '"x.weight" is a meta tensor': state_dict(**{"x.weight": torch.zeros(2, device="meta")}),
    '"x.weight" is a complex tensor': state_dict(**{"x.weight": torch.zeros(2, dtype=torch.complex64)}),
    '"x.weight" is float': state_dict(**{"x.weight": 3.0}),
    '"state_dict" is dict, which seems to be one: save that alone': {
        "state_dict": {"a": torch.ones(1)}
    },
    "expected a state_dict, got list": [torch.zeros(2)],
    "expected a state_dict, got Tensor": torch.zeros(2),
}


@pytest.mark.parametrize("message", WRONG_STATES)
def test_a_pickle_of_something_else(tmp_path: Path, message: str) -> None:
    torch.save(WRONG_STATES[message], tmp_path / "w.pth")
    with pytest.raises(ValueError, match="w.pth: ") as caught:
        load(net(), tmp_path / "w.pth")
    assert message in str(caught.value)


@pytest.mark.filterwarnings("ignore")  # quantization is on its way out of torch
def test_a_pickle_of_quantized_tensors(tmp_path: Path) -> None:
    torch.save(
        {"ip.weight": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, tmp_path / "w.pth"
    )
    with pytest.raises(ValueError, match='"ip.weight" is a quantized tensor: expected plain numbers'):
        load(net(), tmp_path / "w.pth")


def test_other_zips_and_pickles(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "no weights")
    for raw in (
        path.read_bytes(),
        b"PK\x03\x04",
        b"\x80\x02\xf0.",
        b"\x80\x02cos\nsystem\n(S'true'\ntR.",
        b"",
    ):
        path.write_bytes(raw)
        with pytest.raises(ValueError, match="w.pth: not a file of weights: ."):
            load(net(), path)


class Code:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("true",)


def test_a_pickle_that_would_run_code(tmp_path: Path) -> None:
    torch.save({"ip.weight": Code()}, tmp_path / "w.pth")
    text = "it holds more than names and tensors, of which nothing is run"
    with pytest.raises(ValueError, match=f"w.pth: not a file of weights: {text}"):
        load(net(), tmp_path / "w.pth")


@needs_shared
@pytest.mark.parametrize("name", HOSTILE)
def test_files_that_once_did_harm(name: str) -> None:
    assert SHARED
    with pytest.raises(REFUSED, match=re.escape(name)):
        load(Net(SHARED / "cases/hostile/min/net.yaml"), SHARED / "cases/hostile/min" / name)


def null(file: h5py.File) -> None:
    file["data/conv1/0"] = h5py.Empty("f4")


def text(file: h5py.File) -> None:
    file["data/conv1/0"] = np.array([b"a", b"b"])


def no_group(file: h5py.File) -> None:
    file["data"] = np.zeros(3)


def another_name(file: h5py.File) -> None:
    file["date"] = np.zeros(3)


def no_utf8(file: h5py.File) -> None:
    file.create_group("data").create_dataset(b"\xff\xfe", data=np.zeros(3))


def external_storage(file: h5py.File) -> None:
    outside = Path(file.filename).with_name("secret")
    outside.write_bytes(bytes(4 * 54))
    file.create_dataset("data/conv1/0", (3, 2, 3, 3), "f4", external=[(str(outside), 0, 4 * 54)])


def external_link(file: h5py.File) -> None:
    with h5py.File(Path(file.filename).with_name("other.h5"), "w") as other:
        other["conv1/0"] = np.zeros((3, 2, 3, 3))
    file["data"] = h5py.ExternalLink("other.h5", "/")


def external_link_inside(file: h5py.File) -> None:
    external_link(file)
    del file["data"]
    file["data/conv1"] = h5py.ExternalLink("other.h5", "/conv1")


def soft_link(file: h5py.File) -> None:
    file["weights"] = np.zeros((3, 2, 3, 3))
    file["data/conv1/0"] = h5py.SoftLink("/weights")


def virtual(file: h5py.File) -> None:
    external_link(file)
    del file["data"]
    layout = h5py.VirtualLayout((3, 2, 3, 3), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "conv1/0", (3, 2, 3, 3))
    file.create_virtual_dataset("data/conv1/0", layout)


def huge(file: h5py.File) -> None:
    file.create_dataset("data/conv1/0", (2**40,), "f4")


WRONG_HDF5 = {
    null: 'data set "conv1/0" holds no numbers, but nothing',
    text: 'data set "conv1/0" holds no numbers, but [2] of |S1',
    no_group: '"/data" is no group',
    another_name: 'no data set "data", only "date"',
    no_utf8: "a name that is not UTF-8",
    external_storage: 'data set "conv1/0" is kept in other files, which are not read',
    external_link: '"data" is a link to another file, which is not followed',
    external_link_inside: '"conv1" is a link to another file, which is not followed',
    soft_link: '"0" is a link to another place, which is not followed',
    virtual: 'data set "conv1/0" is kept in other files, which are not read',
    huge: 'data set "conv1/0" claims 4,398,046,511,104 bytes in a file of',
}


@pytest.mark.parametrize("write", WRONG_HDF5, ids=lambda write: write.__name__)
def test_hostile_hdf5(tmp_path: Path, write: object) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        write(file)  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"w\.h5: ") as caught:
        load(net(), tmp_path / "w.h5")
    assert WRONG_HDF5[write] in str(caught.value)


def test_numbers_of_any_kind_of_hdf5(tmp_path: Path) -> None:
    """Long doubles and integers are numbers; of what torch has no type, float64 is made."""
    for dtype in ("g", ">f8", "<f2", "<i8", ">u2"):
        with h5py.File(tmp_path / "w.h5", "w") as file:
            file["data/conv1/0"] = np.full((3, 2, 3, 3), 3, dtype)
            file["data/conv1/1"] = np.arange(3).astype(dtype)
        target = net()
        load(target, tmp_path / "w.h5")
        assert target.params["conv1"][1].tolist() == [0, 1, 2], dtype


def test_groups_deep_within_each_other(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["data/" + "a/" * 200 + "0"] = np.zeros(3)
    with pytest.raises(ValueError, match="w.h5: groups are nested more than 64 deep"):
        load(net(), tmp_path / "w.h5")


def test_groups_in_a_circle(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["data/again"] = file.create_group("data/conv1")
        file["data/conv1/round"] = file["data"]
        file["data/conv1/0"] = np.ones((3, 2, 3, 3))
        file["data/conv1/1"] = np.ones(3)
    target = net()
    with pytest.raises(ValueError, match="w.h5: .* is another group's second name"):
        load(target, tmp_path / "w.h5")


@pytest.mark.parametrize("chunks", [None, (1, 2, 3, 3)])
def test_a_late_fault_takes_nothing(tmp_path: Path, chunks: tuple[int, ...] | None) -> None:
    """The layers before a broken data set keep their values."""
    with h5py.File(tmp_path / "w.h5", "w") as file:
        made = file.create_dataset("data/ip/0", data=np.ones((2, 27), np.float32))
        file["data/ip/1"] = np.ones(2, np.float32)
        checked = {"chunks": chunks, "fletcher32": True} if chunks else {}
        made = file.create_dataset("data/conv1/0", data=np.full((3, 2, 3, 3), 0.1875, "f4"), **checked)
        file["data/conv1/1"] = np.ones(3, np.float32)
        del made
    raw = (tmp_path / "w.h5").read_bytes()
    at = raw.index(np.full(9, 0.1875, "f4").tobytes())
    broken = raw[:at] + b"\xff" + raw[at + 1 :] if chunks else raw[: at + 100]
    (tmp_path / "w.h5").write_bytes(broken)
    target = net()
    before = values(target)
    with pytest.raises(ValueError, match=r"w\.h5"):
        load(target, tmp_path / "w.h5")
    assert all(map(torch.equal, values(target), before))


@pytest.mark.parametrize("suffix", [*FORMATS, ".mat", ".npy", ".npz", ""])
def test_no_files(tmp_path: Path, suffix: str) -> None:
    pipe, folder = tmp_path / f"pipe{suffix}", tmp_path / f"folder{suffix}x{suffix}"
    os.mkfifo(pipe)
    folder.mkdir()
    for path in (pipe, folder, tmp_path / f"missing{suffix}"):
        with pytest.raises(REFUSED, match=path.name):
            load(net(), path)


def npy(shape: object, dtype: str = "<f4", body: bytes = b"", version: bytes = b"\1\0") -> bytes:
    """A .npy file with a header of our own."""
    text = str({"descr": dtype, "fortran_order": False, "shape": shape}).encode() + b"\n"
    size = len(text).to_bytes(2 if version == b"\1\0" else 4, "little")
    return b"\x93NUMPY" + version + size + text + body


ARRAY = npy((3,), body=np.arange(3, dtype="<f4").tobytes())
PICKLED = io.BytesIO()
np.save(PICKLED, np.array([{}]), allow_pickle=True)
WRONG_NPZ = {
    "it holds no numbers, but [1] of object": {"ip|0": PICKLED.getvalue()},
    "it holds no numbers, but [2] of |S1": {"ip|0": npy((2,), "|S1", b"ab")},
    "it holds no numbers, but [1] of complex64": {"ip|0": npy((1,), "<c8", bytes(8))},
    "[1099511627776] of float32 are ": {"ip|0": npy((2**40,))},
    "[2, 3] of float32 are ": {"ip|0": npy((2, 3), body=bytes(20))},
    "its shape is [-2, -3]": {"ip|0": npy((-2, -3), body=bytes(24))},
    "its format (3, 0) is not that of an array": {"ip|0": npy((3,), version=b"\3\0")},
    "magic string is not correct": {"ip|0": b"no array"},
    "EOF: reading magic string": {"ip|0": b""},
    "shape is not valid": {"ip|0": npy("x'")},
    "Header info length": {"ip|0": npy((1,) * 9000)},
    '"ip|00" is there twice': {"ip|0": ARRAY, "ip|00": ARRAY},
    '"ip" is no blob of a layer': {"ip": ARRAY},
}


@pytest.mark.parametrize("message", WRONG_NPZ)
def test_hostile_npz(tmp_path: Path, message: str) -> None:
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as file:
        for name, raw in WRONG_NPZ[message].items():
            file.writestr(f"{name}.npy", raw)
    with pytest.raises(ValueError, match=r"w\.npz: ") as caught:
        load(net(), tmp_path / "w.npz")
    assert message in str(caught.value)


def test_a_bomb_of_npz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no layer of the net can take is never unpacked, whoever's it is."""
    size, read = 2**26, []
    with zipfile.ZipFile(tmp_path / "w.npz", "w", zipfile.ZIP_DEFLATED) as file:
        for name, shape in (("other|0", (size,)), ("conv1|0", (size,)), ("bn|0", (3,))):
            file.writestr(f"{name}.npy", npy(shape, "<i1", bytes(shape[0])))
    monkeypatch.setattr(npz.Blob, "expect_readable", lambda blob: read.append(blob.name))
    with pytest.raises(SpecError, match=r"conv1.* has 2 blobs .* has 1 \[67108864\]"):
        load(net(), tmp_path / "w.npz")
    assert read == ["bn|0.npy"]


HDF5_STATES = {
    "iter": np.array(["soon"], dtype="S4"),
    "current_step": np.zeros(3, np.int32),
    "learned_net": np.float32(3),
    "history": np.zeros(2),
    "history/0": h5py.Empty("f4"),
    "cortado": np.array([b"x"]),
}


@pytest.mark.parametrize("name", HDF5_STATES)
@pytest.mark.parametrize("solver", ["HDF5"], indirect=True)
def test_a_readable_state_of_other_content(solver: Solver, name: str) -> None:
    solver.step(1)
    state = solver.snapshot()
    with h5py.File(state, "r+") as file:
        del file[name]
        file[name] = HDF5_STATES[name]
    with pytest.raises(REFUSED, match="run_iter_1.solverstate.h5"):
        solver.restore(state)


OTHER_CONTENT = {
    "type": 3,
    "losses": ["none"],
    "random": [torch.zeros(3)],
    "layers": [{"nobody": torch.zeros(2)}],
    "scale": None,
}


@pytest.mark.parametrize("name", OTHER_CONTENT)
@pytest.mark.parametrize("solver", ["BINARYPROTO"], indirect=True)
def test_a_state_of_ours_with_other_content(solver: Solver, name: str) -> None:
    solver.step(1)
    path = solver.snapshot()
    state = read_state(path)
    extra = torch.load(io.BytesIO(state.extra), weights_only=True)
    stream = io.BytesIO()
    torch.save({**extra, name: OTHER_CONTENT[name]}, stream)
    write_state(path, SolverState(**{**vars(state), "extra": stream.getvalue()}))
    before = [history.clone() for of in solver.history for history in of]
    with pytest.raises(ValueError, match="run_iter_1.solverstate: broken solver state"):
        solver.restore(path)
    assert all(map(torch.equal, before, [history for of in solver.history for history in of]))
