"""Weights that the user's code downloads where there is no network: which argument builds without them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType

from bsfind.failures.gpu_faults import causes

_NO_NETWORK = frozenset(
    (
        *("URLError", "gaierror", "ConnectError", "NewConnectionError", "MaxRetryError"),
        *("LocalEntryNotFoundError", "OfflineModeIsEnabled"),  # huggingface_hub
    )
)
"""Classes of errors of urllib, socket, httpx, urllib3 and huggingface_hub."""

_ASKS_FOR_WEIGHTS = {
    "pretrained": False,
    "weights": None,
    "weights_backbone": None,
    "encoder_weights": None,
}
"""Arguments of models in timm, torchvision and segmentation_models_pytorch, and what turns them off."""

_READS_SETTINGS = ("config", "preprocess", "transform")
"""Parts of names of functions that read how weights were made, and build no model."""


def is_no_network(error: BaseException) -> bool:
    """Tell whether an error says that something cannot be downloaded."""
    return any(cls.__name__ in _NO_NETWORK for each in causes(error) for cls in type(each).__mro__)


def how_to_go_without(
    frames: Iterable[tuple[FrameType, int]], is_user_file: Callable[[str], bool]
) -> str | None:
    """Return what builds the same model without a download; None if nothing in the code that failed says.

    Args:
        frames: of an error for which `is_no_network` is true, outermost first, without those of bsfind;
            each with its line.
        is_user_file: tells whether a file is the user's own.
    """
    called_in = ""
    is_first = True
    for frame, line in frames:
        name = frame.f_code.co_name
        builds = not any(word in name for word in _READS_SETTINGS)
        for argument, off in _ASKS_FOR_WEIGHTS.items() if builds else ():
            if argument in _arguments(frame) and frame.f_locals.get(argument) not in (None, False):
                where = (
                    f"`--model-arg {argument}={off}`"
                    if is_first
                    else f"`{argument}={off}`{called_in}"
                )
                return f"weights are not needed: {where} builds the same model without them"
        if name == "from_pretrained":
            return _without_from_pretrained(frame, called_in)
        if name == "load_state_dict_from_url":
            return f"weights are not needed: leave out what loads them{called_in}"
        if name == "hf_hub_download" and (file := frame.f_locals.get("filename")):
            return _needed(f"`{file}`", f"{frame.f_locals.get('repo_id')} {file}", called_in)
        if is_user_file(frame.f_code.co_filename):
            is_first = False
            called_in = f" in {Path(frame.f_code.co_filename).name}:{line}"
    return None


def _without_from_pretrained(frame: FrameType, called_in: str) -> str:
    cls = getattr(frame.f_locals.get("cls"), "__name__", "")
    name = next((v for v in map(frame.f_locals.get, _arguments(frame)) if isinstance(v, str)), "")
    if any(word in cls for word in ("Config", "Tokenizer", "Processor", "FeatureExtractor")):
        return _needed("files", name, called_in, by=f"`{cls}.from_pretrained`")
    return (
        f"weights are not needed: `{cls}.from_pretrained`{called_in} downloads them; `from_config` builds "
        f"the same model from its configuration, and so does the target `hf:{name}`"
    )


def _needed(what: str, wanted: str, called_in: str, by: str = "the code") -> str:
    """Return the hint that files of the Hugging Face Hub have to be downloaded, and how."""
    return (
        f"{by}{called_in} needs {what} in the cache of the Hugging Face Hub: "
        f"`hf download {wanted}` gets them, where there is a network"
    )


def _arguments(frame: FrameType) -> tuple[str, ...]:
    code = frame.f_code
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
