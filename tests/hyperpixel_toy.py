"""Nets of hyperpixels with four blocks and with two, their weights, and images with key points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.io
from cortado.nets.net import Net
from cortado.nets.weights import save
from PIL import Image

SPEC = """\
name: toy
layer:
- {name: image1, type: Input, top: image1, transform_param: {scale: 0.01, mean_value: 128},
   input_param: {shape: {dim: [1, 3, 24, 32]}}}
- {name: image2, type: Input, top: image2, input_param: {shape: {dim: [1, 3, 24, 32]}}}
- siamese:
    suffix: _p
    input: {data: [image1, image2]}
    output: {}
    layer:
    - {name: a, type: Convolution, bottom: data, top: a, convolution_param: {num_output: 6, stride: 4,
       kernel_size: 5, pad: 2, weight_filler: &filler {type: msra}}}
    - {name: b, type: Convolution, bottom: a, top: b, convolution_param: {num_output: 5,
       kernel_size: 3, pad: 1, weight_filler: *filler}}
    - {name: c, type: Convolution, bottom: b, top: c, convolution_param: {num_output: 8, stride: 2,
       kernel_size: 3, pad: 1, weight_filler: *filler}}
    - {name: d, type: Convolution, bottom: c, top: d, convolution_param: {num_output: 7,
       kernel_size: 3, pad: 1, weight_filler: *filler}}
- {name: similarity, type: HyperpixelCorrelation, bottom: [b, c, b_p, c_p, image1, image2],
   top: similarity, hyperpixel_correlation_param: {exponent: 2, <<: &cells {jump: 4,
   receptive_field: 11, margin: 4}}}
- {name: confidence, type: RegularizedHoughMatching, bottom: [similarity, image1, image2],
   top: confidence, regularized_hough_matching_param: {cells: 300, <<: *cells}}
match_param: {image: [image1, image2], confidence: confidence, similarity: similarity, longer_side: 48,
  <<: *cells, block: [a, b, c, d], block_jump: [4, 4, 8], block_receptive_field: [5, 11, 19]}
"""
SMALL = """\
name: small
layer:
- {name: image1, type: Input, top: image1, transform_param: {channel_order: RGB, mean_value: 115,
    scale: 0.02}, input_param: &image {shape: {dim: [1, 3, 60, 80]}}}
- {name: image2, type: Input, top: image2, input_param: *image}
- siamese:
    input: {data: [image1, image2]}
    output: {}
    layer:
    - {name: conv1, type: Convolution, bottom: data, top: conv1, convolution_param: {
        num_output: 16, kernel_size: 7, stride: 4, pad: 3, weight_filler: {type: msra}}}
    - {name: conv2, type: Convolution, bottom: conv1, top: conv2, convolution_param: {
        num_output: 16, kernel_size: 3, stride: 2, pad: 1, weight_filler: {type: msra}}}
- name: similarity
  type: HyperpixelCorrelation
  bottom: [conv1, conv2, conv1_p, conv2_p, image1, image2]
  top: similarity
  hyperpixel_correlation_param: &cells {jump: 4, receptive_field: 7, margin: 0}
- name: confidence
  type: RegularizedHoughMatching
  bottom: [similarity, image1, image2]
  top: confidence
  regularized_hough_matching_param: *cells
match_param: {image: [image1, image2], confidence: confidence, similarity: similarity, <<: *cells,
  block: [conv1, conv2], block_jump: [4, 8], block_receptive_field: [7, 15]}
"""
NETS = {"toy": SPEC, "small": SMALL}
GROUPS = {"car(G)": 3, "duck(S)": 2, "duck(M)": 2}
SIZES = ((40, 30), (32, 48), (60, 44))  # width, height


def write_net(folder: Path, seed: int = 3, name: str = "toy") -> tuple[Path, Path]:
    """The spec and the weights of one of the nets."""
    spec, weights = folder / f"{name}.yaml", folder / f"{name}.safetensors"
    spec.write_text(NETS[name], encoding="utf-8")
    save(Net(spec, stages=("deploy",), seed=seed), weights)
    return spec, weights


def write_images(folder: Path, seed: int = 0) -> Path:
    """A data set as PF-WILLOW's folder: a scene of blots, seen shifted, in images of some sizes."""
    rng = np.random.default_rng(seed)
    for group, count in GROUPS.items():
        (folder / group).mkdir(parents=True)
        scene = Image.fromarray(rng.integers(0, 256, (14, 14, 3), dtype=np.uint8)).resize((90, 90))
        points = rng.uniform(14, 26, (2, 10))
        for i in range(count):
            width, height = SIZES[i]
            x, y = rng.integers(0, 9, 2)
            scene.crop((x, y, x + width, y + height)).save(folder / group / f"{i}.png")
            scipy.io.savemat(
                folder / group / f"{i}.mat", {"pts_coord": points - np.array([[x], [y]]) + 1}
            )
    return folder
