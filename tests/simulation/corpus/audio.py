"""Audio models: one-dimensional convolutions, spectrograms, CTC."""

from __future__ import annotations

from functools import partial

import torch
from tests.simulation.corpus.case import case
from torch import nn
from torch.nn import functional as F  # noqa: N812


class RawWave(nn.Module):
    """One-dimensional convolutions over a raw signal (M5)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, size, stride in ((1, 64, 80, 4), (64, 64, 3, 1), (64, 128, 3, 1)):
            layers += [nn.Conv1d(before, after, size, stride), nn.BatchNorm1d(after), nn.ReLU()]
            layers.append(nn.MaxPool1d(4))
        self.body, self.out = nn.Sequential(*layers), nn.Linear(128, 35)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.avg_pool1d(x := self.body(x), x.shape[-1])
        return self.out(x.permute(0, 2, 1)).squeeze(1)


class Spectrogram(nn.Module):
    """A short-time Fourier transform, mel bands, and a small image network."""

    def __init__(self, bands: int = 64) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(400))
        self.register_buffer("bands", torch.rand(201, bands))
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU()),
        )
        self.out = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spectrum = torch.stft(x, n_fft=400, hop_length=160, window=self.window, return_complex=True)
        power = spectrum.abs().pow(2).transpose(1, 2)
        mel = torch.log(power @ self.bands + 1e-6)
        return self.out(self.body(mel.unsqueeze(1)).mean((2, 3)))


class WaveNet(nn.Module):
    """Gated dilated causal convolutions with skip connections and weight normalisation."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.start = nn.Conv1d(1, width, 1)
        self.gated = nn.ModuleList(
            norm(nn.Conv1d(width, 2 * width, 2, dilation=2**i)) for i in range(6)
        )
        self.mixed = nn.ModuleList(nn.Conv1d(width, 2 * width, 1) for _ in range(6))
        self.out = nn.Sequential(nn.ReLU(), nn.Conv1d(width, 256, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, skipped = self.start(x), 0.0
        for index, (gated, mixed) in enumerate(zip(self.gated, self.mixed, strict=True)):
            value, gate = gated(F.pad(x, (2**index, 0))).chunk(2, 1)
            residual, skip = mixed(torch.tanh(value) * torch.sigmoid(gate)).chunk(2, 1)
            x, skipped = x + residual, skipped + skip
        return self.out(skipped)


class Conformer(nn.Module):
    """Attention and depthwise convolution over frames, trained with CTC."""

    def __init__(self, width: int = 144, tokens: int = 30) -> None:
        super().__init__()
        self.sample = nn.Sequential(
            nn.Conv2d(1, 32, 3, 2), nn.ReLU(), nn.Conv2d(32, 32, 3, 2), nn.ReLU()
        )
        self.project = nn.Linear(32 * 19, width)
        self.attend = nn.MultiheadAttention(width, 4, dropout=0.1, batch_first=True)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.pointwise = nn.Conv1d(width, 2 * width, 1)
        self.depthwise = nn.Conv1d(width, width, 15, padding=7, groups=width)
        self.batch_norm = nn.BatchNorm1d(width)
        self.feed = nn.Sequential(nn.Linear(width, 576), nn.SiLU(), nn.Linear(576, width))
        self.out = nn.Linear(width, tokens)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.sample(x.unsqueeze(1))
        x = self.project(x.permute(0, 2, 1, 3).flatten(2))
        y = self.norms[0](x)
        x = x + self.attend(y, y, y, need_weights=False)[0]
        y = F.glu(self.pointwise(self.norms[1](x).transpose(1, 2)), 1)
        x = x + F.silu(self.batch_norm(self.depthwise(y))).transpose(1, 2)
        x = x + 0.5 * self.feed(self.norms[2](x))
        logits = self.out(x).float().log_softmax(-1).transpose(0, 1)
        n = labels.shape[0]
        frames = torch.full((n,), logits.shape[0], dtype=torch.long)
        lengths = torch.full((n,), labels.shape[1], dtype=torch.long)
        return F.ctc_loss(logits, labels, frames, lengths, zero_infinity=True)


class Separator(nn.Module):
    """A learnt filter bank and its inverse around dilated blocks (Conv-TasNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Conv1d(1, 128, 16, 8, bias=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(nn.Conv1d(128, 128, 1), nn.PReLU(), nn.GroupNorm(1, 128)),
                nn.Conv1d(128, 128, 3, padding=2**i, dilation=2**i, groups=128),
                *(nn.PReLU(), nn.GroupNorm(1, 128), nn.Conv1d(128, 128, 1)),
            )
            for i in range(3)
        )
        self.mask = nn.Conv1d(128, 256, 1)
        self.decode = nn.ConvTranspose1d(128, 1, 16, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.encode(x)
        y = w
        for block in self.blocks:
            y = y + block(y)
        masks = torch.sigmoid(self.mask(y)).view(x.shape[0], 2, 128, -1)
        sources = self.decode((w.unsqueeze(1) * masks).flatten(0, 1)).view(x.shape[0], 2, -1)
        signal = x[..., : sources.shape[-1]]
        noise = sources - signal
        return (
            -10 * torch.log10(signal.pow(2).sum(-1) / (noise.pow(2).sum(-1) + 1e-8) + 1e-8).mean()
        )


_case = partial(case, "audio", __name__, kind="convolutional")

CASES = (
    _case("raw_wave", "RawWave", "1,16000", loss="cross-entropy", batch_sizes=(8,)),
    _case("spectrogram", "Spectrogram", "16000", precisions=("fp32", "amp-bf16"), batch_sizes=(8,)),
    _case("wavenet", "WaveNet", "1,4000", precisions=("fp32", "amp-fp16")),
    _case(
        "conformer",
        "Conformer",
        "x=200,80",
        "labels=20:int64:1..30",
        kind="attention",
        precisions=("fp32", "amp-bf16"),
    ),
    _case("separator", "Separator", "1,8000", precisions=("fp32",)),
)
