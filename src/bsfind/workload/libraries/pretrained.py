"""Random weights in place of pretrained ones, while a step is predicted: their values take no other memory.

The functions that load weights are replaced: those of torch at once, those of a library as soon as the user's
code has imported it. What is built comes from the configuration, which may have to be downloaded.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

import torch
import torch.utils.model_zoo
from torch import nn

from bsfind.workload.user_errors import stands_for_torch, user_line

Note = Callable[[str, str], None]

_note: Note | None = None
"""Told that weights are not loaded; None: they are."""


@contextlib.contextmanager
def random_weights(note: Note) -> Iterator[None]:
    """Let models keep the weights that they were built with, where code asks for pretrained ones.

    Args:
        note: called with the code and the text of a warning.
    """
    global _note
    before, _note = _note, note
    finder = _LibraryFinder()
    hub: Any = torch.hub
    own_load: Any = nn.Module.load_state_dict

    @stands_for_torch
    def load(module: nn.Module, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(state_dict, UnloadedWeights):
            return own_load(nn.Module(), {})
        return own_load(module, state_dict, *args, **kwargs)

    def answer(*_: Any, **__: Any) -> UnloadedWeights:
        return UnloadedWeights()

    download = hub.load_state_dict_from_url
    replaced: dict[tuple[Any, str], Any] = {
        (nn.Module, "load_state_dict"): functools.wraps(own_load)(load),
        (hub, "load_state_dict_from_url"): _unless_noted(download, answer, download.__name__),
        (torch.utils.model_zoo, "load_url"): _unless_noted(download, answer, "load_url"),
    }
    own = {(owner, name): getattr(owner, name) for owner, name in replaced}
    for (owner, name), function in replaced.items():
        setattr(owner, name, function)
    for name, replace in _LIBRARIES.items():
        if name in sys.modules:
            replace(sys.modules[name])
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        _note = before
        sys.meta_path.remove(finder)
        for (owner, name), function in own.items():
            setattr(owner, name, function)


class UnloadedWeights(dict[Any, Any]):
    """Stands for a state dict that was not downloaded: a model that loads it stays as it is."""

    def __missing__(self, key: Any) -> UnloadedWeights:
        return UnloadedWeights()

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the default, or what stands for the weights under a key."""
        return UnloadedWeights() if default is None else default

    def pop(self, key: Any, *default: Any) -> Any:
        """Return what stands for the weights under a key."""
        return UnloadedWeights()

    def copy(self) -> UnloadedWeights:
        """Return what stands for the same weights."""
        return UnloadedWeights()


def _unless_noted(own: Any, answer: Callable[..., Any], what: str, *, is_told: bool = True) -> Any:
    """Return a function that loads weights as its own does, or else notes the call and answers it.

    Args:
        own: the function.
        answer: what answers in its place; NotImplemented: the function does.
        what: what the user's code said, for the note.
        is_told: whether there is a note.
    """
    if getattr(own, "is_of_bsfind", False):  # of an earlier prediction
        return own

    @functools.wraps(own)
    @stands_for_torch
    def load(*args: Any, **kwargs: Any) -> Any:
        if _note is None:
            return own(*args, **kwargs)
        answered = answer(*args, **kwargs)
        if answered is NotImplemented:
            return own(*args, **kwargs)
        if not is_told:
            return answered
        where = user_line()
        _note(
            "random_weights",
            f"pretrained weights (`{what}`{f', {where}' if where else ''}) were not loaded: random ones take "
            "the same memory",
        )
        return answered

    load.is_of_bsfind = True  # type: ignore[attr-defined]
    return load


# ------------------------------------------------------------------------------- the libraries


