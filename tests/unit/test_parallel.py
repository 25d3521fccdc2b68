"""Options of several GPUs: what they ask for, and what is refused with a word that helps."""

from __future__ import annotations

import dataclasses

import pytest
from command_line import command_line, settings_of

from bsfind.errors import UsageError
from bsfind.option_fields import arguments_of
from bsfind.search.all_ranks import on_ranks
from bsfind.settings import SearchLimits
from bsfind.simulation.gpus.nccl_memory import nccl_bytes
from bsfind.units import Headroom

MODEL = ("a:b", "--input-shape", "3,224,224", "--gpu", "a10g")


def test_what_is_asked_for() -> None:
    asked = settings_of(
        [
            *("run", *MODEL, "--parallel", "hsdp", "--world-size", "16", "--replicas", "4"),
            *("--shard-by", "Block, Embedding", "--parallel-arg", "reshard_after_forward=false"),
            *("--nccl-memory", "1GiB"),
        ]
    )
    parallel = asked.parallel
    assert (parallel.strategy, parallel.world_size, parallel.groups) == ("hsdp", 16, 4)
    assert parallel.shard_by == ("Block", "Embedding")
    assert parallel.options == {"reshard_after_forward": False}
    assert asked.device.nccl_memory_bytes == 1 << 30
    assert asked.device.communicators == (4, 4)
    assert settings_of(arguments_of(asked)) == asked


def test_sharded_models_are_tried_with_the_policy_of_fsdp2() -> None:
    sharded = settings_of(["run", *MODEL, "--parallel", "fsdp", "--world-size", "8"])
    assert sharded.precisions == ("fp32", "mp-bf16")
    whole = settings_of(["run", *MODEL, "--parallel", "ddp", "--world-size", "8"])
    assert whole.precisions == ("fp32", "amp")
    named = settings_of(["run", *MODEL, "--parallel", "fsdp", "--precision", "amp"])
    assert named.precisions == ("amp",)


