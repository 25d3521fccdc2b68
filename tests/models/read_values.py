"""Models that read values of activations, for the tests of the tracer: (layer, activations) → loss."""

import math

import torch
from torch import distributions, nn
from torch.nn import functional as F  # noqa: N812


class Reads(nn.Module):
    """A layer, and a function of this module that reads what it computes."""

    def __init__(self, function):
        super().__init__()
        self.layer = nn.Linear(32, 32)
        self.function = globals()[function]

    def forward(self, x):
        return self.function(self.layer(x))


def normal(h):
    law = distributions.Normal(h, F.softplus(h) + 1e-3)
    return -law.log_prob(law.rsample()).mean()


def categorical(h):
    law = distributions.Categorical(logits=h)
    return law.log_prob(law.sample()).mean() + law.entropy().mean()


def multivariate(h):
    covariance = torch.eye(32, device=h.device) + h.T @ h
    law = distributions.MultivariateNormal(h, covariance_matrix=covariance)
    return law.log_prob(law.rsample()).mean()


def beta(h):
    law = distributions.Beta(F.softplus(h) + 1, F.softplus(h) + 1)
    return law.log_prob(law.rsample()).mean()


def squashed(h):
    law = distributions.TransformedDistribution(
        distributions.Normal(h, h.exp()), [distributions.TanhTransform(cache_size=1)]
    )
    return distributions.Independent(law, 1).log_prob(law.rsample()).mean()


def gumbel(h):
    return F.gumbel_softmax(h, hard=True).sum()


def boxes(h):
    centre, size = h[:, :2].sigmoid(), h[:, 2:4].sigmoid()
    box = torch.cat([centre - size / 2, centre + size / 2], -1)
    assert (box[:, 2:] >= box[:, :2]).all()
    return box.sum()


def finite(h):
    loss = h.pow(2).mean()
    if torch.isnan(loss):
        raise ValueError("nan")
    if not math.isfinite(loss.item()):
        raise ValueError("not finite")
    assert torch.isfinite(h).all()
    assert torch.isfinite(h).any()
    assert torch.isfinite(h).sum() == h.numel()
    assert not torch.isnan(h).all()
    assert not torch.isinf(h).any()
    assert not (~torch.isfinite(h)).any()
    assert (h == h).all()
    assert not (h != h).any()
    return loss


def bounded(h):
    shares, signed = h.softmax(-1), h.tanh()
    assert shares.max() <= 1
    assert shares.min().item() >= 0
    assert signed.abs().max() <= 1
    assert not (shares > 1).any()
    assert h.argmax(-1).max() < 32
    assert h.topk(3)[1].max() < h.numel()
    assert (h.relu() >= 0).all()
    if (shares * 2 + 1).amax() > 3:
        return shares.sum() * 2
    ids = torch.randint(0, 100, (5_000, 1_000), device=h.device)
    assert ids.max() < 100
    assert not (ids == 100).any()
    return shares.sum()


def inverted(h):
    if (h < 0).all():
        raise ValueError("nothing is left")
    assert (h > 0).any()
    assert not (h > 3).all()
    assert h.max() > 0
    assert math.log(h.exp().mean().item()) < 1 / h.exp().mean().item()
    return h.sum()


def asks_a_helper(h):
    def is_some_positive():
        return bool((h > 0).any())

    if not is_some_positive():
        raise RuntimeError("nothing is positive")
    return h.sum()


def inverse_spectrum(h):
    """The inverse checks by itself that the windows cover the sound."""
    sound, window = h.repeat(1, 1024), torch.hann_window(4096).to(h)
    spectrum = torch.stft(sound, 4096, 1024, window=window, return_complex=True)
    return torch.istft(spectrum, 4096, 1024, window=window)


def equal(h):
    assert torch.equal(h, h)
    assert torch.allclose(h, h + 0)
    torch.testing.assert_close(h, h)
    return h.sum()


def logs(h):
    loss = h.pow(2).mean()
    assert f"{loss:.4f} {loss.item():.2f} {float(loss)}"
    nn.utils.clip_grad_norm_([h], 1.0, error_if_nonfinite=True)
    return loss


def masked(h):
    mask = torch.full((5_000, 5_000), float("-inf"), device=h.device).triu(1)
    assert torch.isinf(mask).any()
    attention = (h[:, :1, None] + mask[:1]).softmax(-1)
    assert not torch.isnan(attention).any()
    return attention.sum()


def joined(h):
    means = torch.tensor([h[:2].mean(), h[2:].mean()], device=h.device)
    assert torch.tensor([h.mean()]).device.type == "cpu"
    assert h.new_tensor([[h.mean()]]).shape == (1, 1)
    return h.sum() + means.sum()


def branches_on_a_float(h):
    if h.mean().item() > 0.25:
        return h.tanh()
    return h


def branches(h):
    if (h > 0).all():
        return h.sum() * 2
    return h.sum()


def wrong(h):
    if (h > 0).all():
        raise ValueError("never good")
    raise ValueError("never good either")
