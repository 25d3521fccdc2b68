"""torchvision's Python beside a torch that its compiled part was not built for.

timm, transformers and torchvision's own models need the package, not its compiled operators. Where
those do not load (a wheel for CUDA beside a CPU build of torch), the package's import fails for want
of two operators that it registers shapes for; declaring them is enough.
"""

from __future__ import annotations

import sys

import torch

__all__ = ["import_torchvision"]

_DECLARED: list[torch.library.Library] = []


def import_torchvision() -> None:
    """Make `import torchvision` work from here on."""
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        _DECLARED.append(library)  # they go when it does
        import torchvision  # noqa: F401
