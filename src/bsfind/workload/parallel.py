"""Wraps a model for data-parallel training: DDP, FSDP2, HSDP, ZeRO-1, or a function of the user's.

The wrapping and its defaults are those of torch.distributed (torch 2.6-2.14): `DistributedDataParallel`,
`fully_shard`, `ZeroRedundancyOptimizer`. The process group may be torch's fake one, of which this process is
one rank and all others are absent.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from bsfind.errors import TargetError
from bsfind.import_path import resolve_function
from bsfind.parallel import Parallel
from bsfind.records import Assumption
from bsfind.units import format_parameters
from bsfind.workload.model import repeated_blocks
from bsfind.workload.outputs import local_part
from bsfind.workload.precision import PrecisionPlan

FSDP_ROOT_ONLY = (
    "no repeated block was found to shard, so FSDP2 wraps the root alone: all parameters are gathered "
    "at once, and sharding saves little; name classes with `--shard-by`"
)


def open_group(parallel: Parallel, model: nn.Module) -> int:
    """Make this process a rank of a group whose other ranks are absent, unless it is in a real one.

    Args:
        parallel: the number of ranks, and which one this is.
        model: the model, before it is wrapped.

    Returns:
        The rank of this process.
    """
    import torch.distributed as dist

    rank = _limiting_rank(parallel, model) if parallel.rank is None else parallel.rank
    if dist.is_initialized():
        if dist.get_backend() != "fake":
            return dist.get_rank()
        if (dist.get_world_size(), dist.get_rank()) == (parallel.world_size, rank):
            return rank
        dist.destroy_process_group()
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=parallel.world_size)
    return rank


def _limiting_rank(parallel: Parallel, model: nn.Module) -> int:
    """Return the rank that needs the most memory.

    With ZeRO-1 it is the one with the largest part of the optimizer's state: parts are filled in the order of
    the parameters' sizes (`ZeroRedundancyOptimizer._partition_parameters`, torch 2.6-2.14). FSDP2 pads
    shards, and the first is the largest.
    """
    if parallel.strategy != "zero1":
        return 0
    sizes = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    parts = [0] * parallel.world_size
    for size in sorted(sizes, reverse=True):
        parts[parts.index(min(parts))] += size
    return parts.index(max(parts))


def close_group() -> None:
    """Leave the process group, if there is one."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def is_alone() -> bool:
    """Tell whether the other ranks of the process group are absent."""
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized() and dist.get_backend() == "fake"


def _lacks_futures() -> bool:
    """Tell whether collectives have no futures to wait for: those of a fake process group, unless traced."""
    import torch.distributed as dist

    if not is_alone():
        return False
    work: Any = dist.all_reduce(torch.zeros(1), async_op=True)
    return work.get_future().wait() is None


def _reduced(bucket: Any) -> torch.futures.Future[torch.Tensor]:
    """Return a bucket of gradients as if it were reduced.

    DDP waits for the future of the reduction, which has no value in torch's fake process group
    (torch/csrc/distributed/c10d/FakeProcessGroup.hpp, torch 2.6-2.14).
    """
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


