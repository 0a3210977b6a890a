"""torchvision's wheel asks for two schemas that a CPU build of torch lacks; timm and transformers import it."""

import torch

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")  # lives as long as the tests

for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        _LIBRARY.define(f"{_name}(Tensor a) -> Tensor")
