"""Weights: matched by layer name and index, located mismatches, the kinds of files."""

import json

import h5py
import numpy as np
import pytest
import torch
from cortado.nets.net import Net
from cortado.nets.weights import listed, load, save
from cortado.prototxt_like import SpecError, loads
from cortado.prototxt_like.schema import message
from cortado.prototxt_like.wire import read_net, write_net
from shared import case, cases

TWINS = """
layer:
- {name: x1, type: Input, top: x1, input_param: {shape: {dim: [1, 3, 8, 8]}}}
- {name: x2, type: Input, top: x2, input_param: {shape: {dim: [1, 3, 8, 8]}}}
- siamese:
    input: {data: [x1, x2]}
    output: {y: [y1, y2]}
    layer:
    - name: conv.1/3x3
      type: Convolution
      bottom: data
      top: conv
      convolution_param: {num_output: 4, kernel_size: 3, weight_filler: {type: xavier}}
    - {name: ip, type: InnerProduct, bottom: conv, top: y, inner_product_param: {num_output: 2}}
"""


def twins(seed=0, text=TWINS):
    return Net(loads(text, name="twins.yaml"), seed=seed)


@pytest.mark.parametrize("suffix", [".caffemodel", ".h5", ".safetensors", ".pth"])
def test_round_trip(tmp_path, suffix):
    net, other, path = twins(1), twins(2), tmp_path / f"w{suffix}"
    save(net, path)
    report = load(other, path)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert report.filled == ("conv.1/3x3", "ip", "conv.1/3x3_p", "ip_p")
    assert (report.missing, report.unused) == ((), ())
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


PLAIN = """
layer:
- {name: x, type: Input, top: x, input_param: {shape: {dim: [2, SIZE]}}}
- {name: "fc \\"6", type: InnerProduct, bottom: x, top: y, inner_product_param: {
    num_output: ROWS, bias_term: false}}
"""


def plain(rows, size):
    return Net(loads(PLAIN.replace("ROWS", str(rows)).replace("SIZE", str(size)), name="plain.yaml"))


def test_the_ways_out_of_weights_of_another_shape(tmp_path):
    """A new name, or net surgery: the values as they lie, where there are as many of them."""
    path, rename = tmp_path / "w.caffemodel", "to learn the layer from scratch, rename it"
    net, many = plain(2, 6), plain(2, 5)
    net.params['fc "6'][0].data.copy_(torch.arange(12.0).reshape(2, 6))
    save(net, path)
    with pytest.raises(SpecError) as caught:
        load(many, path)
    assert caught.value.hint == rename
    other = plain(3, 4)
    with pytest.raises(SpecError) as caught:
        load(other, path)
    said, place = caught.value.hint.split("; to keep its values as they lie, copy them yourself into ")
    assert said == rename
    (stored,) = (blob for layer in read_net(path) for blob in layer.blobs)
    with torch.no_grad():
        eval(place, {"net": other}).copy_(torch.from_numpy(np.array(stored)).reshape(3, 4))
    assert torch.equal(other(torch.eye(4)[:2])["y"], torch.tensor([[0.0, 4, 8], [1, 5, 9]]))


def test_shared_parameters_are_saved_once(tmp_path):
    net = twins()
    save(net, tmp_path / "w.pth")
    state = torch.load(tmp_path / "w.pth", weights_only=True)
    assert sorted(state) == [
        "layers.conv%2E1/3x3.bias",
        "layers.conv%2E1/3x3.weight",
        "layers.ip.bias",
        "layers.ip.weight",
    ]


def test_a_state_dict_is_read_too(tmp_path):
    net, other = twins(1), twins(2)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    load(other, tmp_path / "w.pth")
    assert torch.equal(net.params["ip_p"][0], other.params["ip"][0])


def test_the_report_tells_what_was_not_filled(tmp_path):
    save(twins(), tmp_path / "w.pth")
    text = TWINS.replace("name: ip,", "name: head,")
    report = load(twins(text=text), tmp_path / "w.pth")
    assert report.filled == ("conv.1/3x3", "conv.1/3x3_p")
    assert report.missing == ("head", "head_p")
    assert report.unused == ("ip",)
    assert "not in the file: head, head_p; not in the net: ip" in str(report)
    assert listed([f"ip{i}" for i in range(10)], 2) == "ip0, ip1 and 8 more"
    assert listed(["ip0", "ip1"], 2) == "ip0, ip1"


