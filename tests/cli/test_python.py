"""`bsfind.find` in programs of their own: scripts, modules, a prompt; on a machine without a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests.exhaustive import exhaustive

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "tests" / "models"

# A model of the script's own, which is `__main__` there and is not in the worker.
SCRIPT = """
    import bsfind
    from torch import nn

    class Net(nn.Linear):
        def __init__(self, width=8):
            super().__init__(3, width)

    def loss(output):
        return output.square().sum()

    if __name__ == "__main__":
        report = bsfind.check({model}, (3,), batch_size=4, gpu="a10g", precision="fp32", loss=loss)
        assert report.fits, report
        assert report.simulated
        print(report.model.parameters, [w.code for w in report.warnings])
"""


IN_A_REMOVED_FOLDER = """
    import os, tempfile
    import bsfind

    if __name__ == "__main__":
        os.chdir(tempfile.mkdtemp())
        os.rmdir(os.getcwd())
        asked = {"batch_size": 4, "gpu": "a10g", "mode": "infer", "precision": "fp32"}
        report = bsfind.check("torch.nn:Identity", (3,), **asked)
        assert report.fits, report
        try:
            bsfind.check("net.py:Net", (3,), **asked)
        except bsfind.BsfindError as error:
            print(error.message)
"""


def python(*arguments: str, folder: Path, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        check=False,
        capture_output=True,
        input=textwrap.dedent(text),
        text=True,
        timeout=120,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(textwrap.dedent(text))
    return file


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("Net", "32 []\n"),
        exhaustive("Net(width=4)", "16 ['not_reproducible']\n"),
        ("nn.Sequential(Net(), nn.Linear(8, 1))", "41 ['not_reproducible']\n"),
    ],
)
def test_a_model_of_the_script_that_runs(model: str, said: str, tmp_path: Path) -> None:
    script = write(tmp_path, "train.py", SCRIPT.format(model=model))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = python(str(script), folder=elsewhere)
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")


def test_a_module_that_is_run_by_its_name(tmp_path: Path) -> None:
    write(tmp_path, "pkg/__init__.py", "")
    write(tmp_path, "pkg/parts.py", "width = 8\n")
    write(
        tmp_path,
        "pkg/train.py",
        f"from .parts import width\n{textwrap.dedent(SCRIPT)}".format(model="Net"),
    )
    done = python("-m", "pkg.train", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "32 []\n", "")


def test_a_script_that_starts_a_search_wherever_it_is_imported(tmp_path: Path) -> None:
    """The worker imports it, and must not start a search, which would start a worker, …"""
    text = textwrap.dedent(SCRIPT).format(model="Net").replace('__name__ == "__main__"', "True")
    blocked = "import sys; sys.modules['cloudpickle'] = None\n"
    script = write(tmp_path, "train.py", blocked + text)
    done = python(str(script), folder=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "UsageError: a search was started by the module" in done.stderr
    pytest.importorskip("cloudpickle")  # then the worker need not import it
    script = write(tmp_path, "train.py", text)
    done = python(str(script), folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "32 ['not_reproducible']\n", "")


@pytest.mark.parametrize("model", ["Net()", exhaustive("Net")])
def test_at_the_prompt_only_cloudpickle_passes_a_model_on(model: str, tmp_path: Path) -> None:
    blocked = "import sys; sys.modules['cloudpickle'] = None\n" + textwrap.dedent(SCRIPT)
    done = python("-", folder=tmp_path, text=blocked.format(model=model))
    assert done.returncode == 1
    assert "bsfind[notebook]" in done.stderr


def test_at_the_prompt_a_model_has_no_file(tmp_path: Path) -> None:
    pytest.importorskip("cloudpickle")
    done = python("-", folder=tmp_path, text=SCRIPT.format(model="Net"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "32 ['not_reproducible']\n", "")


# A program that starts a search wherever it runs, with a variable that is the CPU on this machine.
WITH_DEVICE = """
    import bsfind, torch
    from torch import nn

    {device}

    class Net(nn.Linear):
        def __init__(self):
            super().__init__(512, 512)

    def step(model, x):
        model.to(device)
        return model(x.to(device) + torch.arange(512, device=device)).mean()

    asked = {{"batch_size": 4096, "gpu": "a10g", "precision": "fp32"}}
    report = bsfind.check(Net, (512,), step=step, **asked)
    peak = report.results[0].trials[0].peak_allocated_bytes
    print(device, peak > 4 * 4096 * 512 * 4, [w.code for w in report.warnings])
