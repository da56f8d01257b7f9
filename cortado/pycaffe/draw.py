"""Pictures of nets, drawn by Graphviz: ``draw_net_to_file(net_param, "net.png")``.

Pictures need Graphviz' program ``dot``; the text that it reads (``.raw``) does not.
"""

from __future__ import annotations

import importlib
import subprocess
from pathlib import Path
from typing import Any

from cortado.prototxt_like.files import replace_file

from .proto import caffe_pb2

Style = dict[str, str]

LAYER_STYLE_DEFAULT: Style = {"shape": "record", "fillcolor": "#6495ED", "style": "filled"}
NEURON_LAYER_STYLE: Style = {"shape": "record", "fillcolor": "#90EE90", "style": "filled"}
BLOB_STYLE: Style = {"shape": "octagon", "fillcolor": "#E0E0E0", "style": "filled"}

_COLORS = {
    "Convolution": "#FF5050",
    "Deconvolution": "#FF5050",
    "Pooling": "#FF9900",
    "InnerProduct": "#CC33FF",
}
_LEARNING = ("Convolution", "Deconvolution", "InnerProduct")


def get_pooling_types_dict() -> dict[int, str]:
    """The names of pooling methods by number."""
    values = caffe_pb2.PoolingParameter.PoolMethod.DESCRIPTOR.values
    return {value.number: value.name for value in values}


def get_edge_label(layer: Any) -> str:
    """What stands at a layer's arrow to its top: its number of outputs, or the batch's size."""
    if layer.type == "Data":
        return f"Batch {layer.data_param.batch_size}"
    if layer.type in ("Convolution", "Deconvolution"):
        return str(layer.convolution_param.num_output)
    if layer.type == "InnerProduct":
        return str(layer.inner_product_param.num_output)
    return '""'


def get_layer_lr_mult(layer: Any) -> tuple[float, float]:
    """Factors of the learning rate of a learning layer's weight and bias."""
    if layer.type not in _LEARNING:
        raise ValueError(f"{layer.type} layers have no learning rate")
    given = [spec.lr_mult for spec in layer.param]
    if len(given) > 2:
        raise ValueError(f'layer "{layer.name}" has {len(given)} param blocks')
    weight, bias = [*given, 1.0, 1.0][:2]
    return weight, bias


def get_layer_label(layer: Any, rankdir: str, display_lrm: bool = False) -> str:
    """A layer's text: name, type, and what it does in space; in lines if the net goes left to right."""
    separator = " " if rankdir in ("TB", "BT") else r"\n"
    kind = layer.type
    if layer.type == "Pooling":
        kind += f" {get_pooling_types_dict()[layer.pooling_param.pool]}"
    lines = [layer.name, f"({kind})"]
    if (window := _window(layer)) is not None:
        lines += [f"kernel size: {window[0]}", f"stride: {window[1]}", f"pad: {window[2]}"]
    if display_lrm and layer.type in _LEARNING:
        lines.append("lr mult: {:.1f}, {:.1f}".format(*get_layer_lr_mult(layer)))
    return f'"{separator.join(lines)}"'


def _window(layer: Any) -> tuple[int, int, int] | None:
    """Kernel size, stride and pad of a layer with a window."""
    if layer.type == "Pooling":
        given = layer.pooling_param
        return given.kernel_size, given.stride, given.pad
    if layer.type not in ("Convolution", "Deconvolution"):
        return None
    given = layer.convolution_param
    first = (given.kernel_size, 1), (given.stride, 1), (given.pad, 0)
    kernel, stride, pad = (values[0] if values else default for values, default in first)
    return kernel, stride, pad


def choose_color_by_layertype(layertype: str) -> str:
    """The fill of a layer's box."""
    return _COLORS.get(layertype, LAYER_STYLE_DEFAULT["fillcolor"])


