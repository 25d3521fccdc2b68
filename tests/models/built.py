"""Models whose constructors do what is hard to do without memory, for the tests of the tracer."""

import copy
import math
import weakref

import torch
from torch import nn

MOVES = {
    "to_cpu": lambda m: m.to("cpu"),
    "to_device": lambda m: m.to(torch.device("cpu")),
    "to_device_dtype": lambda m: m.to("cpu", torch.float64).to(device="cpu", dtype=torch.float32),
    "to_dtype": lambda m: m.to(torch.float16).to(dtype=torch.float32),
    "to_tensor": lambda m: m.to(torch.zeros(1)),
    "to_format": lambda m: m.to(memory_format=torch.channels_last),
    "half_float": lambda m: m.half().bfloat16().double().float(),
    "type": lambda m: m.type(torch.float64).type("torch.FloatTensor"),
    "cpu": lambda m: m.cpu(),
    "cuda": lambda m: m.cuda(),
    "cuda_number": lambda m: m.to(0).to(device=0),
    "there_and_back": lambda m: m.cuda().cpu().to("cuda:0").to("cpu", non_blocking=True),
    "to_empty": lambda m: m.to_empty(device="cpu"),
}


class TiedAndMoved(nn.Module):
    """The output's weights are the embedding's: 64,000 of them, before and after all moves."""

    def __init__(self, move="to_cpu", how="attribute"):
        super().__init__()
        self.embed = nn.Embedding(1000, 64)
        self.head = nn.Linear(64, 1000, bias=False)
        if how == "attribute":
            self.head.weight = self.embed.weight
        elif how == "dict":
            self.head._parameters["weight"] = self.embed._parameters["weight"]
        elif how == "new":
            weight = nn.Parameter(torch.randn(1000, 64))
            self.embed._parameters["weight"] = weight
            self.head._parameters["weight"] = weight
        elif how == "held":  # by a weak reference, so that the parameter cannot change in place
            weight = nn.Parameter(torch.randn(1000, 64))
            self.watch = weakref.ref(weight)
            self.embed.weight = weight
            self.head.weight = weight
        elif how in ("values", "held values"):  # a constructor that cannot be run without values
            self.head.weight = self.embed.weight
            self.watch = weakref.ref(self.embed.weight) if how == "held values" else None
            self.chosen = self.embed.weight[self.embed.weight > 0].numel()
        else:
            MOVES[move](self)
            self.head.weight = self.embed.weight
        MOVES[move](self)
        assert self.head.weight is self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x))


class Copied(nn.Module):
    """A block and its copies, moved."""

    def __init__(self):
        super().__init__()
        block = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
        self.blocks = nn.ModuleList([block, copy.deepcopy(block).to("cpu"), copy.deepcopy(block)])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class Parametrized(nn.Module):
    """Weights that are computed from others."""

    def __init__(self):
        super().__init__()
        parametrizations = nn.utils.parametrizations
        self.layers = nn.Sequential(
            parametrizations.weight_norm(nn.Linear(8, 8)),
            parametrizations.spectral_norm(nn.Linear(8, 8)),
            parametrizations.orthogonal(nn.Linear(8, 8)),
        )
        self.to("cpu")

    def forward(self, x):
        return self.layers(x)


N = 60_000
"""N² numbers take 14 GB."""


