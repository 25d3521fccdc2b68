"""`hf:NAME`: a model from its configuration on the Hugging Face Hub, or in a folder; never its weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from bsfind.errors import TargetError
from bsfind.workload.libraries.base import import_library
from bsfind.workload.libraries.transformers import check_fields, set_tokens

_FILE = "config.json"


def factory(name: str) -> Callable[..., nn.Module]:
    """Return the function that builds a model from its configuration; its arguments are fields of that.

    Args:
        name: a repository of the Hub, `org/name` or `gpt2`; or the path of a folder.

    Raises:
        TargetError: the function raises it if there is no configuration, or none of a class of
            transformers or diffusers.
    """

    def make(**fields: Any) -> nn.Module:
        file = _in_folder(name) or _on_hub(name)
        read = json.loads(file.read_text(encoding="utf-8"))
        if "_class_name" in read:
            return _of_diffusers(read, fields)
        return _of_transformers(name, file.parent, read, fields)

    return make


def _in_folder(name: str) -> Path | None:
    folder = Path(name).expanduser()
    if folder.is_dir():
        if (folder / _FILE).is_file():
            return folder / _FILE
    elif not name.startswith((".", "/", "~")):
        return None
    raise TargetError(
        f"there is no file `{folder / _FILE}`",
        hint=f"`hf:FOLDER` names a folder with the `{_FILE}` of a model",
    )


def _on_hub(name: str) -> Path:
    hub = import_library("huggingface_hub")
    try:  # the cache answers at once
        return Path(hub.hf_hub_download(name, _FILE, local_files_only=True))
    except (OSError, ValueError):
        pass
    try:
        return Path(hub.hf_hub_download(name, _FILE))
    except (OSError, ValueError) as error:  # what huggingface_hub and its client for HTTP raise
        reason = f"{type(error).__name__}: {error}"
    raise TargetError(
        f"the configuration of `{name}` is not in the cache of the Hugging Face Hub, and cannot be "
        "downloaded",
        detail=reason,
        hint=f"on a machine with a network, `hf download {name} {_FILE}` prints where the file is: copy it "
        "into a folder, and name that: `hf:./FOLDER`; weights are not needed",
    )


def _of_transformers(
    name: str, folder: Path, read: Mapping[str, Any], fields: Mapping[str, Any]
) -> nn.Module:
    transformers = import_library("transformers")
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except ValueError as error:
        raise TargetError(
            f"transformers cannot read the configuration of `{name}`",
            detail=str(error),
            hint="a model with code of its own is named by its class: `pkg.mod:Net`",
        ) from None
    check_fields(config, fields)
    if fields:
        config = type(config).from_dict({**read, **fields})
    names = config.architectures or ["of an unknown name"]
    cls = getattr(transformers, names[0], None)
    if cls is None:
        raise TargetError(
            f"`{name}` is a model of the class `{names[0]}`, which transformers does not have",
            hint="""name a class: `--model-arg "architectures=['BertForMaskedLM']"`""",
        )
    set_tokens(config, cls)
    model: nn.Module = cls(config)
    return model


def _of_diffusers(read: Mapping[str, Any], fields: Mapping[str, Any]) -> nn.Module:
    cls = getattr(import_library("diffusers"), read["_class_name"], None)
    if cls is None:
        raise TargetError(f"diffusers has no class `{read['_class_name']}`")
    model: nn.Module = cls.from_config({**read, **fields})
    return model
