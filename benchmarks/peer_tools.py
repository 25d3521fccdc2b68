"""One finder on one model, in this process: `python -m benchmarks.peer_tools TOOL MODEL PRECISION FILE`.

Writes what the finder answered, and every trial that it made, to FILE. Each of them trains the same step
(see training.py) with the settings that its documentation starts from. What the finders do is
observed from the outside, in the step itself: the batch sizes that ran, and how many steps they lasted.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import sys
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["STEPS", "TOOLS", "Answer", "Tool"]

STEPS = 3
"""Of a trial: bsfind's default, and Lightning's."""

_LARGE_START = 4096


@dataclass
class Trial:
    """One attempt of a finder at a batch size: it ran if it lasted `STEPS` steps.

    Attributes:
        batch_size: samples.
        steps: that were completed.
        status: `ok`, `oom` or, where the optimizer never ran, `probe`.
        is_extra: made for more than the size: bsfind times smaller sizes and may try
            expandable segments.
    """

    batch_size: int
    steps: int = 0
    status: str = "oom"
    is_extra: bool = False


@dataclass
class Answer:
    """What a finder answered, and how it got there.

    Attributes:
        batch_size: the result; None: it gave none.
        recommended: the size that bsfind recommends, with its headroom.
        trials: in order.
        error: what it ended with instead.
    """

    batch_size: int | None = None
    recommended: int | None = None
    trials: list[Trial] = field(default_factory=list)
    error: str | None = None

    def begin(self, batch_size: int) -> None:
        """Note that a trial begins."""
        self.trials.append(Trial(batch_size))

    def step(self) -> None:
        """Note that a step of it is complete."""
        trial = self.trials[-1]
        trial.steps += 1
        if trial.steps >= STEPS:
            trial.status = "ok"


@dataclass(frozen=True)
class Tool:
    """A finder.

    Attributes:
        label: in the table.
        package: that it comes from; None: this one.
        run: makes it search on a model of zoo.py, in a precision.
        suits: whether it can take a model, by the model's inputs.
    """

    label: str
    package: str | None
    run: Callable[[str, str, Answer], None]
    suits: Callable[[tuple[str, ...]], bool] = lambda inputs: True

    @property
    def version(self) -> str:
        """Of the package."""
        return importlib.metadata.version(self.package or "bsfind")


def _bsfind(model: str, precision: str, answer: Answer) -> None:
    """Run `bsfind run` as it comes; every request for a trial on the GPU counts, confirmations too."""
    from benchmarks.workloads import workload_of

    from bsfind.cli.main import main
    from bsfind.option_fields import arguments_of
    from bsfind.search.precision import PrecisionSearch
    from bsfind.settings import DeviceChoice, Settings
    from bsfind.worker.client import TrialAnswer, Worker

    on_gpu: weakref.WeakSet[Worker] = weakref.WeakSet()  # the others predict
    opening, running = Worker.open, Worker.run_trial
    looking = PrecisionSearch.look_at_fragmentation
    is_looking = False

    def opened(self: Worker, choice: DeviceChoice, timeout_s: float) -> Any:
        if not choice.is_simulated:
            on_gpu.add(self)
        return opening(self, choice, timeout_s)

    def ran(self: Worker, batch_size: int, *args: Any, **kwargs: Any) -> TrialAnswer:
        done = running(self, batch_size, *args, **kwargs)
        if self in on_gpu:
            trial = Trial(batch_size, done.trial.steps, done.trial.status, is_extra=is_looking)
            answer.trials.append(trial)
        return done

    def looked(self: PrecisionSearch) -> None:
        nonlocal is_looking
        is_looking = True
        looking(self)
        is_looking = False

    Worker.open, Worker.run_trial = opened, ran  # type: ignore[method-assign]
    PrecisionSearch.look_at_fragmentation = looked  # type: ignore[method-assign]
    settings = Settings(
        workload=workload_of(model),
        precisions=(precision,),
        device=DeviceChoice(device="cuda"),
    )
    output = io.StringIO()
    sys.argv[1:] = [*arguments_of(settings), "--json"]
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        main()
    result = json.loads(output.getvalue())["results"][0]
    answer.batch_size = result["max_batch_size"]
    answer.recommended = result["recommended_batch_size"]
    answer.error = result["message"] if result["status"] != "ok" else None
    timed = {trial["batch_size"] for trial in result["timings"]}
    timed -= {trial["batch_size"] for trial in result["trials"]}
    for trial in answer.trials:
        trial.is_extra |= trial.batch_size in timed


def _lightning(mode: str) -> Callable[[str, str, Answer], None]:
    def run(model: str, precision: str, answer: Answer) -> None:
        import pytorch_lightning as pl
        import torch
        from benchmarks.training import load
        from benchmarks.workloads import workload_of
        from pytorch_lightning.tuner import Tuner

        loaded = load(workload_of(model), precision)
        loss = loaded.make_loss()

        class Samples(torch.utils.data.Dataset[int]):
            """Batches are made on the GPU, where the step wants them: here they are counted."""

            def __len__(self) -> int:
                return 1 << 30

            def __getitems__(self, indices: list[int]) -> int:
                return len(indices)

        class Module(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.model = loaded.model
                self.batch_size = 2  # as `init_val`: the finder's first trial runs what is set here
                self.is_new = False

            def train_dataloader(self) -> Any:
                return torch.utils.data.DataLoader(
                    Samples(), batch_size=self.batch_size, collate_fn=lambda count: count
                )

            def transfer_batch_to_device(self, batch: int, device: Any, dataloader_idx: int) -> Any:
                return batch, loaded.make_batch(batch)

            def configure_optimizers(self) -> Any:
                return loaded.make_optimizers()[0]

            def on_train_start(self) -> None:
                self.is_new = True

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                if self.is_new:
                    self.is_new = False
                    answer.begin(batch[0])
                loss.make_targets()
                value = loaded.loss_of(batch[1], loss)
                loss.release_targets()
                return value

            def on_train_batch_end(self, *_: Any) -> None:
                torch.cuda.synchronize()
                answer.step()

        with tempfile.TemporaryDirectory() as folder:
            trainer = pl.Trainer(
                accelerator="gpu",
                devices=1,
                precision={"fp32": "32-true", "amp-fp16": "16-mixed"}[precision],
                default_root_dir=folder,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            answer.batch_size = Tuner(trainer).scale_batch_size(Module(), mode=mode)

    return run


def _training(model: str, precision: str, answer: Answer) -> Callable[[int], int]:
    """Return the user's function that accelerate and toma call again and again: build and train."""
    from benchmarks.training import load, train
    from benchmarks.workloads import workload_of

    workload = workload_of(model)

    def function(batch_size: int) -> int:
        answer.begin(batch_size)
        train(load(workload, precision), batch_size, STEPS, answer.step)
        return batch_size

    return function


