"""Models of scientists: complex numbers, linear algebra, second derivatives, flows, sets."""

from __future__ import annotations

import math
from functools import partial

import torch
from tests.simulation.corpus.case import case
from torch import nn
from torch.nn import functional as F  # noqa: N812


class FourierOperator(nn.Module):
    """Complex weights on the low frequencies of a field (FNO)."""

    def __init__(self, width: int = 32, modes: int = 12) -> None:
        super().__init__()
        self.modes = modes
        self.lift, self.out = nn.Conv2d(1, width, 1), nn.Conv2d(width, 1, 1)
        self.weight = nn.Parameter(torch.randn(width, width, modes, modes, dtype=torch.cfloat))
        self.skip = nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.lift(x)
        spectrum = torch.fft.rfft2(x.float())
        low = torch.zeros_like(spectrum)
        kept = spectrum[..., : self.modes, : self.modes]
        low[..., : self.modes, : self.modes] = torch.einsum("bixy,ioxy->boxy", kept, self.weight)
        x = F.gelu(torch.fft.irfft2(low, s=x.shape[-2:]) + self.skip(x))
        return self.out(x)


class PhysicsInformed(nn.Module):
    """A loss of second derivatives: `autograd.grad` with a graph of its own (PINN)."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()),
            nn.Linear(width, 1),
        )

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        points.requires_grad_(True)
        u = self.net(points)
        (gradient,) = torch.autograd.grad(u.sum(), points, create_graph=True)
        (second,) = torch.autograd.grad(gradient[:, 0].sum(), points, create_graph=True)
        return (gradient[:, 1] - 0.1 * second[:, 0] + u[:, 0] * gradient[:, 0]).pow(2).mean()


class GradientPenalty(nn.Module):
    """A critic with a penalty on its gradient (WGAN-GP)."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Sequential(
            *(nn.Conv2d(3, 32, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, 64, 4, 2, 1)),
            *(nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(64 * 64, 1)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fake = torch.rand_like(x)
        mix = torch.rand(x.shape[0], 1, 1, 1, device=x.device)
        between = (mix * x + (1 - mix) * fake).requires_grad_(True)
        score = self.critic(between)
        (gradient,) = torch.autograd.grad(
            score, between, torch.ones_like(score), create_graph=True, retain_graph=True
        )
        penalty = (gradient.flatten(1).norm(2, dim=1) - 1).pow(2).mean()
        return self.critic(fake).mean() - self.critic(x).mean() + 10 * penalty


class Flow(nn.Module):
    """Affine couplings and a log-likelihood (RealNVP)."""

    def __init__(self, size: int = 64, layers: int = 4) -> None:
        super().__init__()
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Linear(size // 2, 128), nn.ReLU(), nn.Linear(128, size))
            for _ in range(layers)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        log_determinant = torch.zeros(x.shape[0], device=x.device)
        for net in self.nets:
            first, second = x.chunk(2, 1)
            scale, shift = net(first).chunk(2, 1)
            scale = torch.tanh(scale)
            x = torch.cat((second * scale.exp() + shift, first), 1)
            log_determinant = log_determinant + scale.sum(1)
        prior = -0.5 * (x.pow(2) + math.log(2 * math.pi)).sum(1)
        return -(prior + log_determinant).mean()


class GaussianProcess(nn.Module):
    """The likelihood of a Gaussian process on learnt features: Cholesky, triangular solves."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(8, 64), nn.Softplus(), nn.Linear(64, 16))
        self.noise = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        h = self.features(x).float()
        kernel = torch.exp(-0.5 * torch.cdist(h, h).pow(2))
        kernel = kernel + F.softplus(self.noise) * torch.eye(x.shape[1], device=x.device)
        factor = torch.linalg.cholesky(kernel)
        alpha = torch.cholesky_solve(y.float().unsqueeze(-1), factor)
        fit = (y * alpha.squeeze(-1)).sum(-1)
        return (fit + 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)).mean()


class NeuralOde(nn.Module):
    """Steps of a Runge-Kutta method through a small network."""

    def __init__(self, size: int = 32) -> None:
        super().__init__()
        self.field = nn.Sequential(nn.Linear(size, 128), nn.Tanh(), nn.Linear(128, size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        step = 0.1
        for _ in range(6):
            k1 = self.field(x)
            k2 = self.field(x + 0.5 * step * k1)
            k3 = self.field(x + 0.5 * step * k2)
            k4 = self.field(x + step * k3)
            x = x + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return x


class Radiance(nn.Module):
    """Rays through a field of density and colour (NeRF)."""

    def __init__(self, width: int = 128, samples: int = 32) -> None:
        super().__init__()
        self.samples = samples
        self.net = nn.Sequential(
            *(nn.Linear(60, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()),
            nn.Linear(width, 4),
        )

    def forward(self, rays: torch.Tensor) -> torch.Tensor:
        depth = torch.linspace(2.0, 6.0, self.samples, device=rays.device)
        depth = depth + torch.rand(rays.shape[0], self.samples, device=rays.device) * 0.1
        points = rays[:, None, :3] + rays[:, None, 3:] * depth[..., None]
        scales = 2.0 ** torch.arange(10, device=rays.device)
        angles = (points[..., None] * scales).flatten(-2)
        raw = self.net(torch.cat((angles.sin(), angles.cos()), -1))
        alpha = 1 - torch.exp(-F.relu(raw[..., 3]) * 0.1)
        through = torch.cumprod(1 - alpha + 1e-10, -1)
        through = torch.cat((torch.ones_like(through[:, :1]), through[:, :-1]), -1)
        return ((alpha * through)[..., None] * torch.sigmoid(raw[..., :3])).sum(1)


class BarlowTwins(nn.Module):
    """Two views, batch statistics, and a correlation matrix of features."""

    def __init__(self, width: int = 512) -> None:
        super().__init__()
        self.project = nn.Sequential(
            *(nn.Linear(256, 1024, bias=False), nn.BatchNorm1d(1024), nn.ReLU(inplace=True)),
            nn.Linear(1024, width, bias=False),
        )
        self.norm = nn.BatchNorm1d(width, affine=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.norm(self.project(x + 0.1 * torch.randn_like(x)))
        second = self.norm(self.project(x + 0.1 * torch.randn_like(x)))
        correlation = first.T @ second / x.shape[0]
        on_diagonal = (torch.diagonal(correlation) - 1).pow(2).sum()
        n = correlation.shape[0]
        off = correlation.flatten()[:-1].view(n - 1, n + 1)[:, 1:].flatten()
        return on_diagonal + 5e-3 * off.pow(2).sum()


class SimClr(nn.Module):
    """Contrast every view with every other: the batch squared."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 128))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.normalize(self.embed(torch.cat((x, x + 0.1 * torch.randn_like(x)))), dim=-1)
        scores = h @ h.T / 0.5
        scores.fill_diagonal_(-1e4)
        n = len(x)
        target = torch.cat((torch.arange(n, 2 * n), torch.arange(n))).to(x.device)
        return F.cross_entropy(scores, target)


class ActorCritic(nn.Module):
    """A policy gradient with clipped ratios and an entropy bonus (PPO)."""

    def __init__(self, actions: int = 6) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU()),
            *(nn.Conv2d(64, 64, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3136, 512), nn.ReLU()),
        )
        self.policy, self.value = nn.Linear(512, actions), nn.Linear(512, 1)

    def forward(
        self, frames: torch.Tensor, action: torch.Tensor, advantage: torch.Tensor
    ) -> torch.Tensor:
        h = self.body(frames.float() / 255.0)
        distribution = torch.distributions.Categorical(
            logits=self.policy(h).float(), validate_args=False
        )
        log_probability = distribution.log_prob(action)
        ratio = (log_probability - log_probability.detach()).exp()
        clipped = ratio.clamp(0.8, 1.2) * advantage
        gain = torch.min(ratio * advantage, clipped).mean()
        value = F.mse_loss(self.value(h).squeeze(1), advantage)
        return 0.5 * value - gain - 0.01 * distribution.entropy().mean()


_case = partial(case, "science", __name__)

CASES = (
    _case("fourier_operator", "FourierOperator", "1,64,64", precisions=("fp32", "amp-bf16")),
    _case("physics_informed", "PhysicsInformed", "2", batch_sizes=(1000,)),
    _case("gradient_penalty", "GradientPenalty", "3,32,32", kind="convolutional"),
    _case("flow", "Flow", "64", batch_sizes=(500,)),
    _case("gaussian_process", "GaussianProcess", "x=100,8", "y=100", precisions=("fp32",)),
    _case("neural_ode", "NeuralOde", "32", batch_sizes=(1000,)),
    _case("radiance_field", "Radiance", "6", batch_sizes=(256,)),
    _case("barlow_twins", "BarlowTwins", "256", batch_sizes=(128,)),
    _case("simclr", "SimClr", "256", batch_sizes=(200,)),
    _case(
        "actor_critic",
        "ActorCritic",
        "frames=4,84,84:uint8:0..256",
        "action=:int64:0..6",
        "advantage=:float32",
        kind="convolutional",
        batch_sizes=(16,),
    ),
)
