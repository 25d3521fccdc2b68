"""Models that bsfind's rules were not written for, nor tested with: of libraries, and by hand."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import torch
from tests.simulation.corpus.case import Case, case
from torch import nn
from torch.nn import functional as F  # noqa: N812

__all__ = ["CASES"]


class EncoderOnly(nn.Module):
    """PyTorch's own transformer encoder over a sequence of features."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(192, 6, 768, batch_first=True, norm_first=True)
        self.inside = nn.Linear(40, 192)
        self.encoder = nn.TransformerEncoder(layer, 5)
        self.out = nn.Linear(192, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.encoder(self.inside(x)).mean(1))


class Variational(nn.Module):
    """A variational autoencoder of vectors, with its own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3072, 1024), nn.SiLU(), nn.Linear(1024, 256))
        self.decoder = nn.Sequential(nn.Linear(128, 1024), nn.SiLU(), nn.Linear(1024, 3072))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, log_variance = self.encoder(x).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        divergence = (mean**2 + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2
        return F.mse_loss(self.decoder(z), x) + 1e-3 * divergence


class Points(nn.Module):
    """Features of points, and their maximum over the cloud (PointNet)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 64, 64, 128, 1024)
        self.each = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths[1:])
        self.out = nn.Sequential(nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, 40))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for linear, norm in zip(self.each, self.norms, strict=True):
            x = F.relu(norm(linear(x)))
        return self.out(x.amax(1))


