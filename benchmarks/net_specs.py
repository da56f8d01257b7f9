"""The specs of GoogLeNet and SqueezeNet as their authors deploy them, written in Python."""

from __future__ import annotations

from typing import Any

from cortado.pycaffe import NetSpec, layers, params

from .plain_nets import FIRES, INCEPTIONS

MAX, AVE = params.Pooling.MAX, params.Pooling.AVE


def _convolution(net: NetSpec, name: str, bottom: Any, channels: int, kernel: int, **more: Any) -> Any:
    """A convolution and its ReLU, in place."""
    net[name] = layers.Convolution(bottom, num_output=channels, kernel_size=kernel, **more)
    net[f"relu_{name}"] = layers.ReLU(net[name], in_place=True)
    return net[f"relu_{name}"]


def _pool(net: NetSpec, name: str, bottom: Any) -> Any:
    net[name] = layers.Pooling(bottom, pool=MAX, kernel_size=3, stride=2)
    return net[name]


def _inception(net: NetSpec, name: str, x: Any, channels: tuple[int, ...]) -> Any:
    _, one, reduce3, three, reduce5, five, pooled = channels
    name = f"inception_{name}"
    branches = [_convolution(net, f"{name}/1x1", x, one, 1)]
    reduced = _convolution(net, f"{name}/3x3_reduce", x, reduce3, 1)
    branches.append(_convolution(net, f"{name}/3x3", reduced, three, 3, pad=1))
    reduced = _convolution(net, f"{name}/5x5_reduce", x, reduce5, 1)
    branches.append(_convolution(net, f"{name}/5x5", reduced, five, 5, pad=2))
    net[f"{name}/pool"] = layers.Pooling(x, pool=MAX, kernel_size=3, stride=1, pad=1)
    branches.append(_convolution(net, f"{name}/pool_proj", net[f"{name}/pool"], pooled, 1))
    net[f"{name}/output"] = layers.Concat(*branches)
    return net[f"{name}/output"]


def googlenet(batch: int) -> Any:
    """A NetParameter of the net of Szegedy et al. 2015."""
    net = NetSpec()
    net.data = layers.Input(shape={"dim": [batch, 3, 224, 224]})
    x = _convolution(net, "conv1/7x7_s2", net.data, 64, 7, stride=2, pad=3)
    net["norm1"] = layers.LRN(_pool(net, "pool1", x), local_size=5, alpha=1e-4, beta=0.75)
    x = _convolution(net, "conv2/3x3_reduce", net["norm1"], 64, 1)
    x = _convolution(net, "conv2/3x3", x, 192, 3, pad=1)
    net["norm2"] = layers.LRN(x, local_size=5, alpha=1e-4, beta=0.75)
    x = _pool(net, "pool2", net["norm2"])
    for name, channels in INCEPTIONS.items():
        x = _inception(net, name, x, channels)
        if name in ("3b", "4e"):
            x = _pool(net, f"pool_{name}", x)
    net["pool5"] = layers.Pooling(x, pool=AVE, kernel_size=7, stride=1)
    net["drop"] = layers.Dropout(net["pool5"], dropout_ratio=0.4, in_place=True)
    net["classifier"] = layers.InnerProduct(net["drop"], num_output=1000)
    net["prob"] = layers.Softmax(net["classifier"])
    return net.to_proto()


def squeezenet(batch: int) -> Any:
    """A NetParameter of version 1.1 of the net of Iandola et al. 2016."""
    net = NetSpec()
    net.data = layers.Input(shape={"dim": [batch, 3, 227, 227]})
    x = _pool(net, "pool1", _convolution(net, "conv1", net.data, 64, 3, stride=2))
    for number, (_, squeezed, expanded) in FIRES.items():
        name = f"fire{number}"
        x = _convolution(net, f"{name}/squeeze1x1", x, squeezed, 1)
        one = _convolution(net, f"{name}/expand1x1", x, expanded, 1)
        three = _convolution(net, f"{name}/expand3x3", x, expanded, 3, pad=1)
        x = net[f"{name}/concat"] = layers.Concat(one, three)
        if number in (3, 5):
            x = _pool(net, f"pool{number}", x)
    net["drop9"] = layers.Dropout(x, dropout_ratio=0.5, in_place=True)
    x = _convolution(net, "conv10", net["drop9"], 1000, 1)
    net["pool10"] = layers.Pooling(x, pool=AVE, global_pooling=True)
    net["prob"] = layers.Softmax(net["pool10"])
    return net.to_proto()


SPECS = {"GoogLeNet": googlenet, "SqueezeNet": squeezenet}
