"""Every layer's kernels on its small samples, forward and backward: what compute-sanitizer watches.

``python launches.py [DEVICE]``, with the repository's root and ``tests`` on ``PYTHONPATH``.
"""

from __future__ import annotations

import sys

import cuda_proof
import torch
from cortado.layers._engine.dispatch import impl


def main(device: str = "cuda") -> None:
    ran = 0
    for entry in cuda_proof.layers():
        for case in cuda_proof.cases(entry, (torch.float32, torch.float16)):
            case.device = device
            with impl("torch" if device == "cpu" else "cuda"):
                case.results()
            ran += 1
    if device != "cpu":
        torch.cuda.synchronize()
    print(f"{ran} cases ran")


if __name__ == "__main__":
    main(*sys.argv[1:])
