r"""torchvision's detection operators on the CPU, as a baseline for speed.

    python -m mae_jax.tools.bench.baselines.torchvision_ops \
        '{"operator": "nms", "image_size": 1024, "channels": 256}'

See `torch_process.serve` for the protocol.
"""

import json
import resource
import sys
import time
from typing import Any

import torch  # pyright: ignore[reportMissingImports] - not a requirement; used only here
import torchvision  # pyright: ignore[reportMissingImports]

from mae_jax.tools.bench.baselines.detection_inputs import STRIDES, Inputs, make_inputs
from mae_jax.tools.bench.baselines.torch_process import serve


class TorchvisionStep:
    """One call of an operator: roi_align, roi_align_grad or nms."""

    version = f"{torch.__version__}, torchvision {torchvision.__version__}"

    def __init__(self, sizes: dict[str, Any]):
        inputs = make_inputs(sizes["image_size"], sizes["channels"])
        operator = sizes["operator"]
        self.run = _nms(inputs) if operator == "nms" else _roi_align(inputs, operator)

    def __call__(self) -> float:
        """Seconds of one call."""
        start = time.perf_counter()
        self.run()
        return time.perf_counter() - start

    def peak_memory_mb(self) -> int:
        """Of the whole process."""
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


def _roi_align(inputs: Inputs, operator: str) -> Any:
    """Pools the boxes of each level, as Detectron2's ROIPooler does."""
    gradient = operator == "roi_align_grad"
    pyramid = [torch.from_numpy(x).permute(2, 0, 1)[None].contiguous() for x in inputs.pyramid]
    for features in pyramid:
        features.requires_grad_(gradient)
    boxes, levels = torch.from_numpy(inputs.boxes), torch.from_numpy(inputs.levels)

    def run() -> None:
        pooled = torch.zeros(len(boxes), pyramid[0].shape[1], 7, 7)
        for level, (features, stride) in enumerate(zip(pyramid, STRIDES, strict=True), 2):
            here = (levels == level).nonzero()[:, 0]
            part = torchvision.ops.roi_align(features, [boxes[here]], 7, 1 / stride, 0, True)
            pooled = pooled.index_put((here,), part)
        if gradient:
            torch.autograd.grad(pooled.sum(), pyramid, allow_unused=True)

    return run


def _nms(inputs: Inputs) -> Any:
    levels = list(zip(*map(torch.from_numpy, (inputs.candidates, inputs.scores)), strict=True))
    return lambda: [torchvision.ops.nms(boxes, scores, 0.7) for boxes, scores in levels]


if __name__ == "__main__":
    serve(lambda: TorchvisionStep(json.loads(sys.argv[1])))
