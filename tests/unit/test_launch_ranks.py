"""What runs of a command of several ranks say: which rank ended, and why."""

from __future__ import annotations

import dataclasses
import json
import socket
from typing import Any

import pytest
from launch_records import DEVICE, LIMIT, OOM, a_run, a_step, launch, outcome, record, told

from bsfind.errors import TargetError, UsageError
from bsfind.launch.inbox import Inbox
from bsfind.launch.limiting_rank import ranks_assumption, unequal_ranks
from bsfind.launch.outcome import outcome_of
from bsfind.launch.placeholders import check
from bsfind.launch.records import RankRecord
from bsfind.launch.why_failed import why_it_failed
from bsfind.option_types import format_address, parse_address
from bsfind.search.estimate import Estimate
from bsfind.simulation.allocator.alloc_conf import AllocatorSettings

TORCHRUN = """\
raise ChildFailedError(
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
======================================================
train.py FAILED
------------------------------------------------------
Failures:
[1]:
  rank      : 0 (local_rank: 0)
  exitcode  : -15 (pid: 5499)  (SIGTERM)
  error_file: <N/A>
------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-30_19:45:55
  rank      : 1 (local_rank: 1)
  exitcode  : {code} (pid: 5500)  (SIGKILL)
  error_file: <N/A>
======================================================
"""


@pytest.mark.parametrize(
    ("status", "said", "told", "may_run"),
    [
        (1, TORCHRUN.format(code=-9), "rank 1 was killed by SIGKILL", False),
        (1, TORCHRUN.format(code=3), "rank 1 exited with status 3", True),
        (1, TORCHRUN.format(code=2), "rank 1 exited with status 2", False),
        (-11, "Loading\n", "it was killed by SIGSEGV", False),
        (1, "KeyError: 'x'\n[W] shutting down\n", "KeyError: 'x'", True),
        (None, "", "it ended with an unknown status", False),
    ],
)
def test_why_a_command_failed(status: int | None, said: str, told: str, may_run: bool) -> None:
    assert why_it_failed(status, said) == (told, may_run)


def of_rank(rank: int, reserved: int = 1000, **more: Any) -> RankRecord:
    steps = [a_step(i, peak_reserved_bytes=reserved) for i in range(3)]
    device = {**DEVICE, "index": rank, "free_bytes": 9000, "reserved_bytes": reserved}
    of_two = {"rank": rank, "pid": 7 + rank, "world_size": 2, "local_world_size": 2}
    return record(**{**of_two, "steps": steps, "device": device, **more})


def test_the_rank_with_the_least_memory_left_decides() -> None:
    found = outcome(a_run(of_rank(0, 3000), of_rank(1, 2000)))
    assert (found.trial.status, found.trial.limiting_rank) == ("ok", 0)
    assert found.trial.peak_reserved_bytes == 3000
    assert [each.peak_reserved_bytes for each in found.trial.ranks] == [3000, 2000]
    # The other's own limit is smaller: its GPU has less free.
    found = outcome(a_run(of_rank(0, 3000), of_rank(1, 2000, limit_bytes=2100)))
    assert found.trial.limiting_rank == 1
    assert found.trial.peak_reserved_bytes == 2000


def test_ranks_that_need_different_amounts_are_told() -> None:
    trial = outcome(a_run(of_rank(0, 3000), of_rank(1, 2000))).trial
    warning = unequal_ranks(trial)
    assert warning is not None
    assert "rank 0 reserves 2.9 KiB and rank 1 2.0 KiB" in warning.message
    assert ranks_assumption(trial).value.startswith("2, all measured; figures are those of rank 0")
    assert unequal_ranks(outcome(a_run(of_rank(0, 2000), of_rank(1, 1990))).trial) is None


def test_headroom_has_to_be_free_besides_what_is_not_the_allocators() -> None:
    run = a_run(of_rank(0), of_rank(1))
    assert outcome_of(run, 64, LIMIT, 60.0, 9000).trial.status == "ok"
    trial = outcome_of(run, 64, LIMIT, 60.0, 9001).trial
    assert trial.status == "oom"
    assert "less than the headroom" in (trial.message or "")


def test_the_gpu_with_the_least_memory_sizes_the_recommendation() -> None:
    trials = []
    for size in (10, 20):
        taken = 100 * size
        small = {**DEVICE, "index": 1, "reserved_bytes": taken, "free_bytes": 5000 - taken}
        run = a_run(of_rank(0, taken), of_rank(1, taken, device=small))
        trials.append(outcome_of(run, size, 9000, 60.0, 0).trial)
    assert [(t.limiting_rank, t.limiting_capacity_bytes(9000)) for t in trials] == [(1, 5000)] * 2
    assert trials[0].limiting_capacity_bytes(3000) == 3000  # `--memory-limit`
    estimate = Estimate(9000, {}, AllocatorSettings(torch_version="2.13"))
    assert estimate.shortfall_bytes(trials) == 4000
    assert estimate.shortfall_bytes([]) == 0
    alone = [dataclasses.replace(trial, ranks=(), limiting_rank=None) for trial in trials]
    assert estimate.maximum(trials) == 50
    assert estimate.maximum(alone) == 90


