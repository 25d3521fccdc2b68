"""`nn.DataParallel` on one device, which is what bsfind finds the batch size of."""

from __future__ import annotations

from torch import nn

DATA_PARALLEL_NOTE = (
    "the model is wrapped in `nn.DataParallel`: the batch size is that of one GPU, on which the "
    "wrapped module runs; multiply it by the number of GPUs"
)


def on_one_device(model: nn.Module, *, unwrap: bool) -> tuple[nn.Module, bool]:
    """Let every `nn.DataParallel` of a model run its module on the device that the module is on.

    Args:
        model: wrapped itself, or with wrapped modules in it, which keep their names.
        unwrap: return the module inside of a wrapper around the whole model.

    Returns:
        The model, and whether there was such a wrapper.
    """
    wrappers = [module for module in model.modules() if isinstance(module, nn.DataParallel)]
    for wrapper in wrappers:
        # `DataParallel.forward` calls the module as it is then (torch 2.6-2.13).
        wrapper.device_ids = []
    while unwrap and isinstance(model, nn.DataParallel):
        model = model.module
    return model, bool(wrappers)
