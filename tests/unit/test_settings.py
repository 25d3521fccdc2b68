"""Settings: to JSON and back, to a command line and back, and what they refuse."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator

import pytest
from command_line import command_line, settings_of
from example_report import SETTINGS
from hypothesis import given, settings
from hypothesis import strategies as st

from bsfind.errors import UsageError
from bsfind.inputs import DTYPES, INTEGERS, InputSpec
from bsfind.option_fields import arguments_of
from bsfind.parallel import Parallel
from bsfind.settings import REQUESTABLE_PRECISIONS, DeviceChoice, SearchLimits, Settings, Workload
from bsfind.units import Headroom

IMPORT_PATHS = st.sampled_from(
    ["pkg.mod:fn", "train.py:Net", "../my code/it's.py:Zoo.small", "größe:Netz"]
)
NAMES = st.sampled_from(["width", "lr", "betas", "_private", "größe"])
VALUES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
ARGUMENTS = st.dictionaries(NAMES, VALUES, max_size=3).map(lambda d: tuple(d.items()))
DIMENSIONS = st.integers(1, 4096)


@st.composite
def keyword_inputs(draw: st.DrawFn, name: str) -> InputSpec:
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    low, high = (None, None)
    if DTYPES[dtype] == "int":
        least, most = INTEGERS[dtype]
        low = draw(st.integers(max(least, -5), 5))
        high = draw(st.integers(low + 1, min(most, 99_999)))
    shape = tuple(draw(st.lists(DIMENSIONS, max_size=3)))
    return InputSpec(name=name, shape=shape, dtype=dtype, low=low, high=high)


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    batch_fn = draw(st.none() | IMPORT_PATHS)
    inputs: list[InputSpec] = []
    if batch_fn is None:
        shapes = draw(st.lists(st.lists(DIMENSIONS, min_size=1, max_size=3), max_size=2))
        inputs = [InputSpec(shape=tuple(shape)) for shape in shapes]
        for name in draw(st.lists(NAMES, unique=True, min_size=not inputs, max_size=3)):
            inputs.append(draw(keyword_inputs(name)))
    mode = draw(st.sampled_from(["train", "infer"]))
    training = mode == "train"
    return Workload(
        target=draw(IMPORT_PATHS),
        model_args=draw(ARGUMENTS),
        app_dir=draw(st.sampled_from([".", "src", "/my code/$HOME"])),
        inputs=tuple(inputs),
        batch_fn=batch_fn,
        batch_args=draw(ARGUMENTS) if batch_fn is not None else (),
        mode=mode,
        loss=draw(st.sampled_from(["auto", "cross-entropy", "mse", "mean", "pkg.mod:fn"])),
        optimizer=draw(st.sampled_from(["adamw", "SGD", "pkg.mod:fn"])),
        optimizer_args=draw(ARGUMENTS),
        step=draw(st.none() | IMPORT_PATHS) if training else None,
        grad_checkpoint=training and draw(st.booleans()),
        channels_last=draw(st.booleans()),
        compile=draw(st.booleans()),
        grad_accum=draw(st.integers(1, 64)),
        parallel=draw(PARALLEL),
    )


PARALLEL = (
    st.builds(Parallel)
    | st.builds(
        Parallel,
        strategy=st.sampled_from(["ddp", "zero1"]),
        world_size=st.integers(1, 1024),
        arguments=st.sampled_from([(), (("static_graph", "true"), ("bucket_cap_mb", "100"))]),
    )
    | st.builds(
        Parallel,
        strategy=st.just("fsdp"),
        world_size=st.integers(1, 1024),
        shard_by=st.sampled_from([(), ("Block",), ("Block", "nn.Embedding")]),
        arguments=st.sampled_from([(), (("reshard_after_forward", "4"),)]),
    )
    | st.builds(
        Parallel,
        strategy=st.just("hsdp"),
        world_size=st.just(12),
        replicas=st.sampled_from([None, 3]),
    )
)

# What people type has a few digits: these come back exactly, an arbitrary float may be off by 1e-17.
PERCENTAGES = st.integers(0, 99_999).map(lambda n: n / 1000 / 100)
SECONDS = st.integers(1, 10**10).map(lambda n: n / 1000)
HEADROOMS = PERCENTAGES.map(lambda part: Headroom(fraction=part)) | st.integers(0, 1 << 40).map(
    lambda n: Headroom(bytes=n)
)
MANY = settings(deadline=None, max_examples=60)


@st.composite
def limits(draw: st.DrawFn, *, search: bool) -> SearchLimits:
    steps, timeout = draw(st.integers(1, 50)), draw(SECONDS)
    if not search:
        return SearchLimits(headroom=Headroom(bytes=0), steps=steps, trial_timeout_s=timeout)
    smallest, multiple = draw(st.integers(1, 512)), draw(st.integers(1, 64))
    more = {}
    if draw(st.booleans()):
        least = -(-smallest // multiple) * multiple
        more["max_batch_size"] = draw(st.integers(least, 2**31 - 1))
    return SearchLimits(
        min_batch_size=smallest,
        multiple_of=multiple,
        tolerance=draw(PERCENTAGES),
        headroom=draw(HEADROOMS),
        objective=draw(st.sampled_from(["largest", "fastest"])),
        steps=steps,
        trial_timeout_s=timeout,
        time_budget_s=draw(st.none() | SECONDS),
        **more,
    )


BYTES = st.none() | st.integers(0, 1 << 33)
DEVICES = st.builds(
    DeviceChoice,
    device=st.sampled_from(["auto", "cuda", "cuda:0", "cuda:12"]),
    memory_limit_bytes=st.none() | st.integers(1 << 20, 1 << 50),
) | st.builds(
    DeviceChoice,
    device=st.just("sim"),
    gpu=st.sampled_from(["rtx-4090", "a100-sxm4-80gb", str(24 << 30)]),
    memory_limit_bytes=st.none() | st.integers(1 << 20, 1 << 50),
    context_memory_bytes=BYTES,
)


@st.composite
def everything(draw: st.DrawFn) -> Settings:
    batch_size, workload = draw(st.none() | st.integers(1, 10**6)), draw(workloads())
    if workload.parallel.is_used:
        workload = dataclasses.replace(workload, mode="train", compile=False)
    device = draw(DEVICES)
    known = [
        name for name in REQUESTABLE_PRECISIONS if name != "mp-bf16" or workload.parallel.shards
    ]
    return Settings(
        workload=workload,
        precisions=tuple(draw(st.lists(st.sampled_from(known), min_size=1, unique=True))),
        limits=draw(limits(search=batch_size is None)),
        device=dataclasses.replace(device, communicators=workload.parallel.communicators),
        batch_size=batch_size,
    )


@pytest.fixture(autouse=True, scope="module")
def _no_configuration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Stand in an empty folder, away from any pyproject.toml."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))
    yield
    monkeypatch.undo()


@given(workload=workloads(), device=DEVICES)
def test_json_round_trips(workload: Workload, device: DeviceChoice) -> None:
    assert Workload.from_json(json.loads(json.dumps(workload.to_message()))) == workload
    assert DeviceChoice.from_json(json.loads(json.dumps(device.to_message()))) == device


@given(asked=everything())
@MANY
def test_the_command_line_that_reproduces_asks_for_the_same(asked: Settings) -> None:
    assert settings_of(arguments_of(asked)) == asked


@given(asked=everything())
@settings(max_examples=30)
def test_it_survives_a_shell(asked: Settings) -> None:
    argv = arguments_of(asked)
    assert shlex.split(shlex.join(argv)) == argv


def test_defaults_are_left_out() -> None:
    plain = Settings(workload=Workload(target="a:b", inputs=(InputSpec(shape=(3,)),)))
    assert arguments_of(plain) == ["run", "a:b", "--input-shape", "3"]
    assert settings_of(arguments_of(plain)) == plain


def test_the_example() -> None:
    assert shlex.join(["bsfind", *arguments_of(SETTINGS)]) == (
        "bsfind run mypkg.models:Net --model-arg width=64 --input-shape 3,224,224 "
        "--input labels=:int64:0..1000 --multiple-of 8"
    )


def test_check_asks_for_one_size_and_keeps_nothing_free() -> None:
    asked = settings_of(["check", "a:b", "--input-shape", "3", "-b", "64", "--steps", "5"])
    assert asked.batch_size == 64
    assert asked.limits == SearchLimits(headroom=Headroom(bytes=0), steps=5)
    assert arguments_of(asked) == [
        *("check", "a:b", "--input-shape", "3"),
        *("--batch-size", "64", "--steps", "5"),
    ]


@pytest.mark.parametrize("name", ["", "cpu", "cuda:", "cuda:x", "cuda:0:1", "CUDA", "auto "])
def test_refused_devices(name: str) -> None:
    with pytest.raises(
        ValueError, match="is not a device, write `auto`, `cuda`, `cuda:1` or `sim`"
    ):
        DeviceChoice(device=name)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"min_batch_size": 9, "max_batch_size": 8},
            "`--min-batch-size 9` is above `--max-batch-size 8`",
        ),
        (
            {"max_batch_size": 8, "multiple_of": 16},
            "no multiple of 16 (`--multiple-of`) is at most `--max-batch-size 8`",
        ),
        (
            {"min_batch_size": 9, "max_batch_size": 15, "multiple_of": 8},
            "no multiple of 8 (`--multiple-of`) lies between `--min-batch-size 9` and "
            "`--max-batch-size 15`",
        ),
    ],
)
def test_limits_that_leave_nothing(values: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 (the message is compared)
        SearchLimits(**values)
    assert str(refusal.value) == message
    options = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    with pytest.raises(UsageError) as error:
        settings_of(["run", "a:b", "--input-shape", "3", *options])
    assert error.value.message == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--batch-fn", "a:f", "--input-shape", "3"],
            "`--batch-fn` cannot be combined with `--input-shape` or `--input`",
        ),
        (["--input", "x=3", "--input", "y=4", "--input", "x=5"], "`--input x=…` is given twice"),
        (
            ["--input-shape", "3", "--seq-len", "64"],
            "`--seq-len` is for inputs that follow from the model: it has no meaning with `--input-shape` "
            "or `--input`",
        ),
        (["--input", "x=@y"], "`x=@y`: there is no tensor `y` among the inputs"),
        (
            ["--input", "x=@y", "--input", "y=@1"],
            "`x=@y`: there is no tensor `y` among the inputs",
        ),
        (
            ["--input", "x=3", "--input", "x.y=4"],
            "`x` cannot be an input and a dict with `x.y`",
        ),
        (["--input-shape", "3", "--batch-arg", "a=1"], "`--batch-arg` requires `--batch-fn`"),
        (
            ["--input-shape", "3", "--mode", "infer", "--grad-checkpoint"],
            "`--grad-checkpoint` has no meaning with `--mode infer`",
        ),
        (
            ["--input-shape", "3", "--mode", "infer", "--step", "a:f"],
            "`--step` has no meaning with `--mode infer`",
        ),
    ],
)
def test_options_that_do_not_go_together(options: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        settings_of(["run", "a:b", *options])
    assert error.value.message == message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--input-shape", "3x4"], "'--input-shape': `3x4` is not a shape, write `3,4`"),
        (["--input", "3,4"], "'--input': `3,4` has no name"),
        (["--memory-limit", "24G"], "write `24GiB` (binary) or `24GB` (decimal)"),
        (["--tolerance", "5"], "`5` must be less than 100%, write `5%`"),
        (["--headroom", "0.05"], "write `5%`"),
        (["--trial-timeout", "3d"], "unknown unit `d`"),
        (["--time-budget", "0"], "`0` is not a duration from 1ms to 8760h"),
        (["--precision", "fp32,fp8"], "`fp8` is not a precision, choose from fp32, tf32"),
        (["--precision", " , "], "no precision is named"),
        (["--device", "tpu"], "`tpu` is not a device"),
        (["--context-memory", "1G"], "write `1GiB` (binary) or `1GB` (decimal)"),
        (
            ["--torch-version", "2"],
            "'--torch-version': `2` is not a release of PyTorch, write `2.9`",
        ),
        (["--torch-version", "latest"], "`latest` is not a release of PyTorch"),
        (["--torch-version", "2.9.1+cu128"], "`2.9.1+cu128` is not a release of PyTorch"),
        (["--loss", "bce"], "`bce` is not one of auto, cross-entropy, mse, mean, nor `pkg.mod:fn`"),
        (["--optimizer", "my adam"], "`my adam` is neither a name of torch.optim nor `pkg.mod:fn`"),
        (["--model-arg", "width"], "`width` is not `KEY=VALUE`"),
        (["--optimizer-arg", "1=2"], "`1=2` is not `KEY=VALUE`"),
        (["--batch-fn", "fn"], "`fn` is not `MODULE:ATTRIBUTE`"),
        (["--export", "report.pdf"], "end it in .json, .md, .csv"),
        (["--export", "nowhere/report.json"], "there is no folder `nowhere`"),
        (["--export", "x" * 300 + ".json"], "File name too long"),
        (["--steps", "0"], "'--steps'"),
        (["--mode", "test"], "'--mode'"),
        (["--batchsize", "3"], "--batchsize"),
    ],
)
def test_typos_are_usage_errors(options: list[str], said: str) -> None:
    outcome = command_line("run", "a:b", *options)
    assert outcome.code == 2
    assert outcome.options is None
    assert outcome.stdout == ""
    assert outcome.stderr.startswith("error: ")
    assert said in outcome.stderr
    assert "hint: `bsfind run --help` shows the options" in outcome.stderr


@pytest.mark.parametrize(
    ("options", "device", "gpu"),
    [
        ([], "auto", None),
        (["--gpu", "4090"], "sim", "rtx-4090"),
        (["--gpu", "NVIDIA GeForce RTX 4090", "--device", "sim"], "sim", "rtx-4090"),
        (["--gpu", "24 GiB"], "sim", str(24 << 30)),
        (["--device", "sim"], "sim", "rtx-4090"),
        (["--gpu", "b300", "--memory-limit", "270GiB"], "sim", "b300"),
    ],
)
def test_which_device_is_meant(options: list[str], device: str, gpu: str | None) -> None:
    choice = settings_of(["run", "a:b", "--input-shape", "3", *options]).device
    assert (choice.device, choice.gpu) == (device, gpu)
    assert choice.is_simulated == (device == "sim")


@pytest.mark.parametrize(
    ("text", "release"), [("2.9", "2.9"), ("2.10.1", "2.10"), ("2.11", "2.11")]
)
def test_a_release_of_torch(text: str, release: str) -> None:
    found = settings_of(
        ["run", "a:b", "--input-shape", "3", "--gpu", "t4", "--torch-version", text]
    )
    assert found.device.torch_version == release
    assert "--torch-version" in arguments_of(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--gpu", "4090", "--device", "cuda:1"],
            "`--gpu` names a simulated GPU, `--device cuda:1` a real one",
        ),
        (
            ["--context-memory", "1GiB", "--device", "cuda"],
            "`--context-memory` is for a simulated GPU: on a real one it is measured",
        ),
        (
            ["--torch-version", "2.9"],
            "`--torch-version` is for predictions (`--gpu`): what is measured has the torch that runs",
        ),
        (
            ["--torch-version", "2.9", "--device", "cuda"],
            "`--torch-version` is for predictions (`--gpu`): what is measured has the torch that runs",
        ),
        (
            ["--gpu", "mi300x"],
            "AMD Instinct MI300X is not a CUDA GPU; predictions are CUDA-only",
        ),
        (
            ["--gpu", "gh200-144gb"],
            "the memory of NVIDIA GH200 144G HBM3e as PyTorch sees it is not known",
        ),
        (
            ["--gpu", "1GiB", "--context-memory", "1GiB"],
            "`--context-memory` of 1.0 GiB leaves nothing of the 1.0 GiB of generic 1.0 GiB GPU",
        ),
    ],
)
def test_devices_that_cannot_be(options: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        settings_of(["run", "a:b", "--input-shape", "3", *options])
    assert error.value.message == message


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rtx-4091", ["`rtx-4091` is not a GPU that bsfind knows", "did you mean `rtx-4090`"]),
        ("3080", ["`3080` can be several GPUs", "`rtx-3080-10gb` or `rtx-3080-12gb`"]),
        ("24G", ["`24G` is ambiguous"]),
    ],
)
def test_a_gpu_that_nobody_knows(name: str, said: list[str]) -> None:
    outcome = command_line("run", "a:b", "--input-shape", "3", "--gpu", name)
    assert (outcome.code, outcome.options, outcome.stdout) == (2, None, "")
    assert outcome.stderr.startswith("error: ")
    for text in said:
        assert text in outcome.stderr


def test_a_target_that_is_no_import_path() -> None:
    outcome = command_line("run", "pkg.models.Net")
    assert outcome.code == 2
    assert "write it like `pkg.models:Net`" in outcome.stderr


def test_what_was_given_is_told_from_what_is_at_its_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BSFIND_MULTIPLE_OF", "1")
    found = settings_of(["run", "a:b", "--input-shape", "3", "--optimizer", "adamw"])
    assert {"optimizer", "multiple_of", "input_shape"} <= found.given
    assert not {"loss", "gpu", "headroom"} & found.given
    assert found == settings_of(["run", "a:b", "--input-shape", "3"])  # the answer is the same
