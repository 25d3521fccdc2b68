"""Sees every operator that reaches a backend, runs it without data, and records what it allocates.

Tensors of PyTorch's *meta* device stand for tensors of the GPU: they have shapes, strides and
dtypes, storages that live and die, and autograd; their kernels compute nothing. The operators are
caught below autograd and autocast by a fallback of the dispatch key `Fake`, which PyTorch reserves
for out-of-tree fake tensors (c10/core/DispatchKey.h, torch 2.6-2.13). A TorchDispatchMode would see
the same, but its presence alone makes composite operators take other paths
(`dispatch_mode_enabled` in aten/src/ATen/TensorSubclassLikeUtils.h).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from bsfind.simulation.kernels.argument_checks.registry import Check, checks_for, refuse
from bsfind.simulation.kernels.call import Rule, rule_for
from bsfind.simulation.trace.assumed_reads import AssumedReads
from bsfind.simulation.trace.building import HostOperators
from bsfind.simulation.trace.calls import (
    Args,
    KnownCall,
    Kwargs,
    are_on_host,
    call_of,
    flat_tensors,
    key_of,
)
from bsfind.simulation.trace.host_draws import HostDraws
from bsfind.simulation.trace.recorder import KEPT, HostStorages, Recorder
from bsfind.simulation.trace.refusals import no_kernel, raise_refusal, untraceable
from bsfind.simulation.trace.torch_private import (
    COMPOSITE_IMPLICIT,
    FAKE,
    META,
    TorchFunctionOff,
    include_key,
    schema_of,
    unload,
    without_fake,
)
from bsfind.simulation.trace.value_shapes import ValueShapes
from bsfind.simulation.trace.values import Values
from bsfind.workload.user_errors import stands_for_torch

_VIEWS = (
    *("detach", "view", "t", "transpose.int", "permute", "expand", "slice.Tensor", "select.int"),
    *("as_strided", "unsqueeze", "squeeze", "squeeze.dim", "squeeze.dims", "alias", "view.dtype"),
    *("_unsafe_view", "_reshape_alias", "unbind.int", "split.Tensor", "split_with_sizes"),
    *("diagonal", "unfold", "view_as_real", "view_as_complex", "_conj", "_neg_view"),
    *("lift_fresh", "lift", "is_same_size", "_has_same_storage_numel"),
    *("_indices", "_values", "indices", "values", "_nnz", "is_coalesced"),
)
"""They allocate nothing, and views share their storage's values: not worth a detour by Python."""

_OWN_OPERATORS = (
    *("aten::", "prim::", "prims::", "bsfind::", "profiler::"),
    *("c10d::", "_c10d_functional::", "fsdp::"),
)
"""Namespaces of operators that PyTorch and the tracer have themselves."""

_MAX_KNOWN_PARAMETER = 16
"""Elements of a parameter whose values are kept: temperatures and scales that code may read."""

Handler = Callable[["Dispatcher", "OperatorFacts", tuple[Any, ...], dict[str, Any]], Any]
"""Runs an operator in place of the dispatcher's `run`."""


@dataclass(frozen=True, slots=True)
class OperatorFacts:
    """What is asked of an operator at each of its calls, looked up once.

    Attributes:
        label: the operator's name for people.
        takes_any_number: whether calls that differ in the values of numbers only are alike.
        known: the answers to calls that are remembered, by their keys (see `calls.key_of`).
    """

    op: Any
    name: str
    overload: str
    rule: Rule | None
    checks: tuple[Check, ...]
    handler: Handler | None
    composite: Callable[..., Any] | None
    mutated: tuple[tuple[int, str], ...]
    is_aliasing: bool
    is_repeatable: bool
    is_pointwise: bool
    takes_any_number: bool
    label: str
    known: dict[tuple[Any, ...], KnownCall]

    @property
    def is_silent(self) -> bool:
        """Whether it returns nothing, like `_fused_sgd_`: without data it has nothing to do."""
        return bool(self.mutated) and not schema_of(self.op).returns


