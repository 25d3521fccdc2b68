"""LightningModules as Lightning's docs write them, on the CPU, with a stand-in for the library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.models.libraries.lightning import LightningDataModule, LightningModule
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, TensorDataset

from bsfind.errors import BsfindError, TargetError, UsageError
from bsfind.inputs import parse_input, parse_input_shape
from bsfind.settings import Workload
from bsfind.workload.precision import precision_plan
from bsfind.workload.state import DeviceValues, State
from bsfind.workload.step import LoadedWorkload, TrainingSteps

X, Y = parse_input_shape("8"), parse_input_shape(":int64:0..3")
NAMED = (parse_input("x=8"), parse_input("y=:int64:0..3"))
SGD = torch.optim.SGD


class Net(LightningModule):
    """Classifies; its `training_step` is a function that each test gives it."""

    def __init__(self, step: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.net = nn.Linear(8, 3)
        if step is not None:
            self.training_step = step.__get__(self)

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return self.loss(x, y)

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.1)


class Rows(LightningDataModule):
    """The only data module of this file: three samples, of dicts."""

    def setup(self, stage: str) -> None:
        self.rows = [{"x": torch.ones(8), "y": torch.tensor(i)} for i in range(3)]

    def train_dataloader(self) -> Any:
        return DataLoader(self.rows, batch_size=2)  # type: ignore[arg-type]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[..., LoadedWorkload]:
    def load(module: nn.Module, *inputs: Any, **changes: Any) -> LoadedWorkload:
        monkeypatch.setattr("bsfind.workload.step.build_model", lambda *_: module)
        workload = Workload(target=f"{__name__}:Net", inputs=inputs, **changes)
        return LoadedWorkload(workload, precision_plan("fp32"), torch.device("cpu"))

    return load


def train(loaded: LoadedWorkload, steps: int = 1, batch_size: int = 3) -> TrainingSteps:
    """Run a trial as the devices do."""
    loaded.name_optimizers()
    fresh = State(loaded.model, DeviceValues(loaded.device))
    loaded.try_labels(batch_size)
    assert fresh.restore()
    runner = TrainingSteps(loaded, lambda: None)
    while runner.wants_more(steps):
        runner.run(batch_size)
    runner.check_completed()
    return runner


# ----------------------------------------------------------------------------------- the batch


def takes_a_sequence(self: Any, batch: Any, batch_idx: int) -> Any:
    x, y = batch
    return self.loss(x, y)


def takes_items(self: Any, batch: Any) -> Any:
    return self.loss(batch[0], batch[1])


def takes_names(self: Any, batch: Any) -> Any:
    return self.loss(batch["x"], batch["y"])


def takes_all(self: Any, batch: Any) -> Any:
    return self.net(batch).mean()


@pytest.mark.parametrize(
    ("step", "inputs"),
    [
        (takes_a_sequence, (X, Y)),
        (takes_a_sequence, NAMED),
        (takes_items, (X, Y)),
        (takes_names, NAMED),
        (takes_all, (X,)),
    ],
)
def test_a_batch_is_what_training_step_takes(load: Any, step: Any, inputs: Any) -> None:
    assert train(load(Net(step), *inputs)).completed == 1


@pytest.mark.parametrize(
    ("step", "inputs", "said"),
    [
        # With two samples, a tensor alone would come apart into them.
        (
            takes_a_sequence,
            (X,),
            "takes its batch apart into 2, and the inputs are 1: float32[2, 8]",
        ),
        (takes_names, (X, Y), "asks its batch for the item 'x', and 2 of the inputs have no name"),
    ],
)
def test_a_batch_that_does_not_fit_is_told(load: Any, step: Any, inputs: Any, said: str) -> None:
    with pytest.raises(TargetError) as error:
        train(load(Net(step), *inputs), batch_size=2)
    assert said in error.value.message
    assert "--input" in error.value.hint


def takes_two_views(self: Any, batch: Any) -> Any:
    (view, other), labels = batch
    return nn.functional.cross_entropy(self.net(view) + self.net(other), labels)


def views(batch_size: int, device: torch.device) -> Any:
    view = torch.ones(batch_size, 8, device=device)
    return (view, view + 1), torch.zeros(batch_size, dtype=torch.long, device=device)


def as_one_argument(batch_size: int, device: torch.device) -> object:
    return (views(batch_size, device),), {}


@pytest.mark.parametrize("function", ["views", "as_one_argument"])
def test_a_batch_with_tuples_is_that_of_a_function(load: Any, function: str) -> None:
    with pytest.raises(TargetError) as error:
        train(load(Net(takes_two_views), X, X, Y), batch_size=2)
    assert "--batch-fn" in error.value.hint
    assert train(load(Net(takes_two_views), batch_fn=f"{__name__}:{function}")).completed == 1


def test_inputs_are_like_the_first_samples_of_the_data_module(load: Any) -> None:
    loaded = load(Net(takes_names))
    assert [str(spec) for spec in loaded.workload.inputs] == ["x=8", "y=:int64:0..3"]
    assert "Rows.train_dataloader()" in loaded.assumptions[-1].why
    assert train(loaded).completed == 1


def test_inputs_are_like_those_of_the_modules_own_loader(load: Any) -> None:
    class WithLoader(Net):
        def train_dataloader(self) -> Any:
            return DataLoader(TensorDataset(torch.zeros(9, 8), torch.arange(9) % 2), num_workers=1)

    loaded = load(WithLoader())
    assert [str(spec) for spec in loaded.workload.inputs] == ["8", ":int64:0..2"]


def test_inputs_are_like_the_largest_of_the_samples(load: Any) -> None:
    class Padding(Net):
        def train_dataloader(self) -> Any:
            rows = [torch.zeros(length) for length in (8, 3, 5)]
            return DataLoader(rows, collate_fn=lambda rows: pad_sequence(rows, batch_first=True))  # type: ignore[arg-type]

    loaded = load(Padding())
    assert [str(spec) for spec in loaded.workload.inputs] == ["8"]
    assert loaded.assumptions[-1].why.startswith("the largest of the first 32 samples of `Padding.")


def test_why_a_loader_gave_no_samples_is_told(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def setup(self: Any, stage: str) -> None:
        raise RuntimeError("Dataset not found")

    monkeypatch.setattr(Rows, "setup", setup)
    with pytest.raises(UsageError) as error:
        load(Net())
    assert "`Rows` could not be set up: RuntimeError: Dataset not found" in error.value.detail
    net = Net(takes_all)
    net.example_input_array = torch.zeros(4, 8)
    assert [str(spec) for spec in load(net).workload.inputs] == ["8"]


# --------------------------------------------------------------------- optimizers and schedulers


def forms(made: Any, schedule: Any) -> list[Any]:
    config = {"scheduler": schedule, "interval": "step", "frequency": 1}
    return [
        made,
        [made],
        ([made], [schedule]),
        ([made], [config]),
        ([made], []),
        {"optimizer": made},
        {"optimizer": made, "lr_scheduler": schedule, "monitor": "loss"},
        {"optimizer": made, "lr_scheduler": config},
        [{"optimizer": made, "lr_scheduler": config}],
    ]


@pytest.mark.parametrize("form", range(9))
def test_documented_forms_of_configure_optimizers(load: Any, form: int) -> None:
    class Configured(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            schedulers = self.lr_schedulers()
            assert schedulers is None or isinstance(schedulers, torch.optim.lr_scheduler.OneCycleLR)
            assert self.trainer.optimizers[0].param_groups[0]["lr"] <= 0.1
            return self.loss(*batch)

        def configure_optimizers(self) -> Any:
            made = SGD(self.parameters(), lr=0.1, momentum=0.9)
            steps = self.trainer.estimated_stepping_batches
            schedule = torch.optim.lr_scheduler.OneCycleLR(made, 0.1, total_steps=steps)
            return forms(made, schedule)[form]

    loaded = load(Configured(), X, Y)
    train(loaded)
    assert [a.value for a in loaded.assumptions if a.what == "optimizer"] == ["SGD"]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda net: None, "`configure_optimizers` returned `NoneType`"),
        (lambda net: [SGD(net.parameters()), SGD(net.parameters())], "returned 2 optimizers"),
        (lambda net: torch.optim.LBFGS(net.parameters()), "LBFGS"),
    ],
)
def test_optimizers_that_lightning_does_not_step(load: Any, made: Any, said: str) -> None:
    net = Net()
    net.configure_optimizers = lambda: made(net)  # type: ignore[method-assign]
    with pytest.raises(BsfindError, match=said):
        train(load(net, X, Y))


class Adversarial(LightningModule):
    """Two optimizers, stepped by hand; it notes which parameters had gradients after each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.g, self.d = nn.Linear(8, 8), nn.Linear(8, 1)
        self.had: list[tuple[bool, bool]] = []

    def training_step(self, batch: torch.Tensor) -> None:
        for optimizer, sign in zip(self.optimizers(), (1, -1), strict=True):
            self.toggle_optimizer(optimizer)
            loss = sign * self.d(self.g(batch)).mean()
            self.log("loss", loss)
            self.logger.experiment.add_scalar("loss", loss)
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.had.append((self.g.weight.grad is not None, self.d.weight.grad is not None))
            self.clip_gradients(optimizer, gradient_clip_val=0.5)
            optimizer.step()
            self.untoggle_optimizer(optimizer)
        assert isinstance(optimizer, torch.optim.Adagrad)

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(self.g.parameters()), torch.optim.Adagrad(self.d.parameters())], []


