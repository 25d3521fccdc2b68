"""The user's model: found by its import path, built, and prepared for the steps of one device."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.checkpoint import checkpoint

from bsfind.errors import TargetError
from bsfind.import_path import parse_value
from bsfind.workload.inputs import Batch
from bsfind.workload.libraries.targets import find_target
from bsfind.workload.user_errors import stands_for_torch

DATA_PARALLEL_NOTE = (
    "the model is wrapped in `nn.DataParallel`: the batch size is that of one GPU, on which the "
    "wrapped module runs; multiply it by the number of GPUs"
)

_built_in: dict[str, str] = {}
"""The current folder in which each target was first built: building may change it."""

_LAZY_BATCH_SIZES = (2, 8, 64)
"""Batch sizes at which lazy layers are initialized: some models require a multiple."""


def keyword_arguments(pairs: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """Return the values of repeated `KEY=VALUE` options.

    Raises:
        TargetError: a value of the form `pkg.mod:attr()` names something that does not exist.
    """
    return {name: parse_value(text) for name, text in pairs}


@stands_for_torch
def build_model(target: str, model_args: Mapping[str, Any]) -> nn.Module:
    """Return the model that `target` names: a class, a factory, or an instance.

    Args:
        target: `package.module:attr`, `path/file.py:attr`, or a model of a library (see `libraries`).
        model_args: keyword arguments for the class or the factory, or fields of a configuration.

    Raises:
        TargetError: there is no such object, or it gives no `nn.Module`.
        Exception: whatever the user's code raises.
    """
    found = find_target(target)
    if isinstance(found, nn.Module):
        if model_args:
            raise TargetError(
                f"`{target}` is an instance of `{type(found).__name__}` already",
                hint="`--model-arg` needs a class or a function; leave it out for an instance",
            )
        return found
    hint = "name an `nn.Module` class, a function that returns one, or an instance"
    if not callable(found):
        raise TargetError(f"`{target}` is of type `{type(found).__name__}`, not a model", hint=hint)
    _check_arguments(found, target, model_args)
    _be_where_first_built(target)
    model = found(**model_args)
    if not isinstance(model, nn.Module):
        raise TargetError(
            f"`{target}` returned `{type(model).__name__}`, not an `nn.Module`", hint=hint
        )
    return model


def _be_where_first_built(target: str) -> None:
    """Let a model that is built again, in the process that built it before, find the files it found then."""
    with contextlib.suppress(OSError):  # the folder was removed
        os.chdir(_built_in.setdefault(target, os.getcwd()))  # noqa: PTH109


def _check_arguments(factory: Any, target: str, model_args: Mapping[str, Any]) -> None:
    """Raise a `TargetError` with a hint if the factory cannot be called with these arguments."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(**model_args)
    except TypeError as error:
        required = [
            parameter.name
            for parameter in signature.parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            and parameter.name not in model_args
        ]
        hint = f"`{target.rpartition(':')[2]}{signature}`"
        if required:
            hint = f"pass {' '.join(f'`--model-arg {name}=…`' for name in required)}"
        raise TargetError(f"cannot call `{target}`: {error}", hint=hint) from None


def on_one_device(model: nn.Module, *, unwrap: bool) -> tuple[nn.Module, bool]:
    """Let every `nn.DataParallel` of a model run its module on the device that the module is on.

    Args:
        model: wrapped itself, or with wrapped modules in it, which keep their names.
        unwrap: return the module inside a wrapper around the whole model.

    Returns:
        The model, and whether there was such a wrapper.
    """
    wrappers = [module for module in model.modules() if isinstance(module, nn.DataParallel)]
    for wrapper in wrappers:
        # Then `DataParallel.forward` only calls the module (torch 2.6-2.13).
        wrapper.device_ids = []
    while unwrap and isinstance(model, nn.DataParallel):
        model = model.module
    return model, bool(wrappers)


@stands_for_torch
def initialize_lazy_layers(
    model: nn.Module, run: Callable[..., Any], make_batch: Callable[[int], Batch]
) -> None:
    """Run one forward pass if the model has lazy layers (`nn.LazyLinear`), before the optimizer is made.

    PyTorch asks for that (torch/nn/modules/lazy.py).

    Args:
        model: the model, on the device of the batches.
        run: the model, or a function that calls it.
        make_batch: makes a batch of a given size.

    Raises:
        Exception: whatever the user's code raises at the first batch size, if it fails at all.
    """
    if not any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        return
    was_training = model.training
    model.eval()  # batch statistics stay as they are
    refusal: Exception | None = None
    for size in _LAZY_BATCH_SIZES:
        batch = make_batch(size)
        try:
            with torch.no_grad():
                run(*batch.args, **batch.kwargs)
        except Exception as error:
            refusal = refusal or error
        else:
            model.train(was_training)
            return
    assert refusal is not None
    raise refusal