"""


@pytest.mark.parametrize(
    "device",
    [
        'device = "cuda" if torch.cuda.is_available() else "cpu"',
        exhaustive(
            'device = torch.device("cpu")\n    if torch.cuda.is_available(): device = torch.device("cuda:0")'
        ),
    ],
)
def test_a_variable_that_depends_on_the_gpu_is_asked_again(device: str, tmp_path: Path) -> None:
    pytest.importorskip("cloudpickle")
    script = write(tmp_path, "train.py", WITH_DEVICE.format(device=device))
    done = python(str(script), folder=tmp_path)
    assert (done.stdout, done.stderr) == ("cpu True ['not_reproducible']\n", "")


def test_a_step_on_the_cpu_is_refused_and_its_variable_named(tmp_path: Path) -> None:
    pytest.importorskip("cloudpickle")
    script = write(tmp_path, "train.py", WITH_DEVICE.format(device='device = "cpu"'))
    done = python(str(script), folder=tmp_path)
    assert "TargetError: the step moved the model to the CPU and trained it there" in done.stderr
    assert "hint: `device`: not on the GPU that is predicted" in done.stderr


# Two cells: the second refers to the first, and its function has a mistake.
CELLS = """
    import bsfind, torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.layer = nn.Linear(config.width, config.width)
        def forward(self, x):
            return self.layer(x)
    # cell
    import types
    name = data = "a variable"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps = 0
    def step(model, x):
        global steps
        steps += 1
        assert isinstance(model, Net) and name == data and x.to(device) is x
        assert steps < 4  # of one trial
        if hasattr(model, "good"):
            return model(x).sum()
        return model(x).view(-1, 5).sum()
    def search(**options):
        config = types.SimpleNamespace(width=8)
        asked = {"batch_size": 4, "gpu": "a10g", "precision": "fp32", "model_arg": {"config": config}}
        return bsfind.check(Net, (8,), **asked, **options)
    class Good(Net):
        good = True
    report = bsfind.find(
        lambda: Good(types.SimpleNamespace(width=4096)), (4096,), step=step, gpu="4GiB", precision="fp32",
        confirm_steps=3,
    )
    report
    # cell
    search(step=step)
