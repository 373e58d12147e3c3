"""
Let PyPI's torchvision, a CUDA build, be imported beside torch's CPU build.

torchvision's operators cannot be loaded there, and its import fails since it describes two of them. torch calls
`define` at the end of its own import, as it does for device backends.
"""

import torch


def define() -> None:
    """Define the two operators' signatures, without an implementation: whoever calls one gets an error."""
    torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torch.library.define("torchvision::qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
