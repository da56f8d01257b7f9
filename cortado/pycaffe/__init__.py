"""Caffe's Python interface: ``import cortado.pycaffe as caffe`` runs scripts for ``import caffe``.

Nets, blobs and solvers as in Caffe, on the CPU or a GPU (``set_mode_gpu``); ``caffe.io``,
``caffe.NetSpec``, ``caffe.layers``, ``caffe.params``, ``caffe.Classifier``, ``caffe.Detector``,
``caffe.coord_map``, ``caffe.draw`` and ``caffe.proto.caffe_pb2``.

Modules of Python layers that say ``import caffe`` themselves get this package where no Caffe is
installed, once a net is made here or :func:`install` is called.
"""

from . import coord_map, draw, io, net_spec, proto
from .alias import install
from .blob import Blob
from .classifier import Classifier
from .detector import Detector
from .layer import Layer
from .mode import (
    NCCL,
    Timer,
    has_nccl,
    init_log,
    layer_type_list,
    log,
    set_device,
    set_mode_cpu,
    set_mode_gpu,
    set_multiprocess,
    set_random_seed,
    set_solver_count,
    set_solver_rank,
    solver_count,
    solver_rank,
)
from .net import Net
from .net_spec import NetSpec, layers, params, to_proto
from .proto.caffe_pb2 import TEST, TRAIN
from .solver import (
    AdaDeltaSolver,
    AdaGradSolver,
    AdamSolver,
    NesterovSolver,
    RMSPropSolver,
    SGDSolver,
    get_solver,
)

__version__ = "1.0.0"
"""Of the interface: Caffe's."""

__all__ = [
    "NCCL",
    "TEST",
    "TRAIN",
    "AdaDeltaSolver",
    "AdaGradSolver",
    "AdamSolver",
    "Blob",
    "Classifier",
    "Detector",
    "Layer",
    "NesterovSolver",
    "Net",
    "NetSpec",
    "RMSPropSolver",
    "SGDSolver",
    "Timer",
    "coord_map",
    "draw",
    "get_solver",
    "has_nccl",
    "init_log",
    "install",
    "io",
    "layer_type_list",
    "layers",
    "log",
    "net_spec",
    "params",
    "proto",
    "set_device",
    "set_mode_cpu",
    "set_mode_gpu",
    "set_multiprocess",
    "set_random_seed",
    "set_solver_count",
    "set_solver_rank",
    "solver_count",
    "solver_rank",
    "to_proto",
]
