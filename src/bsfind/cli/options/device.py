"""Where: panel Device."""

from __future__ import annotations

from typing import Annotated

from bsfind import units
from bsfind.cli.options import completion
from bsfind.cli.options.option import option

_PANEL = "Device"


def _device(text: str) -> str:
    from bsfind.settings import DeviceChoice

    if text != "sim":
        DeviceChoice(device=text)
    return text


def _gpu(text: str) -> str:
    from bsfind.simulation.gpus.catalogue import find_gpu

    return find_gpu(text).key


Device = Annotated[
    str,
    option(
        "--device",
        panel=_PANEL,
        parse=_device,
        autocompletion=completion.one_of(("auto", "cuda", "sim")),
        metavar="auto|cuda[:N]|sim",
        help="GPU to use, as torch counts them (after CUDA_VISIBLE_DEVICES); sim predicts for an RTX "
        "4090, or for the `--gpu`.",
    ),
]
Gpu = Annotated[
    str | None,
    option(
        "--gpu",
        panel=_PANEL,
        parse=_gpu,
        autocompletion=completion.gpus,
        metavar="NAME|SIZE",
        help="Predict for a GPU that need not be there: a name that `bsfind gpus` lists, or its "
        "memory, such as `24GiB`.",
    ),
]
ContextMemory = Annotated[
    str | None,
    option(
        "--context-memory",
        panel=_PANEL,
        parse=units.parse_size,
        metavar="SIZE",
        help="What a process holds of a simulated GPU outside PyTorch's allocator; without it, that is "
        "modelled.",
        show_default=False,
    ),
]
MemoryLimit = Annotated[
    str | None,
    option(
        "--memory-limit",
        panel=_PANEL,
        parse=units.parse_size,
        metavar="SIZE",
        help="What PyTorch's allocator may reserve, such as `8GiB`: play a smaller GPU. On a simulated "
        "one it may be more than the GPU has.",
    ),
]
NoLock = Annotated[
    bool,
    option(
        "--no-lock",
        panel=_PANEL,
        help="Measure although another bsfind may be measuring on the same GPU; without it, bsfind waits.",
    ),
]