def in_channels_last(model: nn.Module) -> nn.Module:
    """Return the model with the weights of its convolutions in channels_last, 3-D ones included.

    `Module.to(memory_format=...)` takes one format, which suits weights of one rank only.
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for tensor in (*model.parameters(), *model.buffers()):
        wanted = formats.get(tensor.dim())
        if wanted is not None:
            tensor.data = tensor.data.contiguous(memory_format=wanted)
    return model


def weights_dtype(model: nn.Module) -> str | None:
    """Return the dtypes of the floating parameters; None if all are float32, or there are none."""
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if dtypes <= {torch.float32}:
        return None
    names = sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)
    return names[0] if len(names) == 1 else f"mixed {'/'.join(names)}"


# --------------------------------------------------------------------- activation checkpointing


def enable_checkpointing(model: nn.Module) -> str:
    """Make the model recompute its activations in the backward pass; returns how, as text.

    Calls the model's own method if it has one (`gradient_checkpointing_enable` of Hugging Face,
    `set_grad_checkpointing` of timm); else wraps each of the model's repeated blocks in
    `torch.utils.checkpoint.checkpoint`.

    Raises:
        TargetError: the model has neither such a method nor repeated blocks.
    """
    for switch in ("gradient_checkpointing_enable", "set_grad_checkpointing"):
        method = getattr(model, switch, None)
        if callable(method):
            method()
            return f"`{type(model).__name__}.{switch}()`"
    blocks = repeated_blocks(model)
    if not blocks:
        raise TargetError(
            "`--grad-checkpoint` found no repeated blocks to recompute in this model",
            hint="checkpoint in the model's own forward, with torch.utils.checkpoint",
        )
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    return f"{len(blocks)} blocks of `{type(blocks[0]).__name__}`"


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks that make up most of the model: siblings of one class in a list.

    Of all `ModuleList`s and `Sequential`s with two or more children of one class that have
    parameters, those of the class that holds the most parameters; outermost blocks only.
    """
    candidates: dict[type[nn.Module], list[nn.Module]] = {}
    weight: Counter[type[nn.Module]] = Counter()
    for container in model.modules():
        if not isinstance(container, (nn.ModuleList, nn.Sequential)):
            continue
        by_class: dict[type[nn.Module], list[nn.Module]] = {}
        for child in container:
            if any(True for _ in child.children()) and any(True for _ in child.parameters()):
                by_class.setdefault(type(child), []).append(child)
        for cls, blocks in by_class.items():
            if len(blocks) >= 2:
                candidates.setdefault(cls, []).extend(blocks)
                weight[cls] += sum(p.numel() for block in blocks for p in block.parameters())
    if not candidates:
        return []
    blocks = candidates[weight.most_common(1)[0][0]]
    inner = {id(m) for block in blocks for m in block.modules() if m is not block}
    return [block for block in blocks if id(block) not in inner]


# ----------------------------------------------------------------------------- batch dimension


@contextlib.contextmanager
def watching_batch_dimension(
    model: nn.Module, batch_size: int, note: Callable[[str], object]
) -> Iterator[None]:
    """Look for layers that take the batch dimension for the sequence, in forward passes inside.

    bsfind puts the batch in the first dimension of each input. `nn.RNN`, `nn.LSTM`, `nn.GRU` and
    `nn.MultiheadAttention` (and with it `nn.Transformer`) expect the sequence there, unless they are
    made with `batch_first=True` (torch/nn/modules/rnn.py and activation.py, torch 2.6-2.14). Such a
    model runs, but does not use the memory of its training.

    Args:
        model: the model on the device.
        batch_size: samples in the batch that it gets.
        note: called, at most once, with a sentence that names the first such layer.
    """
    # In inference, hooks would keep `nn.TransformerEncoder` off its fast path.
    kinds = (nn.RNNBase, nn.MultiheadAttention) if model.training else (nn.RNNBase,)
    names = {
        layer: name or type(layer).__name__
        for name, layer in model.named_modules()
        if isinstance(layer, kinds) and not layer.batch_first
    }

    def look(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0] if args else kwargs.get("input", kwargs.get("query"))
        if layer not in names or not isinstance(given, torch.Tensor) or given.dim() != 3:
            return
        length, samples = given.shape[:2]
        if length == batch_size != samples:
            note(
                f"`{names[layer]}` ({type(layer).__name__} with `batch_first=False`) reads its input as "
                f"(sequence, batch, features) and gets {list(given.shape)}: the batch of {batch_size} "
                "stands in the dimension of the sequence, and the answer is that of such a model"
            )
            names.clear()

    handles = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