class Large(nn.Module):
    """A weight that is larger than the memory of many hosts, made in one of many ways."""

    def __init__(self, made):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        found = getattr(self, made)()
        if isinstance(found, nn.Module):
            self.made = found
        elif isinstance(found, nn.Parameter):
            self.weight = found
        else:
            self.register_buffer("table", found)

    def linear(self):
        layer = nn.Linear(N, N)
        nn.init.trunc_normal_(layer.weight, std=0.02)
        return layer

    def embedding(self):
        made = nn.Embedding(25_000_000, 1024, padding_idx=0)
        made.weight.data.normal_(0, 0.02, generator=torch.Generator().manual_seed(0))
        made.weight.data[0].zero_()
        return made

    def scaled(self):
        return nn.Parameter(torch.randn(N, N, generator=torch.Generator()) * 0.02)

    def initialised(self):
        made = nn.Parameter(torch.empty(N, N))
        nn.init.xavier_uniform_(made)
        nn.init.orthogonal_(made)
        return made

    def legacy(self):
        return nn.Parameter(torch.FloatTensor(N, N).uniform_(-1, 1))

    def pretrained(self):
        return nn.Embedding.from_pretrained(torch.rand(N, N), freeze=False)

    def joined(self):
        return nn.Parameter(torch.cat([torch.zeros(600, N)] * 100))

    def scattered(self):
        rows = torch.arange(N)
        table = torch.zeros(N, N).scatter(1, rows[:, None], 1.0)
        table[rows, rows] = 2.0
        return table

    def positions(self):
        table = torch.zeros(900_000, 4096)
        angles = torch.outer(
            torch.arange(900_000.0), torch.exp(torch.arange(0, 4096, 2) * -math.log(1e4) / 4096)
        )
        table[:, 0::2] = torch.sin(angles)
        table[:, 1::2] = torch.cos(angles)
        return table

    def mask(self):
        return torch.tril(torch.ones(2 * N, 2 * N, dtype=torch.bool))

    def forward(self, x):
        return self.layer(x)


class NeedsValuesOfMuch(nn.Module):
    """Has a huge weight, and a shape that depends on values of another."""

    def __init__(self):
        super().__init__()
        self.huge = nn.Linear(2_000_000, 2_000_000)
        small = nn.Linear(8, 8)
        self.layer = nn.Linear(8, small.weight[small.weight > 0].numel())

    def forward(self, x):
        return self.layer(x)


class TriesItself(nn.Module):
    """Runs a part of itself in the constructor, to learn a size."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten())
        with torch.no_grad():
            size = self.features(torch.zeros(1, 3, 8, 8)).shape[1]
        self.head = nn.Linear(size, 2)

    def forward(self, x):
        return self.head(self.features(x))


class Wide(nn.Module):
    """One layer of 80,000 by 80,000."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(80_000, 80_000)

    def forward(self, x):
        return self.layer(x)


large_at_import = torch.zeros(9000, 1000)


class UsesATableOfItsModule(nn.Module):
    """Moves a large table that was made when the module was imported."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("table", large_at_import)

    def forward(self, x):
        return self.layer(x) + self.table[0, :8]


class Int8(torch.Tensor):
    """Weights of one byte, and a scale for each row, as libraries for quantization have them."""

    @staticmethod
    def __new__(cls, codes, scale):
        options = {"dtype": scale.dtype, "device": codes.device}
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, **options)

    def __init__(self, codes, scale):
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self):
        return ["codes", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, parts, *_):
        return cls(parts["codes"], parts["scale"])

    @classmethod
    def __torch_dispatch__(cls, operator, types, args, kwargs=None):
        kwargs = kwargs or {}
        if operator in (torch.ops.aten.detach.default, torch.ops.aten._to_copy.default):
            parts = (args[0].codes, args[0].scale)
            return cls(*(part.detach().to(kwargs.get("device")) for part in parts))
        plain = [arg.codes * arg.scale if isinstance(arg, cls) else arg for arg in args]
        return operator(*plain, **kwargs)


def quantized():
    """A linear layer of 1,000 times 8 bytes, and one of floats that is trained."""
    model = nn.Sequential(nn.Linear(8, 1000), nn.Linear(1000, 1))
    weight = model[0].weight.detach()
    scale = weight.abs().amax(1, keepdim=True) / 127
    codes = (weight / scale).to(torch.int8)
    model[0].weight = nn.Parameter(Int8(codes, scale), requires_grad=False)
    return model
