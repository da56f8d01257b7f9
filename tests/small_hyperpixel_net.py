"""A small net of Hyperpixel Flow, for the tests of what matches by nets."""

from __future__ import annotations

from pathlib import Path

from cortado.nets.net import Net
from cortado.nets.weights import save
from cortado.prototxt_like import loads

SPEC = """
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


def written(folder: Path) -> tuple[str, str]:
    """The spec's file in a folder, and its weights'."""
    spec, weights = folder / "small.yaml", folder / "small.safetensors"
    spec.write_text(SPEC)
    save(Net(loads(SPEC), seed=0), weights)
    return str(spec), str(weights)
