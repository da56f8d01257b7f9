"""The prototxts of Caffe's own repository: all are read, and those that need no database are built."""

import json

import numpy as np
import pytest
from cortado.nets.build import build
from cortado.nets.graph import State, graph
from cortado.nets.net import Net
from cortado.nets.solver_params import read_params
from cortado.prototxt_like import SpecError, load
from cortado.prototxt_like.wire import write_blob
from PIL import Image
from shared import SHARED, needs_shared

pytestmark = needs_shared
BVLC = SHARED / "data" / "prototxts" / "bvlc" if SHARED else None
FOLDER = SHARED / "caffe_vectors" / "11_repo_net_shapes" if SHARED else None
SHAPES = json.loads((FOLDER / "shapes.json").read_text()) if FOLDER else {}
FILES = sorted(BVLC.rglob("*.prototxt")) if BVLC else []
TRAINED = [path for path in FILES if path.name == "train_val.prototxt"]


def name(path):
    return f"{path.parent.name}/{path.name}"


def test_they_are_here():
    assert (len(FILES), len(TRAINED), len(SHAPES)) == (14, 4, 11)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_all_are_read(path):
    message = load(path)
    if "solver" in path.name:
        assert read_params(message).max_iter > 0
        return
    for phase in ("TRAIN", "TEST"):
        assert graph(message, State(phase)).outputs


@pytest.mark.parametrize("name", SHAPES)
def test_nets_without_data_are_built_as_caffe_does(name):
    """Caffe's layers with their splits, and the shapes of all blobs and parameters."""
    inside = BVLC / name.removeprefix("models/")
    path = inside if inside.exists() else FOLDER / "nets" / name.replace("/", "__")
    net, wanted = build(load(path), splits=True), SHAPES[name]
    assert [[blob, list(shape)] for blob, shape in net.shapes.items()] == wanted["blobs"]
    for made, layer in zip(net.layers, wanted["layers"], strict=True):
        assert (made.node.name, made.node.type) == (layer["name"], layer["type"])
        assert (list(made.node.bottoms), list(made.tops)) == (layer["bottoms"], layer["tops"])
        assert [list(blob.shape) for blob in made.layer.blobs] == layer["param_shapes"]
    assert list(net.graph.outputs) == wanted["outputs"]


@pytest.mark.parametrize("path", TRAINED, ids=name)
def test_a_missing_source_is_a_located_error(path):
    with pytest.raises(SpecError) as caught:
        Net(path, "TRAIN")
    assert str(caught.value).startswith(f'{path}:2:7: error: layer "data": ')


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_flickr_style_trains_on_images(phase, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("data/flickr_style", "data/ilsvrc12"):
        (tmp_path / folder).mkdir(parents=True)
    Image.fromarray(np.zeros((256, 256, 3), np.uint8)).save("a.png")
    for part in ("train", "test"):
        (tmp_path / "data" / "flickr_style" / f"{part}.txt").write_text("a.png 3\n")
    write_blob("data/ilsvrc12/imagenet_mean.binaryproto", np.zeros((1, 3, 256, 256), np.float32))
    net = Net(BVLC / "finetune_flickr_style" / "train_val.prototxt", phase, seed=0)
    assert net.blob_shapes["data"] == (50, 3, 227, 227)
    assert net.outputs == (("loss",) if phase == "TRAIN" else ("accuracy", "loss"))
