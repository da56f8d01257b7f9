"""Weights: matched by layer name and index, located mismatches, the three kinds of files."""

import pytest
import torch
from cortado.nets.net import Net
from cortado.nets.weights import load, save
from cortado.prototxt_like import SpecError, loads
from cortado.prototxt_like.wire import read_net
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


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_round_trip(tmp_path, suffix):
    net, other, path = twins(1), twins(2), tmp_path / f"w{suffix}"
    save(net, path)
    report = load(other, path)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert report.filled == ("conv.1/3x3", "ip", "conv.1/3x3_p", "ip_p")
    assert (report.missing, report.unused) == ((), ())
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


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
    with pytest.raises(ValueError, match=r"read from \.caffemodel, \.safetensors or \.pth"):
        load(twins(), tmp_path / "w.npz")
    with pytest.raises(ValueError, match=r"saved as \.safetensors or \.pth"):
        save(twins(), tmp_path / "w.caffemodel")


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