def test_a_failure_names_its_rank() -> None:
    failed = of_rank(1, status="failed", out_of_memory=["CUDA out of memory. Tried to"])
    trial = outcome(a_run(of_rank(0), failed)).trial
    assert (trial.status, trial.limiting_rank) == ("oom", 1)
    assert (trial.message or "").startswith("rank 1: CUDA out of memory")


@pytest.mark.parametrize(
    ("loaders", "samples"), [([[64, 1000]], 2 * 64 / 0.5), ([[32, 1000]], None), ([], None)]
)
def test_samples_of_all_ranks_count_where_they_are_known(loaders: Any, samples: Any) -> None:
    ranks = (of_rank(rank, loaders=loaders) for rank in (0, 1))
    assert outcome(a_run(*ranks)).trial.samples_per_s == samples


def test_ranks_on_other_machines_are_not_heard() -> None:
    with pytest.raises(UsageError, match="several machines"):
        outcome(a_run(of_rank(0, world_size=16, local_world_size=8)))


def test_an_error_that_only_multiprocessing_sees_is_one_of_its_rank() -> None:
    run = a_run(of_rank(1, status="ended", out_of_memory=[OOM], steps=[]))
    trial = outcome(run).trial
    assert (trial.status, trial.limiting_rank) == ("oom", 1)
    assert trial.message.startswith("rank 1: CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_a_rank_that_ends_while_others_wait() -> None:
    found = outcome(a_run(of_rank(1, status="ended", steps=[a_step(0)]), late=True))
    assert found.trial.error_kind == "refused"
    assert isinstance(found.refusal, TargetError)
    assert "rank 1 ended after optimizer step 1, and other ranks did not" in str(found.refusal)


def test_a_shard_that_is_shorter_than_a_batch() -> None:
    short = of_rank(1, status="ended", steps=[], loaders=[[64, 40]])
    long = of_rank(0, status="ended", loaders=[[64, 80]])
    for run in (a_run(short, late=True), a_run(long, short, status=0)):
        trial = outcome(run).trial
        assert (trial.error_kind, trial.delivered_batch_size) == ("short_batch", 40)
        assert trial.message == "the data set has 40 samples, the batch size is 64: no step"


def test_peaks_that_settle_are_no_different_steps() -> None:
    """DistributedDataParallel makes its buckets anew in the second step."""
    falling = [a_step(i, peak_allocated_bytes=peak) for i, peak in enumerate((700, 900, 800))]
    rising = [a_step(i, peak_allocated_bytes=peak) for i, peak in enumerate((700, 800, 900))]
    for steps, differ in ((falling, False), (rising, True)):
        run = a_run(*(of_rank(rank, steps=steps) for rank in (0, 1)))
        assert outcome(run).differ is differ
    assert outcome(a_run(record(steps=falling))).differ


@pytest.mark.parametrize(
    ("options", "is_refused"),
    [
        ("--nnodes 2", True),
        ("--nnodes=4", True),
        ("--nnodes 2:4", True),
        ("--num_machines 16", True),
        ("--num-machines=2", True),
        ("--nnodes 1", False),
        ("--nnodes=1:2", False),
        ("--num_nodes 2708", False),  # of a graph
    ],
)
def test_several_machines(options: str, is_refused: bool) -> None:
    command = launch("true", *options.split(), "train.py", "{batch_size}")
    if not is_refused:
        check(command)
        return
    with pytest.raises(UsageError, match="trains on several machines"):
        check(command)


def test_ranks_of_other_machines_are_heard_with_the_key() -> None:
    check(launch("true", "--nnodes", "2", "train.py", "{batch_size}", listen=("127.0.0.1", 0)))
    far = {"world_size": 16, "local_world_size": 8}
    run = dataclasses.replace(a_run(of_rank(0, **far)), hears_others=True)
    assert not run.has_unheard_ranks
    with Inbox(("127.0.0.1", 0)) as inbox:
        for key, rank in (("guessed", 3), (inbox.key, 9)):
            with socket.create_connection(inbox.address, 10) as connection:
                record = told(key=key, rank=rank, **far)
                connection.sendall(json.dumps(record).encode() + b"\n")
        inbox.read(10)
        inbox.read_all(10)
        assert [each.rank for each in inbox.records] == [9]
        last = socket.create_connection(inbox.address, 10)
        inbox.read(10)
    with last:
        assert last.recv(1) == b""  # what waits for bsfind's end sees it


@pytest.mark.parametrize("address", ["", "host:", "host:x", "host:70000", "a b", "[::1", "::1"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        parse_address(address)


def test_addresses() -> None:
    read = {"node-1": ("node-1", 0), "10.0.0.1:29400": ("10.0.0.1", 29400), "[::1]:1": ("::1", 1)}
    for text, address in read.items():
        assert parse_address(text) == address
        assert format_address(address) == text
    with pytest.raises(UsageError, match="nothing can listen on 192"):
        Inbox(("192.0.2.1", 0))  # of no machine (RFC 5737)