class Radiance(nn.Module):
    """Samples along rays through a perceptron with a skip connection, integrated (NeRF)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Linear(63 if i == 0 else 256, 256) for i in range(4))
        self.second = nn.ModuleList(nn.Linear(319 if i == 0 else 256, 256) for i in range(3))
        self.out = nn.Linear(256, 4)

    def forward(self, rays: torch.Tensor) -> torch.Tensor:
        origin, direction = rays[:, None, :3], rays[:, None, 3:]
        depth = torch.linspace(2, 6, 64, device=rays.device)
        points = origin + direction * depth[None, :, None]
        waves = [f(points * 2.0**i) for i in range(10) for f in (torch.sin, torch.cos)]
        encoded = x = torch.cat([points, *waves], -1)
        for layer in self.first:
            x = F.relu(layer(x))
        x = torch.cat([x, encoded], -1)
        for layer in self.second:
            x = F.relu(layer(x))
        colour, density = self.out(x).split([3, 1], -1)
        opacity = 1 - torch.exp(-F.relu(density) * (4 / 64))
        passing = torch.cumprod(1 - opacity + 1e-10, 1)
        return (opacity * passing * colour.sigmoid()).sum(1)


class Graph(nn.Module):
    """Attention over the nodes of dense graphs, with edges as a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(16, 64)
        self.qkv = nn.ModuleList(nn.Linear(64, 192) for _ in range(3))
        self.out = nn.Linear(64, 12)

    def forward(self, nodes: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        x = self.inside(nodes)
        for layer in self.qkv:
            q, k, v = layer(x).chunk(3, -1)
            scores = q @ k.transpose(1, 2) / math.sqrt(64) + edges
            x = x + F.elu(scores.softmax(-1) @ v)
        return self.out(x.mean(1))


class GatedResidual(nn.Module):
    """Dilated causal convolutions with gates over a signal (WaveNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Conv1d(1, 32, 1)
        self.dilated = nn.ModuleList(nn.Conv1d(32, 64, 2, dilation=2**i) for i in range(8))
        self.mix = nn.ModuleList(nn.Conv1d(32, 32, 1) for _ in range(8))
        self.out = nn.Conv1d(32, 12, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inside(x)
        for i, (dilated, mix) in enumerate(zip(self.dilated, self.mix, strict=True)):
            a, b = dilated(F.pad(x, (2**i, 0))).chunk(2, 1)
            x = x + mix(a.tanh() * b.sigmoid())
        return self.out(x).mean(-1)


class Upsampler(nn.Module):
    """Residual convolutions and pixel shuffle (super-resolution)."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 48, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(48, 48, 3, padding=1), nn.PReLU(), nn.Conv2d(48, 48, 3, padding=1)
            )
            for _ in range(6)
        )
        self.tail = nn.Sequential(nn.Conv2d(48, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x = self.head(x)
        for block in self.body:
            y = y + 0.1 * block(y)
        return self.tail(x + y)


class Generator(nn.Module):
    """Transposed convolutions from a vector to an image (DCGAN)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.ConvTranspose2d(100, 256, 4), nn.BatchNorm2d(256), nn.ReLU()]
        for a, b in ((256, 128), (128, 64), (64, 32)):
            layers += [nn.ConvTranspose2d(a, b, 4, 2, 1), nn.BatchNorm2d(b), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(32, 3, 4, 2, 1), nn.Tanh())

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.layers(z[:, :, None, None])


class TwoTowers(nn.Module):
    """Two towers over bags of words, every pair of a batch compared."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(20_000, 128)
        self.left = nn.Sequential(
            nn.Linear(128, 512), nn.GELU(), nn.LayerNorm(512), nn.Linear(512, 64)
        )
        self.right = nn.Sequential(
            nn.Linear(128, 512), nn.GELU(), nn.LayerNorm(512), nn.Linear(512, 64)
        )

    def forward(self, query: torch.Tensor, document: torch.Tensor) -> torch.Tensor:
        a = F.normalize(self.left(self.words(query)), dim=1)
        b = F.normalize(self.right(self.words(document)), dim=1)
        return F.cross_entropy(20 * a @ b.T, torch.arange(len(a), device=a.device))


class Checkpointed(nn.Module):
    """A deep perceptron over tokens that computes its blocks again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Embedding(1000, 256)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(256), nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256))
            for _ in range(8)
        )
        self.out = nn.Linear(256, 1000)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        from torch.utils.checkpoint import checkpoint

        x = self.inside(ids)
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=False)
        return self.out(x[:, -1])


def without_padding(model: str, config: str, **settings: Any) -> Any:
    """A model of transformers for the fake GPU, which reads zeros: no token of the batch counts as padding.

    The models look at their padding mask, which is all ones here, and leave it out of attention.
    """
    from benchmarks.published_models import hugging_face
    from transformers import masking_utils

    def is_without(
        padding_mask: torch.Tensor | None, kv_length: int, local_attention_size: int | None = None
    ) -> bool:
        if padding_mask is not None:
            padding_mask.all()
        return local_attention_size is None or kv_length < local_attention_size

    def is_all(tensor: torch.Tensor) -> bool:
        _ = tensor.sum() == tensor.numel()
        return True

    masking_utils._ignore_bidirectional_mask_sdpa = is_without
    masking_utils.fast_all = is_all
    return hugging_face(model, config, **settings)


_PUBLISHED = "benchmarks.published_models"
_SGD = {"optimizer": "sgd", "optimizer_args": {"momentum": "0.9"}}
_PRECISIONS = ("fp32", "amp-fp16", "amp-bf16")


def _own(name: str, *inputs: str, kind: str = "other", **more: Any) -> Case:
    return case("by hand", __name__, name.lower(), name, *inputs, kind=kind, **more)


def _timm(name: str, kind: str = "convolutional", side: int = 224, **more: Any) -> Case:
    shape = f"3,{side},{side}"
    args = {"name": name, **more.pop("args", {})}
    return case(
        "timm", _PUBLISHED, f"timm_{name}", "timm_model", shape,
        args=args, kind=kind, loss="cross-entropy", **more,
    )  # fmt: skip


def _hugging_face(
    stem: str, head: str, *inputs: str, kind: str = "attention", **config: Any
) -> Case:
    workload = {key: config.pop(key) for key in ("optimizer", "optimizer_args") if key in config}
    args = {"model": f"{stem}{head}", "config": f"{stem}Config", **config}
    made = case(
        "transformers", _PUBLISHED, f"transformers_{stem}", "hugging_face", *inputs,
        args=args, kind=kind, **workload,
    )  # fmt: skip
    written_out = replace(made.workload, target=f"{__name__}:{without_padding.__name__}")
    return replace(made, written_out=written_out)


_TOKENS = ("input_ids=96:int64:0..6000", "labels=96:int64:0..6000")
_CLASSES = ("input_ids=96:int64:0..6000", "labels=:int64:0..2")
_PIXELS = ("pixel_values=3,224,224", "labels=:int64:0..2")
_SMALL = {"hidden_size": 320, "num_hidden_layers": 5, "num_attention_heads": 5, "vocab_size": 6000}
_LLAMA = {**_SMALL, "intermediate_size": 864, "num_key_value_heads": 5, "pad_token_id": 0}
_BERT = {**_SMALL, "intermediate_size": 1280}

CASES: tuple[Case, ...] = (
    _own("EncoderOnly", "150,40", kind="attention"),
    _own("Variational", "3072"),
    _own("Points", "1024,3", **_SGD),
    _own("Radiance", "6"),
    _own("Graph", "nodes=64,16", "edges=64,64", kind="attention"),
    _own("TwoTowers", "query=12:int64:0..20000", "document=80:int64:0..20000"),
    _own("Checkpointed", "ids=64:int64:0..1000", **_SGD),
    _hugging_face("GPTNeo", "ForCausalLM", *_TOKENS, hidden_size=320, num_layers=4, num_heads=5,
                  attention_types="[[['global', 'local'], 2]]", vocab_size=6000),
    _hugging_face("GPTJ", "ForCausalLM", *_TOKENS, n_embd=320, n_layer=4, n_head=5, rotary_dim=32,
                  vocab_size=6000),
    _hugging_face("Qwen3", "ForCausalLM", *_TOKENS, **_LLAMA, head_dim=64, **_SGD),
    _hugging_face("Olmo2", "ForCausalLM", *_TOKENS, **_LLAMA),
    _hugging_face("Phi3", "ForCausalLM", *_TOKENS, **_LLAMA),
    _hugging_face("StableLm", "ForCausalLM", *_TOKENS, **_LLAMA, **_SGD),
    _hugging_face("Granite", "ForCausalLM", *_TOKENS, **_LLAMA),
    _hugging_face("Cohere", "ForCausalLM", *_TOKENS, **_LLAMA),
    _hugging_face("Gemma2", "ForCausalLM", *_TOKENS, **_LLAMA, head_dim=64),
    _hugging_face("Starcoder2", "ForCausalLM", *_TOKENS, **_LLAMA, **_SGD),
    _hugging_face("Nystromformer", "ForSequenceClassification", *_CLASSES, **_BERT),
    _hugging_face("RoFormer", "ForSequenceClassification", *_CLASSES, **_BERT),
    _hugging_face("SqueezeBert", "ForSequenceClassification", *_CLASSES, **_BERT,
                  embedding_size=320, q_groups=5, k_groups=5, v_groups=5, post_attention_groups=1,
                  intermediate_groups=5, output_groups=5),
    _hugging_face("MegatronBert", "ForMaskedLM", *_TOKENS, **_BERT, **_SGD),
    _hugging_face("Ernie", "ForSequenceClassification", *_CLASSES, **_BERT),
    _hugging_face("RobertaPreLayerNorm", "ForSequenceClassification", *_CLASSES, **_BERT),
    _hugging_face("MBart", "ForConditionalGeneration", *_TOKENS, d_model=320, encoder_layers=3,
                  decoder_layers=3, encoder_attention_heads=5, decoder_attention_heads=5,
                  vocab_size=6000),
    _hugging_face("BlenderbotSmall", "ForConditionalGeneration", *_TOKENS, d_model=320,
                  encoder_layers=3, decoder_layers=3, encoder_attention_heads=5,
                  decoder_attention_heads=5, vocab_size=6000, **_SGD),
    _hugging_face("MT5", "ForConditionalGeneration", *_TOKENS, d_model=320, num_layers=3, num_heads=5,
                  d_kv=64, d_ff=864, vocab_size=6000, decoder_start_token_id=0),
    _hugging_face("DeiT", "ForImageClassification", *_PIXELS, hidden_size=320, num_hidden_layers=5,
                  num_attention_heads=5, intermediate_size=1280),
    _hugging_face("Swinv2", "ForImageClassification", *_PIXELS, embed_dim=48, depths="[2, 2, 2]",
                  num_heads="[3, 6, 12]"),
    _timm("vit_base_patch32_224", "attention"),
    _timm("deit3_small_patch16_224", "attention", **_SGD),
    _timm("eva02_tiny_patch14_224", "attention"),
    _timm("gmixer_24_224", "other"),
    _timm("tnt_s_legacy_patch16_224", "attention"),
    _timm("convit_tiny", "attention"),
    _timm("nest_tiny", "attention"),
    _timm("resnet34", **_SGD),
    _timm("resnet101d"),
    _timm("wide_resnet50_2", **_SGD),
    _timm("gernet_s"),
    _timm("densenet169"),
    _timm("vgg13_bn", **_SGD),
    _timm("inception_v4", side=299),
    _timm("cspdarknet53"),
    _timm("regnetx_004"),
    _own("GatedResidual", "1,4000", kind="convolutional"),
    _own("Upsampler", "3,64,64", kind="convolutional", loss="mean"),
    _own("Generator", "100", kind="convolutional", loss="mean"),
)  # fmt: skip
"""One of each, in the order of `precision_of`."""


def precision_of(index: int) -> str:
    """Return the precision of a case by its place: they take turns."""
    return _PRECISIONS[index % len(_PRECISIONS)]