def get_dot(
    caffe_net: Any,
    rankdir: str = "LR",
    label_edges: bool = True,
    phase: int | None = None,
    display_lrm: bool = False,
) -> str:
    """A NetParameter as a graph in Graphviz' language: boxes of layers, octagons of blobs.

    ``rankdir`` is its direction ("LR", "TB", "BT"). With a ``phase`` only the layers of that phase.
    """
    nodes: dict[str, str] = {}
    edges: list[str] = []
    for layer in caffe_net.layer:
        if not _included(layer, phase):
            continue
        box = _quoted(f"{layer.name}_{layer.type}")
        nodes[box] = f"label={get_layer_label(layer, rankdir, display_lrm)}, {_style(_of(layer))}"
        for blob in (*layer.bottom, *layer.top):
            nodes[_quoted(f"{blob}_blob")] = f"label={_quoted(blob)}, {_style(BLOB_STYLE)}"
        edges += [f"{_quoted(f'{blob}_blob')} -> {box};" for blob in layer.bottom]
        label = get_edge_label(layer).strip('"') if label_edges else ""
        edges += [f"{box} -> {_quoted(f'{t}_blob')} [label={_quoted(label)}];" for t in layer.top]
    boxes = [f"{name} [{attributes}];" for name, attributes in nodes.items()]
    head = f"digraph {_quoted(caffe_net.name or 'Net')} {{\nrankdir={rankdir};\n"
    return head + "\n".join([*boxes, *edges]) + "\n}\n"


def _of(layer: Any) -> Style:
    if len(layer.bottom) == 1 and list(layer.bottom) == list(layer.top):
        return NEURON_LAYER_STYLE
    return {**LAYER_STYLE_DEFAULT, "fillcolor": choose_color_by_layertype(layer.type)}


def _style(style: Style) -> str:
    return ", ".join(f'{key}="{value}"' for key, value in style.items())


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def get_pydot_graph(
    caffe_net: Any,
    rankdir: str,
    label_edges: bool = True,
    phase: int | None = None,
    display_lrm: bool = False,
) -> Any:
    """The same as a graph of ``pydot``, which must be installed."""
    pydot = importlib.import_module("pydot")
    return pydot.graph_from_dot_data(get_dot(caffe_net, rankdir, label_edges, phase, display_lrm))[0]


def draw_net(
    caffe_net: Any,
    rankdir: str,
    ext: str = "png",
    phase: int | None = None,
    display_lrm: bool = False,
) -> bytes:
    """The picture in a format of Graphviz ("png", "svg", "pdf"), or with "raw" the text that it reads.

    Raises RuntimeError where Graphviz' ``dot`` is not installed, or refuses.
    """
    graph = get_dot(caffe_net, rankdir, phase=phase, display_lrm=display_lrm).encode()
    if ext in ("raw", "dot", "gv"):
        return graph
    try:
        done = subprocess.run(["dot", f"-T{ext}"], input=graph, capture_output=True, check=True)
    except FileNotFoundError:
        text = f"{ext} pictures need Graphviz' program dot, which is not here; cortado draw needs none"
        raise RuntimeError(text) from None
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"dot: {error.stderr.decode(errors='replace').strip()}") from None
    return done.stdout


def draw_net_to_file(
    caffe_net: Any,
    filename: str | Path,
    rankdir: str = "LR",
    phase: int | None = None,
    display_lrm: bool = False,
) -> None:
    """Write the picture, in the format that the file's name ends in."""
    path = Path(filename)
    picture = draw_net(caffe_net, rankdir, path.suffix[1:], phase, display_lrm)
    replace_file(path, lambda beside: beside.write_bytes(picture))


def _included(layer: Any, phase: int | None) -> bool:
    if phase is None:
        return True
    if layer.include and layer.exclude:
        raise ValueError(f'layer "{layer.name}" has both include and exclude rules')
    if layer.include:
        return any(rule.phase == phase for rule in layer.include)
    return not any(rule.phase == phase for rule in layer.exclude)
