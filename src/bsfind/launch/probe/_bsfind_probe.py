"""Watches a training process from inside: optimizer steps, the allocator's counters, errors.

It runs in the user's process once that has imported torch, on any Python from 3.8 on, and imports nothing
of bsfind, unless a GPU is to be simulated there. What it finds goes through a socket to bsfind, which then
ends the process; until that happens the process holds at the end of its last step, so that no launcher sees
it fail.

A record is one line of JSON: see `bsfind.launch.records`.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import functools
import gc
import json
import os
import socket
import sys
import threading
import time
from typing import Any

_MAX_ENTRIES = 500000
_PATIENCE = 10
"""How many times `steps` to wait for an optimizer that has not stepped yet: some never do."""

_CONNECT_S = 10.0

_BY_HAND = "bsfind.step"
"""What has stepped where the loop says so itself."""


_probe: _Probe | None = None


def step() -> None:
    """Count an optimizer step of a loop that has no optimizer of torch's (`bsfind.step`)."""
    if _probe is not None:
        _probe.after_step(_BY_HAND)


def watch(torch: Any) -> None:
    """Watch this process, which has just imported torch."""
    global _probe
    _probe = _Probe(torch, json.loads(os.environ["BSFIND_PROBE"]))


class _Probe:
    """What is known of this process.

    A process that trains is one that has used the device: `_pid` is its own then. Processes that it has
    forked (of a data loader) have another, and are left alone.
    """

    def __init__(self, torch: Any, asked: dict[str, Any]) -> None:
        self._torch = torch
        self._asked = asked
        self._pid = os.getpid()
        self._is_over = False
        self._counts: dict[Any, int] = {}
        self._on_host = 0
        self._steps: list[dict[str, Any]] = []
        self._began: float | None = None
        self._backwards = 0
        self._is_in_backward = False
        self._ooms: list[str] = []
        self._loaders: dict[int, int] = {}
        self._limits: dict[int, int | None] = {}
        self._is_choosing = False
        self._index: Any = None
        self._connection: socket.socket | None = None
        self._gpu: Any = None
        if asked["gpu"] is not None:
            self._simulate_gpu(asked)
        self._catch_out_of_memory()
        self._watch_backward()
        self._watch_loaders()
        self._watch_choice()
        self._dump_stacks_on(asked["signal"])
        from torch.optim.optimizer import register_optimizer_step_post_hook

        register_optimizer_step_post_hook(lambda optimizer, *_: self.after_step(optimizer))
        self._excepthook = sys.excepthook
        sys.excepthook = self._on_exception
        atexit.register(self._at_exit)
        if self._gpu is None:
            # Runs at the first use of the device, in the process that uses it.
            torch.cuda._lazy_call(self._on_first_use)

    def _simulate_gpu(self, asked: dict[str, Any]) -> None:
        """Let this process have the GPU that is asked for."""
        try:
            self._gpu = _bsfind(asked["package"]).GpuOfProcess(
                asked["gpu"], asked["limit_bytes"], self._on_first_use
            )
            self._gpu.open()
        except Exception as error:
            self._report("failed", error=error)
            self._hold()

    # ------------------------------------------------------------------------------ what is watched

    def _catch_out_of_memory(self) -> None:
        """Count the out-of-memory errors that reach Python, caught or not.

        The allocator's own counter also has those that cuDNN's callers get over, trying a smaller workspace.
        """
        # In torch 2.4 and older it is in `torch.cuda`.
        error = getattr(self._torch, "OutOfMemoryError", None) or self._torch.cuda.OutOfMemoryError
        begin = error.__init__

        def made(raised: Any, *args: Any, **more: Any) -> None:
            begin(raised, *args, **more)
            if os.getpid() == self._pid:
                self._ooms.append(str(args[0]) if args else "")

        error.__init__ = made

    def _watch_backward(self) -> None:
        """Count backward passes: several in a step accumulate gradients, or are of several losses."""
        run = self._torch.autograd.backward

        @functools.wraps(run)
        def backward(*args: Any, **more: Any) -> Any:
            if self._is_in_backward:  # checkpointing runs one inside of another
                return run(*args, **more)
            self._is_in_backward = True
            try:
                return run(*args, **more)
            finally:
                self._is_in_backward = False
                self._backwards += 1

        self._torch.autograd.backward = backward

    def _watch_loaders(self) -> None:
        """Note how many samples there are for the batches that are asked for."""
        from torch.utils.data import DataLoader

        iterate = DataLoader.__iter__

        def iterated(loader: Any) -> Any:
            try:
                size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
                samples = len(loader.sampler)
                if isinstance(size, int):
                    self._loaders[size] = max(samples, self._loaders.get(size, 0))
            except Exception:  # an endless or a foreign data set
                pass
            return iterate(loader)

        DataLoader.__iter__ = iterated  # type: ignore[method-assign]

    def _watch_choice(self) -> None:
        """Limit the memory of the GPU that the script chooses: no variable may name it."""
        cuda = self._torch.cuda
        choose = cuda.set_device

        @functools.wraps(choose)
        def chosen(device: Any) -> None:
            self._is_choosing = True
            try:
                choose(device)
            finally:
                self._is_choosing = False
            if cuda.is_initialized():
                self._limit_on(cuda.current_device())

        cuda.set_device = chosen

    @staticmethod
    def _dump_stacks_on(number: int) -> None:
        # There is none on Windows, and the signal may be taken.
        with contextlib.suppress(AttributeError, OSError, RuntimeError, ValueError):
            faulthandler.register(number, file=2, all_threads=True)

    def _on_first_use(self) -> None:
        """Limit the memory, and record what is allocated from here on."""
        self._pid = os.getpid()
        if self._gpu is None:
            self._limit_and_record()
        if not isinstance(self._asked["socket"], str):
            self._end_with_bsfind()
        from multiprocessing.util import Finalize  # its processes end without `atexit`

        Finalize(None, self._at_exit, exitpriority=1000)

    def _limit_and_record(self) -> None:
        torch, asked = self._torch, self._asked
        if not self._is_choosing:
            self._limit_on(self._likely_device())
        if asked["record"]:
            # A torch without it: guesses are less good.
            with contextlib.suppress(Exception):
                torch.cuda.memory._record_memory_history(
                    "all", context=None, max_entries=_MAX_ENTRIES
                )

    def _limit_on(self, device: int) -> None:
        """Limit what the allocator may reserve on a device: of several GPUs, another may have less free."""
        cuda, limit = self._torch.cuda, self._asked["limit_bytes"]
        if device in self._limits:
            return
        if limit is not None:
            if device or self._rank()["world_size"] > 1:
                free, _ = cuda.mem_get_info(device)
                there = free + cuda.memory_reserved(device)
                # NCCL takes its memory later on.
                there = min(there, self._asked["capacities"].get(str(device), there))
                limit = min(limit, there - self._asked["leave_bytes"])
            total = cuda.get_device_properties(device).total_memory
            cuda.set_per_process_memory_fraction(min(1.0, max(0, limit) / total), device)
        self._limits[device] = limit

    def _likely_device(self) -> int:
        """Return the device that this process is about to use; asking torch would say 0 for every rank."""
        local = os.environ.get("LOCAL_RANK", "")
        number = int(local) if local.isdigit() else self._rank()["rank"]
        return number if number < self._torch.cuda.device_count() else 0

    # ------------------------------------------------------------------------------ what happens

    def after_step(self, optimizer: Any) -> None:
        """Take in an optimizer step: the `optimizer` has made one."""
        if os.getpid() != self._pid or self._is_over:
            return
        key = optimizer if isinstance(optimizer, str) else id(optimizer)
        self._counts[key] = self._counts.get(key, 0) + 1
        cuda = self._torch.cuda
        if not cuda.is_initialized():
            self._on_host += 1
            if self._on_host >= self._asked["steps"]:
                self._report("ok")
                self._hold()
            return
        if self._counts[key] > len(self._steps):  # the optimizer that steps most
            self._take_in_step(cuda)
        if self._ooms:
            self._report("oom", message=self._ooms[0])
            self._hold()
        if len(self._steps) >= self._asked["steps"] and self._have_all_stepped():
            self._report("ok")
            self._hold()
        self._began = time.perf_counter()

    def _take_in_step(self, cuda: Any) -> None:
        device = self._device_in_use()
        cuda.synchronize(device)
        now = time.perf_counter()
        stats = cuda.memory_stats(device)
        self._steps.append(
            {
                "time_s": None if self._began is None or self._gpu else now - self._began,
                "backwards": self._backwards,
                "peak_allocated_bytes": cuda.max_memory_allocated(device),
                "peak_reserved_bytes": cuda.max_memory_reserved(device),
                "held_bytes": stats.get("allocated_bytes.all.current", 0),
                "requested_bytes": stats.get("requested_bytes.all.allocated", 0),
                "retries": stats.get("num_alloc_retries", 0),
            }
        )
        self._backwards = 0
        cuda.reset_peak_memory_stats(device)

    def _device_in_use(self) -> int:
        """Return the device that holds most; not every script makes its device the current one."""
        if self._index is None:
            cuda = self._torch.cuda
            current = cuda.current_device()
            others = [i for i in range(cuda.device_count()) if i != current]
            self._index = max([current, *others], key=cuda.memory_reserved)
            self._limit_on(self._index)  # late, where nothing has told which it is
        return int(self._index)

    def _have_all_stepped(self) -> bool:
        """Tell whether every optimizer that there is has stepped, or it is no use to wait any longer."""
        if _BY_HAND in self._counts or len(self._steps) >= _PATIENCE * self._asked["steps"]:
            return True
        base = self._torch.optim.Optimizer
        # By type: `isinstance` runs code of the user's proxies.
        return not any(
            issubclass(type(found), base)
            and id(found) not in self._counts
            and getattr(type(found).step, "hooked", False)
            and any(p.requires_grad for group in found.param_groups for p in group["params"])
            for found in gc.get_objects()
        )

    def _on_exception(self, kind: Any, error: Any, trace: Any) -> None:
        self._excepthook(kind, error, trace)
        is_own = kind.__module__ == "bsfind.errors" and os.getpid() == self._pid
        if (is_own or self._is_mine()) and not issubclass(kind, KeyboardInterrupt):
            sys.stderr.flush()
            self._report("failed", error=error)
            self._hold()

    def _at_exit(self) -> None:
        if self._is_mine():
            self._report("ended")
        if self._gpu is not None and os.getpid() == self._pid:
            self._gpu.close()

    def _is_mine(self) -> bool:
        is_alive = os.getpid() == self._pid and not self._is_over
        return is_alive and bool(self._torch.cuda.is_initialized())

    # ------------------------------------------------------------------------------ what is told

    def _report(self, status: str, message: str = "", error: Any = None) -> None:
        self._is_over = status != "ended" or self._is_over
        record = {
            "key": self._asked["key"],
            "status": status,
            "message": message,
            "out_of_memory": self._ooms[:1],
            "pid": os.getpid(),
            "torch_version": self._torch.__version__,
            "on_host": self._on_host,
            "steps": self._steps,
            "optimizers": len(self._counts),
            "loaders": sorted(self._loaders.items()),
            "errors": [] if error is None else _chain(error),
            "warnings": self._gpu.warnings(has_failed=status == "failed") if self._gpu else [],
            "convolution_workspaces": self._gpu.convolution_workspaces if self._gpu else None,
        }
        record.update(self._rank())
        if self._torch.cuda.is_initialized():
            try:
                record.update(self._device())
                if status == "ok":
                    record["recording"] = self._recording()
            except RuntimeError:  # the context is lost
                pass
        self._send(record)

    def _rank(self) -> dict[str, int]:
        """Return which process this is of how many, and how many of these are on this machine."""
        distributed = self._torch.distributed
        told = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
        if distributed.is_available() and distributed.is_initialized():
            rank, size = distributed.get_rank(), distributed.get_world_size()
        elif all(number.isdigit() for number in told):
            rank, size = (int(number) for number in told)
        else:
            rank, size = 0, 1
        local = os.environ.get("LOCAL_WORLD_SIZE", "")
        here = int(local) if local.isdigit() else size
        return {"rank": rank, "world_size": size, "local_world_size": min(here, size)}

    def _device(self) -> dict[str, Any]:
        cuda = self._torch.cuda
        index = self._device_in_use()
        properties = cuda.get_device_properties(index)
        free, _ = cuda.mem_get_info(index)
        reserved = cuda.memory_reserved(index)
        used = [i for i in range(cuda.device_count()) if cuda.memory_reserved(i)]
        return {
            "limit_bytes": self._limits.get(index),
            "device": {
                "index": index,
                "name": properties.name,
                "uuid": str(getattr(properties, "uuid", "")),
                "total_bytes": properties.total_memory,
                "free_bytes": free,
                "reserved_bytes": reserved,
                "cached_bytes": reserved - cuda.memory_allocated(index),
                "used": used,
            },
        }

    def _recording(self) -> dict[str, Any] | None:
        """Return what was asked of the allocator; None where it was not recorded, or not completely."""
        if not self._asked["record"]:
            return None
        cuda = self._torch.cuda
        index = self._device_in_use()
        try:
            entries = cuda.memory._snapshot(index)["device_traces"][index]
        except Exception:
            return None
        if not entries or len(entries) >= _MAX_ENTRIES:
            return None
        return {
            "has_convolutions": self._has_convolutions(),
            "entries": [[e["action"], e["addr"], e["size"], e["stream"]] for e in entries],
        }

    def _has_convolutions(self) -> bool:
        base = self._torch.nn.modules.conv._ConvNd
        return any(issubclass(type(found), base) for found in gc.get_objects())

    def _send(self, record: dict[str, Any]) -> None:
        try:
            self._connect().sendall(json.dumps(record).encode() + b"\n")
        except OSError:  # bsfind is gone
            self._connection = None

    def _connect(self) -> socket.socket:
        if self._connection is None:
            address = self._asked["socket"]
            if isinstance(address, str):
                self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self._connection.settimeout(_CONNECT_S)
                self._connection.connect(address)
            else:
                self._connection = socket.create_connection(tuple(address), _CONNECT_S)
        return self._connection

    def _end_with_bsfind(self) -> None:
        """End this process when the connection ends: on another machine, bsfind cannot do so itself."""

        def wait(connection: socket.socket) -> None:
            with contextlib.suppress(OSError):
                connection.settimeout(None)
                connection.recv(1)  # bsfind sends nothing
            os._exit(1)

        with contextlib.suppress(OSError):
            threading.Thread(target=wait, args=(self._connect(),), daemon=True).start()

    def _hold(self) -> None:
        """Wait for bsfind to end this process."""
        sys.stdout.flush()
        with contextlib.suppress(OSError):
            if self._connection is not None:
                self._connection.settimeout(None)
                self._connection.recv(1)
        os._exit(1)


def _bsfind(package: str) -> Any:
    """Load what simulates a GPU from the bsfind in a folder, which is not on the path."""
    import importlib
    import importlib.util

    if "bsfind" not in sys.modules:
        file = os.path.join(package, "__init__.py")  # noqa: PTH118
        spec: Any = importlib.util.spec_from_file_location(
            "bsfind", file, submodule_search_locations=[package]
        )
        sys.modules["bsfind"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["bsfind"])
    return importlib.import_module("bsfind.devices.in_process")


def _chain(error: Any) -> list[dict[str, Any]]:
    """Return an exception and what it was raised from or during, as texts."""
    found: list[dict[str, Any]] = []
    while error is not None and len(found) < 20:
        kinds = [kind.__module__ + "." + kind.__qualname__ for kind in type(error).__mro__]
        try:
            said = str(error)
        except Exception:
            said = ""
        hint = str(getattr(error, "hint", "")) if kinds[0].startswith("bsfind.") else ""
        found.append({"kinds": kinds, "message": said[:2000], "hint": hint})
        error = error.__cause__ or error.__context__
    return found
