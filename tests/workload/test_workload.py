"""What is trained, on the CPU: targets, inputs, losses, optimizers and the reference step."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bsfind.errors import TargetError, UsageError
from bsfind.inputs import InputSpec, parse_input, parse_input_shape
from bsfind.settings import Workload
from bsfind.workload.inputs import Batch, batch_function, batch_maker
from bsfind.workload.loss import make_loss
from bsfind.workload.model import build_model, enable_checkpointing, repeated_blocks
from bsfind.workload.optimizer import make_optimizer
from bsfind.workload.precision import precision_plan
from bsfind.workload.step import LoadedWorkload, TrainingSteps

MODELS = Path(__file__).resolve().parents[1] / "models"
CPU = torch.device("cpu")
SCORED = {"inputs": (parse_input_shape("16"),)}


def loaded(target: str = "well_behaved.py:Blocks", **changes: Any) -> LoadedWorkload:
    settings = {"inputs": (parse_input_shape("4,256"),), "target": f"{MODELS}/{target}", **changes}
    return LoadedWorkload(Workload(**settings), precision_plan("fp32"), CPU)


def steps(workload: LoadedWorkload) -> TrainingSteps:
    return TrainingSteps(workload, lambda: None)


class TestInputs:
    def make(self, *texts: str, **options: Any) -> Any:
        specs = tuple(parse_input(text) for text in texts)
        defaults = {"device": CPU, "float_dtype": None, "channels_last": False}
        return batch_maker(specs, None, **{**defaults, **options})

    def test_shapes_dtypes_and_ranges(self) -> None:
        batch = self.make("ids=7:int64:3..5", "mask=7:bool", "x=2,3:bfloat16", "y=:int64:0..2")(64)
        ids, mask, x, y = (batch.kwargs[name] for name in ("ids", "mask", "x", "y"))
        assert ids.shape == (64, 7)
        assert set(ids.unique().tolist()) == {3, 4}
        assert mask.dtype == torch.bool
        assert mask.all()
        assert x.dtype == torch.bfloat16
        assert x.shape == (64, 2, 3)
        assert y.shape == (64,)
        assert batch.describe().startswith("ids=int64[64, 7], mask=bool[64, 7]")

    def test_floats_follow_a_model_in_bf16_and_integers_do_not(self) -> None:
        batch = self.make("x=3", "i=3:int64", float_dtype=torch.bfloat16)(2)
        assert batch.kwargs["x"].dtype == torch.bfloat16
        assert batch.kwargs["i"].dtype == torch.int64

    def test_channels_last(self) -> None:
        batch = self.make("x=3,4,4", "t=5", channels_last=True)(2)
        assert batch.kwargs["x"].is_contiguous(memory_format=torch.channels_last)

    @pytest.mark.parametrize(
        ("made", "args", "kwargs"),
        [
            ("torch.ones(n)", 1, set()),
            ("(torch.ones(n), torch.ones(n))", 2, set()),
            ("[torch.ones(n)]", 1, set()),
            ("{'x': torch.ones(n)}", 0, {"x"}),
            ("((torch.ones(n),), {'y': torch.ones(n)})", 1, {"y"}),
        ],
    )
    def test_what_a_batch_function_may_return(
        self, tmp_path: Path, made: str, args: int, kwargs: set[str]
    ) -> None:
        file = tmp_path / f"batches_{abs(hash(made))}.py"
        file.write_text(f"import torch\ndef make(n, device):\n    return {made}\n")
        options = {"device": CPU, "float_dtype": None, "channels_last": False}
        function = batch_function(Workload(target="a:b", batch_fn=f"{file}:make"))
        batch = batch_maker((), function, **options)(3)
        assert len(batch.args) == args
        assert set(batch.kwargs) == kwargs

    def test_constants_other_tensors_and_dicts(self) -> None:
        made = self.make("ids=3:int64:0..9", "a.labels=@ids", "a.b.mode==sum", "flag=True")(2)
        assert made.kwargs["a"]["labels"] is made.kwargs["ids"]
        assert made.kwargs["a"]["b"] == {"mode": "sum"}
        assert made.kwargs["flag"] is True

    def test_what_takes_one_argument_gets_the_whole_batch(self) -> None:
        class Model(nn.Module):
            def forward(self, batch: Any, scale: float = 1.0) -> Any: ...

        def step(batch: Any) -> Any: ...

        named = ("x=3", "y=4")
        for function in (Model().forward, step):
            (whole,) = self.make(*named, taken_by=function)(2).args
            assert sorted(whole) == ["x", "y"]
        assert self.make("batch=3", "scale=4", taken_by=Model().forward)(2).args == ()
        positional = (InputSpec(shape=(3,)), InputSpec(shape=(4,)), InputSpec(shape=(5,)))
        options = {"device": CPU, "float_dtype": None, "channels_last": False}
        (whole,) = batch_maker(positional, None, taken_by=step, **options)(2).args
        assert [tensor.shape[1] for tensor in whole] == [3, 4, 5]
        model = batch_maker(positional, None, taken_by=Model().forward, **options)(2)
        assert len(model.args) == 3  # which the model refuses in Python's words


class TestLosses:
    BATCH = Batch(args=(torch.randn(6, 3, 8, 8),))

    def test_a_mean(self) -> None:
        tensor = torch.full((2, 4), 2.0)
        nested = (tensor, [tensor, {"a": torch.ones(3, dtype=torch.int64)}])
        assert make_loss("mean")(nested, self.BATCH).item() == 4
        with pytest.raises(TargetError, match="without any floating tensor"):
            make_loss("mean")(torch.ones(3, dtype=torch.int64), self.BATCH)

    @pytest.mark.parametrize("shape", [(6, 10), (6, 10, 8, 8), (6, 5, 10)])
    def test_cross_entropy_finds_the_classes(self, shape: tuple[int, ...]) -> None:
        loss = make_loss("cross-entropy")
        scores = torch.randn(shape, requires_grad=True)
        loss(scores, self.BATCH).backward()
        assert scores.grad is not None

    @pytest.mark.parametrize("name", ["torch.nn:CrossEntropyLoss", "torch.nn.functional:mse_loss"])
    def test_a_function_that_wants_targets_is_refused(self, name: str) -> None:
        with pytest.raises(
            TargetError, match=r"cannot be called as `fn\(output\)`: missing"
        ) as raised:
            make_loss(name)
        assert "makes the targets itself" in (raised.value.hint or "")

    def test_cross_entropy_needs_classes(self) -> None:
        with pytest.raises(TargetError, match="needs class scores"):
            make_loss("cross-entropy")(torch.randn(5), self.BATCH)

    @pytest.mark.parametrize("name", ["mse", "cross-entropy"])
    def test_targets_of_later_steps_are_there_before_the_forward_pass(self, name: str) -> None:
        loss = make_loss(name)
        loss.make_targets()
        assert not loss.targets  # nothing is known of the output yet
        loss(torch.randn(30, 2), self.BATCH)  # more rows than samples
        loss.release_targets()
        assert not loss.targets
        loss.make_targets()
        assert [len(targets) for targets in loss.targets] == [30]
        assert loss(torch.zeros(30, 2), self.BATCH).item() > 0


def optimizer_names() -> list[str]:
    return sorted(
        name
        for name, value in vars(torch.optim).items()
        if isinstance(value, type)
        and issubclass(value, torch.optim.Optimizer)
        and value not in (torch.optim.Optimizer, torch.optim.LBFGS)
    )


class TestOptimizers:
    @pytest.mark.parametrize("name", optimizer_names())
    def test_every_optimizer_of_torch(self, name: str) -> None:
        model = nn.Linear(4, 4, bias=False)
        optimizer = make_optimizer(name.lower(), {}, model)
        assert type(optimizer).__name__ == name

    def test_unknown_names_and_lbfgs(self) -> None:
        with pytest.raises(UsageError) as caught:
            make_optimizer("adamv", {}, nn.Linear(1, 1))
        assert "did you mean `adam" in caught.value.hint
        with pytest.raises(UsageError, match="LBFGS"):
            make_optimizer("lbfgs", {}, nn.Linear(1, 1))
        with pytest.raises(UsageError, match="LBFGS"):
            make_optimizer("torch.optim:LBFGS", {}, nn.Linear(1, 1))

    def test_an_optimizer_without_state_is_refused(self) -> None:
        named = f"{MODELS}/well_behaved.py:Incomplete"
        with pytest.raises(UsageError, match="`Incomplete` has no `state` of its own"):
            make_optimizer(named, {}, nn.Linear(1, 1))

    def test_arguments(self) -> None:
        optimizer = make_optimizer("sgd", {"momentum": 0.5}, nn.Linear(1, 1))
        assert optimizer.defaults["momentum"] == 0.5

    def test_frozen_parameters_are_left_out(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        model[0].requires_grad_(False)
        (group,) = make_optimizer("adamw", {}, model).param_groups
        assert len(group["params"]) == 2


class TestCheckpointing:
    def test_the_model_s_own_switch_comes_first(self) -> None:
        class Switched(nn.Module):
            is_on = False

            def gradient_checkpointing_enable(self) -> None:
                self.is_on = True

        model = Switched()
        assert "gradient_checkpointing_enable" in enable_checkpointing(model)
        assert model.is_on

    def test_repeated_blocks_are_recomputed(self) -> None:
        model = build_model(f"{MODELS}/well_behaved.py:Blocks", {"depth": 3})
        assert len(repeated_blocks(model)) == 3
        assert enable_checkpointing(model) == "3 blocks of `Sequential`"
        calls = []
        model.blocks[0][0].register_forward_hook(lambda *_: calls.append(1))  # type: ignore[index, union-attr]
        model(torch.randn(2, 256)).sum().backward()
        assert len(calls) == 2

    def test_nothing_to_recompute(self) -> None:
        with pytest.raises(TargetError, match="no repeated blocks"):
            enable_checkpointing(nn.Linear(2, 2))


class TestTargets:
    def test_class_factory_and_instance(self) -> None:
        for attr in ("ConvNet", "make_conv_net", "instance"):
            assert isinstance(build_model(f"{MODELS}/well_behaved.py:{attr}", {}), nn.Module)

    def test_missing_arguments_are_named(self, tmp_path: Path) -> None:
        file = tmp_path / "needs.py"
        file.write_text("def make(depth, width=3):\n    raise AssertionError\n")
        with pytest.raises(TargetError) as caught:
            build_model(f"{file}:make", {})
        assert "--model-arg depth=…" in caught.value.hint

    def test_an_instance_takes_no_arguments(self) -> None:
        with pytest.raises(TargetError, match="an instance"):
            build_model(f"{MODELS}/well_behaved.py:instance", {"width": 3})


class TestSteps:
    def test_the_optimizer_moves_the_weights(self) -> None:
        workload = loaded()
        before = [p.detach().clone() for p in workload.model.parameters()]
        runner = steps(workload)
        runner.run(3)
        assert runner.completed == 1
        assert any(
            not torch.equal(a, b) for a, b in zip(before, workload.model.parameters(), strict=True)
        )

    def test_an_optimizer_that_goes_on_to_its_parent_steps_once(self) -> None:
        workload = loaded(optimizer=f"{MODELS}/well_behaved.py:Clipped")
        # torch hooks the step of a class when an instance of this class is made.
        torch.optim.SGD(workload.model.parameters())
        runner = steps(workload)
        runner.run(3)
        assert runner.completed == 1

    def test_accumulation_steps_once(self) -> None:
        seen = []
        workload = loaded(grad_accum=3)
        workload.model.register_forward_hook(lambda *_: seen.append(1))
        runner = steps(workload)
        runner.run(2)
        assert len(seen) == 3
        assert runner.completed == 1

    def test_inference_keeps_no_graph(self) -> None:
        outputs = []
        workload = loaded(mode="infer")
        workload.model.register_forward_hook(lambda m, i, out: outputs.append(out.requires_grad))
        steps(workload).run(2)
        assert outputs == [False]
        assert not workload.model.training

    def test_a_step_function_sees_the_model_and_the_inputs(self) -> None:
        sizes = []
        workload = loaded(step=f"{MODELS}/well_behaved.py:half_step")
        workload.model.register_forward_pre_hook(lambda m, args: sizes.append(len(args[0])))
        steps(workload).run(4)
        assert sizes == [2]

    def test_a_step_function_may_step_its_own_optimizers(self) -> None:
        workload = loaded(
            "own_optimizers.py:Pair", step=f"{MODELS}/own_optimizers.py:step", **SCORED
        )
        runner = steps(workload)
        for _ in range(3):
            runner.run(4)
        assert runner.completed == 3
        assert workload.own_optimizers == ["Adam", "RMSprop"]
        assert [made.value for made in workload.assumptions] == ["Adam, RMSprop"]
        assert runner.gradient_bytes == sum(p.nbytes for p in workload.model.parameters())

    @pytest.mark.parametrize(
        ("step", "changes", "said"),
        [
            ("idle", {}, "returned None, and no optimizer made a step in it"),
            ("stray", {}, "hold no parameter of the model"),
            ("step", {"grad_accum": 2}, "`--grad-accum` has no meaning"),
        ],
    )
    def test_step_functions_that_train_nothing(
        self, step: str, changes: dict[str, Any], said: str
    ) -> None:
        named = f"{MODELS}/own_optimizers.py:{step}"
        with pytest.raises(TargetError, match=said):
            steps(loaded("own_optimizers.py:Pair", step=named, **SCORED, **changes)).run(4)

    def test_nothing_of_a_step_survives_it(self) -> None:
        workload = loaded()
        alive: list[weakref.ref[torch.Tensor]] = []
        workload.model.register_forward_hook(lambda m, i, out: alive.append(weakref.ref(out)))
        steps(workload).run(2)
        gc.collect()
        assert [ref() for ref in alive] == [None]

    @pytest.mark.parametrize(
        ("target", "message"),
        [("NoParameters", "no parameter"), ("DetachedOutput", "does not depend")],
    )
    def test_models_that_cannot_be_trained(self, target: str, message: str) -> None:
        workload = loaded(f"misbehaved.py:{target}", inputs=(parse_input_shape("16"),))
        with pytest.raises(TargetError, match=message):
            steps(workload).run(2)