def test_manual_optimization_with_several_optimizers(load: Any) -> None:
    module = Adversarial()
    loaded = load(module, X)
    runner = train(loaded, steps=2)
    assert runner.completed == 2
    assert module.had[:2] == [(True, False), (True, True)]
    assert runner.gradient_bytes == sum(p.nbytes for p in module.parameters())
    assert [a.value for a in loaded.assumptions if a.what == "optimizer"] == ["Adam, Adagrad"]


# -------------------------------------------------------------------------------------- the step


def test_the_step_is_in_lightnings_order(load: Any) -> None:
    """Gradients of the last step are there in the forward pass; what is returned outlives the step."""
    events: list[str] = []

    class Ordered(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            events.append(f"forward {batch_idx} {self.net.weight.grad is not None}")
            return {"loss": self.loss(x, y), "scores": self.net(x)}

        def on_before_zero_grad(self, optimizer: Any) -> None:
            events.append("zero_grad")

        def on_after_backward(self) -> None:
            events.append("backward")

        def optimizer_step(
            self, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None
        ) -> None:
            optimizer.step(closure=closure)
            events.append(f"step {self.global_step}")

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            events.append(f"end {sorted(outputs)} {outputs['scores'].requires_grad}")

    train(load(Ordered(), X, Y), steps=2)
    end = "end ['loss', 'scores'] True"
    assert events == [
        *("forward 0 False", "zero_grad", "backward", "step 1", end),
        *("forward 1 True", "zero_grad", "backward", "step 2", end),
    ]


def test_micro_batches_are_accumulated(load: Any) -> None:
    seen = []

    class Counted(Net):
        def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
            seen.append(batch_idx)
            optimizer.zero_grad()

    assert train(load(Counted(), X, Y, grad_accum=3), steps=2).completed == 2
    assert seen == [0, 3]
    with pytest.raises(TargetError, match="`--grad-accum` has no meaning"):
        train(load(Adversarial(), X, grad_accum=3))


def test_the_module_is_prepared_as_by_a_trainer(load: Any) -> None:
    class Prepared(Net):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Dropout().eval()
            self.inner = Net()

        def setup(self, stage: str) -> None:
            assert (stage, self.trainer.world_size, self.trainer.max_epochs) == ("fit", 1, 100)
            raise FileNotFoundError("no data")

        def configure_model(self) -> None:
            self.late = nn.Linear(8, 3)

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [x + 1 if x.is_floating_point() else x for x in batch]

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            assert not self.frozen.training
            self.inner.log("inner", 1.0)
            if batch_idx == 0:
                return None
            return nn.functional.cross_entropy(self.late(x), y)

    loaded = load(Prepared(), X, Y)
    assert "FileNotFoundError: no data" in loaded.notes["lightning_setup"]
    assert train(loaded, steps=2).completed >= 2


def test_what_the_stand_in_lacks_is_named(load: Any) -> None:
    def asks(self: Any, batch: Any) -> Any:
        assert not hasattr(self.trainer, "tuner")
        assert getattr(self.trainer, "tuner", 1) == 1
        return self.trainer.fit_loop

    with pytest.raises(TargetError) as error:
        train(load(Net(asks), X))
    assert "asks for `self.trainer.fit_loop`" in error.value.message
    assert "--step" in error.value.hint


def test_a_step_that_never_returns_a_loss_is_told(load: Any) -> None:
    with pytest.raises(TargetError, match="returned None in 9 steps"):
        train(load(Net(lambda self, batch: None), X))
