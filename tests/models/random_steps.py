"""Models whose steps depend on random numbers, or on something else that changes from step to step.

`layers` has as many layers as all others can have: no step of theirs needs more memory.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from random import random as draw

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

DEPTH = 8
WIDTH = 64

OWN_PYTHON = random.Random()
OWN_NUMPY = np.random.default_rng()
OWN_STATE = np.random.RandomState()
OWN_TORCH = torch.Generator()

# What keeps a layer: half of them, or nine of ten.
KEEPS: dict[str, Callable[[torch.Tensor], bool]] = {
    "torch_rand": lambda x: bool(torch.rand(()) >= 0.5),
    "torch_rand_list": lambda x: bool(torch.rand([]) >= 0.1),
    "torch_rand_item": lambda x: torch.rand(1).item() > 0.5,
    "torch_rand_below": lambda x: bool(torch.rand(()) < 0.5),
    "torch_rand_own": lambda x: bool(torch.rand((), generator=OWN_TORCH) < 0.5),
    "torch_uniform": lambda x: torch.empty(1).uniform_(0, 1).item() >= 0.5,
    "torch_rand_like": lambda x: bool(torch.rand_like(torch.tensor(0.5)) < 0.5),
    "torch_randn": lambda x: torch.randn(1).item() > 0,
    "torch_normal": lambda x: torch.empty(()).normal_().item() < 0,
    "torch_bernoulli": lambda x: bool(torch.bernoulli(torch.tensor(0.5))),
    "torch_bernoulli_drops": lambda x: not torch.bernoulli(torch.tensor(0.5)).item(),
    "torch_randint": lambda x: int(torch.randint(0, 2, (1,))) == 1,
    "torch_distribution": lambda x: torch.distributions.Bernoulli(0.5).sample().item() == 1,
    "torch_on_the_gpu": lambda x: bool(torch.rand((), device=x.device) < 0.5),
    "torch_on_the_gpu_drops": lambda x: torch.rand(1, device=x.device).item() >= 0.5,
    "torch_new_on_the_gpu": lambda x: x.new_empty(1).uniform_().item() >= 0.5,
    "python_random": lambda x: random.random() >= 0.5,
    "python_random_by_name": lambda x: draw() < 0.5,
    "python_wide": lambda x: random.randrange(1 << 70) >= 0 and random.random() < 0.5,
    "python_uniform": lambda x: random.uniform(0, 1) < 0.9,
    "python_gauss": lambda x: random.gauss(0, 1) < 0,
    "python_choice": lambda x: random.choice([True, False]),
    "python_choices": lambda x: random.choices([0, 1], weights=[1, 1])[0] == 0,
    "python_sample": lambda x: random.sample([True, False], 1)[0],
    "python_bits": lambda x: random.getrandbits(1) == 0,
    "python_own": lambda x: OWN_PYTHON.random() < 0.5,
    "numpy_random": lambda x: np.random.random() >= 0.5,
    "numpy_rand": lambda x: np.random.rand() < 0.5,
    "numpy_rand_1": lambda x: np.random.rand(1)[0] < 0.5,
    "numpy_uniform": lambda x: np.random.uniform(0, 1) > 0.5,
    "numpy_normal": lambda x: np.random.normal() > 0,
    "numpy_binomial": lambda x: np.random.binomial(1, 0.5) == 1,
    "numpy_choice": lambda x: np.random.choice(2, p=[0.5, 0.5]) == 0,
    "numpy_own": lambda x: OWN_NUMPY.random() < 0.5,
    "numpy_own_state": lambda x: OWN_STATE.rand() < 0.5,
}


class Layer(nn.Module):
    def __init__(self, keeps: Callable[[torch.Tensor], bool] | None = None) -> None:
        super().__init__()
        self.keeps = keeps
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and self.keeps is not None and not self.keeps(x):
            return x
        return x + self.down(functional.gelu(self.up(self.norm(x))))


def layers(keeps: str | None = None) -> nn.Module:
    decide = KEEPS[keeps] if keeps else None
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), *[Layer(decide) for _ in range(DEPTH)])


class OneDrawForAll(nn.Module):
    """As fairseq's LayerDropModuleList: the draws of all layers come at once."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(DEPTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        draws = torch.empty(len(self.layers)).uniform_()
        for layer, drawn in zip(self.layers, draws, strict=True):
            if not self.training or drawn > 0.5:
                x = layer(x)
        return x


