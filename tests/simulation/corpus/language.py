"""Language models: transformers of every make."""

from __future__ import annotations

import math
from functools import partial

import torch
from tests.simulation.corpus.case import case
from torch import nn
from torch.nn import functional as F  # noqa: N812


class GptBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.reduce = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).split(width, dim=2)
        q, k, v = (t.view(n, length, self.heads, -1).transpose(1, 2) for t in (q, k, v))
        dropout = 0.1 if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        x = x + self.drop(self.out(y.transpose(1, 2).contiguous().view(n, length, width)))
        hidden = F.gelu(self.expand(self.norm2(x)), approximate="tanh")
        return x + self.drop(self.reduce(hidden))


class Gpt(nn.Module):
    """A decoder with tied embeddings and its own loss (nanoGPT)."""

    def __init__(self, vocabulary: int = 8192, width: int = 256, depth: int = 3) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(256, width)
        self.blocks = nn.ModuleList(GptBlock(width, width // 64) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.token.weight

    def forward(self, ids: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        x = self.token(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        if labels is None:
            return logits
        return F.cross_entropy(logits.view(-1, logits.size(-1)), labels.view(-1), ignore_index=-1)


class Bert(nn.Module):
    """An encoder with a padding mask and softmax by hand."""

    def __init__(self, vocabulary: int = 4096, width: int = 256, depth: int = 2) -> None:
        super().__init__()
        self.word = nn.Embedding(vocabulary, width, padding_idx=0)
        self.place, self.segment = nn.Embedding(128, width), nn.Embedding(2, width)
        self.norm, self.heads = nn.LayerNorm(width, eps=1e-12), width // 64
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {name: nn.Linear(width, width) for name in ("q", "k", "v", "o")}
                | {"up": nn.Linear(width, 4 * width), "down": nn.Linear(4 * width, width)}
                | {"norm1": nn.LayerNorm(width), "norm2": nn.LayerNorm(width)}
            )
            for _ in range(depth)
        )
        self.pool, self.classify = nn.Linear(width, width), nn.Linear(width, 2)

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        n, length = ids.shape
        places = torch.arange(length, device=ids.device).expand(n, -1)
        x = self.word(ids) + self.place(places) + self.segment(torch.zeros_like(ids))
        x = F.dropout(self.norm(x), 0.1, self.training)
        bias = (1.0 - mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        for layer in self.layers:
            q, k, v = (
                layer[name](x).view(n, length, self.heads, -1).permute(0, 2, 1, 3) for name in "qkv"
            )
            scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.shape[-1]) + bias
            weights = F.dropout(F.softmax(scores, dim=-1), 0.1, self.training)
            y = torch.matmul(weights, v).permute(0, 2, 1, 3).contiguous().view(n, length, -1)
            x = layer["norm1"](x + F.dropout(layer["o"](y), 0.1, self.training))
            y = layer["down"](F.gelu(layer["up"](x)))
            x = layer["norm2"](x + F.dropout(y, 0.1, self.training))
        logits = self.classify(torch.tanh(self.pool(x[:, 0])))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class RmsNorm(nn.Module):
    """Root mean square normalisation as it is written in Llama: by hand, in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.to(torch.float32)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * y.to(x.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class LlamaBlock(nn.Module):
    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.size, self.repeat = width // heads, heads // groups
        self.norm1, self.norm2 = RmsNorm(width), RmsNorm(width)
        linear = partial(nn.Linear, bias=False)
        self.q, self.o = linear(width, width), linear(width, width)
        self.k, self.v = (linear(width, groups * self.size) for _ in range(2))
        self.gate, self.up = (linear(width, width * 8 // 3) for _ in range(2))
        self.down = linear(width * 8 // 3, width)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        n, length, width = x.shape
        h = self.norm1(x)
        q, k, v = (
            project(h).view(n, length, -1, self.size).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (t.repeat_interleave(self.repeat, dim=1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(n, length, width))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    """Rotary positions, grouped queries, gated MLPs; logits in float32."""

    def __init__(self, vocabulary: int = 8000, width: int = 384, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(LlamaBlock(width, 6, 2) for _ in range(depth))
        self.norm, self.head = RmsNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.register_buffer("frequency", 1 / 10000 ** (torch.arange(0, 64, 2) / 64), False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        places = torch.arange(ids.shape[1], device=ids.device)
        angles = places[:, None].float() * self.frequency[None]
        angles = torch.cat((angles, angles), -1)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for block in self.blocks:
            x = block(x, cos, sin)
        logits = self.head(self.norm(x)).float()
        shifted, labels = logits[:, :-1].contiguous(), ids[:, 1:].contiguous()
        return F.cross_entropy(shifted.view(-1, logits.shape[-1]), labels.view(-1))


class T5(nn.Module):
    """Encoder and decoder with buckets of relative positions."""

    def __init__(self, vocabulary: int = 4096, width: int = 256, heads: int = 4) -> None:
        super().__init__()
        self.embed, self.heads = nn.Embedding(vocabulary, width), heads
        linear = partial(nn.Linear, width, width, bias=False)
        self.encode, self.decode, self.cross = (
            nn.ModuleList(linear() for _ in range(4)) for _ in range(3)
        )
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(4))
        self.bias = nn.Embedding(32, heads)

    def _bias(self, length: int, device: torch.device) -> torch.Tensor:
        places = torch.arange(length, device=device)
        distance = (places[None] - places[:, None]).abs()
        large = 8 + (torch.log(distance.float() / 8 + 1e-6) / math.log(16) * 8).to(torch.long)
        bucket = torch.where(distance < 8, distance, large.clamp(max=31, min=0))
        return self.bias(bucket).permute(2, 0, 1).unsqueeze(0)

    def _attend(
        self, layers: nn.ModuleList, x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        q, k, v = (
            layer(source).view(source.shape[0], source.shape[1], self.heads, -1).transpose(1, 2)
            for layer, source in zip(layers[:3], (x, y, y), strict=True)
        )
        scores = torch.matmul(q, k.transpose(3, 2))
        if bias is not None:
            scores += bias
        weights = F.softmax(scores.float(), dim=-1).type_as(scores)
        h = torch.matmul(F.dropout(weights, 0.1, self.training), v)
        return layers[3](h.transpose(1, 2).contiguous().flatten(2))

    def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x, y = self.embed(ids), self.embed(labels)
        x = x + self._attend(self.encode, self.norms[0](x), x, self._bias(ids.shape[1], x.device))
        length = y.shape[1]
        causal = torch.full((length, length), float("-inf"), device=y.device).triu(1)
        y = y + self._attend(
            self.decode, self.norms[1](y), y, self._bias(length, y.device) + causal
        )
        y = self.norms[3](y + self._attend(self.cross, self.norms[2](y), x, None))
        logits = F.linear(y * y.shape[-1] ** -0.5, self.embed.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1))


class Encoder(nn.Module):
    """The encoder of torch.nn."""

    def __init__(self, vocabulary: int = 2000, width: int = 128, depth: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        layer = nn.TransformerEncoderLayer(width, 4, 256, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, depth)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.layers(self.embedding(ids))


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention` alone."""

    def __init__(self, vocabulary: int = 2000, width: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        return self.attention(x, x, x, need_weights=False)[0]


class TorchTransformer(nn.Module):
    """torch's own encoder layers and their masks."""

    def __init__(self, width: int = 256, norm_first: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(2000, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 512, batch_first=True, norm_first=norm_first, activation="gelu"
        )
        self.encode = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 2000)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1], device=ids.device)
        return self.head(self.encode(self.embed(ids), mask=mask, is_causal=True))


class Experts(nn.Module):
    """A mixture of experts: a router sends every token to two of four MLPs."""

    def __init__(self, width: int = 256, experts: int = 4) -> None:
        super().__init__()
        self.embed, self.router = nn.Embedding(1000, width), nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 512), nn.SiLU(), nn.Linear(512, width))
            for _ in range(experts)
        )
        self.head = nn.Linear(width, 1000)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids).flatten(0, 1)
        weights, chosen = self.router(x).softmax(-1).topk(2, -1)
        y = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == index)
            y.index_add_(0, token, (expert(x[token]) * weights[token, slot, None]).to(y.dtype))
        return self.head(x + y)


