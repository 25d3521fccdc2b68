"""Models of the benchmarks: from timm, from transformers, and by hand; weights are random."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

__all__ = ["ARGUMENTS"]

IMAGE = ("--input-shape", "3,224,224")


def _timm(name: str) -> nn.Module:
    import timm

    return timm.create_model(name)


def _hugging_face(model: str, config: str, **settings: Any) -> nn.Module:
    import transformers

    return getattr(transformers, model)(getattr(transformers, config)(**settings))


def _tokens(length: int, vocabulary: int, labels: str) -> tuple[str, ...]:
    return ("--input", f"input_ids={length}:int64:0..{vocabulary}", "--input", f"labels={labels}")


class LstmLanguageModel(nn.Module):
    """An LSTM between an embedding and a large vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(33278, 650)
        self.rnn = nn.LSTM(650, 650, 2, dropout=0.5, batch_first=True)
        self.out = nn.Linear(650, 33278)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(self.embed(x))[0])


class GruClassifier(nn.Module):
    """A bidirectional GRU over a signal."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(64, 256, 3, batch_first=True, bidirectional=True)
        self.out = nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(x)[0][:, -1])


class UNet(nn.Module):
    """Skip connections, in two or three dimensions."""

    def __init__(self, dimensions: int, channels: int, width: int, depth: int = 3) -> None:
        super().__init__()
        conv = (nn.Conv2d, nn.Conv3d)[dimensions - 2]
        norm = (nn.BatchNorm2d, nn.BatchNorm3d)[dimensions - 2]
        up = (nn.ConvTranspose2d, nn.ConvTranspose3d)[dimensions - 2]
        self.pool = (F.max_pool2d, F.max_pool3d)[dimensions - 2]

        def block(before: int, after: int) -> nn.Module:
            return nn.Sequential(
                *(conv(before, after, 3, padding=1, bias=False), norm(after), nn.ReLU(True)),
                *(conv(after, after, 3, padding=1, bias=False), norm(after), nn.ReLU(True)),
            )

        widths = [width * 2**level for level in range(depth + 1)]
        self.stem = block(channels, width)
        self.down = nn.ModuleList(block(a, b) for a, b in itertools.pairwise(widths))
        pairs = list(itertools.pairwise(widths))[::-1]
        self.up = nn.ModuleList(up(b, a, 2, 2) for a, b in pairs)
        self.merge = nn.ModuleList(block(2 * a, a) for a, _ in pairs)
        self.out = conv(width, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        skipped = []
        for down in self.down:
            skipped.append(x)
            x = down(self.pool(x, 2))
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skipped.pop(), up(x)], 1))
        return self.out(x)


class AudioNet(nn.Module):
    """One-dimensional convolutions over a raw signal."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((1, 32), (32, 64), (64, 128), (128, 256)):
            stride = 4 if before == 1 else 2
            layers += [nn.Conv1d(before, after, 9, stride, 4), nn.BatchNorm1d(after), nn.GELU()]
        self.body = nn.Sequential(*layers)
        self.out = nn.Linear(256, 35)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.body(x).mean(-1))


class Recommender(nn.Module):
    """Embedding tables and their pairwise interactions (DLRM)."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(10_000, 64) for _ in range(26))
        self.bottom = nn.Sequential(nn.Linear(13, 256), nn.ReLU(), nn.Linear(256, 64))
        self.top = nn.Sequential(nn.Linear(64 + 27 * 13, 512), nn.ReLU(), nn.Linear(512, 1))

    def forward(self, dense: torch.Tensor, sparse: torch.Tensor) -> torch.Tensor:
        d = self.bottom(dense)
        z = torch.stack([d] + [table(sparse[:, i]) for i, table in enumerate(self.tables)], 1)
        i, j = torch.tril_indices(27, 27, -1, device=z.device)
        return self.top(torch.cat([d, (z @ z.transpose(1, 2))[:, i, j]], 1))


class Contrastive(nn.Module):
    """Compares every sample with every other: a part of it grows with the square of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(512, 2048), nn.GELU(), nn.Linear(2048, 256))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.normalize(self.embed(x), dim=-1)
        return F.cross_entropy(h @ h.T / 0.07, torch.arange(len(h), device=h.device))


def mlp() -> nn.Module:
    """Return a plain multi-layer perceptron."""
    return nn.Sequential(
        *(nn.Linear(784, 512), nn.ReLU(), nn.Dropout(0.1)),
        *(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)),
    )


_FACTORIES: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    **{
        name: (partial(_timm, timm_name), IMAGE)
        for name, timm_name in {
            "resnet18": "resnet18",
            "resnet50": "resnet50",
            "efficientnet": "efficientnet_b0",
            "mobilenet": "mobilenetv3_large_100",
            "densenet": "densenet121",
            "regnet": "regnety_016",
            "vgg": "vgg16",
            "vit": "vit_small_patch16_224",
            "swin": "swin_tiny_patch4_window7_224",
            "mixer": "mixer_s32_224",
        }.items()
    },
    "bert": (
        partial(_hugging_face, "BertForSequenceClassification", "BertConfig"),
        _tokens(128, 30522, ":int64:0..2"),
    ),
    "gpt2": (
        partial(_hugging_face, "GPT2LMHeadModel", "GPT2Config"),
        _tokens(256, 50257, "256:int64:0..50257"),
    ),
    "t5": (
        partial(_hugging_face, "T5ForConditionalGeneration", "T5Config", decoder_start_token_id=0),
        _tokens(128, 32128, "64:int64:0..32128"),
    ),
    "llama": (
        partial(
            _hugging_face,
            *("LlamaForCausalLM", "LlamaConfig"),
            **{"hidden_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 16},
            intermediate_size=2816,
        ),
        _tokens(512, 32000, "512:int64:0..32000"),
    ),
    "lstm": (LstmLanguageModel, ("--input", "x=35:int64:0..33278")),
    "gru": (GruClassifier, ("--input-shape", "100,64")),
    "unet": (partial(UNet, 2, 3, 32), ("--input-shape", "3,128,128")),
    "unet3d": (partial(UNet, 3, 1, 16), ("--input-shape", "1,32,64,64")),
    "audio": (AudioNet, ("--input-shape", "1,16000")),
    "mlp": (mlp, ("--input-shape", "784")),
    "recommender": (
        Recommender,
        ("--input", "dense=13", "--input", "sparse=26:int64:0..10000"),
    ),
    "contrastive": (Contrastive, ("--input-shape", "512")),
    # The slowest by far: cuDNN compiles its depthwise convolutions at run time.
    "convnext": (partial(_timm, "convnext_tiny"), IMAGE),
}

ARGUMENTS: dict[str, tuple[str, ...]] = {name: inputs for name, (_, inputs) in _FACTORIES.items()}
"""Name of a model → what `bsfind run` needs to know of its inputs. Factories have the same names."""

globals().update({name: factory for name, (factory, _) in _FACTORIES.items()})
