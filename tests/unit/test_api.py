"""`bsfind.find` and `bsfind.check`: what they take, and what they make of it before anything runs."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from command_line import settings_of
from example_report import example_report, predicted_report
from torch import nn

import bsfind
from bsfind import api
from bsfind.cli.options import options_of
from bsfind.records import ReportWarning
from bsfind.results import PrecisionResult, Report
from bsfind.settings import Settings

ROOT = Path(__file__).parents[2]
OF_THE_TERMINAL = {
    *("json", "quiet", "export", "verbose", "no_progress", "color", "profile"),
    *("plot", "github", "fail_under"),
}


def test_importing_bsfind_imports_nothing_else() -> None:
    code = (
        "import bsfind, sys; print([m for m in sys.modules if m.startswith(('bsfind.', 'torch'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_finding_imports_no_torch() -> None:
    code = "import bsfind, sys; bsfind.find, bsfind.Report; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_every_public_name_is_there() -> None:
    for name in bsfind.__all__:
        assert getattr(bsfind, name) is not None
    assert set(bsfind.__all__) <= set(dir(bsfind))
    with pytest.raises(AttributeError, match="has no attribute 'found'"):
        bsfind.found  # noqa: B018


@pytest.mark.parametrize(("function", "command"), [(bsfind.find, "run"), (bsfind.check, "check")])
def test_the_arguments_are_the_options(function: Callable[..., Any], command: str) -> None:
    """The same names and defaults, so that a command line can be read as a call."""
    ours = dict(inspect.signature(function).parameters)
    theirs = {option.name: option for option in options_of(command)}
    left_out = OF_THE_TERMINAL | {"input", "input_shape"}
    assert set(theirs) - set(ours) == left_out & set(theirs)
    assert set(ours) - set(theirs) == {"model", "inputs", "on_trial", "progress"}
    for name in set(ours) & set(theirs):
        expected = None if name == "app_dir" else theirs[name].default
        assert ours[name].default == expected, name
        described = (function.__doc__ or "") + (bsfind.find.__doc__ or "")
        assert f"\n        {name}: " in described, name


def settings_for(function: Callable[..., Any], *args: Any, **keywords: Any) -> Settings:
    """Return the settings with which a search would begin."""
    seen: list[Settings] = []

    class Stop(Exception):  # noqa: N818
        pass

    def finder(settings: Settings, **_: Any) -> None:
        seen.append(settings)
        raise Stop

    with mock.patch.object(api, "Finder", finder), pytest.raises(Stop):
        function(*args, **keywords)
    return seen[0]


@pytest.mark.parametrize(
    ("keywords", "argv"),
    [
        ({}, ()),
        ({"precision": ("fp32", "amp-fp16")}, ("--precision", "fp32,amp-fp16")),
        ({"precision": "bf16"}, ("--precision", "bf16")),
        ({"memory_limit": 8 << 30}, ("--memory-limit", "8GiB")),
        ({"memory_limit": "8GiB"}, ("--memory-limit", "8GiB")),
        ({"headroom": 1 << 30, "tolerance": 0}, ("--headroom", "1GiB", "--tolerance", "0")),
        ({"headroom": "8%", "tolerance": 0.01}, ("--headroom", "8%", "--tolerance", "1%")),
        ({"tolerance": 1e-5, "steps": "4"}, ("--tolerance", "0.001%", "--steps", "4")),
        ({"gpu": "RTX 4090"}, ("--gpu", "rtx-4090")),
        (
            {"gpu": "RTX 4090", "torch_version": "2.9"},
            ("--gpu", "rtx-4090", "--torch-version", "2.9"),
        ),
        ({"gpu": 24 << 30, "context_memory": 0}, ("--gpu", "24GiB", "--context-memory", "0")),
        (
            {"trial_timeout": 90, "time_budget": "5m"},
            ("--trial-timeout", "90s", "--time-budget", "5m"),
        ),
        ({"grad_checkpoint": True, "compile": False}, ("--grad-checkpoint",)),
        ({"mode": "infer", "multiple_of": 8}, ("--mode", "infer", "--multiple-of", "8")),
        (
            {"objective": "fastest", "max_batch_size": 64},
            ("--objective", "fastest", "--max-batch-size", "64"),
        ),
        ({"compare": ["sgd", "compile"]}, ("--compare", "sgd,compile")),
        ({"global_batch": 512, "world_size": 2}, ("--global-batch", "512", "--world-size", "2")),
        (
            {"model_arg": {"width": 3, "name": "x", "flag": True, "shape": (1, 2), "none": None}},
            (
                "--model-arg",
                "width=3",
                "--model-arg",
                "name=x",
                "--model-arg",
                "flag=True",
                "--model-arg",
                "shape=(1, 2)",
                "--model-arg",
                "none=None",
            ),
        ),
        ({"model_arg": {"digits": "3"}}, ("--model-arg", "digits='3'")),
        (
            {"model_arg": {"config": "pkg.configs:small()"}},
            ("--model-arg", "config=pkg.configs:small()"),
        ),
        (
            {"optimizer": torch.optim.SGD, "optimizer_arg": {"lr": 0.1}},
            ("--optimizer", "SGD", "--optimizer-arg", "lr=0.1"),
        ),
        ({"loss": nn.CrossEntropyLoss()}, ("--loss", "cross-entropy")),
        ({"loss": nn.functional.mse_loss}, ("--loss", "mse")),
        ({"loss": "mse", "app_dir": "src"}, ("--loss", "mse", "--app-dir", "src")),
    ],
    ids=lambda case: str(case).partition(" at 0x")[
        0
    ],  # a function's address is another one each time
)
def test_values_are_read_as_on_the_command_line(
    keywords: dict[str, Any], argv: tuple[str, ...]
) -> None:
    found = settings_for(bsfind.find, "a:b", (3, 4), **keywords)
    assert found == settings_of(["run", "a:b", "--input-shape", "3,4", *argv])


def test_what_was_passed_is_told_from_what_is_at_its_default() -> None:
    found = settings_for(bsfind.find, "a:b", (3, 4), optimizer="adamw", gpu=None)
    assert "optimizer" in found.given
    assert not {"loss", "gpu"} & found.given
    (spec,) = found.workload.inputs
    assert spec.assumed == {"dtype"}
    example = settings_for(bsfind.find, "a:b", torch.zeros(3, 4)).workload.inputs[0]
    assert example.assumed == frozenset()


def test_a_keyword_that_there_is_not() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'hedroom'"):
        bsfind.find("a:b", (3, 4), hedroom="1%")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'headroom'"):
        bsfind.check("a:b", (3, 4), batch_size=4, headroom="1%")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="argument: 'batch_size'"):
        bsfind.check("a:b", (3, 4))  # type: ignore[call-arg]


def test_check_is_a_check() -> None:
    found = settings_for(bsfind.check, "a:b", (3, 4), batch_size=8)
    assert found == settings_of(["check", "a:b", "--input-shape", "3,4", "-b", "8"])


def test_neither_environment_nor_files_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.bsfind]\nsteps = 9")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BSFIND_MAX_BATCH_SIZE", "7")
    found = settings_for(bsfind.find, "a:b", (3, 4))
    monkeypatch.delenv("BSFIND_MAX_BATCH_SIZE")
    (tmp_path / "pyproject.toml").unlink()
    assert found == settings_of(["run", "a:b", "--input-shape", "3,4"])


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"precision": ("fp32", "fp8")}, "`precision`: `fp8` is not a precision"),
        ({"memory_limit": "8G"}, "`memory_limit`: "),
        ({"headroom": 0.05}, "write `5%`"),
        ({"steps": 0}, "`steps`: `0` is not an integer from 1 to 1,000,000"),
        ({"steps": "many"}, "`steps`: `many` is not an integer"),
        ({"steps": True}, "`steps`: `True` is not an integer"),
        ({"model_arg": {1: 1}}, "`model_arg`: `1` is not a name of an argument"),
        ({"model_arg": {"a=b": 1}}, "`model_arg`: `a=b` is not a name of an argument"),
        ({"model_arg": "a=1"}, "`model_arg` is a `str`, not a mapping"),
        pytest.param(
            {"model_arg": {"a": functools.reduce(lambda inner, _: [inner], range(5000))}},
            "`model_arg` has a `list` for `a`",
            id="nested too deep",
        ),
        ({"precision": 5}, "`precision`: `5` is neither a text nor several"),
        ({"precision": ["fp32", 16]}, "`precision`: `['fp32', 16]` is neither a text nor several"),
        ({"mode": 5}, "`mode`: `5` is not a text"),
        ({"device": 0}, "`device`: `0` is not a text"),
        ({"app_dir": 5}, "`app_dir`: `5` is not a text"),
        ({"gpu": True}, "`gpu`: `True` is not a GPU that bsfind knows"),
        ({"on_trial": "print"}, "`on_trial` is a `str`, not a function"),
        ({"steps": 2.5}, "`steps`: `2.5` is not an integer"),
        ({"memory_limit": -1}, "`memory_limit`: `-1` is not a size"),
        ({"time_budget": 0}, "`time_budget`: `0` is not a duration from 1ms to 8760h"),
        ({"tolerance": 5}, "`tolerance`: `5` is not a fraction from 0 to less than 100%"),
        ({"no_lock": 1}, "`no_lock`: `1` is neither true nor false"),
        ({"model_arg": {"a b": 1}}, "`model_arg`: `a b` is not a name of an argument"),
        ({"objective": "best"}, "`objective`: `best` is not one of largest, fastest"),
        ({"compile": "yes"}, "`compile`: `yes` is neither true nor false"),
        ({"gpu": "rtx-4091"}, "is not a GPU that bsfind knows"),
        ({"gpu": "a10g", "device": "cuda"}, "`--gpu` names a simulated GPU"),
        ({"loss": "bce"}, "`loss`: `bce` is not one of auto"),
        ({"model_arg": {"norm": nn.ReLU()}}, "`model_arg` has a `ReLU` for `norm`"),
        ({"loss": 3}, "`loss` is a `int`, not a function"),
        ({"batch_fn": "a:b"}, "`--batch-fn` cannot be combined with"),
    ],
    ids=str,
)
def test_refused_arguments(keywords: dict[str, Any], said: str) -> None:
    with pytest.raises(bsfind.BsfindError) as raised:
        bsfind.find("a:b", (3, 4), **keywords)
    assert isinstance(raised.value, bsfind.UsageError)
    assert said in raised.value.message + raised.value.hint


def test_without_a_folder_for_temporary_files() -> None:
    with (
        mock.patch.object(tempfile, "tempdir", "/nowhere"),
        pytest.raises(bsfind.UsageError, match="no folder for temporary files"),
    ):
        bsfind.find("a:b", (3,))


# --------------------------------------------------------------------------------------- report


def test_the_report_of_a_program_has_what_the_report_has() -> None:
    plain = example_report()
    report = bsfind.Report.of(plain)
    assert report.to_json() == plain.to_json()
    for field in fields(Report):
        assert getattr(report, field.name) == getattr(plain, field.name)
    assert plain.recommendation is not None
    assert report.batch_size == plain.recommendation.batch_size
    assert "| precision | max batch |" in report.to_markdown()
    assert bsfind.Report.from_json(plain.to_json()).batch_size == report.batch_size
    assert "Train with batch size" in repr(report)
    assert bsfind.Report.of(predicted_report()).simulated
    assert "predicted" in repr(bsfind.Report.of(predicted_report()))


def test_fits_is_whether_every_precision_that_there_is_has_an_answer() -> None:
    report = bsfind.Report.of(example_report())
    fp32 = report.results[0]
    unsupported = PrecisionResult(precision="bf16", status="unsupported")
    no = PrecisionResult(precision="amp", status="nothing_fits")
    for results, fits in (
        ((fp32,), True),
        ((fp32, unsupported), True),
        ((fp32, no), False),
        ((unsupported,), False),
        ((), False),
    ):
        assert dataclasses.replace(report, results=results).fits is fits


def test_a_notebook_shows_the_table(golden: Callable[[str, str], None]) -> None:
    golden("report.html", bsfind.Report.of(example_report())._repr_html_() + "\n")


class _Tags(HTMLParser):
    """Collects the tags that are open, and the text; fails where they do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_escapes_what_the_user_named() -> None:
    report = example_report()
    evil = "<script>alert('&amp;')</script>"
    warning = ReportWarning(code="x", message=evil)
    report = dataclasses.replace(
        report,
        workload={**report.workload, "target": evil},
        status="partial",
        message=evil,
        warnings=(warning,),
        results=(dataclasses.replace(report.results[0], remedy=evil), *report.results),
    )
    tags = _Tags()
    tags.feed(bsfind.Report.of(report)._repr_html_())
    assert tags.open == []
    assert "script" not in tags.seen
    assert tags.text.count(evil) >= 4


def test_a_plot_is_shown_and_saved(tmp_path: Path) -> None:
    plot = bsfind.Report.of(example_report()).plot()
    assert plot._repr_svg_().startswith("<svg")
    plot.save(tmp_path / "memory.svg")
    assert (tmp_path / "memory.svg").read_text(encoding="utf-8") == plot._repr_svg_()
    with pytest.raises(bsfind.UsageError, match=r"end it in \.svg or \.png"):
        plot.save(tmp_path / "memory.json")