class DenseExperts(Experts):
    """Every expert sees every token: no branch on values."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids).flatten(0, 1)
        weights = self.router(x).softmax(-1)
        y = torch.stack([expert(x) for expert in self.experts], 1)
        return self.head(torch.einsum("te,tew->tw", weights, y.to(weights.dtype)))


class StateSpace(nn.Module):
    """A gated linear recurrence as a scan in time (Mamba, unrolled)."""

    def __init__(self, width: int = 128, states: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, width)
        self.project, self.gates = nn.Linear(width, 2 * width), nn.Linear(width, 2 * states + width)
        self.conv = nn.Conv1d(width, width, 4, padding=3, groups=width)
        self.log_a = nn.Parameter(torch.zeros(width, states))
        self.head, self.states = nn.Linear(width, 1000), states

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x, z = self.project(self.embed(ids)).chunk(2, -1)
        x = F.silu(self.conv(x.transpose(1, 2))[..., : ids.shape[1]].transpose(1, 2))
        step, b, c = self.gates(x).split([x.shape[-1], self.states, self.states], -1)
        step = F.softplus(step)
        decay = torch.exp(step.unsqueeze(-1) * -torch.exp(self.log_a))
        drive = (step * x).unsqueeze(-1) * b.unsqueeze(2)
        state, outputs = torch.zeros_like(drive[:, 0]), []
        for time in range(ids.shape[1]):
            state = decay[:, time] * state + drive[:, time]
            outputs.append((state * c[:, time].unsqueeze(1)).sum(-1))
        return self.head(torch.stack(outputs, 1) * F.silu(z))


class LinearAttention(nn.Module):
    """Attention through cumulative sums and einsum."""

    def __init__(self, width: int = 128, heads: int = 4) -> None:
        super().__init__()
        self.embed, self.heads = nn.Embedding(1000, width), heads
        self.qkv, self.head = nn.Linear(width, 3 * width), nn.Linear(width, 1000)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        n, length, _ = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, -1).unbind(2)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        memory = torch.einsum("nlhd,nlhe->nlhde", k, v).cumsum(1)
        norm = torch.einsum("nlhd,nlhd->nlh", q, k.cumsum(1)).unsqueeze(-1)
        y = torch.einsum("nlhd,nlhde->nlhe", q, memory.to(q.dtype)) / (norm + 1e-6)
        return self.head(y.flatten(2))


class TextCnn(nn.Module):
    """Convolutions over words, and the largest over time."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10000, 128, padding_idx=0)
        self.convolutions = nn.ModuleList(nn.Conv1d(128, 100, size) for size in (3, 4, 5))
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(300, 4))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids).transpose(1, 2)
        pooled = [F.relu(conv(x)).max(dim=2).values for conv in self.convolutions]
        return self.head(torch.cat(pooled, 1))