class Parallelized:
    """A model that is wrapped, on the device.

    Args:
        model: the model, on the host.
        parallel: how it is wrapped.
        device: where this rank trains.
        plan: the precision, whose dtypes are those of FSDP2's policy in `mp-bf16`.

    Attributes:
        model: the module to train.
        rank: which rank this process is; where the others are absent, the one that stands for them.
        sharded: classes whose modules FSDP2 wraps, and how many of each there are.
        notes: messages for the reader of the report, by code.

    Raises:
        TargetError: a class that is to be wrapped does not occur, or the user's function gives no module.
        Exception: whatever torch or the user's code raises.
    """

    def __init__(
        self, model: nn.Module, parallel: Parallel, device: torch.device, plan: PrecisionPlan
    ) -> None:
        self.rank = open_group(parallel, model)
        self.notes: dict[str, str] = {}
        self.sharded: Counter[str] = Counter()
        self._parallel = parallel
        self._device = device
        self._why_sharded = "`--shard-by` names these classes"
        self._sharding: list[Assumption] = []
        if parallel.strategy in ("ddp", "zero1"):
            self.model: nn.Module = self._distributed(model, parallel.options)
        elif parallel.shards:
            self.model = self._sharded(model, parallel.options, plan)
            self._sharding.append(self._how_sharded())
        else:
            self.model = self._own(model)

    def _distributed(self, model: nn.Module, options: dict[str, Any]) -> nn.Module:
        if options.pop("sync_batchnorm", False):
            convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
            model = convert(model)
        ids = [self._device] if self._device.type == "cuda" else None
        wrapped = nn.parallel.DistributedDataParallel(
            model.to(self._device), device_ids=ids, **options
        )
        if _lacks_futures():
            # It checks annotations, which are texts in this file: a lambda has none.
            wrapped.register_comm_hook(None, lambda _, bucket: _reduced(bucket))
        return wrapped

    def _sharded(self, model: nn.Module, options: dict[str, Any], plan: PrecisionPlan) -> nn.Module:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        prefetch = options.pop("prefetch", 0)
        dtypes: dict[str, Any] = {
            "param_dtype": plan.sharded_dtype,
            "reduce_dtype": torch.float32 if plan.sharded_dtype is not None else None,
        }
        for name in dtypes:
            if name in options:
                dtypes[name] = getattr(torch, options.pop(name))
        if any(dtype is not None for dtype in dtypes.values()):
            options["mp_policy"] = MixedPrecisionPolicy(**dtypes)
        options["mesh"] = self._mesh()
        blocks = self._blocks(model)
        self.sharded.update(type(block).__name__ for block in blocks)
        for block in blocks:
            fully_shard(block, **options)
        fully_shard(model, **options)
        for number, block in enumerate(blocks if prefetch else ()):
            sharded: Any = block
            sharded.set_modules_to_forward_prefetch(blocks[number + 1 : number + 1 + prefetch])
            before = blocks[max(0, number - prefetch) : number]
            sharded.set_modules_to_backward_prefetch(before[::-1])
        # Buffers, and what `fully_shard` has not moved.
        return model.to(self._device)

    def _mesh(self) -> Any:
        from torch.distributed.device_mesh import init_device_mesh

        size = self._parallel.world_size
        if self._parallel.strategy != "hsdp":
            return init_device_mesh(self._device.type, (size,))
        groups = self._parallel.groups
        return init_device_mesh(
            self._device.type, (groups, size // groups), mesh_dim_names=("replicate", "shard")
        )

    def _blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        """Return the modules that are wrapped before the root, inner ones first."""
        names = self._parallel.shard_by
        if names:
            found = {cls.__name__ for module in model.modules() for cls in type(module).__mro__}
            missing = [name for name in names if name not in found]
            if missing:
                present = Counter(type(module).__name__ for module in model.modules())
                hint = ", ".join(f"{name} ({n})" for name, n in present.most_common(6))
                raise TargetError(
                    f"`--shard-by {missing[0]}`: the model has no module of this class",
                    hint=f"it has {hint}",
                )
        else:
            names = tuple(getattr(model, "_no_split_modules", None) or ())
            self._why_sharded = (
                "`_no_split_modules` of the model names them; `--shard-by` names others"
            )
        blocks = [
            module
            for module in model.modules()
            if module is not model and any(c.__name__ in names for c in type(module).__mro__)
        ]
        if not blocks and not self._parallel.shard_by:
            blocks = repeated_blocks(model)
            self._why_sharded = (
                "these blocks repeat and hold most parameters; `--shard-by` names others"
            )
        # Parameters that modules share have to be sharded together: with the root.
        blocks = [block for block in blocks if not _shares_parameters(block, model)]
        if not blocks:
            self.notes["fsdp_root_only"] = FSDP_ROOT_ONLY
            self._why_sharded = "no repeated block was found; `--shard-by` names classes"
        return blocks[::-1] if any(_is_inside(blocks)) else blocks

    def _own(self, model: nn.Module) -> nn.Module:
        name = self._parallel.strategy
        function = resolve_function(name)
        wrapped = function(model, self._mesh(), **dict(self._parallel.arguments))
        if not isinstance(wrapped, nn.Module):
            raise TargetError(
                f"`--parallel {name}` returned `{type(wrapped).__name__}`, not an `nn.Module`",
                hint="`fn(model, mesh)` returns the wrapped model",
            )
        return wrapped.to(self._device)

    @property
    def assumptions(self) -> list[Assumption]:
        """Which rank trains where the others are absent, and how the model is sharded."""
        parallel = self._parallel
        made: list[Assumption] = []
        if is_alone():
            made.append(
                Assumption(
                    what="ranks",
                    value=f"rank {self.rank} of {parallel.world_size:,}, the others absent",
                    why="they are taken to need as much memory; collectives return at once",
                )
            )
        return [*made, *self._sharding]

    def _how_sharded(self) -> Assumption:
        """Return which modules are sharded; to be asked before the first step gathers parameters."""
        listed = ", ".join(f"{name} × {number}" for name, number in self.sharded.items())
        whole = local = 0
        for parameter in self.model.parameters():
            whole += parameter.numel()
            local += local_part(parameter).numel()
        return Assumption(
            what="sharding",
            value=f"{listed + ' and the root' if listed else 'the root alone'}, "
            f"{format_parameters(local)} of {format_parameters(whole)} parameters on each rank",
            why=self._why_sharded,
        )

    def reshard(self) -> None:
        """Release what FSDP2 has gathered: after a forward pass alone, the root still is."""
        if self._parallel.shards:
            from torch.distributed.fsdp import FSDPModule

            for module in self.model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    @contextlib.contextmanager
    def accumulating(self, is_last: bool) -> Iterator[None]:
        """Leave gradients unreduced in micro-batches but the last, as a training loop does.

        Args:
            is_last: whether the micro-batch inside is the last of its step.
        """
        model: Any = self.model
        if isinstance(model, nn.parallel.DistributedDataParallel):
            with contextlib.nullcontext() if is_last else model.no_sync():
                yield
            return
        if hasattr(model, "set_requires_gradient_sync"):
            model.set_requires_gradient_sync(is_last)
        yield


def _shares_parameters(block: nn.Module, model: nn.Module) -> bool:
    """Tell whether a parameter of a block is one of a module outside too."""
    own, inside = set(block.parameters()), set(block.modules())
    return any(
        parameter in own
        for module in model.modules()
        if module not in inside
        for parameter in module.parameters(recurse=False)
    )


def _is_inside(blocks: Sequence[nn.Module]) -> Iterator[bool]:
    chosen = set(blocks)
    for block in blocks:
        yield any(inner in chosen for inner in block.modules() if inner is not block)


def partitioned(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return a `ZeroRedundancyOptimizer` (ZeRO-1) whose ranks each step a part of the parameters.

    Args:
        optimizer: an optimizer of all parameters, whose class and arguments the ranks' optimizers have.

    Raises:
        TargetError: a class that cannot be made again from its arguments.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # optimizers beside it use TorchScript
        from torch.distributed.optim import ZeroRedundancyOptimizer

    kind = type(optimizer)
    taken = inspect.signature(kind).parameters
    arguments = {name: value for name, value in optimizer.defaults.items() if name in taken}
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    try:
        return ZeroRedundancyOptimizer(parameters, optimizer_class=kind, **arguments)
    except TypeError as error:
        raise TargetError(
            f"`--parallel zero1` cannot make a `{kind.__name__}` of a part of the parameters: {error}"
        ) from None