"""


def test_a_mistake_in_what_the_prompt_defines(tmp_path: Path) -> None:
    pytest.importorskip("cloudpickle")
    # What was typed at the prompt is not known: `device` stays what it was.
    cells = CELLS.replace("report\n    #", "print(report)\n    #").replace(
        "is x\n", "is not None\n"
    )
    done = python("-", folder=tmp_path, text=cells)
    assert "<bsfind.Report (complete, predicted): Train with" in done.stdout
    # The line of the mistake in the text that Python reads from its input.
    line = 1 + textwrap.dedent(CELLS).splitlines().index("    return model(x).view(-1, 5).sum()")
    assert "shape '[-1, 5]' is invalid for input of size 32" in done.stderr
    assert f"in stdin:{line}, batch size 4 in fp32" in done.stderr


def test_the_cells_of_a_notebook(tmp_path: Path) -> None:
    nbformat, nbclient = (pytest.importorskip(name) for name in ("nbformat", "nbclient"))
    pytest.importorskip("ipykernel")
    cells = textwrap.dedent(CELLS).split("# cell\n")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, allow_errors=True, kernel_name="python3").execute()
    _, second, third = (cell.outputs for cell in notebook.cells)
    assert [output.output_type for output in second] == ["display_data", "execute_result"]
    assert second[0].data == {"text/plain": ""}  # the line is gone
    assert second[1].data["text/html"].startswith("<div>\n<p><strong>bsfind</strong> · Good")
    shown, error = third
    assert (shown.output_type, error.ename) == ("display_data", "TargetError")
    assert "in Cell In[2]:12, batch size 4 in fp32" in error.evalue
    assert "return model(x).view(-1, 5).sum()" in "".join(error.traceback)


def test_the_code_of_the_documentation(tmp_path: Path) -> None:
    pytest.importorskip("cloudpickle")
    page = (ROOT / "docs" / "notebooks.md").read_text()
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    assert "bsfind.find" in code
    done = python("-", folder=tmp_path, text=code)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_search_says_nothing_and_tells_each_trial(tmp_path: Path) -> None:
    done = python(
        "-",
        folder=tmp_path,
        text=f"""
            import sys
            sys.path.insert(0, {str(MODELS)!r})
            import bsfind, well_behaved

            seen = []
            report = bsfind.find(
                well_behaved.ConvNet,
                (3, 32, 32),
                gpu="2GiB",
                precision=["fp32", "amp"],
                on_trial=lambda precision, trial: seen.append((precision, trial)),
            )
            assert [r.precision for r in report.results] == ["fp32", "amp-bf16"]
            for result in report.results:
                assert [t for p, t in seen if p == result.precision][:2] == list(result.trials)[:2]
                assert result.recommended_batch_size < result.max_batch_size
            assert report.batch_size == report.results[1].recommended_batch_size
            assert report.status == "complete"
            print("done")
        """,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("find('a:b', (3,))", "NoGpuError: no usable GPU was found"),
        ("find('nowhere:Net', (3,), gpu='a10g')", "TargetError: cannot import `nowhere`"),
        (
            "find('well_behaved:ConvNet', (4, 32, 32), app_dir=MODELS, gpu='a10g', precision='fp32')",
            "TargetError: `RuntimeError: Given groups=1, weight of size [32, 3, 3, 3], expected "
            "input[5, 4, 32, 32] to have 3 channels, but got 4 channels instead` in well_behaved.py:22",
        ),
        ("find('a:b', (3,), gpu='rtx-4091')", "UsageError: "),
    ],
)
def test_errors_are_those_of_bsfind(call: str, said: str, tmp_path: Path) -> None:
    text = f"import bsfind\nMODELS = {str(MODELS)!r}\nbsfind.{call}"
    done = python("-c", text, folder=tmp_path)
    assert done.returncode == 1
    assert f"bsfind.errors.{said}" in done.stderr
    if sys.version_info >= (3, 11):
        assert "\nhint: " in done.stderr
    assert done.stdout == ""


def test_a_precision_that_fails_is_in_the_report(tmp_path: Path) -> None:
    write(
        tmp_path,
        "net.py",
        """
        import torch
        from torch import nn

        class Net(nn.Linear):
            def forward(self, x):
                if torch.is_autocast_enabled("cuda"):
                    raise ValueError("not in autocast")
                return super().forward(x)
        """,
    )
    text = (
        "import bsfind\n"
        "r = bsfind.check('net:Net', (3,), model_arg={'in_features': 3, 'out_features': 3},\n"
        "                 batch_size=4, gpu='a10g')\n"
        "print(r.fits, [result.status for result in r.results])\n"
    )
    done = python("-c", text, folder=tmp_path)
    # The answer is that of the precision that gave one, as on the command line.
    assert (done.returncode, done.stdout) == (0, "True ['ok', 'error']\n"), done.stderr


def test_typer_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by the program nor by the worker: both find a `typer` that cannot be imported."""
    blocked = "import sys; sys.modules.update(typer=None, click=None)\n"
    write(tmp_path, "sitecustomize.py", blocked)
    write(
        tmp_path,
        "net.py",
        """
        import sys
        from torch import nn

        assert sys.modules["typer"] is None

        class Net(nn.Linear):
            pass
        """,
    )
    paths = [str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    text = (
        "import bsfind, sys\n"
        "assert sys.modules['typer'] is None\n"
        "r = bsfind.find('net:Net', (3,), model_arg={'in_features': 3, 'out_features': 3},\n"
        "                gpu='2GiB', max_batch_size=8, precision='fp32')\n"
        "print(r.batch_size)\n"
    )
    done = python("-c", text, folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "8\n"), done.stderr


def test_in_a_folder_that_was_removed(tmp_path: Path) -> None:
    script = tmp_path / "search.py"
    script.write_text(textwrap.dedent(IN_A_REMOVED_FOLDER))
    done = python(str(script), folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "there is no file `net.py`\n"), done.stderr
