"""Models that ask the GPU questions, for the tests of the tracer."""

import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn import functional as F  # noqa: N812


class AsksForCuda(nn.Module):
    """Hard-codes CUDA everywhere."""

    def __init__(self):
        super().__init__()
        assert torch.cuda.is_available()
        assert torch.cuda.device_count() == 1
        self.layer = nn.Linear(8, 8).cuda()
        self.table = torch.arange(8, device="cuda").float()

    def forward(self, x):
        assert x.is_cuda
        assert not x.is_cpu
        assert x.device == torch.device("cuda", 0)
        assert x.get_device() == 0
        assert x.type() == "torch.cuda.FloatTensor"
        assert self.layer.weight.is_cuda
        noise = torch.randn(8, device="cuda:0") + torch.zeros(8).cuda() + torch.tensor(1.0).to(x)
        with torch.autocast(device_type=x.device.type, enabled=False):
            return self.layer(x + self.table + noise.to("cuda") + x.new_tensor([2.0]))


class BranchesOnValues(nn.Module):
    """Reads masks and lengths, and goes wrong where they read as zeros."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("keep", torch.tensor([True, False, True, True]))

    def forward(self, x):
        mask = torch.ones(x.shape[0], 5, dtype=torch.bool, device=x.device)
        assert mask.all()
        mask[:, 3:] = False
        lengths = mask.sum(1)
        assert lengths.max().item() == 3
        assert lengths.tolist() == [3] * x.shape[0]
        positions = torch.nonzero(self.keep).squeeze(1)
        assert positions.shape == (3,)
        chosen = x[:, self.keep]
        assert chosen.shape == (x.shape[0], 3)
        assert torch.masked_select(x, self.keep).numel() == 3 * x.shape[0]
        assert self.keep.cpu().numpy().tolist() == [True, False, True, True]
        values, counts = torch.unique(lengths, return_counts=True)
        assert values.shape == counts.shape == (1,)
        if torch.isinf(x).any() or torch.isnan(x).any():
            raise AssertionError("a model in good health has neither")
        return self.layer(x)[:, positions] * chosen


class ShapedByActivations(nn.Module):
    """Keeps the positive activations: how many depends on data."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        x = self.layer(x)
        return x[x > 0]


class ReadsAnActivation(nn.Module):
    """Branches on a value that nobody can know."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        x = self.layer(x)
        return x if (x > 0).all() else x * 2


class ReadsInItsConstructor(nn.Module):
    """Draws drop rates from a small tensor, and scales by a small parameter's value."""

    def __init__(self, depth=3):
        super().__init__()
        rates = [rate.item() for rate in torch.linspace(0, 0.3, depth)]
        assert abs(rates[-1] - 0.3) < 1e-6
        self.scale = nn.Parameter(torch.tensor(0.5))
        assert self.scale.item() == 0.5
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in rates)
        self.layers[0].weight.data = torch.eye(4)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x * self.scale


class Tied(nn.Module):
    """The output's weights are the embedding's."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(1000, 64)
        self.out = nn.Linear(64, 1000, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x):
        return self.out(self.embed(x))


class Huge(nn.Module):
    """Seven thousand million parameters."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16384, 16384) for _ in range(26))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Contrastive(nn.Module):
    """Compares each sample with each: a part grows with the square of the batch."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(64, 32)

    def forward(self, x):
        h = F.normalize(self.embed(x), dim=-1)
        return F.cross_entropy(h @ h.T, torch.arange(len(h), device=h.device))


class ChangesWithTheBatch(nn.Module):
    """Takes another way from 20 samples on."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x):
        x = self.layer(x)
        return x.relu().exp() if len(x) >= 20 else x


class KeepsSomething(nn.Module):
    """Caches a tensor in its first forward pass."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 64)
        self.cache = None

    def forward(self, x):
        if self.cache is None:
            self.cache = torch.zeros(100_000, device=x.device)
        return self.layer(x) + self.cache[:64]


_LIBRARY = torch.library.Library("bsfind_tests", "DEF")
_LIBRARY.define("only_on_cuda(Tensor x) -> Tensor")
_LIBRARY.define("version() -> int")
_LIBRARY.impl("version", lambda: 13, "CompositeExplicitAutograd")
_LIBRARY.define("twice(Tensor x) -> Tensor")
_LIBRARY.impl("twice", lambda x: torch.empty_like(x), "CompositeExplicitAutograd")


class CustomKernel(nn.Module):
    """Calls an operator of its own that has a CUDA kernel only."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return torch.ops.bsfind_tests.only_on_cuda(self.layer(x))


class CustomOperator(CustomKernel):
    """Calls an operator of its own that runs anywhere."""

    def forward(self, x):
        return self.layer(torch.ops.bsfind_tests.twice(x))


class CustomVersion(CustomKernel):
    """Calls an operator of its own that has nothing to do with tensors."""

    def forward(self, x):
        return self.layer(x) * torch.ops.bsfind_tests.version()


class _AsksInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        assert x.is_cuda
        return x * 1

    @staticmethod
    def backward(ctx, grad):
        assert grad.is_cuda
        return grad * torch.ones((), device="cuda")


class AsksForCudaInBackward(nn.Module):
    """Custom functions, hooks and recomputed activations ask in the backward pass."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def block(self, x):
        assert x.is_cuda
        return self.layer(x + torch.zeros(8, device=x.device))

    def forward(self, x):
        x = _AsksInBackward.apply(self.layer(x))
        x.register_hook(lambda grad: grad if grad.is_cuda else None)
        for reentrant in (False, True):
            x = torch.utils.checkpoint.checkpoint(self.block, x, use_reentrant=reentrant)
        return x


instance = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8))


def images_of_the_host(batch_size, device):
    """Random images that are checked, as a data set would be."""
    images = torch.randn(batch_size, 3, 256, 256)
    assert images.device.type == "cpu"
    assert images.shape == (batch_size, 3, 256, 256)
    assert abs(images.mean()) < 0.01
    assert abs(images.std() - 1) < 0.01
    assert images[0].unique().numel() > 100_000
    assert images.flatten()[0] == images.flatten()[1 << 20]  # the first million repeats
    return images.mean((1, 2, 3), keepdim=True).expand(-1, 1, 1, 8).reshape(-1, 8), images[:, :1]


class MeanOfPixels(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x, images):
        return self.layer(x) * images.mean()