def test_mismatches_are_located_and_nothing_is_filled(tmp_path):
    save(twins(1), tmp_path / "w.safetensors")
    net = twins(2, TWINS.replace("num_output: 4", "num_output: 5"))
    before = [parameter.clone() for parameter in net.parameters()]
    with pytest.raises(SpecError) as caught:
        load(net, tmp_path / "w.safetensors")
    places = [f"{error.span.place}: {error.message}" for error in caught.value.errors]
    assert places == [
        'twins.yaml:9: layer "conv.1/3x3": bias is [5], in w.safetensors [4]',
        'twins.yaml:9: layer "conv.1/3x3": weight is [5, 3, 3, 3], in w.safetensors [4, 3, 3, 3]',
        'twins.yaml:14: layer "ip": weight is [2, 180], in w.safetensors [2, 144]',
    ]
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_other_kinds_of_files_are_refused(tmp_path):
    (tmp_path / "w.bin").write_bytes(b"no weights")
    with pytest.raises(SpecError, match="w.bin: not a Caffe model, or cut off"):
        load(twins(), tmp_path / "w.bin")
    with pytest.raises(ValueError, match=r"saved as \.caffemodel, \.h5, \.safetensors or \.pth"):
        save(twins(), tmp_path / "w.npz")


def test_pickles_that_run_code_are_refused(tmp_path):
    torch.save({"layers.ip.weight": print}, tmp_path / "w.pth")
    with pytest.raises(Exception, match="Weights only load failed"):
        load(twins(), tmp_path / "w.pth")


@pytest.mark.parametrize("folder", cases("10_sgd"))
def test_caffemodel(folder):
    net = Net(folder / "net.prototxt", "TRAIN")
    report = load(net, folder / "weights.caffemodel")
    assert report.filled == ("ip1", "ip2")
    stored = {layer.name: layer.blobs for layer in read_net(folder / "weights.caffemodel")}
    assert torch.equal(net.params["ip1"][0].detach(), torch.from_numpy(stored["ip1"][0]))


def test_a_caffemodel_with_another_number_of_blobs(monkeypatch):
    folder = case("10_sgd")
    monkeypatch.chdir(folder)
    text = (
        (folder / "net.prototxt").read_text().replace("num_output: 2", "num_output: 2 bias_term: false")
    )
    with pytest.raises(
        SpecError, match=r'"ip2" has 1 blobs \[2, 6\], weights.caffemodel has 2 \[2, 6\], \[2\]'
    ):
        load(Net(loads(text, notation="prototxt")), "weights.caffemodel")


CAFFES = cases("01_deconv_g", "04_inplace", "05_", "07_smloss_2d", "08_siamese", "11_two_l")


@pytest.mark.parametrize("folder", CAFFES)
def test_a_net_is_saved_as_caffe_saves_it(folder, tmp_path, monkeypatch):
    """The whole message: every layer's parameters, Splits and what Caffe adds included."""
    monkeypatch.chdir(folder)
    meta = json.loads((folder / "meta.json").read_text())
    net = Net("net.prototxt", meta["phase"], splits=True, weights="weights.caffemodel")
    save(net, tmp_path / "again.caffemodel")
    wanted, saved = (
        message("NetParameter").FromString(path.read_bytes())
        for path in (folder / "weights.caffemodel", tmp_path / "again.caffemodel")
    )
    assert saved == wanted


@pytest.mark.parametrize("folder", cases("08_shared_load_order"))
def test_the_later_copy_of_a_shared_parameter_wins(folder):
    check(Net(folder / "net.prototxt", "TRAIN", weights=folder / "weights.caffemodel"), folder, "param")


@pytest.mark.parametrize("folder", cases("11_load_partial"))
@pytest.mark.parametrize(("suffix", "kind"), [("", "param"), (".h5", "param_h5")])
def test_a_file_of_another_net(folder, suffix, kind):
    net = Net(folder / "net.prototxt", "TRAIN", seed=0)
    report = load(net, folder / f"weights.caffemodel{suffix}")
    assert (report.missing, report.unused) == (("only_in_B",), ("only_in_A",))
    check(net, folder, kind)


def check(net, folder, kind):
    with np.load(folder / "data.npz") as data:
        keys = [key for key in data.files if key.startswith(f"{kind}/")]
        for key in keys:
            name, index = key.removeprefix(f"{kind}/").rsplit("/", 1)
            np.testing.assert_array_equal(net.params[name][int(index)].detach(), data[key])
    assert keys