class Dispatcher:
    """The fallback of all operators while a step is traced.

    Args:
        recorder: records the allocations.
        handlers: by `aten::name` or `aten::name.overload`, for operators that need more than their
            meta kernel.
        composites: what CUDA decomposes composite operators to, by `name` or `name.overload`.
        shapes: answers what depends on values that are not known; None: no steps with values ran.

    Attributes:
        recorder: records the allocations.
        values: what is known of the values of small tensors.
        reads: answers reads of values that are not known.
        shapes: answers what depends on such values, from steps with values.
        drawn: random numbers on the host.
        host: meta storages that lie in the host's memory: parameters of a model that has not been
            moved to the GPU.
        host_operators: runs operators on tensors with such storages.
    """

    def __init__(
        self,
        recorder: Recorder,
        handlers: dict[str, Handler] | None = None,
        composites: dict[str, Callable[..., Any]] | None = None,
        shapes: ValueShapes | None = None,
    ) -> None:
        self.recorder = recorder
        self.values = Values()
        self.reads = AssumedReads(recorder.note)
        self.shapes = shapes or ValueShapes()
        self.drawn = HostDraws()
        self.host = HostStorages(self.values.forget_storage)
        self.host_operators = HostOperators(self)
        self._handlers = handlers or {}
        self._composites = composites or {}
        self._facts: dict[int, OperatorFacts] = {}  # by the operator's identity: its hash is slow
        self._target: Literal["gpu", "host"] | None = None
        self._met: set[int] = set()  # blocks of what the user's code had kept before
        recorder.on_free = self.values.forget_storage

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Catch the operators of this thread while inside."""
        every = torch.library.Library("_", "IMPL")  # type: ignore[no-untyped-call]
        every.fallback(self.caught, "Fake")  # type: ignore[no-untyped-call]
        aten = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
        for name in _VIEWS:
            with contextlib.suppress(RuntimeError):  # not in every version of torch
                aten.impl(name, torch.library.fallthrough_kernel, "Fake")  # type: ignore[no-untyped-call]
        include_key(FAKE, True)
        try:
            yield
        finally:
            include_key(FAKE, False)
            unload(aten)
            unload(every)

    def rewind(self, count: int, *, keeping: bool = False) -> bool:
        """Forget what happened since block `count`, to trace something else.

        Args:
            count: blocks from here on belong to what was traced.
            keeping: what is left of those is kept by the user's code, outside of the model.

        Returns:
            Whether nothing was left, or only what the user's code keeps; if not, nothing happens.
        """
        left = self.recorder.alive_since(count)
        if not keeping and any(block not in self._met for block, _ in left):
            return False
        self.hand_over(count)
        self.recorder.rewind(count)
        return True

    def hand_over(self, count: int) -> None:
        """Let what is left of blocks from `count` on be what the user's code keeps (see `KeptStorages`)."""
        for _, storage in self.recorder.alive_since(count):
            KEPT.add(storage, self.values.take(storage))
        self._met.clear()

    def _meet(self, value: Any) -> None:
        """Count what the user's code had kept as allocated now."""
        for tensor in flat_tensors(value):
            if tensor is None or not tensor.is_meta or tensor.layout is not torch.strided:
                continue
            storage = tensor.untyped_storage()
            if KEPT.has(storage):
                self._met.add(self.recorder.count)
                self.values.give(storage, KEPT.take(storage))
                self.recorder.allocate(tensor, "kept by the user's code")

    @contextlib.contextmanager
    def moving(self, target: Literal["gpu", "host"]) -> Iterator[None]:
        """New storages made inside lie on the GPU, or on the host, whatever they are made from."""
        before, self._target = self._target, target
        try:
            yield
        finally:
            self._target = before

    def as_host_meta(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a meta tensor that stands for one in the host's memory."""
        with without_fake():
            meta = torch.empty_strided(
                tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta"
            )
            self.host.add(meta)
            is_small = tensor.numel() <= _MAX_KNOWN_PARAMETER
            if is_small or self.values.keeps_all or not tensor.is_floating_point():
                self.values.set(meta, tensor)
        return meta

    def is_on_gpu(self, tensor: torch.Tensor) -> bool:
        """Tell a tensor on the simulated GPU from one in the host's memory."""
        return tensor.is_meta and not self.host.has(tensor)

    def is_known(self, tensor: torch.Tensor) -> bool:
        """Tell whether the values of a tensor are known."""
        return not tensor.is_meta or self.values.of(tensor) is not None

    @stands_for_torch
    def caught(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        """Run an operator, of which nothing may know that it is not the real one."""
        facts = self._facts.get(id(op))
        if facts is None:
            facts = self._facts[id(op)] = self._facts_of(op)
        with TorchFunctionOff():
            try:
                if KEPT:
                    for value in (*args, *kwargs.values()):
                        self._meet(value)
                if not self.host_operators.is_idle:
                    out = self.host_operators.run(facts, args, kwargs)
                    if out is not NotImplemented:
                        return out
                elif facts.handler is None and self._target is None and are_on_host(args, kwargs):
                    with without_fake():
                        return op(*args, **kwargs)
                return self.dispatch(facts, args, kwargs)
            except Exception as error:
                raise_refusal(op, args, kwargs, error)

    @stands_for_torch
    def dispatch(self, facts: OperatorFacts, args: Args, kwargs: Kwargs) -> Any:
        """Run an operator in the way that it needs."""
        if facts.composite is not None:
            return facts.composite(*args, **kwargs)
        if facts.handler is not None:
            return facts.handler(self, facts, args, kwargs)
        return self.run(facts, args, kwargs)

    def _facts_of(self, op: Any) -> OperatorFacts:
        schema = schema_of(op)
        name, overload = schema.name, schema.overload_name or "default"
        handler = self._handlers.get(f"{name}.{overload}") or self._handlers.get(name)
        mutated = tuple(
            (index, argument.name)
            for index, argument in enumerate(schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        )
        returns = [value.alias_info for value in schema.returns]
        has_tensors = any(
            "Tensor" in str(value.type) for value in (*schema.arguments, *schema.returns)
        )
        rule = rule_for(name, overload)
        is_known = handler is not None or rule is not None or name.startswith(_OWN_OPERATORS)
        if has_tensors and not is_known:
            self.recorder.note(
                "custom_operators",
                f"operators of other libraries count with what they return: what kernels such as "
                f"`{name}` take besides is not known",
            )
        return OperatorFacts(
            op=op,
            name=name,
            overload=overload,
            rule=rule,
            checks=checks_for(name, overload),
            handler=handler,
            composite=self._composite(op, name, overload) if handler is None else None,
            mutated=mutated,
            is_aliasing=bool(returns) and all(alias is not None for alias in returns),
            is_repeatable=torch.Tag.inplace_view not in op.tags  # `transpose_` and its like
            and _is_repeatable(name, overload, mutated, returns),
            is_pointwise=torch.Tag.pointwise in op.tags,
            # An optimizer's factors, such as Adam's corrections of its bias, change with each step.
            takes_any_number=name.startswith("aten::_foreach_") and bool(mutated),
            label=f"{name}.{overload}" if overload != "default" else name,
            known={},
        )

    def _composite(self, op: Any, name: str, overload: str) -> Callable[..., Any] | None:
        """Return what an operator decomposes to, if it reaches the backend undecomposed.

        Composite operators do so in inference mode, where tensors have no autograd key.
        """
        if not op.has_kernel_for_dispatch_key(COMPOSITE_IMPLICIT):
            return None
        bare = name.removeprefix("aten::")
        own = self._composites.get(bare if overload == "default" else f"{bare}.{overload}")
        if own is not None or op.has_kernel_for_dispatch_key(META):
            return own
        return op.decompose  # type: ignore[no-any-return]

    def run(
        self,
        facts: OperatorFacts,
        args: Args,
        kwargs: Kwargs,
        adjust: Callable[[Any], Any] | None = None,
    ) -> Any:
        """Run an operator's meta kernel and record what the CUDA kernel allocates.

        Args:
            facts: facts of the operator.
            args: positional arguments of the call.
            kwargs: keyword arguments of the call.
            adjust: turns the meta kernel's outputs into CUDA's, where they differ; may depend on
                the arguments' shapes only.
        """
        tensors: list[torch.Tensor] = []
        key = None
        if facts.is_repeatable:
            key = key_of(args, kwargs, tensors, of_numbers=not facts.takes_any_number)
        known = facts.known.get(key) if key is not None else None
        if known is not None and self._target is None and not self.host:
            return self._run_again(facts, known, args, kwargs, tensors)
        if (known is None or self.host) and self._target is None:
            self.refuse(facts, args, kwargs)
        if known is not None:
            with without_fake():
                out = known.answer(args)
        else:
            out = self.compute(facts, args, kwargs)
            if adjust is not None:
                with without_fake():
                    out = adjust(out)
            if key is not None:
                known = KnownCall(None) if facts.mutated else KnownCall.of(out, args)
                if known is not None:
                    facts.known[key] = known
        self.record(facts, args, kwargs, out, known)
        return out

    def _run_again(
        self,
        facts: OperatorFacts,
        known: KnownCall,
        args: Args,
        kwargs: Kwargs,
        tensors: list[torch.Tensor],
    ) -> Any:
        """Do what `run` does for a call that was answered before, on the GPU alone."""
        recorder = self.recorder
        mutated: Sequence[torch.Tensor] = ()
        with without_fake():
            out = known.answer(args)
            outputs = flat_tensors(out)
            if facts.mutated:
                mutated = [t for t in flat_tensors(args[0]) if t is not None and t.is_meta]
            if facts.rule is None:
                for output in outputs:
                    if output is not None:
                        recorder.allocate(output, facts.label)
            else:
                if known.call is None:
                    known.call = call_of(facts.op, args, kwargs, tuple(outputs))
                recorder.call(facts.rule, known.call, outputs, facts.label)
            if facts.is_aliasing:
                outputs = [None] * len(outputs)
            if not self.values.follow_again(
                facts.name, known.bounds, args, kwargs, tensors, outputs, mutated
            ):
                self.values.follow(facts.op, facts.name, args, kwargs, outputs, mutated)
        return out

    def refuse(self, facts: OperatorFacts, args: Args, kwargs: Kwargs) -> None:
        """Raise what the CUDA kernel raises for the dtypes and devices of its tensors."""
        if self.host and self._stays_on_host(args, kwargs):
            return
        call = call_of(facts.op, args, kwargs, (), self.is_on_gpu)
        refuse(call, facts.checks, is_pointwise=facts.is_pointwise)

    @stands_for_torch
    def compute(self, facts: OperatorFacts, args: Args, kwargs: Kwargs) -> Any:
        """Run an operator's meta kernel, which one that only writes to arguments can do without.

        Raises:
            UntraceableError: it has none.
        """
        try:
            with without_fake():
                return facts.op(*args, **kwargs)
        except NotImplementedError as error:
            if facts.is_silent:
                return None
            raise untraceable(facts.label, no_kernel(error)) from error

    def record(
        self,
        facts: OperatorFacts,
        args: Args,
        kwargs: Kwargs,
        out: Any,
        known: KnownCall | None = None,
    ) -> None:
        """Record what an operator allocated, given what it returned."""
        outputs = flat_tensors(out)
        metas = [o if o is not None and o.is_meta else None for o in outputs]
        mutated = [
            tensor
            for index, name in facts.mutated
            for tensor in flat_tensors(args[index] if index < len(args) else kwargs.get(name))
            if tensor is not None and tensor.is_meta
        ]
        if not mutated and not any(output is not None for output in metas):
            return
        on_host = self._target == "host"
        if self._target is None and self.host:
            on_host = self._stays_on_host(args, kwargs)
        if on_host:
            for output in metas:
                if output is not None:
                    self.host.add(output)
        elif facts.rule is not None:
            call = known.call if known is not None else None
            if call is None:
                call = call_of(facts.op, args, kwargs, tuple(outputs))
                if known is not None:
                    known.call = call
            self.recorder.call(facts.rule, call, metas, facts.label)
        else:
            for output in metas:
                if output is not None:
                    self.recorder.allocate(output, facts.label)
        fresh: list[torch.Tensor | None] = metas
        if facts.is_aliasing:
            fresh = [None] * len(metas)
        with without_fake():
            self.values.follow(facts.op, facts.name, args, kwargs, fresh, mutated)

    def _stays_on_host(self, args: Args, kwargs: Kwargs) -> bool:
        """Tell whether all meta tensors among the arguments lie in the host's memory."""
        from_host = False
        for value in (*args, *kwargs.values()):
            for tensor in flat_tensors(value):
                if tensor is None or not tensor.is_meta:
                    continue
                if self.recorder.knows(tensor.untyped_storage()):
                    return False
                from_host = from_host or self.host.has(tensor)
        return from_host


def _is_repeatable(
    name: str, overload: str, mutated: tuple[tuple[int, str], ...], returns: list[Any]
) -> bool:
    """Tell whether what an operator returns follows from its arguments' shapes.

    Either it makes new tensors only, or it writes to its first argument only and returns that.
    """
    if name in ("aten::resize_", "aten::resize_as_", "aten::set_") or "out" in overload:
        return False
    if not mutated:
        return all(alias is None for alias in returns)
    return name.endswith("_") and mutated == ((0, mutated[0][1]),) and len(returns) <= 1
