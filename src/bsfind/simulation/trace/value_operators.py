"""Operators whose answer depends on values: reading a scalar, copying to the host, masks, indices.

They answer from the values that `Values` knows. Where values are not known, steps with values say how
large the answer is (see value_shapes.py). Without these, a scalar reads as training without errors
would have it (see value_rules.py and assumed_reads.py), and an operator whose shape depends on values
cannot be traced.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from bsfind.errors import TargetError, UntraceableError
from bsfind.simulation.trace.assumed_reads import is_checked
from bsfind.simulation.trace.calls import Args, Kwargs
from bsfind.simulation.trace.cuda_paths.meta_kernel_gaps import with_long_labels
from bsfind.simulation.trace.dispatch import OperatorFacts
from bsfind.simulation.trace.refusals import untraceable
from bsfind.simulation.trace.sized_results import SIZED_RESULTS
from bsfind.simulation.trace.torch_private import without_fake
from bsfind.workload.user_errors import stands_for_torch

if TYPE_CHECKING:
    from bsfind.simulation.trace.dispatch import Dispatcher, Handler


_META = torch.device("meta")
_MOST_DRAWN = 1 << 20
"""Random numbers on the host of which more repeat these (see host_draws.py)."""

_INDEXING = (
    *("aten::index.Tensor", "aten::_unsafe_index.Tensor", "aten::index_put", "aten::index_put_"),
    *("aten::_index_put_impl_", "aten::_unsafe_index_put"),
)


def value_handlers() -> dict[str, Handler]:
    """Return the handlers of these operators."""
    return {
        "aten::_local_scalar_dense": _scalar,
        "aten::equal": _equal,
        "aten::allclose": _allclose,
        "aten::_to_copy": _to_copy,
        "aten::copy_": _copy,
        "aten::masked_select": _masked_select,
        "aten::_linalg_check_errors": _check_errors,
        "aten::is_pinned": lambda *_: False,
        "aten::_pin_memory": lambda _dispatcher, _facts, args, _kwargs: args[0],
        "aten::record_stream": lambda *_: None,
        **dict.fromkeys(SIZED_RESULTS.keys() - {"aten::repeat_interleave"}, _shaped_by_values),
        "aten::repeat_interleave.Tensor": _shaped_by_values,
        "aten::bincount": _bincount,
        "aten::embedding": _embedding,
        "aten::nll_loss_forward": _nll_loss,
        "aten::nll_loss2d_forward": _nll_loss2d,
        **dict.fromkeys(_INDEXING, _index),
        **dict.fromkeys(("aten::rand.default", "aten::randn.default"), _drawn),
    }


def _scalar(dispatcher: Dispatcher, facts: OperatorFacts, args: Args, kwargs: Kwargs) -> Any:
    tensor = args[0]
    if not tensor.is_meta:
        return dispatcher.compute(facts, args, kwargs)
    values = dispatcher.values.of(tensor)
    if values is not None:
        dispatcher.shapes.note_read(values)
    else:
        values = _of_steps_with_values(dispatcher, tensor)
    if values is not None:
        return dispatcher.compute(facts, (values,), {})
    return _as_python(_assumed(dispatcher, tensor), tensor.dtype)


def _of_steps_with_values(dispatcher: Dispatcher, tensor: torch.Tensor) -> torch.Tensor | None:
    """Return the values that steps with values have where the host reads these; None: unknown."""
    known = dispatcher.values.ranges.of(tensor)
    if known.is_decided:
        return None
    if tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex():
        return dispatcher.shapes.read(tensor.shape, is_decisive=False)
    values = dispatcher.shapes.read(tensor.shape, is_decisive=not is_checked())
    if values is None:
        return None
    limits = torch.iinfo(tensor.dtype)
    low, high = max(known.low, limits.min), min(known.high, limits.max)
    return values.to(tensor.dtype).clamp(int(low), int(high))


def _assumed(dispatcher: Dispatcher, tensor: torch.Tensor) -> bool | int | float:
    """Return what an unknown value is taken for, as its bounds allow."""
    known = dispatcher.values.ranges.of(tensor)
    return known.low if known.is_decided else dispatcher.reads.answer(tensor.dtype, known)


def _as_python(value: float, dtype: torch.dtype) -> bool | int | float:
    if dtype == torch.bool:
        return bool(value)
    return float(value) if dtype.is_floating_point or dtype.is_complex else int(value)


def _equal(dispatcher: Dispatcher, facts: OperatorFacts, args: Args, kwargs: Kwargs) -> Any:
    if not any(tensor.is_meta for tensor in args):
        return dispatcher.compute(facts, args, kwargs)
    if args[0].shape != args[1].shape:
        return False
    if all(isinstance(tensor, torch.nn.Parameter) for tensor in args) and args[0] is not args[1]:
        return False  # weights that were drawn, each for itself
    answer = dispatcher.values.on_host(facts.op, args, kwargs)
    if answer is not None:
        return answer
    if args[0].dim() == 0 and args[0].dtype == args[1].dtype == torch.bool:
        # How ATen reads one bool: `is_scalar_tensor_true` of ATen/TensorSubclassLikeUtils.h, torch 2.6-2.13.
        return _reads_true(args[0]) == _reads_true(args[1])
    return _reads_true((args[0] == args[1]).all())


def _allclose(dispatcher: Dispatcher, facts: OperatorFacts, args: Args, kwargs: Kwargs) -> Any:
    """Run `allclose` of aten/src/ATen/native/TensorCompare.cpp, which reads by itself."""
    if not any(tensor.is_meta for tensor in args[:2]):
        return dispatcher.compute(facts, args, kwargs)
    return _reads_true(torch.isclose(*args, **kwargs).all())


def _reads_true(tensor: torch.Tensor) -> bool:
    return bool(torch.ops.aten._local_scalar_dense(tensor))


def _to_copy(dispatcher: Dispatcher, facts: OperatorFacts, args: Args, kwargs: Kwargs) -> Any:
    source = args[0]
    target = kwargs.get("device")
    if not source.is_meta or target is None or torch.device(target).type != "cpu":
        return dispatcher.run(facts, args, kwargs)
    return _on_host(dispatcher, source).to(kwargs.get("dtype") or source.dtype)


def _copy(dispatcher: Dispatcher, facts: OperatorFacts, args: Args, kwargs: Kwargs) -> Any:
    target, source = args[0], args[1]
    if source.is_meta and not target.is_meta:
        return target.copy_(_on_host(dispatcher, source))
    return dispatcher.run(facts, args, kwargs)


def _on_host(dispatcher: Dispatcher, tensor: torch.Tensor) -> torch.Tensor:
    """Return the values of a tensor as the host reads them: as they are assumed if not known."""
    values = dispatcher.values.of(tensor)
    if values is not None:
        dispatcher.shapes.note_read(values)
        return values.clone()
    values = _of_steps_with_values(dispatcher, tensor)
    if values is not None:
        return values
    if tensor.numel() == 1:
        return torch.full(tensor.shape, _assumed(dispatcher, tensor), dtype=tensor.dtype)
    guess = dispatcher.values.ranges.of(tensor).guess
    if guess == 0:
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    return torch.full(tensor.shape, guess, dtype=tensor.dtype)


def _masked_select(dispatcher: Dispatcher, facts: OperatorFacts, args: Args, kwargs: Kwargs) -> Any:
    tensor, mask = args
    if not tensor.is_meta:
        return dispatcher.compute(facts, args, kwargs)
    shape = torch.broadcast_shapes(tensor.shape, mask.shape)  # type: ignore[no-untyped-call]
    values = dispatcher.values.of(mask) if mask.is_meta else mask
    if values is None:
        count = _unknown_count(dispatcher, facts, mask, shape.numel())
    else:
        count = int(values.expand(shape).count_nonzero())
        dispatcher.shapes.note_size(facts.name, shape.numel(), count)
    with without_fake():
        out = torch.empty((count,), dtype=tensor.dtype, device=_META)
    dispatcher.record(facts, args, kwargs, out)
    return out


def _shaped_by_values(
    dispatcher: Dispatcher, facts: OperatorFacts, args: Args, kwargs: Kwargs
) -> Any:
    if not args[0].is_meta:
        return dispatcher.compute(facts, args, kwargs)
    possible, size_of, example = SIZED_RESULTS[facts.name]
    most = possible(args[0], dispatcher.values.ranges.of(args[0]))
    answer = dispatcher.values.on_host(facts.op, args, {**kwargs})
    is_known = answer is not None
    if is_known:
        dispatcher.shapes.note_size(facts.name, most, size_of(_first(answer)))
    else:
        size = kwargs.get("output_size")
        if size is None and facts.name == "aten::nonzero":
            size = _unknown_count(dispatcher, facts, args[0], args[0].numel())
        elif size is None:
            size = _unknown_size(dispatcher, facts, most)
        answer = example(facts.op, args, kwargs, size)
    several = isinstance(answer, tuple)
    results = [_made_on_gpu(dispatcher, values) for values in (answer if several else (answer,))]
    out = tuple(results) if several else results[0]
    dispatcher.record(facts, args, kwargs, out)
    if is_known:
        for tensor, values in zip(results, answer if several else (answer,), strict=True):
            dispatcher.values.set(tensor, values)
    return out


def _bincount(dispatcher: Dispatcher, facts: OperatorFacts, args: Args, kwargs: Kwargs) -> Any:
    """Count values: `minlength` bins where the values are not known, as class labels have.

    `_bincount_cuda_template` of aten/src/ATen/native/cuda/SummaryOps.cu, torch 2.6-2.13.
    """
    given = {**dict(zip(("self", "weights", "minlength"), args, strict=False)), **kwargs}
    bins, weights = given.get("minlength", 0), given.get("weights")
    is_known = dispatcher.is_known(given["self"]) and (
        weights is None or dispatcher.is_known(weights)
    )
    if not given["self"].is_meta or is_known or bins == 0:
        return _shaped_by_values(dispatcher, facts, args, kwargs)
    dispatcher.recorder.note(
        "value_assumed",
        "the model counts values that depend on data (`bincount`); they were taken to be below "
        "`minlength`",
    )
    dtype = torch.int64
    if weights is not None:
        dtype = torch.float32 if weights.dtype == torch.float32 else torch.float64
    with without_fake():
        out = torch.empty((bins,), dtype=dtype, device=_META)
    dispatcher.record(facts, args, kwargs, out)
    return out


def _drawn(dispatcher: Dispatcher, facts: OperatorFacts, args: Args, kwargs: Kwargs) -> Any:
    """Draw some of many numbers on the host, and repeat these, where the step does not depend on values."""
    size, device = args[0], kwargs.get("device")
    is_on_host = device is None or torch.device(device).type == "cpu"
    numel = torch.Size(size).numel()
    if not is_on_host or dispatcher.values.keeps_all:
        return dispatcher.run(facts, args, kwargs)
    if numel <= _MOST_DRAWN:
        return dispatcher.compute(facts, args, kwargs)
    some = dispatcher.compute(facts, ([_MOST_DRAWN], *args[1:]), kwargs)
    with without_fake():
        return dispatcher.drawn.like(some, facts.name, numel).view(size)


def _embedding(dispatcher: Dispatcher, facts: OperatorFacts, args: Args, kwargs: Kwargs) -> Any:
    out = dispatcher.run(facts, args, kwargs)
    _check_indices(dispatcher, args[1], args[0].shape[0], "rows of the embedding")
    return out


def _nll_loss(dispatcher: Dispatcher, facts: OperatorFacts, args: Args, kwargs: Kwargs) -> Any:
    return _nll_loss2d(dispatcher, facts, *with_long_labels(dispatcher, facts, args, kwargs))


def _nll_loss2d(dispatcher: Dispatcher, facts: OperatorFacts, args: Args, kwargs: Kwargs) -> Any:
    out = dispatcher.run(facts, args, kwargs)
    logits, target, ignored = args[0], args[1], args[4]
    classes = logits.shape[min(1, logits.dim() - 1)]
    _check_indices(dispatcher, target, classes, "classes", ignored)
    return out


@stands_for_torch
def _check_indices(
    dispatcher: Dispatcher, indices: torch.Tensor, size: int, what: str, ignored: int | None = None
) -> None:
    """Refuse indices that are known to be out of range: a kernel on a GPU asserts that they are not."""
    values = dispatcher.values.of(indices) if indices.is_meta else indices
    if values is None:
        return
    if ignored is not None:
        values = values[values != ignored]
    if values.numel():
        low, high = (int(end) for end in values.aminmax())
        if low < 0 or high >= size:
            raise IndexError(
                f"index out of range: {low if low < 0 else high}, for {size} {what} "
                "(on a GPU: device-side assert triggered)"
            )


def _check_errors(dispatcher: Dispatcher, facts: OperatorFacts, args: Args, kwargs: Kwargs) -> None:
    """Ask whether a decomposition failed, as `_linalg_check_errors` does of tensors with values.

    It is in aten/src/ATen/native/BatchLinearAlgebra.cpp (torch 2.6-2.13).
    """
    infos = args[0]
    if infos.is_meta:
        torch.ops.aten.any.default(infos)
    else:
        dispatcher.compute(facts, args, kwargs)


def _first(answer: Any) -> torch.Tensor:
    first: torch.Tensor = answer[0] if isinstance(answer, tuple) else answer
    return first


def _unknown_count(
    dispatcher: Dispatcher, facts: OperatorFacts, mask: torch.Tensor, possible: int
) -> int:
    """Return how many elements an unknown mask selects: of the same mask always the same (see above)."""
    is_own = possible == mask.numel() and mask.layout is torch.strided
    known = dispatcher.values.count_of(mask) if is_own else None
    if known is not None:
        dispatcher.shapes.note_size(facts.name, possible, known)
        return known
    count = _unknown_size(dispatcher, facts, possible)
    if is_own:
        dispatcher.values.set_count(mask, count)
    return count


def _unknown_size(dispatcher: Dispatcher, facts: OperatorFacts, possible: int | None) -> int:
    """Return the size of an operator's result that depends on unknown values.

    Raises:
        UntraceableError: steps with values do not tell.
        TargetError: the user's code fails in these.
    """
    size = dispatcher.shapes.size(facts.name, possible)
    if size is None:
        why = "the shape of its result depends on values"
        failure = dispatcher.shapes.failure
        if dispatcher.shapes.recorded is not None:
            why += ", which the CPU could not compute"
        elif isinstance(failure, TargetError) and not isinstance(failure, UntraceableError):
            raise failure.without_frames()  # the user's code, with whatever values
        elif failure is not None:
            why += f", and the step did not run with values on the CPU: {failure}"
        raise untraceable(facts.label, why)
    return size


def _made_on_gpu(dispatcher: Dispatcher, values: torch.Tensor) -> torch.Tensor:
    with without_fake():
        return torch.empty_strided(values.size(), values.stride(), dtype=values.dtype, device=_META)


def _index(dispatcher: Dispatcher, facts: OperatorFacts, args: Args, kwargs: Kwargs) -> Any:
    tensor, indices = args[0], args[1]
    dispatcher.refuse(facts, args, kwargs)
    if not tensor.is_meta:
        return dispatcher.compute(facts, args, kwargs)
    reads = facts.name in ("aten::index", "aten::_unsafe_index")
    if not reads and _is_masked_fill(indices, args[2]):
        # `canDispatchToMaskedFill` of aten/src/ATen/native/TensorAdvancedIndexing.h
        out = dispatcher.compute(facts, args, kwargs)
        dispatcher.record(replace(facts, rule=None), args, kwargs, out)
        return out
    plain: list[Any] = []
    for index in indices:
        if index is None:
            plain.append(None)
        elif index.dtype in (torch.bool, torch.uint8):
            if dispatcher.is_known(index) or reads or dispatcher.shapes.steps:
                plain.extend(torch.ops.aten.nonzero(index).unbind(1))
            else:
                plain.append(index)
        elif not index.is_meta:
            plain.append(torch.ops.aten._to_copy(index, device=_META))
        else:
            plain.append(index)
    return dispatcher.run(facts, (tensor, plain, *args[2:]), kwargs)


def _is_masked_fill(indices: Any, value: torch.Tensor) -> bool:
    given = [index for index in indices if index is not None]
    return (
        value.numel() == 1
        and not value.is_meta
        and len(given) == 1
        and given[0].dtype in (torch.bool, torch.uint8)
    )