class Certain(OneDrawForAll):
    """Draws with probabilities of zero and one: all layers run in every step, and none runs again."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for layer in self.layers:
            if torch.bernoulli(torch.ones(())):
                x = layer(x)
        again = torch.empty(1).bernoulli_(0.0).item() + np.random.binomial(1, 0.0)
        again += random.choices([0, 1], weights=[1, 0])[0]
        for _ in range(int(again)):
            x = self.layers[0](x)
        return x


class SeededInEachStep(OneDrawForAll):
    """Half of the layers run in every step: the generator is seeded anew, to the same draw."""

    def __init__(self, drawn: str) -> None:
        super().__init__()
        self.drawn = drawn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.drawn == "torch":
            generator = torch.Generator().manual_seed(1)
            draw = torch.rand((), generator=generator).item()  # 0.76
        elif self.drawn == "python":
            draw = random.Random(1).random() + 0.5  # 0.63
        else:
            draw = np.random.default_rng(1).random()  # 0.51
        x = self.first(x)
        for layer in self.layers[:: 1 + (0.5 < draw < 0.9)]:
            x = layer(x)
        return x


class TwoRules(OneDrawForAll):
    """One half of the layers is kept where little is drawn, the other where much is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for layer in self.layers[: DEPTH // 2]:
            if random.random() < 0.5:
                x = layer(x)
        for layer in self.layers[DEPTH // 2 :]:
            if np.random.rand() > 0.5:
                x = layer(x)
        return x


class Checkpointed(OneDrawForAll):
    """The draws are made inside of what is computed again."""

    def __init__(self, rate: str) -> None:
        super().__init__()
        self.rate = float(rate)

    def _all(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            if torch.rand(()) >= self.rate:
                x = layer(x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self._all, self.first(x), use_reentrant=False)


class OneOfThree(OneDrawForAll):
    """The largest way through the model is the one in the middle."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for layer in self.layers[: (2, DEPTH, 4)[random.randrange(3)]]:
            x = layer(x)
        return x


class RandomLength(OneDrawForAll):
    """Trains on a part of each sequence; `drawn` says how its length is drawn."""

    def __init__(self, drawn: str) -> None:
        super().__init__()
        self.drawn = drawn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        most = x.shape[1]
        length = {
            "python": lambda: random.randint(8, most),
            "python_choice": lambda: random.choice([most // 2, most, most // 4]),
            "numpy": lambda: int(np.random.randint(8, most + 1)),
            "torch": lambda: int(torch.randint(8, most + 1, (1,)).item()),
            "dropped": lambda: most - random.randint(0, most - 8),
            "part": lambda: int(most * (1 - random.uniform(0.0, 0.9))),
            "crop": lambda: -random.randint(0, most // 2) + random.randint(most // 2 + 1, most),
            "categorical": lambda: (8, most)[
                int(torch.distributions.Categorical(torch.tensor([0.9, 0.1])).sample())
            ],
        }[self.drawn]()
        x = self.first(x[:, :length])
        for layer in self.layers:
            x = layer(x)
        return x


class Masks(OneDrawForAll):
    """Random numbers that change no structure: dropout, DropPath, noise levels for each sample."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        level = torch.rand(x.shape[0], device=x.device)
        x = self.first(x) * level.view(-1, 1, 1)
        with tempfile.NamedTemporaryFile():  # draws a name
            pass
        for layer in self.layers:
            keep = x.new_empty((x.shape[0], 1, 1)).bernoulli_(0.9)
            x = x + functional.dropout(layer(x) * keep, 0.1)
        return x


class NeedsALayer(OneDrawForAll):
    """A step without any layer fails: there would be nothing to train."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            if random.random() < 0.5:
                x = layer(x)
        return x


class DrawsItsSizes(nn.Module):
    """The constructor draws how wide the layers are; initial weights are drawn in between."""

    def __init__(self) -> None:
        super().__init__()
        widths = [WIDTH]
        self.layers = nn.Sequential()
        for _ in range(4):
            widths.append(int(torch.randint(16, 256, ())) + random.randint(0, 9))
            widths[-1] += int(np.random.randint(0, 9))
            self.layers.append(nn.Linear(widths[-2], widths[-1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class FirstGradientLate(OneDrawForAll):
    """Some layers take part from the third step on: their gradients and moments appear then."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        x = self.first(x)
        for layer in self.layers[: DEPTH if self.steps % 100 >= 3 else 2]:
            x = layer(x)
        return x


class Alternates(OneDrawForAll):
    """Every fifth step is the large one."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        x = self.first(x)
        for layer in self.layers[: (6, 4, 2, 3, DEPTH)[self.steps % 5]]:
            x = layer(x)
        return x


class DropsAndLeaks(OneDrawForAll):
    """Keeps 1 MiB of every step, whatever is dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept.append(torch.zeros(1 << 18, device=x.device))
        return super().forward(x)