_case = partial(case, "language", __name__, kind="attention")
_ids = "ids=128:int64:0..1000"

CASES = (
    _case("gpt", "Gpt", _ids, "labels=128:int64:0..1000", batch_sizes=(4, 16)),
    _case("gpt_logits", "Gpt", _ids, loss="cross-entropy", optimizer="sgd"),
    _case("bert", "Bert", _ids, "mask=128:int64:1..2", "labels=:int64:0..2", batch_sizes=(8,)),
    _case("llama", "Llama", "ids=200:int64:0..8000", precisions=("fp32", "amp-bf16", "bf16")),
    _case("t5", "T5", "ids=64:int64:0..4096", "labels=48:int64:0..4096"),
    _case("torch_transformer", "TorchTransformer", "ids=96:int64:0..2000", loss="cross-entropy"),
    _case(
        "torch_transformer_norm_first",
        "TorchTransformer",
        "ids=50:int64:0..2000",
        args={"norm_first": True},
        precisions=("fp32",),
    ),
    _case("experts", "Experts", "ids=64:int64:0..1000", branches_on_values=True),
    _case("dense_experts", "DenseExperts", "ids=64:int64:0..1000"),
    _case("state_space", "StateSpace", "ids=24:int64:0..1000", precisions=("fp32", "amp-bf16")),
    _case("linear_attention", "LinearAttention", "ids=40:int64:0..1000", loss="cross-entropy"),
    _case(
        "text_cnn",
        "TextCnn",
        "ids=64:int64:0..10000",
        loss="cross-entropy",
        kind="convolutional",
        batch_sizes=(64,),
    ),
    _case("gpt_inference", "Gpt", _ids, mode="infer", precisions=("fp32", "bf16")),
    # In evaluation, the layers of torch.nn take their fast path: one native operator.
    _case("encoder_inference", "Encoder", "ids=96:int64:0..2000", mode="infer"),
    _case("attention_inference", "SelfAttention", "ids=96:int64:0..2000", mode="infer"),
)