@pytest.mark.parametrize("folder", cases("08_siamese"))
def test_caffes_hdf5(folder, tmp_path):
    net = Net(folder / "net.prototxt", "TRAIN", weights=folder / "weights.caffemodel.h5")
    assert net.report.missing == ()
    save(net, tmp_path / "again.h5")
    found = []
    for path in (folder / "weights.caffemodel.h5", tmp_path / "again.h5"):
        with h5py.File(path) as file:
            found.append({})
            file.visititems(lambda name, item, into=found[-1]: into.update({name: describe(item)}))
    assert found[0] == found[1]


def describe(item):
    return (item.dtype.str, item[()].tolist()) if isinstance(item, h5py.Dataset) else "a group"


def test_hdf5_is_known_by_its_content(tmp_path):
    net = twins(1)
    save(net, tmp_path / "w.h5")
    for name in ("w.caffemodel", "w"):
        (tmp_path / name).write_bytes((tmp_path / "w.h5").read_bytes())
        assert load(twins(2), tmp_path / name).missing == ()


def test_hdf5_that_fits_badly(tmp_path):
    def write(**blobs):
        (tmp_path / "w.h5").unlink(missing_ok=True)
        with h5py.File(tmp_path / "w.h5", "w") as file:
            for name, shape in blobs.items():
                file.create_dataset(f"data/ip/{name}", shape, "f4")

    write(**{"0": (2, 144)})
    with pytest.raises(SpecError, match=r'"ip" has 2 blobs \[2, 144\], \[2\], w.h5 has 1 \[2, 144\]'):
        load(twins(), tmp_path / "w.h5")
    write(**{"0": (2, 144), "1": (4096,)})
    with pytest.raises(SpecError, match=r"bias is \[2\], in w.h5 \[4096\]"):
        load(twins(), tmp_path / "w.h5")
    write(**{"0": (2, 144), "1": (2**40,)})  # of which nothing is stored
    with pytest.raises(
        ValueError, match=r'data set "ip/1" claims 4,398,046,511,104 bytes in a file of'
    ):
        load(twins(), tmp_path / "w.h5")
    write(**{"0": (2, 144), "1": (2,), "2": (2,)})
    with pytest.raises(SpecError, match="has 2 blobs"):
        load(twins(), tmp_path / "w.h5")
    write(kernel=(2, 2))
    with pytest.raises(ValueError, match='"data/ip/kernel" is no index of a blob'):
        load(twins(), tmp_path / "w.h5")


@pytest.mark.parametrize("suffix", [".h5", ".safetensors", ".pth", ".mat", ".npz"])
@pytest.mark.parametrize("raw", [b"", b"no weights", b"\x89HDF\r\n\x1a\n" + bytes(99)])
def test_broken_files(tmp_path, suffix, raw):
    (tmp_path / f"w{suffix}").write_bytes(raw)
    with pytest.raises(ValueError, match=f"w{suffix}: "):
        load(twins(), tmp_path / f"w{suffix}")


@pytest.mark.parametrize("suffix", ["", ".caffemodel", ".h5", ".safetensors", ".pth", ".mat", ".npz"])
def test_missing_files(tmp_path, suffix):
    with pytest.raises((SpecError, OSError), match="No such file"):
        load(twins(), tmp_path / f"w{suffix}")


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_npz(write, tmp_path):
    """Arrays of any kind of numbers and order, by layer and index; a mean is no layer."""
    rng = np.random.default_rng(0)
    arrays = {
        "conv.1/3x3|0": np.asfortranarray(rng.standard_normal((4, 3, 3, 3))).astype(">f8", order="K"),
        "conv.1/3x3|1": np.arange(4, dtype=np.int16),
        "ip|0": rng.standard_normal((1, 1, 2, 144)).astype(np.float16),
        "ip|1": np.array([1, 2], np.longdouble),
        "other|0": np.zeros(5),
        "__mean_bgr_channel": np.array(["no", "numbers"]),
    }
    write(tmp_path / "w.npz", **arrays)
    net = twins()
    report = load(net, tmp_path / "w.npz")
    assert report.filled == ("conv.1/3x3", "ip", "conv.1/3x3_p", "ip_p")
    assert (report.missing, report.unused) == ((), ("other",))
    for name, index in (("conv.1/3x3", 0), ("conv.1/3x3", 1), ("ip", 0), ("ip", 1)):
        wanted = torch.from_numpy(arrays[f"{name}|{index}"].astype(np.float32))
        assert torch.equal(net.params[name][index].data, wanted.reshape(net.params[name][index].shape))
        assert torch.equal(net.params[f"{name}_p"][index], net.params[name][index])