def test_a_number_that_is_to_be_found_is_of_ranks_that_share_the_parameters() -> None:
    asked = settings_of(["run", *MODEL, "--world-size", "auto"])
    assert (asked.parallel.strategy, asked.parallel.is_auto) == ("fsdp", True)
    assert settings_of(arguments_of(asked)) == asked


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--world-size 8", "`--world-size` requires `--parallel` or `--global-batch`"),
        ("--replicas 2", "`--replicas` requires `--parallel`"),
        ("--shard-by Block", "`--shard-by` requires `--parallel`"),
        ("--parallel-arg static_graph=true", "`--parallel-arg` requires `--parallel`"),
        ("--nccl-memory 1GiB", "`--nccl-memory` requires `--parallel`"),
        ("--precision mp-bf16", "it requires `--parallel fsdp`"),
        ("--parallel ddp --precision mp-bf16", "it requires `--parallel fsdp`"),
        ("--parallel ddp --replicas 2", "`--replicas` is for `--parallel hsdp`"),
        ("--parallel ddp --shard-by Block", "`--shard-by` is for `--parallel fsdp`"),
        ("--parallel hsdp --world-size 3", "to divide `--world-size`"),
        ("--parallel hsdp --world-size 8 --replicas 8", "to divide `--world-size`"),
        ("--parallel fsdp --parallel-arg static_graph=true", "has no argument `static_graph`"),
        ("--parallel ddp --parallel-arg static_graph=1", "write `true` or `false`"),
        ("--parallel ddp --parallel-arg bucket_cap_mb=-1", "write a number of MB above 0"),
        (
            "--parallel ddp --parallel-arg static_graph=true --parallel-arg static_graph=false",
            "sets the same key twice",
        ),
        ("--parallel zero1 --parallel-arg parameters_as_bucket_view=true", "cannot be predicted"),
        ("--parallel ddp --mode infer", "`--mode infer` cannot be combined with `--parallel`"),
        ("--parallel ddp --world-size auto", "`--world-size auto` is for `--parallel fsdp`"),
        ("--nproc-per-node 2", "`--nproc-per-node` requires `--parallel`"),
        ("--parallel ddp --nproc-per-node 2", "`--gpu` cannot be combined with `--nproc-per-node`"),
        ("--parallel ddp --nproc-per-node 2 --world-size 4", "`--world-size` follows from it"),
        ("--parallel ddp --world-size 8 --global-batch 7", "leaves nothing for some of the 8"),
    ],
)
def test_what_has_no_meaning_is_refused(options: str, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        settings_of(["run", *MODEL, *options.split()])
    assert said in raised.value.message


def test_the_ranks_of_this_machine_are_all() -> None:
    hsdp = ("run", *MODEL[:3], "--parallel", "hsdp")
    assert settings_of([*hsdp, "--nproc-per-node", "4"]).parallel.world_size == 4
    with pytest.raises(UsageError, match="to divide `--world-size`"):
        settings_of([*hsdp, "--nproc-per-node", "3"])
    on_all = settings_of([*hsdp, "--nproc-per-node", "gpu"])
    assert on_ranks(on_all, 8).parallel.world_size == 8
    with pytest.raises(UsageError, match="2 replicas on 3 GPUs"):
        on_ranks(on_all, 3)


def test_what_ran_on_all_gpus_can_be_asked_for_again() -> None:
    asked = settings_of(["run", *DDP, "--nproc-per-node", "gpu"])
    ran = on_ranks(asked, 8)
    assert settings_of(arguments_of(ran)) == ran
    check = dataclasses.replace(ran, batch_size=8, limits=SearchLimits(headroom=Headroom(bytes=0)))
    assert "--nproc-per-node" not in arguments_of(check)
    assert settings_of(arguments_of(check)).parallel.world_size == 8


@pytest.mark.parametrize(
    "name", ["fsdp1", "pp", "pipeline", "cp", "ep", "deepspeed", "zero3", "tp", "FSDP1"]
)
def test_other_strategies_are_refused_by_name(name: str) -> None:
    outcome = command_line("run", *MODEL, "--parallel", name)
    assert outcome.code == 2
    assert f"`{name}`: " in outcome.stderr
    assert "bsfind launch" in outcome.stderr


RANK = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "4"}
DDP = (*MODEL[:3], "--parallel", "ddp")


def test_ranks_are_a_number_or_all() -> None:
    outcome = command_line("run", *DDP, "--nproc-per-node", "few")
    assert outcome.code == 2
    assert "neither a number of GPUs nor `gpu`" in outcome.stderr


def test_the_first_rank_of_torchrun_searches_on_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in RANK.items():
        monkeypatch.setenv(name, value)
    outcome = command_line("run", *DDP)
    assert outcome.options is not None
    assert outcome.options["nproc_per_node"] == "4"


def test_the_other_ranks_of_torchrun_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**RANK, "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    outcome = command_line("run", *DDP)
    assert (outcome.code, outcome.options, outcome.stdout, outcome.stderr) == (0, None, "", "")


@pytest.mark.parametrize(
    ("options", "more", "said"),
    [
        (DDP, {"WORLD_SIZE": "8"}, "on several machines"),
        ((*DDP, "--nproc-per-node", "4"), {}, "leave torchrun out, or the option"),
        ((*DDP, "--gpu", "a10g"), {}, "a prediction runs no ranks"),
        (MODEL[:3], {}, "nothing says how they share the training"),
    ],
)
def test_what_has_no_meaning_under_torchrun(
    options: tuple[str, ...], more: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**RANK, **more}.items():
        monkeypatch.setenv(name, value)
    outcome = command_line("run", *options)
    assert outcome.code == 2
    assert said in outcome.stderr


def test_nccl_takes_nothing_of_one_gpu_and_more_of_many() -> None:
    sizes = [nccl_bytes((ranks,)) for ranks in (1, 2, 4, 8, 64)]
    assert sizes[0] == 0
    assert sizes == sorted(sizes)
    assert sizes[-1] == sizes[-2] < 2 << 30
    assert nccl_bytes((4, 4)) == 2 * nccl_bytes((4,))