def _accelerate(start: int | None) -> Callable[[str, str, Answer], None]:
    def run(model: str, precision: str, answer: Answer) -> None:
        from accelerate.utils import find_executable_batch_size

        options = {} if start is None else {"starting_batch_size": start}
        function = _training(model, precision, answer)
        answer.batch_size = find_executable_batch_size(function, **options)()

    return run


def _toma(model: str, precision: str, answer: Answer) -> None:
    import toma

    function = _training(model, precision, answer)
    answer.batch_size = toma.simple.batch(function, _LARGE_START)


def _ultralytics(model: str, precision: str, answer: Answer) -> None:
    from benchmarks.training import load
    from benchmarks.workloads import workload_of
    from ultralytics.utils.autobatch import check_train_batch_size

    workload = workload_of(model)
    loaded = load(workload, precision)
    loaded.model.yaml = {"channels": 3}  # it asks YOLO models for that

    def before(_: Any, inputs: Any) -> None:
        if not answer.trials or answer.trials[-1].batch_size != len(inputs[0]):
            answer.begin(len(inputs[0]))
        # Forward and backward once, no optimizer: a probe, not a trial of the step.

    loaded.model.register_forward_pre_hook(before)
    side = workload.inputs[0].shape[-1]
    answer.batch_size = check_train_batch_size(
        loaded.model, imgsz=side, amp=precision == "amp-fp16", max_num_obj=0
    )
    for trial in answer.trials:
        trial.status = "probe"


def _takes_images(inputs: tuple[str, ...]) -> bool:
    """Tell whether a model takes square RGB images, as YOLO does."""
    sizes = inputs[1].split(",")
    return inputs[0] == "--input-shape" and sizes[0] == "3" and sizes[1:2] == sizes[2:3]


TOOLS: dict[str, Tool] = {
    "bsfind": Tool("bsfind", None, _bsfind),
    "lightning-power": Tool("Lightning, power", "pytorch-lightning", _lightning("power")),
    "lightning-binsearch": Tool(
        "Lightning, binsearch", "pytorch-lightning", _lightning("binsearch")
    ),
    "accelerate": Tool("accelerate, start 128", "accelerate", _accelerate(None)),
    "accelerate-large": Tool(
        f"accelerate, start {_LARGE_START}", "accelerate", _accelerate(_LARGE_START)
    ),
    "toma": Tool(f"toma, start {_LARGE_START}", "toma", _toma),
    "ultralytics": Tool("Ultralytics autobatch", "ultralytics", _ultralytics, _takes_images),
}


def main() -> None:
    """Run one tool and write its answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("model")
    parser.add_argument("precision")
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    answer = Answer()
    try:
        TOOLS[arguments.tool].run(arguments.model, arguments.precision, answer)
    except Exception as error:
        answer.error = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    arguments.file.write_text(json.dumps(asdict(answer)))


if __name__ == "__main__":
    main()