def test_npz_that_fits_badly(tmp_path):
    np.savez(tmp_path / "w.npz", **{"ip|0": np.zeros((2, 144)), "ip|1": np.zeros(3)})
    with pytest.raises(SpecError, match=r'layer "ip": bias is \[2\], in w.npz \[3\]'):
        load(twins(), tmp_path / "w.npz")
    np.savez(tmp_path / "w.npz", **{"ip|1": np.zeros(2)})
    with pytest.raises(SpecError, match=r"ip.* has 2 blobs \[2, 144\], \[2\], w.npz has 1 \[2\]"):
        load(twins(), tmp_path / "w.npz")
    for name in ("ip", "ip|x", "|0", "ip|-1", "ip|0|", "ip|0.5"):
        np.savez(tmp_path / "w.npz", **{name: np.zeros(2)})
        with pytest.raises(ValueError, match="w.npz: .* is no blob of a layer: expected names such as"):
            load(twins(), tmp_path / "w.npz")


def test_legacy_axes(tmp_path):
    """Blobs of Caffe's old files have four axes, 1 in front."""
    head = message("LayerParameter")
    blobs = [np.ones((1, 1, 2, 144), np.float32), np.ones((1, 1, 1, 2), np.float32)]
    write_net(tmp_path / "old.caffemodel", "", [(head(name="ip"), blobs)])
    net = twins()
    assert load(net, tmp_path / "old.caffemodel").filled == ("ip", "ip_p")
    assert torch.equal(net.params["ip_p"][0], torch.ones(2, 144))
    for shape in ((1, 2, 1, 144), (1, 2, 144), (1, 1, 1, 2, 144)):
        blobs[0] = np.ones(shape, np.float32)
        write_net(tmp_path / "old.caffemodel", "", [(head(name="ip"), blobs)])
        with pytest.raises(SpecError, match=r"weight is \[2, 144\], in old.caffemodel "):
            load(net, tmp_path / "old.caffemodel")


def test_weights_at_odd_places_of_a_file(tmp_path):
    head = message("LayerParameter")
    for name in ("n", "nn", "nnn", "nnnn"):
        blobs = [np.arange(288, dtype=np.float32).reshape(2, 144), np.arange(2, dtype=np.float32)]
        write_net(tmp_path / "w.caffemodel", name, [(head(name="ip"), blobs)])
        net = twins()
        load(net, tmp_path / "w.caffemodel")
        assert torch.equal(net.params["ip"][0].reshape(-1), torch.arange(288.0))


PERMISSIVE = """
layer:
- {name: x, type: Input, top: x, input_param: {shape: {dim: [2, 3]}}}
- name: a
  type: InnerProduct
  bottom: x
  top: a
  param: [{name: w}]
  inner_product_param: {num_output: 4}
- name: b
  type: InnerProduct
  bottom: a
  top: b
  param: [{name: w, share_mode: PERMISSIVE}, {lr_mult: 0}]
  inner_product_param: {num_output: 3}
"""


@pytest.mark.parametrize("suffix", [".caffemodel", ".h5", ".safetensors", ".pth"])
def test_a_parameter_shared_by_two_shapes(tmp_path, suffix):
    net, other = (Net(loads(PERMISSIVE), seed=seed) for seed in (1, 2))
    with torch.no_grad():
        for i, blob in enumerate(net.learnable):
            blob.parameter.add_(i + 1)
    save(net, tmp_path / f"w{suffix}")
    assert load(other, tmp_path / f"w{suffix}").missing == ()
    for mine, theirs in zip(net.learnable, other.learnable, strict=True):
        assert torch.equal(mine.parameter, theirs.parameter)
    torch.save(net.state_dict(), tmp_path / "state.pth")
    assert load(other, tmp_path / "state.pth").missing == ()


def test_half_precision_is_saved_for_caffe_as_float(tmp_path):
    net = twins().to(torch.bfloat16)
    save(net, tmp_path / "w.caffemodel")
    other = twins(2)
    load(other, tmp_path / "w.caffemodel")
    assert torch.equal(other.params["ip"][0], net.params["ip"][0].float())