class _LibraryFinder(MetaPathFinder):
    """Replaces functions of a module when it has been imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how a module is imported; None for those that keep their functions."""
        if name not in _LIBRARIES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            _LIBRARIES[name](module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _timm(module: Any) -> None:
    module.load_pretrained = _unless_noted(
        module.load_pretrained, lambda *_, **__: None, "pretrained=True"
    )


def _segmentation_models(module: Any) -> None:
    own = module.get_encoder

    def answer(name: str, *args: Any, weights: Any = None, **kwargs: Any) -> Any:
        if len(args) > 2:
            args, weights = (*args[:2], None, *args[3:]), args[2]
        return NotImplemented if weights is None else own(name, *args, **kwargs)

    module.get_encoder = _unless_noted(own, answer, "encoder_weights")

    def normalisation(name: str, *_: Any, **__: Any) -> Any:
        return NotImplemented if name.startswith("tu-") else {**_OF_IMAGENET}  # timm knows its own

    module.get_preprocessing_params = _unless_noted(
        module.get_preprocessing_params, normalisation, "get_preprocessing_params", is_told=False
    )


_OF_IMAGENET = {
    "input_space": "RGB",
    "input_range": [0, 1],
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
"""How most encoders want their images; other numbers take the same memory."""


def _transformers(module: Any) -> None:
    own = module.PreTrainedModel.from_pretrained.__func__
    loading = _unless_noted(own, _of_transformers, "from_pretrained")
    module.PreTrainedModel.from_pretrained = classmethod(loading)


def _diffusers(module: Any) -> None:
    own = module.ModelMixin.from_pretrained.__func__
    loading = _unless_noted(own, _of_diffusers, "from_pretrained")
    module.ModelMixin.from_pretrained = classmethod(loading)


_LIBRARIES: dict[str, Callable[[Any], None]] = {
    "timm.models._builder": _timm,
    "segmentation_models_pytorch.encoders": _segmentation_models,
    "transformers.modeling_utils": _transformers,
    "diffusers.models.modeling_utils": _diffusers,
}

_OF_THE_HUB = frozenset(
    (
        *("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder"),
        *("proxies", "use_auth_token"),
    )
)
"""Arguments that say where files are."""

_OF_THE_FILES = frozenset(
    (
        *("ignore_mismatched_sizes", "use_safetensors", "weights_only", "disable_mmap", "variant"),
        *("output_loading_info", "device_map", "max_memory", "offload_folder", "offload_buffers"),
        *("offload_state_dict", "generation_config", "key_mapping", "low_cpu_mem_usage"),
        *("tqdm_class", "from_tf", "from_flax", "mirror", "_fast_init", "_commit_hash"),
        *("_from_pipeline", "_from_auto", "adapter_kwargs", "adapter_name", "resume_download"),
        "keep_in_fp32_modules",
    )
)
"""Arguments that say how weights are loaded, and nothing of the model."""

_OTHER_MODEL = (
    *("quantization_config", "gguf_file", "state_dict", "distributed_config", "device_mesh"),
    *("tp_plan", "tp_size", "fusion_config"),
)
"""Arguments that make another model of the weights than the configuration says."""


def _of_transformers(cls: Any, name: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
    """Return a model of transformers from its configuration, as `from_pretrained` returns it."""
    if name is None or any(kwargs.get(key) is not None for key in _OTHER_MODEL):
        return NotImplemented
    kwargs = {key: value for key, value in kwargs.items() if key not in _OF_THE_FILES}
    hub = {key: kwargs.pop(key) for key in list(kwargs) if key in _OF_THE_HUB}
    trusts = {key: kwargs.pop(key) for key in ("trust_remote_code",) if key in kwargs}
    dtype = kwargs.pop("torch_dtype", None)
    dtype = kwargs.pop("dtype", dtype)
    kernels = ("attn_implementation", "experts_implementation")
    built_with = {key: kwargs.pop(key) for key in kernels if key in kwargs}
    if isinstance(config, (str, bytes)) or config is None:
        read, _ = cls.config_class.get_config_dict(config or name, **hub, **trusts)
        if not set(read) - {"_commit_hash"}:  # transformers 5 takes the defaults then
            return NotImplemented
        config, kwargs = cls.config_class.from_pretrained(
            config or name, return_unused_kwargs=True, **hub, **trusts, **kwargs
        )
    if getattr(config, "quantization_config", None) is not None or isinstance(dtype, dict) or args:
        return NotImplemented
    release = tuple(map(int, sys.modules["transformers"].__version__.split(".")[:2]))
    if dtype is None and release >= (5, 0):
        dtype = "auto"
    if dtype == "auto":
        dtype = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype)
    dtype = dtype or torch.float32
    argument = "dtype" if release >= (4, 56) else "torch_dtype"
    model = cls._from_config(config, **{argument: dtype}, **built_with, **kwargs)
    _keep_in_fp32(model, dtype)
    return model.eval()


def _keep_in_fp32(model: Any, dtype: torch.dtype) -> None:
    """Turn the modules to float32 that `from_pretrained` does not load in half precision."""
    kept = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype is torch.float16:
        kept |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    if dtype not in (torch.float16, torch.bfloat16):
        return
    for name, parameter in model.named_parameters():
        if kept & set(name.split(".")):
            parameter.data = parameter.data.float()


def _of_diffusers(cls: Any, name: Any, **kwargs: Any) -> Any:
    """Return a model of diffusers from its configuration, as `from_pretrained` returns it."""
    if any(kwargs.get(key) is not None for key in _OTHER_MODEL):
        return NotImplemented
    dtype = kwargs.pop("torch_dtype", None)
    hub = {key: kwargs.pop(key) for key in list(kwargs) if key in _OF_THE_HUB}
    kwargs = {key: value for key, value in kwargs.items() if key not in _OF_THE_FILES}
    config = cls.load_config(name, **hub)
    if config.get("quantization_config") is not None:
        return NotImplemented
    model = cls.from_config(config, **kwargs)
    return model.to(dtype).eval() if dtype is not None else model.eval()
