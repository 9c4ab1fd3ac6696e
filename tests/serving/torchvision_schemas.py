"""Let the Python part of torchvision load beside a build of torch that its operators do not fit.

vLLM imports image transforms, which need none of them. `make test-vllm` copies this file into its
environment, and a .pth file imports it when Python starts.
"""

import importlib.abc
import sys

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class BeforeTorchvision(importlib.abc.MetaPathFinder):
    """States the schemas when torchvision is first imported, and then finds nothing."""

    def find_spec(self, fullname, path, target=None):
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "DEF")
            for schema in SCHEMAS:
                self.library.define(schema)
            kept.append(self)
        return None


kept: list[BeforeTorchvision] = []
sys.meta_path.insert(0, BeforeTorchvision())
