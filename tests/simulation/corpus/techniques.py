"""What users do around a model: accumulation, clipping, averages, checkpointing, hooks, formats."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from tests.simulation.corpus.case import AMP, case
from tests.simulation.corpus.patches import Block, Vit
from tests.simulation.corpus.vision import ResNet
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint, checkpoint_sequential


def smoothed_step(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Label smoothing."""
    y = model(x)
    target = torch.randint(0, y.shape[1], (y.shape[0],), device=y.device)
    return F.cross_entropy(y, target, label_smoothing=0.1)


def mixup_step(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Mixup with soft targets."""
    order = torch.randperm(x.shape[0], device=x.device)
    y = model(0.7 * x + 0.3 * x[order])
    target = torch.randint(0, y.shape[1], (y.shape[0],), device=y.device)
    soft = F.one_hot(target, y.shape[1]).float()
    return -(y.log_softmax(-1) * (0.7 * soft + 0.3 * soft[order])).sum(-1).mean()


class Averaged(nn.Module):
    """A model with an exponential average of its weights, updated in every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Vit(depth=2)
        self.average = copy.deepcopy(self.model).requires_grad_(False)

    @torch.no_grad()
    def _update(self) -> None:
        average, current = list(self.average.parameters()), list(self.model.parameters())
        torch._foreach_mul_(average, 0.99)
        torch._foreach_add_(average, current, alpha=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._update()
        with torch.no_grad():
            teacher = self.average(x)
        return F.mse_loss(self.model(x), teacher)


class Distilled(nn.Module):
    """A frozen teacher without gradients, and a student."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = ResNet().requires_grad_(False).eval()
        self.student = ResNet(width=32)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            teacher = self.teacher(x)
        student = self.student(x)
        return F.kl_div(
            F.log_softmax(student / 4, -1), F.softmax(teacher / 4, -1), reduction="batchmean"
        )


class FineTuned(nn.Module):
    """All but the last layers frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.model = ResNet()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad = name.startswith(("head", "layers.5"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


class LowRank(nn.Module):
    """Frozen linear layers with trained corrections of low rank (LoRA)."""

    def __init__(self, width: int = 256, rank: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width).requires_grad_(False) for _ in range(4))
        self.down = nn.ParameterList(torch.randn(rank, width) * 0.01 for _ in range(4))
        self.up = nn.ParameterList(torch.zeros(width, rank) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer, down, up in zip(self.layers, self.down, self.up, strict=True):
            x = F.gelu(layer(x) + 2.0 * (F.dropout(x, 0.05, self.training) @ down.T @ up.T))
        return x


def clip_in_backward() -> nn.Module:
    """Gradients clipped by a hook of every parameter."""
    model = Vit(depth=2)
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: gradient.clamp(-1, 1))
    return model


class ClippedAdamW(torch.optim.AdamW):
    """Clips the norm of all gradients before each step, as trainers do."""

    def step(self, closure: Any = None) -> None:
        parameters = [p for group in self.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        super().step(closure)


class ClippedValueSgd(torch.optim.SGD):
    """Clips the values of gradients before each step."""

    def step(self, closure: Any = None) -> None:
        parameters = [p for group in self.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_value_(parameters, 0.5)
        super().step(closure)


class Checkpointed(nn.Module):
    """Recomputes its blocks, in either of torch's ways.

    Args:
        reentrant: which one.
        sequential: through `checkpoint_sequential`.
        preserve: keep the state of the random number generator.
    """

    def __init__(
        self, reentrant: bool, sequential: bool = False, preserve: bool = True, width: int = 192
    ) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(48, width), nn.Linear(width, 10)
        self.blocks = nn.Sequential(*(Block(width, 3) for _ in range(4)))
        self.settings = {"use_reentrant": reentrant, "preserve_rng_state": preserve}
        self.sequential = sequential

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inp(x)
        if self.sequential:
            return self.out(checkpoint_sequential(self.blocks, 2, x, **self.settings))
        for block in self.blocks:
            x = checkpoint(block, x, **self.settings)
        return self.out(x.mean(1))


class Parametrised(nn.Module):
    """Weights computed from others: weight norm, spectral norm, orthogonal, and one's own."""

    def __init__(self) -> None:
        super().__init__()
        norms = nn.utils.parametrizations
        self.layers = nn.Sequential(
            *(norms.weight_norm(nn.Linear(64, 256)), nn.ReLU()),
            *(norms.spectral_norm(nn.Linear(256, 256)), nn.ReLU(), nn.Linear(256, 64)),
        )
        nn.utils.parametrize.register_parametrization(self.layers[4], "weight", Symmetric())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Symmetric(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.tanh() * 0.5


class Swish(torch.autograd.Function):
    """An activation with a backward pass of its own, which saves its input alone."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return gradient * (s * (1 + x * (1 - s)))


class StraightThrough(torch.autograd.Function):
    """Rounds, and lets the gradient pass; marks its input as changed in place."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.mark_dirty(x)
        return x.round_()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


class OwnFunctions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(128, 512), nn.Linear(512, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = Swish.apply(self.first(x))
        return self.second(StraightThrough.apply(h * 4) / 4)


class Hooked(nn.Module):
    """Forward and backward hooks that keep and change tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(128, 512), nn.ReLU(), nn.Linear(512, 64))
        self.seen: list[torch.Tensor] = []
        self.net[0].register_forward_hook(self._keep)
        self.net[2].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
        self.net[0].register_full_backward_hook(lambda module, inputs, outputs: None)

    def _keep(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        self.seen.append(output)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.clear()
        y = self.net(x)
        return y.pow(2).mean() + 0.1 * self.seen[0].abs().mean()


class RunningBuffers(nn.Module):
    """Buffers that every step replaces or changes: a running mean, a queue of keys (MoCo)."""

    def __init__(self, width: int = 128, keys: int = 4096) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, width))
        self.register_buffer("queue", F.normalize(torch.randn(width, keys), dim=0))
        self.register_buffer("mean", torch.zeros(width))
        self.place = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = F.normalize(self.net(x), dim=1)
        with torch.no_grad():
            k = F.normalize(self.net(x + 0.1 * torch.randn_like(x)), dim=1)
        scores = torch.cat(((q * k).sum(1, keepdim=True), q @ self.queue.clone().detach()), 1)
        self.queue[:, self.place : self.place + len(x)] = k.T
        self.place = (self.place + len(x)) % self.queue.shape[1]
        self.mean = 0.9 * self.mean + 0.1 * q.detach().float().mean(0)
        target = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return F.cross_entropy(scores / 0.07, target)


class ManyOutputs(nn.Module):
    """Several inputs, some of them nested; outputs in a dict of lists."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(100, 256), nn.Linear(50, 256)
        self.out = nn.ModuleDict({name: nn.Linear(256, 30) for name in ("a", "b")})

    def forward(self, left: torch.Tensor, *, extra: dict[str, Any]) -> dict[str, Any]:
        h = self.left(left) + self.right(extra["values"][0]) * extra["scale"].unsqueeze(1)
        return {"ids": h.argmax(1), "scores": [self.out["a"](h), self.out["b"](h.relu())]}


def nested_batch(batch_size: int, device: torch.device) -> Any:
    """Inputs for `ManyOutputs`."""
    values = [torch.randn(batch_size, 50, device=device)]
    extra = {"values": values, "scale": torch.rand(batch_size, device=device)}
    return (torch.randn(batch_size, 100, device=device),), {"extra": extra}


def host_batch(batch_size: int, device: torch.device) -> Any:
    """A batch that is made on the host and augmented on the device, as data loaders do."""
    images = torch.randint(0, 256, (batch_size, 3, 96, 96), dtype=torch.uint8).to(device)
    images = images.float().div_(255).sub_(0.5)
    return torch.flip(images, (3,))


class AutocastInside(nn.Module):
    """Regions of a precision of their own inside the model."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(256, 512), nn.Linear(512, 512)
        self.third = nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            h = F.gelu(self.first(x))
            with torch.autocast(x.device.type, enabled=False):
                h = self.second(h.float()).softmax(-1)
        return self.third(h.to(self.third.weight.dtype))


_case = partial(case, "techniques", __name__)
_vit = partial(_case, kind="attention", batch_sizes=(8,))
_resnet = partial(_case, kind="convolutional")
_CLIPPED = ":ClippedAdamW"

CASES = (
    _vit("accumulation", "Vit", "3,96,96", grad_accum=3, loss="cross-entropy"),
    _vit("accumulation_sgd", "Vit", "3,96,96", grad_accum=2, optimizer="sgd"),
    _resnet("channels_last", "ResNet", "3,96,96", channels_last=True, loss="cross-entropy"),
    _vit("clip_norm", "Vit", "3,96,96", optimizer=_CLIPPED, precisions=("fp32", *AMP)),
    _vit("clip_value", "Vit", "3,96,96", optimizer=":ClippedValueSgd", precisions=("fp32",)),
    _vit("clip_hooks", "clip_in_backward", "3,96,96", precisions=("fp32",)),
    _vit("label_smoothing", "Vit", "3,96,96", step=":smoothed_step"),
    _resnet("mixup", "ResNet", "3,96,96", step=":mixup_step", precisions=("fp32", "amp-fp16")),
    _vit("ema", "Averaged", "3,96,96", precisions=("fp32", "amp-bf16")),
    _resnet("distillation", "Distilled", "3,96,96", precisions=("fp32", "amp-bf16")),
    _resnet("fine_tuning", "FineTuned", "3,96,96", precisions=("fp32", "amp-fp16")),
    _case("lora", "LowRank", "64,256", precisions=("fp32", "amp-bf16", "bf16")),
    _vit("grad_checkpoint", "Vit", "3,96,96", args={"depth": 4}, grad_checkpoint=True),
    _case("checkpoint_reentrant", "Checkpointed", "100,48", args={"reentrant": True}),
    _case("checkpoint_not_reentrant", "Checkpointed", "100,48", args={"reentrant": False}),
    _case(
        "checkpoint_sequential",
        "Checkpointed",
        "100,48",
        args={"reentrant": True, "sequential": True},
        precisions=("fp32",),
    ),
    _case(
        "checkpoint_without_rng",
        "Checkpointed",
        "100,48",
        args={"reentrant": False, "preserve": False},
        precisions=("fp32", "amp-fp16"),
    ),
    _case("parametrised", "Parametrised", "64", batch_sizes=(64,)),
    _case("own_functions", "OwnFunctions", "128", batch_sizes=(256,)),
    _case("hooks", "Hooked", "128", batch_sizes=(256,)),
    _case("buffers", "RunningBuffers", "256", batch_sizes=(64,)),
    _case("many_outputs", "ManyOutputs", batch_fn=":nested_batch", loss="mean", batch_sizes=(64,)),
    _resnet("host_batch", "ResNet", batch_fn=":host_batch", precisions=("fp32",)),
    _case(
        "autocast_inside",
        "AutocastInside",
        "256",
        batch_sizes=(64,),
        precisions=("fp32", "amp-fp16"),
    ),
    _vit("pure_bf16", "Vit", "3,96,96", precisions=("bf16",)),
    _vit("tf32", "Vit", "3,96,96", precisions=("tf32",)),
)
